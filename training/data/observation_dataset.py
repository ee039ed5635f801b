"""Windows of motion beside what was seen and said at their first step, as cached backbone features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...modeling_priorvla.backbone import DualEncoderBackbone
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .feature_cache import FeatureCache, encode_instructions
from .trajectory import TrajectorySource
from .trajectory_dataset import TrajectoryDataset


class ObservationDataset(Dataset):
    """`windows` and, for each, `vision_hidden_states` (B, C, P, d), `vision_mask` (B, C, P), `language_hidden_states`
    (B, L, d) and `language_mask` (B, L). Every frame that a window starts at is encoded once, here.

    Args:
        windows: over `sources`, in this order.
        sources: loaded with frames.
        backbone, processor: see `FeatureCache`.
        cache_dir: where features are kept.
        max_cache_gb: more is refused before anything is encoded.

    Raises:
        ValueError: when the features would take more than `max_cache_gb`, naming the size.
    """

    def __init__(
        self,
        windows: TrajectoryDataset,
        sources: Sequence[TrajectorySource],
        backbone: DualEncoderBackbone,
        processor: PriorVLAProcessor,
        cache_dir: str | Path,
        max_cache_gb: float = 20.0,
    ) -> None:
        self.windows = windows
        self.caches = [FeatureCache(cache_dir, source, backbone, processor) for source in sources]
        self.num_cameras = max(cache.entry_shape[0] for cache in self.caches)
        counts = torch.tensor([len(source) for source in sources])
        self._owner = torch.repeat_interleave(torch.arange(len(sources)), counts)
        self._first = torch.cumsum(counts, 0) - counts
        self._prepare(max_cache_gb)
        tasks = [trajectory.task for source in sources for trajectory in source.trajectories]
        texts = {task: index for index, task in enumerate(sorted(set(tasks)))}
        self._text_of = torch.tensor([texts[task] for task in tasks])
        self._language, self._language_mask = encode_instructions(list(texts), backbone, processor)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the windows `indices`."""
        batch = self.windows.__getitems__(indices)
        trajectory, step = self.windows.frame_of(indices)
        text = self._text_of[trajectory]
        vision, mask = self._vision(trajectory, step)
        return {
            **batch,
            "vision_hidden_states": vision,
            "vision_mask": mask,
            "language_hidden_states": self._language[text],
            "language_mask": self._language_mask[text],
        }

    def _vision(self, trajectory: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        owner = self._owner[trajectory]
        tokens, width = self.caches[0].entry_shape[1:]
        features = torch.zeros(len(step), self.num_cameras, tokens, width, dtype=self.caches[0].dtype)
        mask = torch.zeros(len(step), self.num_cameras, tokens, dtype=torch.bool)
        for index in owner.unique().tolist():
            rows, cache = (owner == index).nonzero().squeeze(-1), self.caches[index]
            cameras = cache.entry_shape[0]
            entries = cache.entry(trajectory[rows] - self._first[index], step[rows])
            features[rows, :cameras] = cache[entries]
            mask[rows, :cameras] = True
        return features, mask

    def _prepare(self, max_cache_gb: float) -> None:
        trajectory, step = self.windows.frame_of(range(len(self.windows)))
        owner = self._owner[trajectory]
        wanted: list[tuple[FeatureCache, Any]] = []
        for index, cache in enumerate(self.caches):
            rows = owner == index
            wanted.append((cache, cache.entry(trajectory[rows] - self._first[index], step[rows])))
        size = sum(len(entries.unique()) * cache.bytes_per_step for cache, entries in wanted) / 1e9
        print(f"feature cache: {size:.3f} GB in {self.caches[0].folder.parent}")
        if size > max_cache_gb:
            raise ValueError(
                f"the feature cache would take {size:.1f} GB, more than --max-cache-gb {max_cache_gb:g}: raise that, "
                "or use fewer frames with a larger --frame-stride"
            )
        for cache, entries in wanted:
            cache.encode(entries)


__all__ = ["ObservationDataset"]
