"""Windows of motion beside what was seen and said at their first step, as cached backbone features."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

from ...modeling_priorvla.backbone_features import Backbone
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .feature_cache import FeatureCache
from .feature_files import LayeredFeatures
from .instructions import Instructions, encode_instructions
from .observation_images import require_same_trajectories
from .trajectory import TrajectorySource
from .trajectory_dataset import TrajectoryDataset


class ObservationDataset(Dataset):
    """`windows` and, for each, `vision_hidden_states` (B, T, C, P, d_v), `vision_mask` (B, C, P),
    `language_hidden_states` (B, T, L, d_t) and `language_mask` (B, L), in the backbone's dtype.

    Every frame that a window starts at is encoded once, here; afterwards the backbone is not needed. The T of language
    is 1 where its features do not depend on the image: those are few and stay in memory.

    Of several processes (an initialised `torch.distributed`) all must make the dataset: each encodes a share, and waits
    for the others'. When one fails, the others' waiting ends with the process group or after its timeout.

    Args:
        windows: over `sources`, in this order.
        sources: loaded with frames.
        backbone, processor, taps: see `FeatureCache`.
        cache_dir: where features are kept.
        max_cache_gb: more is refused before anything is encoded.
        language: false leaves words out, and nothing of them is read.

    Raises:
        ValueError: when the features would take more than `max_cache_gb`, naming the size, when `windows` were made
            from other sources, and as `FeatureCache`.
    """

    def __init__(
        self,
        windows: TrajectoryDataset,
        sources: Sequence[TrajectorySource],
        backbone: Backbone,
        processor: PriorVLAProcessor,
        cache_dir: str | Path,
        max_cache_gb: float = 20.0,
        *,
        taps: Sequence[int],
        language: bool = True,
    ) -> None:
        require_same_trajectories(windows, sources)
        self.windows, self.taps = windows, tuple(taps)
        counts = torch.tensor([len(source) for source in sources])
        self._source_of = torch.repeat_interleave(torch.arange(len(sources)), counts)
        self._instructions = Instructions.of_sources(sources, processor) if language else None
        parts = [None] * len(sources) if self._instructions is None else self._instructions.split(counts.tolist())
        caches = [
            FeatureCache(cache_dir, source, backbone, processor, taps, part)
            for source, part in zip(sources, parts, strict=True)
        ]
        self._first_entry = torch.cat([cache.first_entry for cache in caches])
        self._encode(caches, max_cache_gb)
        self._vision = [cache.vision for cache in caches]
        self._num_cameras = torch.tensor([file.entry_shape[1] for file in self._vision])
        self._vision_shape = max(file.entry_shape for file in self._vision)  # they differ in cameras alone
        self._language = [cache.language for cache in caches if cache.language is not None]
        self._texts: Tensor | None = None
        if self._instructions is not None and not backbone.language_reads_vision:
            self._texts = encode_instructions(self._instructions, backbone)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the windows `indices`."""
        trajectory, step = self.windows.frame_of(indices)
        source, entry = self._source_of[trajectory], self._first_entry[trajectory] + step
        vision = _gathered(self._vision, source, entry, self._vision_shape)
        cameras, tokens = self._vision_shape[1:3]
        mask = torch.arange(cameras) < self._num_cameras[source, None]
        batch = {
            **self.windows.__getitems__(indices),
            "vision_hidden_states": vision,
            "vision_mask": mask[:, :, None].repeat(1, 1, tokens),
        }
        if self._instructions is not None:
            text = self._instructions.text_of[trajectory]
            batch["language_mask"] = self._instructions.attention_mask[text].bool()
            if self._texts is not None:
                batch["language_hidden_states"] = self._texts[text]
            else:
                batch["language_hidden_states"] = _gathered(
                    self._language, source, entry, self._language[0].entry_shape
                )
        return batch

    def _encode(self, caches: Sequence[FeatureCache], max_cache_gb: float) -> None:
        trajectory, step = self.windows.frame_of(range(len(self.windows)))
        source, entry = self._source_of[trajectory], self._first_entry[trajectory] + step
        wanted = [entry[source == index].unique() for index in range(len(caches))]
        size = sum(len(own) * cache.bytes_per_step for own, cache in zip(wanted, caches, strict=True)) / 1e9
        rank, processes = _place_among_processes()
        if rank == 0:
            print(f"feature cache: {size:.3f} GB in {caches[0].root}", file=sys.stderr)
        if size > max_cache_gb:
            raise ValueError(
                f"the feature cache would take {size:.1f} GB, more than --max-cache-gb {max_cache_gb:g}: raise that, "
                "or use fewer frames with a larger --frame-stride"
            )
        for own, cache in zip(wanted, caches, strict=True):
            cache.encode(own, rank=rank, processes=processes)
            if processes > 1:
                dist.barrier()
                cache.encode(own)  # what is missing even now: another machine has it on a disk of its own


def _place_among_processes() -> tuple[int, int]:
    """Which one of how many processes this is."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _gathered(files: Sequence[LayeredFeatures], source: Tensor, entry: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The entries `entry` of the files at `source`, both (B,), as (B, *shape); cameras that a body lacks are zero."""
    owners = source.unique().tolist()
    if len(owners) == 1 and files[owners[0]].entry_shape == shape:
        return files[owners[0]][entry]
    values = torch.zeros(len(entry), *shape, dtype=files[0].dtype)
    for owner in owners:
        rows = (source == owner).nonzero().squeeze(-1)
        own = files[owner][entry[rows]]
        values[rows, :, : own.shape[2]] = own
    return values


__all__ = ["ObservationDataset"]
