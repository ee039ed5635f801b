"""Cameras slower than the robot: at which steps of a dataset's episodes a picture is new."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .trajectory import TrajectorySource

COLLECTION_FILE = "meta/collection.json"  # what `priorvla collect` says of what it recorded


def picture_interval(root: Path) -> int:
    """Pictures of the dataset's episodes are new at every so many steps, from the first; 1 where nothing says so."""
    file = root / COLLECTION_FILE
    if not file.is_file():
        return 1
    return int(json.loads(file.read_text(encoding="utf-8")).get("image_every", 1))


def require_fresh_pictures(sources: Iterable[TrajectorySource], stride: int) -> None:
    """Raises ValueError where windows at every `stride`-th step would begin with a picture of an earlier step."""
    for source in sources:
        if stride % (every := picture_interval(source.root)):
            raise ValueError(
                f"--frame-stride {stride}: {source.root.name} was collected with --image-every {every}, and between "
                f"those steps a picture is that of an earlier one: use --frame-stride {every}, or a multiple of it"
            )


__all__ = ["COLLECTION_FILE", "picture_interval", "require_fresh_pictures"]
