"""The files that publishing writes, and their place in a folder: what else lies there is somebody's and stays."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from ..configuration.adapter_files import ADAPTER_FILE
from .bundled_code import BUNDLED_ROOMS, PACKAGE
from .card_pictures import PLOTS
from .checkpoints import MODEL_TYPES

_WRITTEN = (
    "README.md",
    "*config.json",  # of model, adapter, processor, tokenizer, generation
    "model*.safetensors",
    "model.safetensors.index.json",
    ADAPTER_FILE,
    "embodiments.json",
    "metrics.json",
    "report.json",
    "tokenizer.json",
    "*tokens*.json",  # special and added ones
    "vocab.*",
    "merges.txt",
    "*.model",  # SentencePiece's
    "chat_template.*",
    "additional_chat_templates/*",
)


def is_written(place: str) -> bool:
    """Whether publishing writes files of this name: an old one is then replaced with its checkpoint, or goes."""
    if "/" in place and not place.startswith("additional_chat_templates/"):
        return False
    return place in PLOTS or place in _modules() or any(fnmatch(place, pattern) for pattern in _WRITTEN)


def require_free(folder: Path, overwrite: bool) -> None:
    """Raises FileExistsError when there is something at `folder` that publishing must not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists: choose another folder, or pass overwrite=True to replace it")
    if not _holds_ours(folder):
        raise FileExistsError(
            f"{folder} exists and holds no config.json of ours, so it is no checkpoint: it is not replaced"
        )
    if run := next(folder.glob("checkpoint-*"), None):
        raise FileExistsError(
            f"{folder} is the folder of a run ({run.name} lies in it): it is not replaced, choose another folder"
        )


def move_into_place(staging: Path, folder: Path) -> None:
    """`staging` becomes `folder`, with what was there and publishing does not write.

    The old folder is put aside first, and put back when the move fails.
    """
    if not folder.exists():
        staging.rename(folder)
        return
    for file in folder.rglob("*"):
        place = file.relative_to(folder)
        if (file.is_file() or file.is_symlink()) and not is_written(place.as_posix()):
            _keep(file, staging / place)
    aside = staging.with_suffix(".replaced")
    folder.rename(aside)
    try:
        staging.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def _keep(file: Path, place: Path) -> None:
    if place.exists():
        return  # the card shows one of this name now
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(file, place, follow_symlinks=False)


def _holds_ours(folder: Path) -> bool:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in MODEL_TYPES


@cache
def _modules() -> frozenset[str]:
    """Names of the modules that may go along (`code=True`)."""
    return frozenset(file.name for room in BUNDLED_ROOMS for file in (PACKAGE / room).glob("*.py"))


__all__ = ["is_written", "move_into_place", "require_free"]
