"""A frozen backbone's features on disk, so that a frame is encoded once and a training step costs no backbone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ...modeling_priorvla.backbone import DualEncoderBackbone
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .trajectory import TrajectorySource

KEY_FILE, FEATURES_FILE, DONE_FILE = "key.json", "vision_features.bin", "done.bin"


class FeatureCache:
    """Vision features of one dataset, one entry (cameras, tokens, width) a step, memory-mapped.

    The folder's name is the hash of everything that the features depend on: backbone weights and dtype, image
    preprocessing, dataset content, cameras. So another backbone or a changed dataset finds another folder, and never
    old features. Encoding can be interrupted at any time and goes on where it stopped; only steps that are asked for
    take disk space.

    Args:
        root: folder that holds caches.
        source: the dataset, loaded with frames.
        backbone, processor: what encodes, and what prepares images for it.

    Cameras and their order are those of the processor's embodiment, as at inference; the dataset's others are not
    read.

    Raises ValueError when the backbone was built in memory (without a file there is no hash to keep features under), or
    when the dataset was loaded without frames or lacks a camera.
    """

    def __init__(
        self,
        root: str | Path,
        source: TrajectorySource,
        backbone: DualEncoderBackbone,
        processor: PriorVLAProcessor,
    ) -> None:
        if backbone.sha256 is None:
            raise ValueError(
                "features of a backbone built in memory cannot be cached: save it and load it from its folder"
            )
        self.source, self.backbone, self.processor = source, backbone, processor
        self.dtype = backbone.dtype
        self.cameras = _required_cameras(source, processor)
        self.entry_shape = (len(self.cameras), backbone.tokens_per_image, backbone.vision_hidden_size)
        self.key = {
            "backbone_sha256": backbone.sha256,
            "dtype": str(self.dtype),
            "preprocessing": json.loads(processor.image_processor.to_json_string()),
            "dataset": source.fingerprint,
            "episodes": [trajectory.episode_index for trajectory in source.trajectories],
            "cameras": self.cameras,
            "entry_shape": list(self.entry_shape),
        }
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / name
        lengths = np.array([len(trajectory) for trajectory in source.trajectories])
        self._first = np.cumsum(lengths) - lengths
        self._total = int(lengths.sum())
        self._features: Tensor | None = None

    @property
    def bytes_per_step(self) -> int:
        return int(np.prod(self.entry_shape)) * torch.empty((), dtype=self.dtype).element_size()

    def entry(self, trajectory: Tensor, step: Tensor) -> Tensor:
        """Index of the entry of `step` of the trajectory at position `trajectory`, both (B,)."""
        return torch.from_numpy(self._first)[trajectory] + step

    def missing(self, entries: Tensor) -> Tensor:
        """Those of `entries` that are not encoded yet, sorted and without repeats."""
        wanted = entries.unique()
        if not (self.folder / DONE_FILE).is_file():
            return wanted
        return wanted[torch.from_numpy(np.asarray(self._done())[wanted.numpy()] == 0)]

    def encode(self, entries: Tensor, batch_size: int = 32) -> None:
        """Encodes the missing ones of `entries`; frames are read, prepared and encoded `batch_size` at a time.

        Raises OSError naming the sizes when the disk has no room for them.
        """
        todo = self.missing(entries)
        if not len(todo):
            return
        self._create(len(todo))
        done, features = self._done(), self._open()
        with tqdm(total=len(todo), desc="encoding frames", unit="frame") as progress:
            for part in todo.split(batch_size):
                features[part] = self._encode(part)
                done[part.numpy()] = 1  # after the features: an interruption in between encodes them again
                progress.update(len(part))
        done.flush()

    def __getitem__(self, entries: Tensor) -> Tensor:
        """Features (B, cameras, tokens, width) of `entries` (B,)."""
        if self._features is None:
            self._features = self._open()
        return self._features[entries]

    @torch.no_grad()
    def _encode(self, entries: Tensor) -> Tensor:
        trajectory = np.searchsorted(self._first, entries.numpy(), side="right") - 1
        step = entries.numpy() - self._first[trajectory]
        images: list[dict[str, NDArray[np.uint8]]] = [{} for _ in entries]
        for owner in np.unique(trajectory):
            rows = np.flatnonzero(trajectory == owner)
            frames = self.source.trajectories[owner].frames
            assert frames is not None  # _required_cameras has seen them
            for camera in self.cameras:
                for row, image in zip(rows, frames.read(camera, step[rows].tolist()), strict=True):
                    images[row][camera] = image
        inputs = self.processor(embodiment=self.source.embodiment.name, images=images)
        cameras = self.entry_shape[0]
        device = next(self.backbone.parameters()).device
        pixels, present = (inputs[key][:, :cameras].to(device) for key in ("pixel_values", "pixel_attention_mask"))
        vision = self.backbone.encode_vision(pixels, present)
        return vision.hidden_states.reshape(-1, *self.entry_shape).cpu()

    def _create(self, needed: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free, required = shutil.disk_usage(self.folder).free, needed * self.bytes_per_step
        if required > free:
            raise OSError(
                f"{self.folder}: {needed} frames need {required / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free: "
                "encode fewer frames (a larger frame stride) or use another cache folder"
            )
        (self.folder / KEY_FILE).write_text(json.dumps(self.key, indent=2) + "\n", encoding="utf-8")
        for name, size in ((FEATURES_FILE, self._total * self.bytes_per_step), (DONE_FILE, self._total)):
            with (self.folder / name).open("ab") as file:
                file.truncate(size)  # sparse: blocks are taken when they are written

    def _open(self) -> Tensor:
        shape = (self._total, *self.entry_shape)
        file = str(self.folder / FEATURES_FILE)
        return torch.from_file(file, shared=True, size=int(np.prod(shape)), dtype=self.dtype).view(shape)

    def _done(self) -> Any:
        return np.memmap(self.folder / DONE_FILE, dtype=np.uint8, mode="r+", shape=(self._total,))


def _required_cameras(source: TrajectorySource, processor: PriorVLAProcessor) -> list[str]:
    """The cameras of the processor's embodiment, when every trajectory of `source` has frames of each."""
    cameras = processor.embodiment(source.embodiment.name).cameras
    if not cameras:
        raise ValueError(
            f"{source.root}: embodiment {source.embodiment.name!r} has no cameras in the checkpoint, so that there is "
            "nothing to see with: name them in its `cameras`"
        )
    for trajectory in source.trajectories:
        if trajectory.frames is None:
            raise ValueError(f"{source.root} was loaded without frames: use load_trajectories(..., frames=True)")
        if missing := [camera for camera in cameras if camera not in trajectory.frames.cameras]:
            raise ValueError(
                f"{trajectory.source}: episode {trajectory.episode_index} has no camera {missing[0]!r}, which "
                f"embodiment {source.embodiment.name!r} needs; it has {', '.join(trajectory.frames.cameras) or 'none'}"
            )
    return list(cameras)


def encode_instructions(
    texts: Sequence[str], backbone: DualEncoderBackbone, processor: PriorVLAProcessor
) -> tuple[Tensor, Tensor]:
    """Language features (N, L, width) and their mask (N, L) of N instructions; few, so they stay in memory.

    L is the longest instruction's length: padding that all of them share is cut off.
    """
    inputs = processor(embodiment=processor.embodiments[0].name, text=list(texts))
    device = next(backbone.parameters()).device
    with torch.no_grad():
        language = backbone.encode_language(None, *(inputs[key].to(device) for key in ("input_ids", "attention_mask")))
    longest = int(language.mask.any(dim=0).nonzero().max()) + 1
    return language.hidden_states[:, :longest].cpu(), language.mask[:, :longest].cpu()


__all__ = ["FeatureCache", "encode_instructions"]
