"""What a server says of itself and its robot, as a client believes it: checked, and the same in every connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

from ...configuration.embodiment import Embodiment
from ..action_limits import ActionLimits

PROTOCOL_VERSION = 1  # of the metadata's keys, and of those in requests that `RequestReader` has beyond openpi's
ROBOT = ("action_names", "state_names", "control_rate", "action_kinds", "gripper_dims")  # beside `embodiment`
LASTING = ("embodiment", *ROBOT, "chunk_size", "action_limits")  # what may not change under a running robot
COUNTS = {"chunk_size": 1, "execute_steps": 1, "history_size": 0}  # and their least values


class PolicyServerError(RuntimeError):
    """The server refused a request or a connection, in its own words: the same again would be refused again.

    Or what it says cannot be believed.
    """


def require_metadata(metadata: Any) -> dict[str, Any]:
    """`metadata`, if a client can rely on what is in it; keys of which it makes nothing are left alone.

    Raises PolicyServerError naming key and value.
    """
    if not isinstance(metadata, dict):
        raise PolicyServerError(f"the server's first frame is no map of metadata but {type(metadata).__name__}")
    if metadata.get("protocol_version", PROTOCOL_VERSION) != PROTOCOL_VERSION:
        raise PolicyServerError(
            f"the server speaks protocol_version {metadata['protocol_version']!r}, this client {PROTOCOL_VERSION}: "
            "install the same priorvla on both sides"
        )
    for key, least in COUNTS.items():
        value = metadata.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _unbelievable(key, value, f"a whole number from {least}")
    if metadata.get("execute_steps", 1) > metadata.get("chunk_size", float("inf")):
        raise _unbelievable(
            "execute_steps", metadata["execute_steps"], f"at most its chunk_size of {metadata['chunk_size']}"
        )
    body = robot_of(metadata)
    if body is not None:
        limits_of(metadata, body)
    return metadata


def robot_of(metadata: Mapping[str, Any]) -> Embodiment | None:
    """The robot that the server drives; None where it does not say. Raises PolicyServerError naming key and value."""
    if not metadata.keys() >= {"embodiment", *ROBOT}:
        return None
    for key in ("action_names", "state_names", "action_kinds"):
        if not _is_list_of(metadata[key], str):
            raise _unbelievable(key, metadata[key], "a list of words")
    if not _is_list_of(metadata["gripper_dims"], int):
        raise _unbelievable("gripper_dims", metadata["gripper_dims"], "a list of dims")
    if not isinstance(metadata["embodiment"], str):
        raise _unbelievable("embodiment", metadata["embodiment"], "a name")
    if not isinstance(metadata["control_rate"], Real):
        raise _unbelievable("control_rate", metadata["control_rate"], "a number in Hz")
    try:
        return Embodiment(metadata["embodiment"], **{key: metadata[key] for key in ROBOT})
    except ValueError as error:
        raise PolicyServerError(f"the server describes no robot: {error}") from None


def limits_of(metadata: Mapping[str, Any], body: Embodiment) -> ActionLimits:
    """The limits that the server tells of; none where it tells of none.

    A limit that is not known is refused, because it could not be kept. Raises PolicyServerError naming it.
    """
    told, known = metadata.get("action_limits", {}), [entry.name for entry in fields(ActionLimits)]
    if not isinstance(told, Mapping):
        raise _unbelievable("action_limits", told, "a map of limits")
    for key in told:
        if key not in known:
            raise _unbelievable("action_limits", key, f"limits that this client can keep ({', '.join(known)})")
    try:
        limits = ActionLimits(**told)
        limits.arrays(body)
    except ValueError as error:
        raise PolicyServerError(f"the server's action_limits: {error}") from None
    return limits


def require_the_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises PolicyServerError where a server says other things of the robot or its limits than one did before."""
    for key in LASTING:
        if before.get(key) != now.get(key):
            raise PolicyServerError(
                f"the server has changed: its {key} was {before.get(key)!r} and is {now.get(key)!r}. Hold the robot, "
                "and make a new ChunkBroker if that is meant"
            )


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _unbelievable(key: str, value: Any, wanted: str) -> PolicyServerError:
    return PolicyServerError(f"the server's metadata: {key} is {value!r}, expected {wanted}")


__all__ = [
    "PROTOCOL_VERSION",
    "PolicyServerError",
    "limits_of",
    "require_metadata",
    "require_the_same",
    "robot_of",
]
