"""LeRobot's batches in our words: pictures as cameras give them, raw states and actions, one instruction a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...configuration.embodiment import Embodiment
from ...training.data.lerobot_layout import ACTION, IMAGE_PREFIX, STATE
from ..policy import Observation

PADDING, TASK = "action_is_pad", "task"


def camera_of(key: str) -> str:
    """The camera's name of a picture's key: `observation.images.front` is `front`, `observation.image` is `image`."""
    return key.removeprefix(IMAGE_PREFIX).removeprefix("observation.")


def observations_of(batch: Mapping[str, Any], body: Embodiment, *, language: bool = True) -> list[Observation]:
    """One observation a row: state (S,), pictures (h, w, 3) uint8 of the body's cameras, and the instruction.

    Raises:
        ValueError: no state or action, no camera of the body's, or (with `language`) no instruction.
    """
    states = _array(_required(batch, STATE))
    cameras = {camera_of(key): frames_of(value) for key, value in batch.items() if key.startswith("observation.image")}
    seen = {name: frames for name, frames in cameras.items() if name in body.cameras}
    if not seen:
        raise ValueError(
            f"embodiment {body.name!r} has the cameras {', '.join(body.cameras) or 'none'}, the batch has "
            f"{', '.join(cameras) or 'none'}: rename them with --rename_map"
        )
    rows: list[Observation] = []
    texts = _instructions(batch, len(states)) if language else [""] * len(states)
    for row, (state, text) in enumerate(zip(states, texts, strict=True)):
        pictures = {name: seen[name][row] if name in seen else None for name in body.cameras}  # None: masked
        rows.append({"state": state, "images": pictures, "instruction": text})
    return rows


def chunks_of(batch: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Raw actions (B, H, D) and which of their steps are real (B, H)."""
    actions = _array(_required(batch, ACTION))
    if actions.ndim != 3:
        raise ValueError(f"{ACTION} has shape {actions.shape}, expected (batch, steps, dims)")
    padding = batch.get(PADDING)
    return actions, np.ones(actions.shape[:2], bool) if padding is None else ~_array(padding).astype(bool)


def frames_of(images: Tensor) -> NDArray[np.uint8]:
    """Pictures (B, 3, h, w), float from 0 to 1 as LeRobot has them or uint8, as (B, h, w, 3) uint8.

    Raises ValueError on another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures have shape {tuple(images.shape)}, expected (batch, 3, height, width)")
    images = images.detach()
    if images.dtype != torch.uint8:
        images = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def _instructions(batch: Mapping[str, Any], count: int) -> list[str]:
    task: str | Sequence[str] = _required(batch, TASK)
    texts = [task] * count if isinstance(task, str) else list(task)
    if len(texts) != count:
        raise ValueError(f"{TASK} has {len(texts)} sentences for {count} rows")
    return texts


def _required(batch: Mapping[str, Any], key: str) -> Any:
    if batch.get(key) is None:
        raise ValueError(f"the batch has no {key!r}, it has: {', '.join(sorted(batch))}")
    return batch[key]


def _array(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


__all__ = ["camera_of", "chunks_of", "frames_of", "observations_of"]
