"""What the squared error of each action dim weighs, by what it moves: position, rotation or gripper (paper B)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..configuration.embodiment import Embodiment

COMPONENTS = ("position", "rotation", "gripper")


def component_weights(embodiments: Sequence[Embodiment], weights: Mapping[str, float]) -> Tensor:
    """The weight (E, D) of every embodiment's model action dims in the velocity loss; zero at padding.

    `gripper` are an embodiment's `gripper_dims`, `rotation` the six numbers of each of its `rotations`, and all else is
    `position`, joint angles too. An arm that records its rotation as three plain numbers does not say so by itself:
    declare it, in Python `RotationGroup([3, 4, 5], [], "axis_angle")`, in an embodiment's YAML
    `rotations: [{action_dims: [3, 4, 5], state_dims: [], representation: axis_angle}]` (or `euler_xyz`). The model then
    learns it as 6-D. Not declared, it weighs as position.

    Paper B weighs position 30, rotation 10, gripper 10 and does not say of what; here it is of each number (our
    choice: equal weights then change nothing). Every body's weights are scaled to a mean of 1 over its own dims (our
    choice: losses of bodies stay comparable, with each other and with those of unweighted runs), so only their
    ratios count.

    Args:
        embodiments: the checkpoint's, in the order of their ids.
        weights: component -> weight, finite and not negative.

    Raises:
        ValueError: an unknown component, a weight that is negative or not finite, an embodiment with a component that
            has no weight, or whose components all weigh zero.
    """
    _require_weights(weights)
    table = torch.zeros(len(embodiments), max((body.model_action_dim for body in embodiments), default=0))
    for row, body in enumerate(embodiments):
        table[row, : body.model_action_dim] = torch.from_numpy(_own_weights(body, weights))
    return table


def _own_weights(body: Embodiment, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """(Dm,) with a mean of 1."""
    rotated = [dim for group in body.rotations for dim in group.action_dims]
    rotation, gripper = _model_dims(body, rotated), _model_dims(body, body.gripper_dims)
    own = np.empty(body.model_action_dim)
    for component, dims in zip(COMPONENTS, (~(rotation | gripper), rotation, gripper), strict=True):
        if not dims.any():
            continue
        if component not in weights:
            raise ValueError(
                f"embodiment {body.name!r} has {dims.sum()} {component} dims, and no weight of {component!r} is given, "
                f"only {dict(weights)}: add it (0 leaves these dims out of the loss)"
            )
        own[dims] = weights[component]
    if not own.any():
        raise ValueError(
            f"embodiment {body.name!r}: all its components weigh 0 in {dict(weights)}, so that it would learn nothing: "
            "give one of them a positive weight"
        )
    return own / own.mean()


def _model_dims(body: Embodiment, raw_dims: Sequence[int]) -> NDArray[np.bool_]:
    """Which of the model's action dims (Dm,) stand for the raw `raw_dims`."""
    return body.model_action_mask(np.isin(np.arange(body.action_dim), raw_dims))


def _require_weights(weights: Mapping[str, float]) -> None:
    for component, weight in weights.items():
        if component not in COMPONENTS:
            raise ValueError(f"component {component!r} is unknown, weights are given to {', '.join(COMPONENTS)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {component!r} is {weight}: it must be finite and not negative")
    if not any(weights.values()):
        raise ValueError(f"no component has a positive weight in {dict(weights)}: paper B's are position 30, others 10")


__all__ = ["COMPONENTS", "component_weights"]
