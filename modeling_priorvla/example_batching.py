"""Single examples and lists of them, of different lengths and widths, into padded batch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor


def split_examples(value: ArrayLike | None, ndim: int, name: str) -> list[NDArray[Any]] | None:
    """A list with one array of `ndim` dimensions an example, of one such array or of several in a list or an array.

    None stays None. Raises ValueError naming the argument and its shape when neither fits.
    """
    if value is None:
        return None
    is_list = isinstance(value, list | tuple) and len(value) > 0 and np.ndim(value[0]) == ndim
    arrays = (
        [np.asarray(item) for item in cast("Sequence[Any]", value)]
        if is_list
        else _split_array(np.asarray(value), ndim)
    )
    if not arrays or any(array.ndim != ndim for array in arrays):
        got = [array.shape for array in arrays] if is_list else np.shape(value)
        raise ValueError(f"{name} has shape {got}, expected {ndim} dimensions an example, or a list of such examples")
    return arrays


def split_masks(action_mask: ArrayLike | None, actions: ArrayLike | None) -> list[NDArray[np.bool_]] | None:
    """One (h,) or (h, D_e) mask an example; whether `action_mask` is one or many is as with `actions`."""
    if action_mask is None:
        return None
    if actions is None:
        raise ValueError("action_mask was given without actions: pass the actions it belongs to")
    several = np.ndim(actions[0]) == 2 if isinstance(actions, list | tuple) else np.ndim(actions) == 3
    masks: Any = action_mask if several else [action_mask]
    return [np.asarray(mask, dtype=bool) for mask in masks]


def step_mask(mask: NDArray[np.bool_], steps: int, dims: int, where: str) -> NDArray[np.bool_]:
    """A mask of steps (h,) or of every dimension (h, D_e) as (h, D_e). Raises ValueError on another shape."""
    if mask.shape not in ((steps,), (steps, dims)):
        raise ValueError(f"{where}: action_mask has shape {mask.shape}, expected ({steps},) or ({steps}, {dims})")
    return np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], (steps, dims))


def common_length(parts: Mapping[str, Sequence[Any]]) -> int:
    """How many examples all parts have; 1 without parts. Raises ValueError when they differ or there are none."""
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arguments have different numbers of examples: {listed(lengths)}")
    if 0 in lengths.values():
        raise ValueError(f"the batch is empty: {listed(lengths)}")
    return next(iter(lengths.values()), 1)


def require_equal_steps(lengths: Mapping[str, int], where: str) -> None:
    """Raises ValueError naming every part's number of steps when they are not all the same."""
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: steps differ: {listed(lengths)}")


def padded(rows: Sequence[NDArray[Any]], shape: tuple[int, ...], *, at_start: bool = False) -> Tensor:
    """Arrays that fit into `shape` as a tensor (B, *shape), zero (False) elsewhere.

    `at_start` puts the padding of the first dimension before the values instead of behind them.
    """
    batch = np.zeros((len(rows), *shape), dtype=rows[0].dtype)
    for row, values in enumerate(rows):
        first = shape[0] - len(values) if at_start else 0
        inside = (slice(first, first + len(values)), *(slice(0, size) for size in values.shape[1:]))
        batch[row][inside] = values
    return torch.from_numpy(batch)


def camera_frame(image: Any, where: str) -> NDArray[np.uint8]:
    """A camera's image as uint8 (height, width, 3). Raises TypeError or ValueError naming `where` on anything else."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise TypeError(f"{where}: image has dtype {array.dtype}, pass uint8 values from 0 to 255")
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"{where}: image has shape {array.shape}, pass (height, width, 3) in RGB")
    return array


def listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())


def _split_array(array: NDArray[Any], ndim: int) -> list[NDArray[Any]]:
    return list(array) if array.ndim == ndim + 1 else [array]


__all__ = [
    "camera_frame",
    "common_length",
    "padded",
    "require_equal_steps",
    "split_examples",
    "split_masks",
    "step_mask",
]
