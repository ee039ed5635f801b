"""What the server says first: whose actions these are, and what an observation has to hold."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ..policy import PriorVLAPolicy
from .client_requests import RequestReader
from .server_description import PROTOCOL_VERSION


def server_metadata(policy: PriorVLAPolicy, reader: RequestReader, name: str, seed: int) -> dict[str, Any]:
    """The first frame, of plain types. Units are those in which the training data recorded states and actions."""
    body, config = policy.embodiment, policy.model.config
    return {
        "server": f"priorvla {version('priorvla')}",
        "protocol_version": PROTOCOL_VERSION,
        "model": name,
        "embodiment": body.name,
        "chunk_size": config.expert.chunk_size,
        "execute_steps": policy.execute_steps,
        "control_rate": float(body.control_rate),  # Hz
        "action_dim": body.action_dim,
        "action_names": list(body.action_names),
        "action_kinds": list(body.action_kinds),  # absolute, delta or relative
        "action_limits": {} if policy.limits is None else policy.limits.by_dim(body),  # to be kept by who executes
        "gripper_dims": list(body.gripper_dims),
        "state_dim": body.state_dim,
        "state_names": list(body.state_names),
        "units": "as in the training data",
        "cameras": list(body.cameras),
        "positional_cameras": reader.positional_cameras,
        "language": bool(config.language),
        "history_size": config.history_size if config.use_history else 0,
        "seed": seed,
    }


__all__ = ["server_metadata"]
