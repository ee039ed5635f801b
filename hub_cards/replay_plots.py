"""The plots of an open-loop replay: recorded actions with the chunks predicted beside them, and errors by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .motion_plots import panels
from .plot_style import INK, MUTED, SERIES, finish_axes, house_style, new_figure

RECORDED: dict[str, Any] = {"color": MUTED, "linewidth": 1.6}
EXECUTED: dict[str, Any] = {"color": SERIES[0], "linewidth": 1.7}
LEFT_OVER: dict[str, Any] = {"color": SERIES[0], "linewidth": 0.8, "alpha": 0.45}


def replayed_actions(
    recorded: ArrayLike,
    starts: ArrayLike,
    predicted: ArrayLike,
    names: Sequence[str],
    rate: float,
    execute_steps: int,
) -> Figure:
    """`recorded` (T, D) actions at `rate` Hz, and chunks `predicted` (N, H, D) from the steps `starts` (N,).

    A panel a dim; what of a chunk would have been executed is bold. Chunks that start later than T are left out, and so
    is what lies behind T.
    """
    done, begins = np.asarray(recorded), np.asarray(starts)
    chunks = np.asarray(predicted)
    shown = {f"{name}" if names.count(name) == 1 else f"{name} ({dim})": dim for dim, name in enumerate(names)}

    def draw(axes: Axes, name: str) -> None:
        dim = shown[name]
        axes.plot(np.arange(len(done)) / rate, done[:, dim], **RECORDED)
        for start, chunk in zip(begins.tolist(), chunks[:, :, dim], strict=True):
            length = min(len(chunk), len(done) - start)
            if length < 1:
                continue
            seconds = (start + np.arange(length)) / rate
            axes.plot(seconds, chunk[:length], **LEFT_OVER)
            bold = min(execute_steps, length)
            axes.plot(seconds[:bold], chunk[:bold], **EXECUTED)
        axes.set_xlim(0, len(done) / rate)

    styles = {"recorded": RECORDED, "predicted, executed": EXECUTED, "predicted, replaced by the next": LEFT_OVER}
    return panels(list(shown), draw, styles, "seconds", "", height=1.55, columns=min(2, len(shown)))


def relative_errors(lines: Mapping[str, ArrayLike], execute_steps: int) -> Figure:
    """`{baseline: policy's error over its own (H,)}` by step in the chunk; 1 is no better, shaded what is executed."""
    with house_style():
        figure, axes = new_figure(3.2)
        longest = 1
        for position, (name, values) in enumerate(lines.items()):
            ratio = np.asarray(values, dtype=np.float64)
            longest = max(longest, len(ratio))
            steps = np.arange(1, len(ratio) + 1)
            axes.plot(steps, ratio, color=SERIES[position], linewidth=1.8, marker="o", markersize=3.5, label=name)
        axes.axvspan(0.5, execute_steps + 0.5, color=MUTED, alpha=0.08, linewidth=0)
        axes.axhline(1, color=INK, linewidth=1.0, linestyle="--", zorder=1)
        axes.set_xlim(0.5, longest + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step in the chunk")
        axes.set_ylabel("error over the baseline's")
        finish_axes(axes, legend_columns=len(lines), grid="y")
    return figure


def errors_by_step(errors: Mapping[str, ArrayLike], names: Sequence[str]) -> Figure:
    """`{who: mean absolute errors (H, D)}` by step in the chunk, a panel a dim, in the robot's units."""
    shown = {f"{name}" if names.count(name) == 1 else f"{name} ({dim})": dim for dim, name in enumerate(names)}
    styles = {
        who: {"color": SERIES[0], "linewidth": 1.9}
        if position == 0
        else {"color": MUTED, "linewidth": 1.3, "linestyle": ("--", ":")[(position - 1) % 2]}
        for position, who in enumerate(errors)
    }

    def draw(axes: Axes, name: str) -> None:
        for who, values in errors.items():
            line = np.asarray(values)[:, shown[name]]
            axes.plot(np.arange(1, len(line) + 1), line, **styles[who])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)

    return panels(list(shown), draw, styles, "step in the chunk", "error", height=1.7)


__all__ = ["errors_by_step", "relative_errors", "replayed_actions"]
