"""An adapter on disk: its files, by peft's names, and whose parts its tensors are. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
_BODY = re.compile(r"(?<=\.)(projections|tokens)\.(\d+)(?=\.|$)")  # in the name of a tensor that is a body's own


def own_bodies(modules_to_save: Iterable[str] | None) -> list[int]:
    """The ids of the bodies whose own parts an adapter has, by the `modules_to_save` of peft's config of it."""
    return sorted({body for module in modules_to_save or () for body in bodies_in(module)})


def bodies_in(tensor: str) -> set[int]:
    """The id of the body whose own a tensor or module is, by its name; empty for a shared one."""
    return {int(found.group(2)) for found in _BODY.finditer(tensor)}


def renumbered(tensor: str, ids: Mapping[int, int]) -> str:
    """The name of the same tensor or module where the bodies have other ids."""
    return _BODY.sub(lambda found: f"{found.group(1)}.{ids[int(found.group(2))]}", tensor)


__all__ = ["ADAPTER_CONFIG_FILE", "ADAPTER_FILE", "bodies_in", "own_bodies", "renumbered"]
