"""How a card's Markdown is made: the templates beside this file, and values that stay text within them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from .card_pictures import PLOTS
from .card_places import linked, mark
from .report import format_value

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """The Markdown of a file in `templates/`. A name that the template has and `values` have not is an error."""
    return _tidied(_environment().get_template(template).render(**values))


def render_section(macro: str, *arguments: Any) -> str:
    """One section alone, by its macro in `sections.md`."""
    source = f'{{% import "sections.md" as sections %}}{{{{ sections.{macro}(*arguments) }}}}'
    return _tidied(_environment().from_string(source).render(arguments=arguments))


def flattened(facts: Mapping[str, Any]) -> dict[str, str]:
    """`{"optimizer": {"lr": 1e-3}}` as `{"optimizer lr": "0.001"}`; names as words, values as people read them."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        words = str(name).replace("_", " ")
        if isinstance(value, Mapping):
            flat.update({f"{words} {key}": text for key, text in flattened(value).items()})
        else:
            flat[words] = format_value(value)
    return flat


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _table_cell
    environment.filters["mark"] = mark
    environment.filters["linked"] = linked
    environment.globals["PLOTS"] = PLOTS
    return environment


def _table_cell(value: Any) -> str:
    """Text that stays within its cell of a Markdown table, and is text there."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _tidied(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip()


__all__ = ["flattened", "render", "render_section"]
