"""The shapes of backbones as they were published, so that what one costs is known before it is downloaded.

A file of `backbone_shapes/` has the fields of a backbone's `config.json` that its shape depends on: facts and no
weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKBONE_SHAPES = Path(__file__).parent / "backbone_shapes"


@dataclass(frozen=True)
class PublishedBackbone:
    """One file of `backbone_shapes/`.

    Args:
        source: Hub repository, or name of a packaged backbone.
        revision: of the repository that the facts are of; None where it is not known.
        licence: of the weights, as their publisher names it.
        parameters: as published, the language model's head among them.
        config: fields of transformers' config; what is not named is the default of its class.
        image_size: (height, width) in pixels that its image processor makes; None: that of the config.
    """

    source: str
    revision: str | None
    licence: str
    parameters: int
    config: dict[str, Any]
    image_size: tuple[int, int] | None = None


def published_backbone(source: str) -> PublishedBackbone | None:
    """The published shape of a Hub repository or packaged backbone; None when there is no file of it."""
    return _published().get(source)


def list_published_backbones() -> list[str]:
    """The repositories and packaged backbones whose shapes are known, sorted."""
    return sorted(_published())


def _published() -> dict[str, PublishedBackbone]:
    found = {}
    for file in BACKBONE_SHAPES.glob("*.json"):
        facts = json.loads(file.read_text(encoding="utf-8"))
        if (size := facts.get("image_size")) is not None:
            facts["image_size"] = (int(size[0]), int(size[1]))
        found[facts["source"]] = PublishedBackbone(**facts)
    return found


__all__ = ["PublishedBackbone", "list_published_backbones", "published_backbone"]
