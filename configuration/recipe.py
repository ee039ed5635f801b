"""Recipes: a run's options in a YAML file, shipped with the package or written by a user, checked key by key."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name_or_file: str | Path) -> dict[str, Any]:
    """The options of a YAML file, or of a shipped recipe given by name (`list_recipes`).

    Raises FileNotFoundError naming the shipped recipes, or ValueError when the file is not a mapping of options.
    """
    file = Path(name_or_file)
    if not file.is_file():
        file = RECIPES / f"{name_or_file}.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{name_or_file} is neither a file nor a shipped recipe ({', '.join(list_recipes())})")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: a recipe is a mapping of options, found {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def checked_fields(owner: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` as a dict, when every key is a field of the dataclass `owner`; sub-configs are checked the same way.

    Raises ValueError naming the key, where it stands, and the nearest field.
    """
    known = {field.name for field in fields(owner)}
    require_known(values, known, where)
    checked = dict(values)
    for key, sub_config in getattr(owner, "sub_configs", {}).items():
        if isinstance(values.get(key), Mapping):
            checked[key] = checked_fields(sub_config, values[key], f"{where}.{key}")
    return checked


def require_known(keys: Collection[str], known: Collection[str], where: str) -> None:
    """Raises ValueError for the first of `keys` that is not among `known`, with the nearest that is."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ValueError(f"{where}: {key!r} is unknown{hint}")


__all__ = ["checked_fields", "list_recipes", "load_recipe", "require_known"]
