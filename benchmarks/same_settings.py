"""A benchmark that goes on where it was stopped does so with the settings that it was begun with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path


def require_same_settings(folder: Path, options: argparse.Namespace, names: Iterable[str]) -> None:
    """Notes the options `names` in `folder`; ends the program where it was begun with others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    settings = {name: getattr(options, name) for name in names}
    began = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else settings
    for name, value in settings.items():
        if began[name] != value:
            raise SystemExit(
                f"--{name.replace('_', '-')} {value}: {folder} was begun with {began[name]}, choose another folder"
            )
    file.write_text(json.dumps(settings) + "\n", encoding="utf-8")
