"""The pictures of a card: PNG files beside it, which it shows where they are and never else.

A card links a picture by its name alone, `![what is seen](loss.png)`: the file lies in the same folder and goes into
the same commit. Nothing is inlined, so that a card stays text that people can read and edit.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOSS, SUCCESS, VELOCITY, SPECTRA, SAMPLES, MOTION = (
    f"{name}.png" for name in ("loss", "success", "velocity", "spectra", "samples", "motion")
)
# In Markdown or as HTML; an address is no file.
_PICTURE = re.compile(r"""!\[[^\]]*\]\((?!\w+:|[/#])([^)\s]+)[^)]*\)|<img\b[^>]*\bsrc=["'](?!\w+:|[/#])([^"']+)""")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin


@dataclass(frozen=True)
class CardPlot:
    """A picture that templates have a place for: `alt` says what is seen, `caption` what it means."""

    alt: str
    caption: str


PLOTS: Mapping[str, CardPlot] = {
    LOSS: CardPlot(
        "Lines of the loss and of its parts against training steps.", "Loss against training steps; smaller is better."
    ),
    SUCCESS: CardPlot(
        "One row a task: a dot at its success rate, within a bar for the 95 % interval.",
        "Success by task. The bars are 95 % Wilson intervals: where they overlap much, do not tell tasks apart.",
    ),
    VELOCITY: CardPlot(
        "A panel a body: the velocity's squared error against flow time, of the prior and of simpler predictors.",
        "What it was trained for, on held-out motion, by flow time (0 is the action, 1 pure noise). Below the mean "
        "and spread alone, it knows motion.",
    ),
    SPECTRA: CardPlot(
        "A panel a body: power against frequency, of held-out motion and of samples from the prior.",
        "How fast its samples tremble, beside real motion: the two lines should lie on each other.",
    ),
    SAMPLES: CardPlot(
        "A panel an action dim: samples from the prior over chunks of held-out motion.",
        "Samples, made from nothing, over as many held-out chunks, in normalised units.",
    ),
    MOTION: CardPlot(
        "One row an episode, over its seconds: the bluer, the faster the robot moves; idle ends are marked.",
        "When the robot moves, in the first 40 episodes: a row each, the bluer the faster. Orange: neither action nor "
        "state moves.",
    ),
}


def plots_in(folder: Path) -> list[str]:
    """The pictures in `folder` that a card has a place for, by file name."""
    return [name for name in PLOTS if (folder / name).is_file()]


def shown_pictures(text: str) -> list[str]:
    """The files, by path relative to the card, that its Markdown shows."""
    return list(dict.fromkeys(markdown or html for markdown, html in _PICTURE.findall(text)))


def gather_pictures(text: str, source: Path | None, folder: Path) -> str:
    """Copies the pictures that a card shows from `source` into `folder`, and returns the card's text.

    What is in `folder` already stays. A picture of ours that is in neither goes out of the text with its caption; of
    somebody's own it raises ValueError, as does one outside of `source`, also through a link, and a file that is
    neither PNG nor JPEG.
    """
    for name in shown_pictures(text):
        if (folder / name).is_file():
            continue
        if source is not None and ".." not in Path(name).parts and _lies_in(source, name):
            _require_picture(source / name, name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        elif name in PLOTS:
            text = _without(text, name)
        else:
            raise ValueError(
                f"the card shows {name!r}, which is not beside it: put the picture into the checkpoint's folder, or "
                "take it out of README.md"
            )
    return text


def _lies_in(source: Path, name: str) -> bool:
    """Whether the file itself lies there; the Hub's cache has links into a folder of its own beside it."""
    file, home = (source / name).resolve(), source.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    return file.is_file() and any(file.is_relative_to(place) for place in homes)


def _require_picture(file: Path, name: str) -> None:
    with open(file, "rb") as content:
        if not content.read(8).startswith(_MAGIC):
            raise ValueError(f"the card shows {name!r}, which is no picture: only PNG and JPEG files go with a card")


def _without(text: str, name: str) -> str:
    """The text without the paragraph, or else the line's part, that shows a picture."""
    caption = re.escape(f"*{PLOTS[name].caption}*")
    picture = rf"!\[[^\]]*\]\({re.escape(name)}[^)]*\)"
    return re.sub(rf"{picture}(?:\s*<br>\s*{caption}[^\S\n]*\n?)?", "", text)


__all__ = [
    "LOSS",
    "MOTION",
    "PLOTS",
    "SAMPLES",
    "SPECTRA",
    "SUCCESS",
    "VELOCITY",
    "CardPlot",
    "gather_pictures",
    "plots_in",
    "shown_pictures",
]
