"""The plots of a dataset's report: when its robot moves, what values its dims take, how actions lead states.

Every function returns a matplotlib `Figure` for `Report.figure`, as those of `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from .plot_style import INK, MUTED, PAGE, RULE, SERIES, finish_axes, house_style, new_figure

TIMELINE_BINS = 240
LENGTH_BINS = 40
RANGE_LIMIT = 3.0  # normalised units; beyond, a strip ends in an arrow


def motion_timeline(speeds: Sequence[ArrayLike], idle: ArrayLike, names: Sequence[str], period: float) -> Figure:
    """One row an episode from left to right: the bluer, the faster it moves; idle starts and ends are marked.

    Args:
        speeds: (T,) an episode, in any unit; the colour ends at their common 95 % quantile.
        idle: (E, 2) idle steps at the start and end of each.
        names: one an episode.
        period: seconds a step.

    Raises:
        ValueError: when there is no episode, or names or idle steps are not as many as episodes.
    """
    marks = np.asarray(idle)
    if not len(speeds) or len(names) != len(speeds) or marks.shape != (len(speeds), 2):
        raise ValueError(f"motion_timeline: {len(speeds)} episodes, {len(names)} names, idle steps {marks.shape}")
    rows = [np.asarray(speed, dtype=np.float64) for speed in speeds]
    longest = max(len(row) for row in rows)
    fastest = float(np.quantile(np.concatenate(rows), 0.95)) or 1.0
    picture = np.full((len(rows), min(longest, TIMELINE_BINS)), np.nan)
    for place, row in enumerate(rows):
        bins = np.arange(len(row)) * picture.shape[1] // longest
        picture[place, : bins[-1] + 1] = np.bincount(bins, row) / np.maximum(np.bincount(bins), 1)
    with house_style():
        figure, axes = new_figure(max(1.4, min(6.5, 0.9 + 0.16 * len(rows))))
        axes.imshow(
            np.clip(picture / fastest, 0, 1),
            cmap=LinearSegmentedColormap.from_list("motion", [to_rgba(SERIES[0], 0.05), to_rgba(SERIES[0], 1.0)]),
            aspect="auto",
            interpolation="nearest",
            extent=(0, longest * period, len(rows) - 0.5, -0.5),
            vmin=0,
            vmax=1,
        )
        for place, (row, (start, end)) in enumerate(zip(rows, marks.tolist(), strict=True)):
            length = len(row) * period
            axes.plot([length, length], [place - 0.5, place + 0.5], color=MUTED, linewidth=1.0)
            for left, width in ((0.0, start * period), (length - end * period, end * period)):
                if width:
                    axes.barh(place, width, left=left, height=0.5, color=SERIES[1], alpha=0.85, linewidth=0)
        step = -(-len(rows) // 25)
        axes.set_yticks(range(0, len(rows), step), names[::step])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, longest * period)
        axes.set_xlabel("seconds")
        axes.set_ylabel("episode")
        finish_axes(axes, legend_columns=0, grid="x")
        axes.grid(visible=False)
    return figure


def length_histogram(seconds: ArrayLike, chunk_seconds: float) -> Figure:
    """How long episodes (E,) last, with a line at the length of a chunk. Raises ValueError without episodes."""
    values = np.asarray(seconds, dtype=np.float64)
    if not len(values):
        raise ValueError("length_histogram needs at least one episode")
    with house_style():
        figure, axes = new_figure(2.3)
        edges = np.linspace(0, 1.02 * max(values.max(), chunk_seconds), LENGTH_BINS + 1)
        axes.hist(values, bins=edges.tolist(), color=SERIES[0], rwidth=0.92)
        axes.axvline(chunk_seconds, color=SERIES[1], linewidth=1.6)
        axes.text(chunk_seconds, 1.02, " one chunk", color=SERIES[1], transform=axes.get_xaxis_transform(), fontsize=9)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.set_xlabel("length of an episode, seconds")
        axes.set_ylabel("episodes")
        finish_axes(axes, legend_columns=0, grid="y")
    return figure


def dim_ranges(
    names: Sequence[str], quantiles: ArrayLike, marked: Sequence[bool] | NDArray[np.bool_], xlabel: str
) -> Figure:
    """One strip a dim: a thin line from least to greatest, a bar over the middle 98 %, a dot at the median.

    Args:
        names: one a dim.
        quantiles: (5, dim): min, q01, median, q99, max; beyond ±3 a strip ends in an arrow.
        marked: dims drawn in the second colour: those that something was found about.
        xlabel: what the numbers are.

    Raises:
        ValueError: when there is no dim or the shapes do not agree.
    """
    values = np.asarray(quantiles, dtype=np.float64)
    if not len(names) or values.shape != (5, len(names)) or len(marked) != len(names):
        raise ValueError(f"dim_ranges: {len(names)} names, quantiles {values.shape}, {len(marked)} marks")
    low, q01, median, q99, high = np.clip(values, -RANGE_LIMIT, RANGE_LIMIT)
    with house_style():
        figure, axes = new_figure(0.8 + 0.21 * len(names))
        axes.axvspan(-1, 1, color=RULE, alpha=0.35, linewidth=0)
        for row, mark in enumerate(marked):
            colour = SERIES[1] if mark else SERIES[0]
            axes.plot([low[row], high[row]], [row, row], color=colour, linewidth=1.0)
            axes.plot([q01[row], q99[row]], [row, row], color=colour, linewidth=4.5, alpha=0.55, solid_capstyle="butt")
            axes.plot([median[row]], [row], marker="o", markersize=4.5, color=colour, markeredgecolor=PAGE)
            for end, marker in ((values[0, row], "<"), (values[4, row], ">")):
                if abs(end) > RANGE_LIMIT:
                    place = np.clip(end, -RANGE_LIMIT, RANGE_LIMIT)
                    axes.plot([place], [row], marker=marker, markersize=6, color=colour, clip_on=False)
                    axes.annotate(
                        f"{end:.3g}",
                        (place, row),
                        xytext=(-8 if end > 0 else 8, 5),
                        textcoords="offset points",
                        ha="right" if end > 0 else "left",
                        fontsize=8,
                        color=colour,
                    )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-RANGE_LIMIT - 0.1, RANGE_LIMIT + 0.1)
        axes.set_xlabel(xlabel)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=8.5)
        finish_axes(axes, legend_columns=0, grid="x")
    return figure


def lag_curves(lags: ArrayLike, level: ArrayLike, change: ArrayLike, period: float) -> Figure:
    """What share of the action's variance the state explains, (L,) by lag in steps: its level, and its change.

    Args:
        period: seconds a step.

    Raises:
        ValueError: when there is no lag or the lists differ in length.
    """
    x, levels, changes = (np.asarray(values, dtype=np.float64) for values in (lags, level, change))
    if not len(x) or not len(x) == len(levels) == len(changes):
        raise ValueError(f"lag_curves: {len(x)} lags, {len(levels)} levels, {len(changes)} changes")
    with house_style():
        figure, axes = new_figure(2.7)
        for position, (name, values) in enumerate(
            (("the state then (absolute)", levels), ("its change then (delta, velocity)", changes))
        ):
            axes.plot(x, values, color=SERIES[position], linewidth=1.7, label=name)
            if values.max() == max(levels.max(), changes.max()):
                best = int(values.argmax())
                axes.plot([x[best]], [values[best]], marker="o", markersize=6, color=SERIES[position])
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel(f"steps after the action ({1000 * period:.3g} ms each)")
        axes.set_ylabel("share explained")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish_axes(axes, legend_columns=2, grid="y")
    return figure


__all__ = ["dim_ranges", "lag_curves", "length_histogram", "motion_timeline"]
