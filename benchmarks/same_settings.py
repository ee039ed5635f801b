"""A benchmark that goes on where it was stopped does so with the settings that it was begun with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def require_same_settings(folder: Path, options: argparse.Namespace, names: Iterable[str], **fixed: Any) -> None:
    """Notes the options `names` in `folder`, and what the benchmark has `fixed`; ends the program where it was begun
    with others, or by a release that did not note them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    settings = {**{name: getattr(options, name) for name in names}, **fixed}
    began = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else settings
    for name, value in settings.items():
        if began.get(name) != value:
            told = name if name in fixed else f"--{name.replace('_', '-')}"
            raise SystemExit(f"{told} {value}: {folder} was begun with {began.get(name)}, choose another folder")
    if not file.is_file():
        new = file.with_suffix(".new")
        new.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        new.replace(file)
