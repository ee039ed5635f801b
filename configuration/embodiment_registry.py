"""Common robot bodies by name, one YAML file each, and a user's own from such a file."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from .embodiment import Embodiment

EMBODIMENTS = Path(__file__).parent / "embodiments"


def list_embodiments() -> list[str]:
    """Names of the bodies that come with the package."""
    return sorted(file.stem for file in EMBODIMENTS.glob("*.yaml"))


def load_embodiment(name_or_file: str | Path) -> Embodiment:
    """A shipped body by name, or one described in a YAML file, whose keys are the arguments of `Embodiment`.

    `learned_kinds` may be one word (`relative`), meant for everything but grippers and what was recorded otherwise.
    The body has no statistics unless the file gives them: they come from data. Its control rate and ranges are the
    usual ones; where a dataset's differ, use a copy of the file.

    Raises:
        FileNotFoundError: when there is neither such a file nor such a name, with the nearest name.
        ValueError: when the file describes no embodiment; names file and key.
    """
    file = Path(name_or_file)
    if file.suffix not in (".yaml", ".yml"):
        file = EMBODIMENTS / f"{name_or_file}.yaml"
    if not file.is_file():
        known, asked = list_embodiments(), str(name_or_file).lower()
        near = difflib.get_close_matches(asked, known, n=1) or [name for name in known if asked in name]
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise FileNotFoundError(
            f"{name_or_file} is neither a YAML file nor a shipped embodiment: {hint}known are {', '.join(known)}"
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"an embodiment is a mapping of its fields, found {type(content).__name__}")
        return Embodiment.from_dict(content)
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: not an embodiment: {error}") from error


__all__ = ["list_embodiments", "load_embodiment"]
