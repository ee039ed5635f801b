"""The plots of an inspection draw what they were given, and refuse what they cannot draw."""

from __future__ import annotations

import numpy as np
import pytest

from priorvla.hub_cards import dataset_plots
from priorvla.hub_cards.plot_style import SERIES


def test_the_timeline_marks_idle_starts_and_ends_in_seconds():
    axes = dataset_plots.motion_timeline([np.ones(20), np.ones(10)], [[4, 0], [0, 2]], ["7", "9"], period=0.5).axes[0]
    bars = [(bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in axes.patches]
    assert bars == [(0.0, 2.0, 0), (4.0, 1.0, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["7", "9"]
    assert axes.get_xlim() == (0, 10)
    picture = axes.images[0].get_array()
    assert picture.mask.sum() == 10  # nothing is drawn after the end of the shorter episode


def test_a_range_beyond_the_plot_ends_in_an_arrow_with_its_number():
    quantiles = np.array([[-1.0, -1.1], [-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [1.1, 369.0]])
    axes = dataset_plots.dim_ranges(["quiet", "wild"], quantiles, [False, True], "value").axes[0]
    assert [text.get_text() for text in axes.texts] == ["369"]
    arrows = [line for line in axes.lines if line.get_marker() == ">"]
    assert [line.get_ydata()[0] for line in arrows] == [1]
    assert {line.get_color() for line in axes.lines if line.get_ydata()[0] == 1} == {SERIES[1]}


def test_the_best_lag_is_marked_on_the_better_curve_alone():
    axes = dataset_plots.lag_curves([-1, 0, 1, 2], [0.1, 0.5, 0.9, 0.4], [0.3, 0.2, 0.1, 0.0], 0.1).axes[0]
    (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (1, 0.9)


def test_the_histogram_counts_every_episode():
    axes = dataset_plots.length_histogram([4.0, 4.0, 9.5], chunk_seconds=1.6).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 3


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: dataset_plots.motion_timeline([], np.zeros((0, 2)), [], 0.1), "0 episodes"),
        (lambda: dataset_plots.motion_timeline([[1.0]], np.zeros((1, 2)), ["a", "b"], 0.1), "2 names"),
        (lambda: dataset_plots.length_histogram([], 1.0), "at least one episode"),
        (lambda: dataset_plots.dim_ranges(["a"], np.zeros((4, 1)), [False], "x"), r"quantiles \(4, 1\)"),
        (lambda: dataset_plots.lag_curves([0, 1], [0.5], [0.5, 0.5], 0.1), "1 levels"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_that_says_so(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
