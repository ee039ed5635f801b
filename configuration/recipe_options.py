"""Options of a command out of a YAML file, read as the command line would have given them."""

from __future__ import annotations

import argparse
from typing import Any

from .recipe import load_recipe, require_known

NESTED = ("model", "training", "embodiments", "lora")  # mappings that only a --config file can hold


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The command line over the values of its --config file, over the defaults.

    Raises ValueError naming the file and the key that is unknown there or has an impossible value.
    """
    options = parser.parse_args(arguments)
    file = vars(options).pop("config", None)
    if file is None:
        return options
    recipe = load_recipe(file)
    command = _subparser(parser, arguments[0])
    known = {action.dest: action for action in command._actions if action.dest not in ("help", "config")}
    recipe = _by_first_name(recipe, command, file)
    nested = [name for name in NESTED if name in vars(options)]
    require_known(recipe, [*known, *nested], str(file))
    for name, value in recipe.items():
        if name in nested:
            if not isinstance(value, dict):
                raise ValueError(f"{file}: {name} must be a mapping, got {type(value).__name__}")
        else:
            recipe[name] = _converted(known[name], value, file)
    command.set_defaults(**recipe)
    options = parser.parse_args(arguments)
    del options.config
    return options


def _by_first_name(recipe: dict[str, Any], command: argparse.ArgumentParser, file: str) -> dict[str, Any]:
    """The recipe's options by the names that the command keeps them under: `suite` is `tasks`, as on its line."""
    first = {
        name.lstrip("-").replace("-", "_"): action.dest
        for action in command._actions
        for name in action.option_strings
        if action.dest not in ("help", "config")
    }
    renamed: dict[str, Any] = {}
    for name, value in recipe.items():
        if first.get(name, name) in renamed:
            raise ValueError(f"{file}: {name} is said twice, under two of its names: once is enough")
        renamed[first.get(name, name)] = value
    return renamed


def _converted(action: argparse.Action, value: Any, file: str) -> Any:
    """A YAML value as the command line would have given it."""
    name = action.dest.replace("_", "-")
    if value is None:
        if action.default is not None:
            raise ValueError(f"{file}: {name} is empty: give it a value, or leave it out")
        return None
    if action.nargs in ("+", "*"):
        return [str(entry) for entry in (value if isinstance(value, list) else [value])]
    if isinstance(action.default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{file}: {name} must be true or false, got {value!r}")
        return value
    convert: Any = action.type or str
    try:
        if isinstance(value, (list, dict)):
            raise ValueError
        converted = convert(str(value))
    except ValueError:
        expected = {int: "a whole number", float: "a number"}.get(convert, "one value")
        raise ValueError(f"{file}: {name} must be {expected}, got {value!r}") from None
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"{file}: {name}={value!r}, use one of {', '.join(map(str, action.choices))}")
    return converted


def _subparser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    subparser: argparse.ArgumentParser = actions[0].choices[name]
    return subparser


__all__ = ["NESTED", "parse"]
