"""An embodiment in the words of a card: what its dims are, what is learned of them, and a state to begin with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..configuration.embodiment import Embodiment
from ..configuration.rotations import from_matrix
from .report import format_value


def describe_embodiment(embodiment: Embodiment) -> dict[str, Any]:
    """What a card prints of a body."""
    grippers = {embodiment.action_names[dim] for dim in embodiment.gripper_dims}
    by_kind: dict[str, list[str]] = {}
    for action, kind in zip(embodiment.action_names, embodiment.action_kinds, strict=True):
        by_kind.setdefault(kind, []).append(f"`{action}`" + (" (gripper)" if action in grippers else ""))
    return {
        "name": embodiment.name,
        "action_dim": embodiment.action_dim,
        "state_dim": embodiment.state_dim,
        "control_rate": format_value(float(embodiment.control_rate)),
        "action_kinds": ", ".join(by_kind),
        "actions": "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items()),
        "learned": _learned(embodiment),
        "needs_reference": embodiment.needs_reference,
        "states": ", ".join(f"`{state}`" for state in embodiment.state_names) or "none",
        "cameras": ", ".join(f"`{camera}`" for camera in embodiment.cameras) or "none",
        "action_normalization": embodiment.action_normalization.value,
        "state_normalization": embodiment.state_normalization.value,
        "steps": embodiment.action_statistics.count if embodiment.action_statistics else None,
    }


def made_up_state(embodiment: Embodiment) -> NDArray[np.float32]:
    """A raw state (S_robot,) that the processor takes: zeros, and rotations by nothing."""
    state = np.zeros(embodiment.state_dim, dtype=np.float32)
    for group in embodiment.rotations:
        state[group.state_dims] = from_matrix(np.eye(3)[None], group.representation)[0, : len(group.state_dims)]
    return state


def example_state(embodiment: Embodiment) -> str:
    """`made_up_state` as Python, for a snippet."""
    if not embodiment.rotations:
        return f"np.zeros({embodiment.state_dim}, dtype=np.float32)"
    return f"np.array({made_up_state(embodiment).tolist()}, dtype=np.float32)"


def _learned(embodiment: Embodiment) -> str:
    """What the model learns instead of the recorded numbers, in words; empty when that is nothing."""
    kinds: dict[str, list[str]] = {}
    columns = zip(embodiment.action_names, embodiment.action_kinds, embodiment.learned_kinds, strict=True)
    for name, recorded, learned in columns:
        if learned != recorded:
            kinds.setdefault(learned, []).append(f"`{name}`")
    words = {"relative": "relative to the state at the chunk's first step", "delta": "as steps from one to the next"}
    facts = [f"{', '.join(names)} {words[kind]}" for kind, names in kinds.items()]
    for group in embodiment.rotations:
        names = [embodiment.action_names[dim] for dim in group.action_dims]
        names += [f"state {embodiment.state_names[dim]}" for dim in group.state_dims]
        facts.append(f"{', '.join(f'`{name}`' for name in names)} ({group.representation}) as 6-D rotation")
    if embodiment.rotations:
        dims = f"{embodiment.model_action_dim} action and {embodiment.model_state_dim} state dims"
        facts.append(f"{dims} in the model")
    return "; ".join(facts)


__all__ = ["describe_embodiment", "example_state", "made_up_state"]
