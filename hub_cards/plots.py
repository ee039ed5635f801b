"""The plots of reports and cards: loss curves, and success rates that never come without their intervals.

Every function returns a matplotlib `Figure` that is not registered with pyplot: draw it into a report with
`Report.figure`, or keep it with `figure.savefig("name.png")`. An arm (one thing that is compared) has the same colour
and marker in every plot that is given the arms in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from .intervals import difference_interval, wilson_interval
from .plot_style import (
    INK,
    ONE_TWO_FIVE,
    PAGE,
    PERCENT,
    RULE,
    SERIES,
    add_wide_legend,
    finish_axes,
    house_style,
    interval_style,
    legend_rows,
    new_figure,
)

LOSS_BINS = 240

Counts = tuple[int, int]


def loss_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], ylabel: str = "loss", log_y: bool = False) -> Figure:
    """One line an entry of `{name: (steps, values)}`, both (N,).

    More than 240 points are drawn as 240 bins of equal length: the line is each bin's mean, the band its range, so a
    long run stays a small file and a spike stays visible. Values that are not finite are left out.

    Raises:
        ValueError: when there is no curve, or a curve's steps and values differ in length or hold no finite value.
    """
    _require(curves, "loss_curves needs at least one curve")
    with house_style():
        figure, axes = new_figure(3.6)
        for position, (name, (steps, values)) in enumerate(curves.items()):
            colour = SERIES[position % len(SERIES)]
            x, middle, low, high = _binned(name, steps, values)
            if low is not None and high is not None:
                axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            marker = "o" if len(x) == 1 else None
            axes.plot(x, middle, color=colour, linewidth=1.7, label=name, marker=marker)
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ONE_TWO_FIVE)
            axes.yaxis.set_minor_formatter(ONE_TWO_FIVE)
        axes.set_xlabel("training step")
        axes.set_ylabel(ylabel)
        finish_axes(axes, legend_columns=len(curves), grid="y")
    return figure


def success_by_task(arms: Mapping[str, Mapping[str, Counts]]) -> Figure:
    """`{arm: {task: (successes, trials)}}` as one row a task: a dot and its 95 % Wilson interval for each arm.

    Tasks come in the order in which they first appear; an arm without a task leaves its place empty.

    Raises:
        ValueError: when there is no arm or no task, or counts are impossible (see `wilson_interval`).
    """
    _require(arms, "success_by_task needs at least one arm")
    tasks = list(dict.fromkeys(task for tasks in arms.values() for task in tasks))
    _require(tasks, "success_by_task needs at least one task")
    spread = _offsets(len(arms), 0.22)
    with house_style():
        figure, axes = new_figure(0.8 + 0.2 * legend_rows(list(arms)) + len(tasks) * (0.22 + 0.15 * len(arms)))
        for position, (arm, results) in enumerate(arms.items()):
            rows = [row + spread[position] for row, task in enumerate(tasks) if task in results]
            counts = [results[task] for task in tasks if task in results]
            _intervals(axes, position, arm, rows, counts, horizontal=True)
        for row in range(1, len(tasks)):
            axes.axhline(row - 0.5, color=RULE, linewidth=0.6)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("success rate, 95 % Wilson interval")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.tick_params(axis="y", labelcolor=INK)
        finish_axes(axes, legend_columns=0, grid="x")
        add_wide_legend(figure, list(arms))
    return figure


def success_against_steps(arms: Mapping[str, Mapping[int, Counts]]) -> Figure:
    """`{arm: {training steps: (successes, trials)}}` as a line an arm, with 95 % Wilson intervals at every budget.

    Arms measured at the same step are set apart by a hundredth of the axis, so that their intervals can be read.

    Raises:
        ValueError: when there is no arm or an arm has no result, or counts are impossible (see `wilson_interval`).
    """
    _require(arms, "success_against_steps needs at least one arm")
    for arm, results in arms.items():
        _require(results, f"success_against_steps: arm {arm!r} has no results")
    every_step = sorted({step for results in arms.values() for step in results})
    reach = every_step[-1] - every_step[0] or max(every_step[-1], 1)
    spread = _offsets(len(arms), 0.01 * reach)
    with house_style():
        figure, axes = new_figure(3.6)
        for position, (arm, results) in enumerate(arms.items()):
            steps = sorted(results)
            places = [step + spread[position] for step in steps]
            rates = [results[step][0] / results[step][1] for step in steps if results[step][1]]
            _intervals(axes, position, arm, places, [results[step] for step in steps], horizontal=False)
            axes.plot(places, rates, color=SERIES[position % len(SERIES)], linewidth=1.3, alpha=0.75, zorder=2)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(every_step[0] - 0.08 * reach, every_step[-1] + 0.08 * reach)
        if len(every_step) <= 8:
            axes.set_xticks(every_step)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.set_xlabel("training steps")
        axes.set_ylabel("success rate, 95 % Wilson interval")
        finish_axes(axes, legend_columns=len(arms), grid="y")
    return figure


def difference(comparisons: Mapping[str, tuple[int, int, int, int]], label_a: str, label_b: str) -> Figure:
    """`{name: (successes_a, trials_a, successes_b, trials_b)}` as rate a - rate b, one row each, with a zero line.

    The interval is Newcombe's (`difference_interval`). A dot is filled where the interval leaves zero out, and hollow
    where it spans zero, which is where the data do not tell the two apart.

    Raises:
        ValueError: when there is nothing to compare, or counts are impossible (see `difference_interval`).
    """
    _require(comparisons, "difference needs at least one comparison")
    with house_style():
        figure, axes = new_figure(0.95 + 0.36 * len(comparisons))
        furthest = 0.1
        for row, counts in enumerate(comparisons.values()):
            successes_a, trials_a, successes_b, trials_b = counts
            low, high = difference_interval(*counts)
            middle = successes_a / trials_a - successes_b / trials_b
            axes.plot([low, high], [row, row], color=SERIES[0], linewidth=1.8, solid_capstyle="butt")
            face = PAGE if low <= 0 <= high else SERIES[0]
            axes.plot(
                [middle], [row], marker="o", markersize=6.5, color=SERIES[0], markerfacecolor=face, markeredgewidth=1.6
            )
            furthest = max(furthest, abs(low), abs(high))
        axes.axvline(0, color=INK, linewidth=1.0, zorder=1)
        axes.set_yticks(range(len(comparisons)), list(comparisons))
        axes.set_ylim(len(comparisons) - 0.5, -0.5)
        axes.set_xlim(-1.08 * furthest, 1.08 * furthest)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0"))
        axes.set_xlabel(f"{label_a} minus {label_b}, percentage points, 95 % interval")
        axes.tick_params(axis="y", labelcolor=INK)
        finish_axes(axes, legend_columns=0, grid="x")
    return figure


def _intervals(
    axes: Axes, position: int, arm: str, places: Sequence[float], counts: Sequence[Counts], horizontal: bool
) -> None:
    """Dots with Wilson intervals for one arm: `places` on the categorical or step axis, rates on the other."""
    if not places:
        return
    bounds = np.array([wilson_interval(*count) for count in counts])
    rates = np.array([successes / trials for successes, trials in counts])
    errors = np.abs(bounds.T - rates)
    x, y = (rates, places) if horizontal else (places, rates)
    axes.errorbar(
        x,
        y,
        xerr=errors if horizontal else None,
        yerr=None if horizontal else errors,
        **interval_style(position, arm),
    )


def _binned(
    name: str, steps: ArrayLike, values: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"curve {name!r}: steps {x.shape} and values {y.shape} must be lists of one length")
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    _require(x, f"curve {name!r} has no finite value")
    if len(x) <= LOSS_BINS:
        return x, y, None, None
    bins = np.array_split(np.arange(len(x)), LOSS_BINS)
    return (
        np.array([x[b].mean() for b in bins]),
        np.array([y[b].mean() for b in bins]),
        np.array([y[b].min() for b in bins]),
        np.array([y[b].max() for b in bins]),
    )


def _offsets(count: int, step: float) -> list[float]:
    """`count` places around zero, `step` apart or closer, so that more than three arms stay within their row."""
    step = min(step, step * 3 / count)
    return [(place - (count - 1) / 2) * step for place in range(count)]


def _require(things: object, message: str) -> None:
    if not len(things):  # type: ignore[arg-type]
        raise ValueError(message)


__all__ = ["difference", "loss_curves", "success_against_steps", "success_by_task"]
