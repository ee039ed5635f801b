"""Recipes: a run's options in a YAML file, shipped with the package or written by a user, checked key by key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes"


class _RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 1e-3 is a number, as YAML 1.2 has it, and not a word."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(name_or_file: str | Path) -> dict[str, Any]:
    """The options of a YAML file, or of a shipped recipe given by name (`list_recipes`).

    Raises FileNotFoundError naming the shipped recipes, or ValueError when the file is not a mapping of options.
    """
    file = Path(name_or_file)
    if not file.is_file():
        file = RECIPES / f"{name_or_file}.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{name_or_file} is neither a file nor a shipped recipe ({', '.join(list_recipes())})")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: a recipe is a mapping of options, found {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def read_yaml(file: Path) -> Any:
    """What a YAML or JSON file holds. Raises ValueError naming the file, and the place that is wrong."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _RecipeLoader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def checked_fields(owner: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` as a dict, when every key is a field of the dataclass `owner`; sub-configs are checked the same way.

    Raises ValueError naming the key, where it stands, and the nearest field, or a value that is no number (true or
    false) where the field's default is one.
    """
    known = {field.name: field.default for field in fields(owner)}
    require_known(values, known, where)
    for key, value in values.items():
        _require_kind(value, known[key], f"{where}.{key}")
    checked = dict(values)
    for key, sub_config in getattr(owner, "sub_configs", {}).items():
        if values.get(key) is not None:
            if not isinstance(values[key], Mapping):
                raise ValueError(f"{where}.{key} must be a mapping of its fields, got {values[key]!r}")
            checked[key] = checked_fields(sub_config, values[key], f"{where}.{key}")
    return checked


def require_known(keys: Collection[str], known: Collection[str], where: str) -> None:
    """Raises ValueError for the first of `keys` that is not among `known`, with the nearest that is."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ValueError(f"{where}: {key!r} is unknown{hint}")


def _require_kind(value: Any, default: Any, where: str) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where} must be true or false, got {value!r}")
    elif isinstance(default, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{where} must be a number, got {value!r}")


__all__ = ["checked_fields", "list_recipes", "load_recipe", "read_yaml", "require_known"]
