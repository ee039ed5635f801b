"""Where a body's numbers lie: the units of a dataset are nobody's to say, but their size can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from ..configuration.embodiment import Embodiment
from ..configuration.feature_statistics import FeatureStatistics
from .report import format_value


def value_ranges(embodiment: Embodiment) -> list[list[str]]:
    """A row a dim that is learned, actions first: name, least, 1 % and 99 % quantile, greatest, before normalisation.

    Of a body without statistics none.
    """
    return [
        *_rows("action", embodiment.model_action_names, embodiment.action_statistics),
        *_rows("state", embodiment.model_state_names, embodiment.state_statistics),
    ]


def _rows(label: str, names: Sequence[str], statistics: FeatureStatistics | None) -> list[list[str]]:
    if statistics is None:
        return []
    columns = zip(statistics.min, statistics.q01, statistics.q99, statistics.max, strict=True)
    return [
        [f"{label} {name}", *(format_value(float(f"{value:.3g}")) for value in values)]
        for name, values in zip(names, columns, strict=True)
    ]


__all__ = ["value_ranges"]
