"""A frozen backbone's features on disk, so that a frame is encoded once and a training step costs no backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...modeling_priorvla.backbone_features import Backbone
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .feature_files import FeatureFile, LayeredFeatures
from .instructions import Instructions
from .observation_images import ObservationImages
from .trajectory import TrajectorySource


class FeatureCache:
    """Features of one dataset's steps: `vision`, and with it `language` where a text is read after the image.

    What features depend on is their key: the backbone's fingerprint and dtype, the tap, image preprocessing, dataset
    content, episodes, cameras; for language also the tokens of the instructions. See `FeatureFile` for what that
    guarantees. Every tap has a file of its own, which caches of other taps share.

    Args:
        root: folder that holds caches.
        source: the dataset, loaded with frames.
        backbone, processor: what encodes, and what prepares images for it.
        taps: layers whose states are kept, ascending.
        instructions: of the source's trajectories, for a backbone that reads them after the image; otherwise unused.

    Attributes:
        vision: entries (T, C, P, d_v), T = `len(taps)`; cameras in the order of the processor's embodiment.
        language: entries (T, L, d_t), or None. A step has one instruction, its trajectory's.
        first_entry: (N,), the entry of every trajectory's first step; its other steps follow.

    Raises:
        ValueError: when the backbone was built in memory (without a file there is no hash to keep features under), is
            or was trained, or holds an adapter, a tap is not one of its layers, the dataset was loaded without frames
            or lacks a camera, or what lies in the cache's folder is not what its name promises.
    """

    def __init__(
        self,
        root: str | Path,
        source: TrajectorySource,
        backbone: Backbone,
        processor: PriorVLAProcessor,
        taps: Sequence[int],
        instructions: Instructions | None = None,
    ) -> None:
        if backbone.fingerprint is None:
            raise ValueError(
                "features of a backbone built in memory cannot be cached: save it and load it from its folder"
            )
        if backbone.changes or any(parameter.requires_grad for parameter in backbone.parameters()):
            raise ValueError(
                "features of a backbone that is being trained change with every step, and of one that was, or holds an "
                "adapter, they are not those of its file: show it images, with a LiveObservationDataset"
            )
        self.root, self.taps = Path(root), backbone.require_taps(tuple(taps))
        self._backbone, self._instructions = backbone, instructions
        self._images = ObservationImages([source], processor)
        cameras = processor.embodiment(source.embodiment.name).cameras
        lengths = torch.tensor([len(trajectory) for trajectory in source.trajectories], dtype=torch.long)
        self.first_entry = lengths.cumsum(0) - lengths
        key: dict[str, Any] = {
            "backbone": backbone.fingerprint,
            "preprocessing": json.loads(processor.image_processor.to_json_string()),
            "dataset": source.fingerprint,
            "episodes": [trajectory.episode_index for trajectory in source.trajectories],
            "cameras": cameras,
        }
        steps = int(lengths.sum())

        def files(kind: str, key: dict[str, Any], shape: tuple[int, ...]) -> LayeredFeatures:
            own = [FeatureFile(root, kind, key | {"tap": tap}, steps, shape, backbone.dtype) for tap in self.taps]
            return LayeredFeatures(own)

        self.vision = files("vision", key, (len(cameras), backbone.tokens_per_image, backbone.vision_hidden_size))
        self.language: LayeredFeatures | None = None
        if instructions is not None and backbone.language_reads_vision:
            text = (instructions.input_ids.shape[1], backbone.text_hidden_size)
            self.language = files("language", key | instructions.key(), text)
        self._files = [file for own in (self.vision, self.language) if own is not None for file in own.files]

    @property
    def bytes_per_step(self) -> int:
        return sum(file.bytes_per_entry for file in self._files)

    def missing(self, entries: Tensor) -> Tensor:
        """Those of `entries` that are not encoded yet, sorted and without repeats."""
        return torch.cat([file.missing(entries) for file in self._files]).unique()

    def encode(self, entries: Tensor, batch_size: int = 32, rank: int = 0, processes: int = 1) -> None:
        """Encodes the missing ones of `entries`; frames are read, prepared and encoded `batch_size` at a time.

        Of several `processes` that are given the same entries each encodes a share, frames that follow each other.
        Raises OSError naming the sizes when the disk has no room for what all of them are to write.
        """
        todo = self.missing(entries.unique().tensor_split(processes)[rank])
        if not len(todo):
            return
        self._require_room(entries)
        for file in self._files:
            file.create()
        with tqdm(total=len(todo), desc="encoding frames", unit="frame", disable=rank > 0) as progress:
            for part in todo.split(batch_size):
                self._encode(part)
                progress.update(len(part))

    @torch.no_grad()
    def _encode(self, entries: Tensor) -> None:
        """Language continues from vision, so that both are encoded even where only one is missing."""
        trajectory = torch.searchsorted(self.first_entry, entries, right=True) - 1
        images = self._images.prepared(trajectory, entries - self.first_entry[trajectory])
        device = next(self._backbone.parameters()).device
        pixels, present = images["pixel_values"].to(device), images["pixel_attention_mask"].to(device)
        vision = self._backbone.encode_vision(pixels, present, self.taps)
        if self.language is not None and self._instructions is not None:
            text = self._instructions.text_of[trajectory]
            ids, mask = self._instructions.input_ids[text], self._instructions.attention_mask[text]
            language = self._backbone.encode_language(vision, ids.to(device), mask.to(device), self.taps)
            self.language.write(entries, language.hidden_states.cpu())
        self.vision.write(entries, vision.hidden_states.reshape(-1, *self.vision.entry_shape).cpu())

    def _require_room(self, entries: Tensor) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        missing = [(len(file.missing(entries)), file.bytes_per_entry) for file in self._files]
        frames, required = max(missing)[0], sum(count * size for count, size in missing)
        free = shutil.disk_usage(self.root).free
        if required > free:
            raise OSError(
                f"{self.root}: {frames} frames need {required / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free: "
                "encode fewer frames (a larger frame stride) or use another cache folder"
            )


__all__ = ["FeatureCache"]
