"""Rotations as robots record them, and as a network learns them: six numbers without a seam.

Quaternions stand twice for every rotation, axis-angle and Euler angles jump; the first two columns of the rotation
matrix do neither (Zhou et al. 2019, arXiv 1812.07035; APT learns them too). Everything here is vectorised numpy that
keeps the dtype of its input and never gives a value that is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of each representation. Euler angles turn about the fixed axes x, then y, then z (roll, pitch, yaw), in rad.
REPRESENTATIONS = {"quaternion_xyzw": 4, "quaternion_wxyz": 4, "axis_angle": 3, "euler_xyz": 3, "rotation_6d": 6}
LEARNED_NAMES = ("x1", "x2", "x3", "y1", "y2", "y3")
TOLERANCE = 0.1  # of a recorded quaternion's norm, or of the 6-D columns: rounding is far smaller, wrong dims larger


@dataclass(frozen=True)
class RotationGroup:
    """Dimensions that are one rotation together.

    Args:
        action_dims, state_dims: where its numbers stand, in the order of the representation; either may be empty. The
            state's are the same rotation measured, which `relative` and `delta` compare with.
        representation: a key of `REPRESENTATIONS`.
    """

    action_dims: list[int]
    state_dims: list[int]
    representation: str


def to_matrix(values: NDArray[Any], representation: str) -> NDArray[Any]:
    """(..., n) numbers of a representation as rotation matrices (..., 3, 3). A zero quaternion is no rotation."""
    match representation:
        case "rotation_6d":
            return _orthonormal(values)
        case "euler_xyz":
            return _euler_matrix(values)
        case "axis_angle":
            angle = np.linalg.norm(values, axis=-1, keepdims=True)
            half = angle / 2
            return _quaternion_matrix(np.concatenate([values * np.sinc(half / np.pi) / 2, np.cos(half)], axis=-1))
        case _:
            return _quaternion_matrix(_as_xyzw(values, representation))


def from_matrix(matrices: NDArray[Any], representation: str, start: NDArray[Any] | None = None) -> NDArray[Any]:
    """The inverse of `to_matrix`, for a sequence (..., H, 3, 3): (..., H, n).

    A quaternion takes the sign that lies nearer to the one before it, the first nearer to `start` (..., n), or w >= 0.
    Axis-angle has at most half a turn; Euler angles have their pitch in [-pi/2, pi/2].
    """
    match representation:
        case "rotation_6d":
            return to_6d(matrices)
        case "euler_xyz":
            return _euler_angles(matrices)
        case "axis_angle":
            quaternions = _unbroken(_quaternions(matrices[..., None, :, :]), None)[..., 0, :]
            sine = np.linalg.norm(quaternions[..., :3], axis=-1, keepdims=True)
            half = np.arctan2(sine, quaternions[..., 3:])
            return quaternions[..., :3] * 2 / np.sinc(half / np.pi)
        case _:
            first = None if start is None else _as_xyzw(start, representation)
            quaternions = _unbroken(_quaternions(matrices), first)
            return quaternions if representation == "quaternion_xyzw" else quaternions[..., [3, 0, 1, 2]]


def to_6d(matrices: NDArray[Any]) -> NDArray[Any]:
    """The first two columns of rotation matrices (..., 3, 3), one after the other: (..., 6)."""
    return np.concatenate([matrices[..., 0], matrices[..., 1]], axis=-1)


def require_rotations(values: NDArray[Any], representation: str, what: str) -> None:
    """Raises ValueError naming `what` and the value when numbers (..., n) cannot be of that representation."""
    if representation.startswith("quaternion"):
        wrong = np.abs(np.linalg.norm(values, axis=-1) - 1) > TOLERANCE
    elif representation == "rotation_6d":
        columns = values.reshape(*values.shape[:-1], 2, 3)
        products = columns @ columns.swapaxes(-1, -2)
        wrong = (np.abs(products - np.eye(2)) > TOLERANCE).any((-1, -2))
    else:
        return
    if wrong.any():
        found = np.round(values[wrong][0], 4).tolist()
        raise ValueError(f"{what} is {found}, which is no {representation}: are these the dims of a rotation?")


def _as_xyzw(values: NDArray[Any], representation: str) -> NDArray[Any]:
    return values if representation == "quaternion_xyzw" else values[..., [1, 2, 3, 0]]


def _quaternion_matrix(quaternions: NDArray[Any]) -> NDArray[Any]:
    x, y, z, w = np.ascontiguousarray(np.moveaxis(quaternions, -1, 0))
    square = x * x + y * y + z * z + w * w
    twice = np.divide(2, square, out=np.zeros_like(square), where=square > 0)
    u, v, t = twice * x, twice * y, twice * z
    entries = [
        1 - v * y - t * z,
        u * y - t * w,
        u * z + v * w,
        u * y + t * w,
        1 - u * x - t * z,
        v * z - u * w,
        u * z - v * w,
        v * z + u * w,
        1 - u * x - v * y,
    ]
    return np.stack(entries, axis=-1).reshape(*quaternions.shape[:-1], 3, 3)


def _quaternions(matrices: NDArray[Any]) -> NDArray[Any]:
    """xyzw, of either sign: every row of 4 q q^T is a multiple of q, and the longest of them is exact at any angle."""
    r = matrices
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    xw, yw, zw = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    rows = [
        [1 + xx - yy - zz, xy, xz, xw],
        [xy, 1 - xx + yy - zz, yz, yw],
        [xz, yz, 1 - xx - yy + zz, zw],
        [xw, yw, zw, 1 + xx + yy + zz],
    ]
    outer = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    longest = np.diagonal(outer, axis1=-2, axis2=-1).argmax(-1)
    chosen = np.take_along_axis(outer, longest[..., None, None], axis=-2)[..., 0, :]
    return np.asarray(chosen / np.linalg.norm(chosen, axis=-1, keepdims=True))


def _unbroken(quaternions: NDArray[Any], start: NDArray[Any] | None) -> NDArray[Any]:
    """A sequence (..., H, 4) with signs such that none lies on the far side of the one before; see `from_matrix`."""
    first = np.array([0, 0, 0, 1], dtype=quaternions.dtype) if start is None else start
    first = np.broadcast_to(first[..., None, :], (*quaternions.shape[:-2], 1, 4))
    before = np.concatenate([first, quaternions[..., :-1, :]], axis=-2)
    turned = (quaternions * before).sum(-1, keepdims=True) < 0
    return quaternions * np.cumprod(np.where(turned, -1, 1), axis=-2).astype(quaternions.dtype)


def _euler_matrix(angles: NDArray[Any]) -> NDArray[Any]:
    (sa, sb, sc), (ca, cb, cc) = np.moveaxis(np.sin(angles), -1, 0), np.moveaxis(np.cos(angles), -1, 0)
    entries = [
        cc * cb,
        cc * sb * sa - sc * ca,
        cc * sb * ca + sc * sa,
        sc * cb,
        sc * sb * sa + cc * ca,
        sc * sb * ca - cc * sa,
        -sb,
        cb * sa,
        cb * ca,
    ]
    return np.stack(entries, axis=-1).reshape(*angles.shape[:-1], 3, 3)


def _euler_angles(matrices: NDArray[Any]) -> NDArray[Any]:
    """Yaw first; with it turned back, pitch and roll can be read off at every pitch, straight up (gimbal lock) too."""
    r = matrices
    yaw = np.arctan2(r[..., 1, 0], r[..., 0, 0])
    sine, cosine = np.sin(yaw), np.cos(yaw)
    pitch = np.arctan2(-r[..., 2, 0], cosine * r[..., 0, 0] + sine * r[..., 1, 0])
    roll = np.arctan2(sine * r[..., 0, 2] - cosine * r[..., 1, 2], cosine * r[..., 1, 1] - sine * r[..., 0, 1])
    return np.stack([roll, pitch, yaw], axis=-1)


def _orthonormal(values: NDArray[Any]) -> NDArray[Any]:
    """The rotation nearest to two columns (..., 6) in Gram and Schmidt's sense; the first column keeps its direction.

    Columns of no length or of one direction, which no data have, give some rotation.
    """
    x = _unit(values[..., :3], np.array([1, 0, 0]))
    least = np.eye(3)[np.abs(x).argmin(-1)]  # an axis that x is far from
    y = values[..., 3:] - (x * values[..., 3:]).sum(-1, keepdims=True) * x
    y = _unit(y, _unit(least - (x * least).sum(-1, keepdims=True) * x, least))
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def _unit(vectors: NDArray[Any], fallback: NDArray[Any]) -> NDArray[Any]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    usable = length > 1e-6
    return np.where(usable, vectors / np.where(usable, length, 1), fallback).astype(vectors.dtype)


__all__ = [
    "LEARNED_NAMES",
    "REPRESENTATIONS",
    "RotationGroup",
    "from_matrix",
    "require_rotations",
    "to_6d",
    "to_matrix",
]
