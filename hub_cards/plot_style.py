"""The house style of plots: colours that reports can theme, and axes without ornament."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, MUTED, RULE, PAGE = "#1f2a33", "#66727d", "#d9dee3", "#fbfbfa"
SERIES = ("#2b6cb0", "#cc6d1f", "#2f8566", "#8257a8", "#bd4550", "#7a6a4f")
MARKERS = ("o", "D", "s", "^", "v", "P")
WIDTH = 8.4  # inches
LEGEND_CHARACTERS, LEGEND_MARK = 106, 8  # that fit into a line of it; a name's mark and margins take as many as 8

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
# Labels of a logarithmic axis: 0.1, 0.2, 0.5, 1, ... and no others.
ONE_TWO_FIVE = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")


@contextmanager
def house_style() -> Iterator[None]:
    """The house style; names are printed as they are (`$` and `_` are no mathematics)."""
    with matplotlib.rc_context(
        {
            "font.size": 10,
            "text.parse_math": False,
            "axes.labelcolor": MUTED,
            "axes.edgecolor": RULE,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "text.color": INK,
        }
    ):
        yield


def interval_style(position: int, arm: str) -> dict[str, Any]:
    """How the dots and intervals of the arm number `position` look, in whatever plot it stands."""
    return {
        "color": SERIES[position % len(SERIES)],
        "marker": MARKERS[position % len(MARKERS)],
        "markersize": 6.0,
        "linestyle": "none",
        "elinewidth": 1.6,
        "label": arm,
        "zorder": 3,
    }


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width and `height` inches, with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
    return figure, figure.add_subplot(facecolor="none")


def finish_axes(axes: Axes, legend_columns: int, grid: str) -> None:
    """Takes the frame away, draws the grid behind, and puts a legend of so many columns above, if any."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0)
    axes.grid(axis=grid, color=RULE, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    if legend_columns:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(legend_columns, 4), frameon=False, borderaxespad=0.2
        )


def add_wide_legend(figure: Figure, names: Sequence[str]) -> None:
    """A legend of what is drawn under these names, over the figure's whole width: long names take none of the axes'."""
    columns = -(-len(names) // legend_rows(names))
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, borderaxespad=0.2)


def legend_rows(names: Sequence[str]) -> int:
    """Rows that such a legend needs."""
    columns = max(1, LEGEND_CHARACTERS // (max(map(len, names)) + LEGEND_MARK))
    return -(-len(names) // columns)


__all__ = [
    "INK",
    "MARKERS",
    "MUTED",
    "ONE_TWO_FIVE",
    "PAGE",
    "PERCENT",
    "RULE",
    "SERIES",
    "WIDTH",
    "add_wide_legend",
    "finish_axes",
    "house_style",
    "interval_style",
    "legend_rows",
    "new_figure",
]
