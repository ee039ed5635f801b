"""Reports for people: one self-contained HTML file of text, tables, plots, pictures and videos.

A report loads nothing: plots are inline SVG that follow the reader's light or dark theme, pictures and videos are
embedded, and the page's own content security policy forbids every request. So it can be mailed, or opened in ten years.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from .plot_style import INK, MUTED, PAGE, RULE, SERIES

TEMPLATES = Path(__file__).parent / "templates"
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Plots are drawn in the light theme's colours; in the page these become variables that the dark theme redefines.
_THEME = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAGE: "--page"}
_THEME |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)}
_NUMBER = re.compile(r"[\s\[(+\-−±~≈<>≤≥]*\d[\d\s\u2060.,:;/%×+\-−–±\[\]()e]*[a-zA-Zµ°%²/]{0,5}")


class Report:
    """Collects blocks in the order of its calls; `write` renders them.

    Args:
        title: the page's heading.
        subtitle: a line under it, for example what ran and when.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[dict[str, Any]] = []
        self._figures = 0

    def section(self, heading: str) -> None:
        """Starts a section; three or more of them make a table of contents."""
        taken = {block.get("anchor") for block in self._blocks}
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        anchor = next(a for a in (slug, *(f"{slug}-{n}" for n in range(2, len(taken) + 3))) if a not in taken)
        self._blocks.append({"kind": "section", "heading": heading, "anchor": anchor})

    def text(self, text: str) -> None:
        """Paragraphs, separated by blank lines; lines beginning with `- ` make a list.

        Inline: `**strong**`, `*emphasis*`, code between backticks, `[link](https://…)`. Everything else is text: HTML
        is shown, not interpreted.
        """
        self._blocks.append({"kind": "text", "html": _paragraphs(text)})

    def note(self, text: str) -> None:
        """`text`, set apart in a box: for what a reader must not miss."""
        self._blocks.append({"kind": "note", "html": _paragraphs(text)})

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Names and values side by side: settings, versions, headline numbers."""
        self._blocks.append({"kind": "facts", "facts": [(name, format_value(value)) for name, value in facts.items()]})

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """A table; columns that hold numbers (also `83 %` or `[24, 42]`) are aligned to the right.

        Raises:
            ValueError: when a row has more or fewer cells than there are headers.
        """
        for number, row in enumerate(rows):
            if len(row) != len(headers):
                raise ValueError(f"table row {number} has {len(row)} cells for {len(headers)} headers: {list(row)}")
        cells = [[format_value(value) for value in row] for row in rows]
        numeric = [all(_is_numeric(cell) for cell in column) for column in zip(*cells, strict=True)]
        self._blocks.append(
            {
                "kind": "table",
                "headers": list(headers),
                "rows": cells,
                "caption": caption,
                "classes": ["number" if is_number else "" for is_number in numeric or [False] * len(headers)],
            }
        )

    def code(self, text: str) -> None:
        """Preformatted text: commands, configurations, logs."""
        self._blocks.append({"kind": "code", "text": text.strip("\n")})

    def figure(self, figure: Figure, caption: str = "") -> None:
        """A matplotlib figure as inline SVG. It is closed in pyplot, if pyplot knows it."""
        self._figures += 1
        svg = _inline_svg(figure, prefix=f"f{self._figures}-", label=caption)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)
        self._blocks.append({"kind": "figure", "svg": svg, "caption": caption})

    def image(self, image: NDArray[np.uint8] | str | Path, caption: str = "") -> None:
        """A picture: a uint8 array (h, w), (h, w, 3) or (h, w, 4), embedded as PNG, or a png, jpg or gif file.

        Images and videos that follow one another stand side by side.

        Raises:
            ValueError: for another array or another kind of file.
            FileNotFoundError: when the file does not exist.
        """
        if isinstance(image, (str, Path)):
            source, size = _data_uri(Path(image), "image"), None
        else:
            source, size = _png_uri(image), (image.shape[1], image.shape[0])
        self._add_medium({"kind": "image", "source": source, "caption": caption, "size": size})

    def strip(self, path: str | Path, title: str, caption: str) -> None:
        """A long picture file, of frames side by side, under its title and caption.

        On a narrow screen it can be moved sideways, and is not made too small to see. Raises as `image`.
        """
        source = _data_uri(Path(path), "image")
        self._blocks.append({"kind": "strip", "source": source, "title": title, "caption": caption})

    def video(self, path: str | Path, caption: str = "") -> None:
        """An mp4 or webm file, embedded; it plays muted, in a loop, when clicked.

        Raises:
            ValueError: for another kind of file.
            FileNotFoundError: when the file does not exist.
        """
        self._add_medium({"kind": "video", "source": _data_uri(Path(path), "video"), "caption": caption})

    def html(self) -> str:
        """The page as a string."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["breakable"] = _breakable
        sections = [block for block in self._blocks if block["kind"] == "section"]
        return environment.get_template("report.html").render(
            title=self.title,
            subtitle=self.subtitle,
            blocks=self._blocks,
            contents=sections if len(sections) >= 3 else [],
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page to `path` at once: readers see the old file or the whole new one. Returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            partial.write_text(self.html(), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _add_medium(self, medium: dict[str, Any]) -> None:
        if not self._blocks or self._blocks[-1]["kind"] != "gallery":
            self._blocks.append({"kind": "gallery", "media": []})
        self._blocks[-1]["media"].append(medium)


def format_value(value: Any) -> str:
    """A value as people read it: four significant digits, yes / no, `–` for None, lists and dicts spelt out."""
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.0f}" if 1e4 <= abs(float(value)) < 1e15 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_value(entry)}" for name, entry in value.items()) or "–"
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return ", ".join(format_value(entry) for entry in value) or "–"
    return str(value)


def _is_numeric(cell: str) -> bool:
    return cell in ("–", "", "nan", "inf", "-inf") or _NUMBER.fullmatch(cell) is not None


def _breakable(text: str) -> Markup:
    """Names of many words, such as `suite/pick_up_the_milk`, may be broken between them where a cell is narrow."""
    return Markup(re.sub(r"(?<=[^\W\d][_/])(?=\w)", "<wbr>", str(escape(text))))


def _paragraphs(text: str) -> Markup:
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        head = [line for line in lines if not line.startswith("- ")]
        if len(head) == len(lines):
            parts.append(Markup("<p>{}</p>").format(_inline(" ".join(lines))))
        else:
            parts.extend(_list_block(lines))
    return Markup("\n").join(parts)


def _list_block(lines: list[str]) -> list[Markup]:
    """Lines of which some begin with `- `: text before the first is a paragraph, others continue their item."""
    lead: list[str] = []
    items: list[str] = []
    for line in lines:
        if line.startswith("- "):
            items.append(line[2:])
        elif items:
            items[-1] += f" {line}"
        else:
            lead.append(line)
    entries = Markup("").join(Markup("<li>{}</li>").format(_inline(item)) for item in items)
    parts = [Markup("<p>{}</p>").format(_inline(" ".join(lead)))] if lead else []
    return [*parts, Markup("<ul>{}</ul>").format(entries)]


def _inline(text: str) -> Markup:
    """Inline marks on escaped text; what stands between backticks is left alone."""
    pieces = re.split(r"`([^`]+)`", text)
    for position, piece in enumerate(pieces):
        piece = str(escape(piece))
        if position % 2:
            pieces[position] = f"<code>{piece}</code>"
            continue
        piece = re.sub(r"\[([^\]]+)\]\((https?://[^\s)]+|#[\w-]+)\)", r'<a href="\2">\1</a>', piece)
        piece = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", piece)
        pieces[position] = re.sub(r"(?<![\w*])\*(\S(?:.*?\S)?)\*(?![\w*])", r"<em>\1</em>", piece)
    return Markup("".join(pieces))


def _inline_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an `<svg>` element that shares a page: ids with a prefix, theme colours as CSS variables."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "priorvla"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    for uri, name in ((_SVG, ""), (_XLINK, "xlink")):
        ElementTree.register_namespace(name, uri)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would apply to the whole page.
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                value = prefix + value
            elif name in ("href", f"{{{_XLINK}}}href"):
                value = re.sub(r"^#", f"#{prefix}", value)
            else:
                value = value.replace("url(#", f"url(#{prefix}")
            if name in ("style", "fill", "stroke"):
                value = re.sub(r"#[0-9a-f]{6}", lambda match: _themed(match.group()), value)
            element.attrib[name] = value
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": label or "plot", "class": "plot"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _themed(colour: str) -> str:
    return f"var({_THEME[colour]})" if colour in _THEME else colour


def _png_uri(image: NDArray[np.uint8]) -> str:
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"an image is uint8 (h, w), (h, w, 3) or (h, w, 4), got {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png", optimize=True)
    return _uri("image/png", buffer.getvalue())


def _data_uri(path: Path, kind: str) -> str:
    media_type = MEDIA_TYPES.get(path.suffix.lower(), "")
    if not media_type.startswith(kind):
        known = ", ".join(suffix for suffix, name in MEDIA_TYPES.items() if name.startswith(kind))
        raise ValueError(f"{path}: not a kind of {kind} that browsers embed, use one of {known}")
    return _uri(media_type, path.read_bytes())


def _uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


__all__ = ["Report", "format_value"]
