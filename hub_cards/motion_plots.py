"""The plots of motion: chunks, spectra, losses over flow time, and numbers with their intervals. See `plots`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .plot_style import (
    INK,
    MARKERS,
    MUTED,
    PERCENT,
    RULE,
    SERIES,
    WIDTH,
    finish_axes,
    house_style,
    interval_style,
    new_figure,
)

Interval = tuple[float, float, float]  # value, low, high

SHOWN_DIMS = 6
DATA, SAMPLES = MUTED, SERIES[0]


def intervals_by_row(
    rows: Mapping[str, Mapping[str, Interval]],
    xlabel: str,
    *,
    floors: Mapping[str, float] | None = None,
    percent: bool = False,
) -> Figure:
    """`{row: {arm: (value, low, high)}}` as a dot and an interval for each arm; a row's floor is shaded from zero.

    Raises:
        ValueError: when there is no row.
    """
    if not rows:
        raise ValueError("intervals_by_row needs at least one row")
    arms = list(dict.fromkeys(arm for entries in rows.values() for arm in entries))
    gap = min(0.22, 0.66 / len(arms))
    with house_style():
        figure, axes = new_figure(1.0 + len(rows) * (0.24 + 0.16 * len(arms)))
        for place, name in enumerate(rows):
            if floors and name in floors:
                axes.barh(place, floors[name], height=0.8, color=RULE, alpha=0.7, linewidth=0)
        for position, arm in enumerate(arms):
            shift = (position - (len(arms) - 1) / 2) * gap
            entries = [(place + shift, row[arm]) for place, row in enumerate(rows.values()) if arm in row]
            values = np.array([interval for _, interval in entries])
            axes.errorbar(
                values[:, 0],
                [place for place, _ in entries],
                # a value just outside its bootstrap interval is possible, and no negative length
                xerr=np.maximum([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0),
                **interval_style(position, arm),
            )
        axes.axvline(0, color=INK, linewidth=1.0, zorder=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel(xlabel)
        if percent:
            axes.xaxis.set_major_formatter(PERCENT)
        finish_axes(axes, legend_columns=len(arms) if len(arms) > 1 else 0, grid="x")
    return figure


def velocity_by_time(bodies: Mapping[str, Mapping[str, ArrayLike]], times: ArrayLike) -> Figure:
    """`{body: {predictor: losses (T,)}}` at flow `times` (T,): a panel a body, a line a predictor."""
    names = list(dict.fromkeys(name for lines in bodies.values() for name in lines))

    def draw(axes: Axes, body: str) -> None:
        for name, values in bodies[body].items():
            axes.plot(times, values, **_line(names.index(name)))
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)

    styles = {name: _line(position) for position, name in enumerate(names)}
    return panels(list(bodies), draw, styles, "flow time", "squared error")


def power_spectra(bodies: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]]) -> Figure:
    """`{body: (frequencies (F,), power of the data (F,), power of the samples (F,))}`: a panel a body, logarithmic."""

    def draw(axes: Axes, body: str) -> None:
        frequencies, data, samples = (np.asarray(values, dtype=np.float64) for values in bodies[body])
        floor = 1e-12  # of normalised units squared: a body at rest has no logarithm
        axes.plot(frequencies, np.maximum(data, floor), **_DATA_LINE)
        axes.plot(frequencies, np.maximum(samples, floor), **_SAMPLE_LINE)
        axes.set_yscale("log")

    styles = {"held-out motion": _DATA_LINE, "samples": _SAMPLE_LINE}
    return panels(list(bodies), draw, styles, "frequency, Hz", "power")


def chunk_lines(data: ArrayLike, samples: ArrayLike, names: Sequence[str], rate: float) -> Figure:
    """`data` (N, H, D) and `samples` (M, H, D) over time at `rate` Hz: a panel for each of the first six dims."""
    data, samples = np.asarray(data), np.asarray(samples)
    seconds = np.arange(data.shape[1]) / rate
    shown = [name for name, _ in zip(names, range(SHOWN_DIMS), strict=False)]

    def draw(axes: Axes, name: str) -> None:
        dim = shown.index(name)
        axes.plot(seconds, samples[:, :, dim].T, color=SAMPLES, linewidth=0.9, alpha=0.7)
        axes.plot(seconds, data[:, :, dim].T, color=DATA, linewidth=1.1, alpha=0.8)

    styles = {"held-out motion": {"color": DATA, "linewidth": 1.7}, "samples": _SAMPLE_LINE}
    return panels(shown, draw, styles, "seconds", "normalised", height=1.7)


def cumulative_shares(bodies: Mapping[str, ArrayLike]) -> Figure:
    """`{body: shares (F,)}`, largest first, as running totals against their number."""
    with house_style():
        figure, axes = new_figure(3.0)
        for position, (name, shares) in enumerate(bodies.items()):
            total = [0.0, *accumulate(np.asarray(shares, dtype=np.float64).tolist())]
            axes.plot(range(len(total)), total, color=SERIES[position % len(SERIES)], linewidth=1.7, label=name)
        axes.set_ylim(0, 1.03)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.set_xlabel("directions of the latent, most used first")
        axes.set_ylabel("share of its variance")
        finish_axes(axes, legend_columns=min(len(bodies), 3), grid="y")
    return figure


def panels(
    names: Sequence[str],
    draw: Callable[[Axes, str], None],
    styles: Mapping[str, Mapping[str, Any]],
    xlabel: str,
    ylabel: str,
    *,
    height: float = 2.3,
    columns: int | None = None,
) -> Figure:
    """A panel for each of `names`, under one legend; labels only at the left and below.

    `columns`: of panels; default: at most three, two for four.
    """
    columns = columns or (len(names) if len(names) < 4 else 2 if len(names) == 4 else 3)
    lines = -(-len(names) // columns)
    with house_style():
        figure = Figure(figsize=(WIDTH, 0.5 + height * lines), layout="constrained", facecolor="none")
        for position, name in enumerate(names):
            axes = figure.add_subplot(lines, columns, position + 1, facecolor="none")
            draw(axes, name)
            axes.set_title(name, loc="left", fontsize=10, color=INK)
            if position % columns == 0:
                axes.set_ylabel(ylabel)
            if position + columns >= len(names):
                axes.set_xlabel(xlabel)
            finish_axes(axes, legend_columns=0, grid="y")
        entries = [Line2D([], [], label=label, **style) for label, style in styles.items()]
        figure.legend(handles=entries, loc="outside upper left", ncols=min(len(entries), 4), frameon=False)
    return figure


def _line(position: int) -> dict[str, Any]:
    """Two coloured lines for what was learned, and grey ones for what it is compared with."""
    if position < 2:
        return {"color": SERIES[position], "linewidth": 1.9, "marker": MARKERS[position], "markersize": 4.0}
    return {"color": MUTED, "linewidth": 1.4, "linestyle": ("--", ":", "-.")[(position - 2) % 3]}


_DATA_LINE: dict[str, Any] = {"color": DATA, "linewidth": 1.7, "linestyle": "--"}
_SAMPLE_LINE: dict[str, Any] = {"color": SAMPLES, "linewidth": 1.9}

__all__ = ["chunk_lines", "cumulative_shares", "intervals_by_row", "panels", "power_spectra", "velocity_by_time"]
