"""Whether data fit the body that a checkpoint was trained with: a report by point, before a robot finds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .embodiment import Embodiment, FeatureStatistics, NormalizationMode

# What data and checkpoint must agree on for a body's numbers to mean the same, dims first: they tell the most.
BODY_KEYS = ("action_dim", "state_dim", "action_names", "state_names", "control_rate", "action_kinds", "gripper_dims")
REMEDIES = {
    "action_dim": "this is another body: give it another name and add it to the checkpoint",
    "state_dim": "record the same states, or give this body another name",
    "action_names": "map the columns to these names in this order if they mean the same, else another body",
    "state_names": "map the columns to these names in this order if they mean the same, else another body",
    "control_rate": "resample the data to the trained rate, or give this body another name",
    "action_kinds": "describe the data's kinds in its embodiment; another kind is another body",
    "gripper_dims": "name the data's gripper dims in its embodiment",
    "rotations": "describe the data's rotations in its embodiment as the checkpoint does",
    "cameras": "a camera that is missing is masked, one that is unknown is not used: rename it if it is the same",
}
SHOWN_ENTRIES = 8  # of a list in a message
COLUMN_WIDTH = 36
NOTICED_SHARE = 0.1  # of the data's range outside the trained one, from which a dim is pointed at (our choice)
DEGREES = 180 / np.pi

Verdict = Literal["fits", "differs", "refused"]


@dataclass(frozen=True)
class CompatibilityRow:
    """One point: what the checkpoint was trained with, what the data have, and what to do when they disagree."""

    key: str
    trained: str
    data: str
    verdict: Verdict
    remedy: str = ""


@dataclass(frozen=True)
class CompatibilityReport:
    """All points of comparison; `str()` is a table. `refused` rows make the data unusable, `differs` are warnings."""

    embodiment: str
    rows: list[CompatibilityRow]

    @property
    def fits(self) -> bool:
        """Whether nothing is refused."""
        return not any(row.verdict == "refused" for row in self.rows)

    @property
    def warnings(self) -> list[CompatibilityRow]:
        return [row for row in self.rows if row.verdict == "differs"]

    def __str__(self) -> str:
        refused = sum(row.verdict == "refused" for row in self.rows)
        head = f"embodiment {self.embodiment!r}: " + (
            f"{refused} of {len(self.rows)} points do not fit" if refused else f"fits, {len(self.warnings)} warnings"
        )
        cells = [("", "trained with", "data have", "")]
        cells += [(row.key, row.trained, row.data, row.verdict) for row in self.rows]
        widths = [min(COLUMN_WIDTH, max(len(cell[column]) for cell in cells)) for column in range(4)]
        lines = [head]
        for cell, row in zip(cells, [None, *self.rows], strict=True):
            text = "  ".join(f"{value:<{width}}" for value, width in zip(cell, widths, strict=True))
            lines.append("  " + text.rstrip())
            if row is not None and row.remedy:
                lines.append(f"    -> {row.remedy}")
        return "\n".join(lines)


def compatibility_report(
    trained: Embodiment, data: Embodiment, statistics_of_data: Mapping[str, FeatureStatistics] | None = None
) -> CompatibilityReport:
    """Compares a checkpoint's embodiment with that of data.

    Args:
        trained: the checkpoint's, with statistics.
        data: the data's. Its learned kinds and normalisation do not matter, the checkpoint's are used; rotations
            that it does not mention are taken to be the checkpoint's.
        statistics_of_data: by `action` and `state`, of values as the checkpoint learns them. Default: those that
            `data` carries, where they are of the same learned values.
    """
    rows = [_compared(trained, data, key) for key in BODY_KEYS]
    if data.rotations:
        rows.append(_compared(trained, data, "rotations"))
    if data.cameras and data.cameras != trained.cameras:
        shown = [_shown(body.cameras) for body in (trained, data)]
        rows.append(CompatibilityRow("cameras", shown[0], shown[1], "differs", REMEDIES["cameras"]))
    if not any(row.verdict == "refused" for row in rows):
        for label in ("action", "state"):
            theirs = (statistics_of_data or {}).get(label) or _own_statistics(trained, data, label)
            rows += _range_rows(trained, label, theirs)
    return CompatibilityReport(trained.name, rows)


def require_compatible(trained: Embodiment, data: Embodiment, where: str = "") -> CompatibilityReport:
    """The report, when the data fit. Raises ValueError with it, and its first point in a sentence, when they do not.

    Args:
        where: the dataset, named in front of the error.
    """
    report = compatibility_report(trained, data)
    if report.fits:
        return report
    difference = first_difference(trained, data, (*BODY_KEYS, "rotations"))
    assert difference is not None
    key, ours, theirs = difference
    raise ValueError(
        f"{where}{': ' if where else ''}embodiment {data.name!r} has {key}={theirs}, the checkpoint was trained with "
        f"{ours}: use data of the same body, or give this one another name\n{report}"
    )


def first_difference(ours: Embodiment, theirs: Embodiment, keys: Sequence[str]) -> tuple[str, str, str] | None:
    """The first of `keys` in which two descriptions of one body disagree, and both values as a message shows them.

    Of long lists of one length only the first entry that differs is shown, with its index in the key.
    """
    for key in keys:
        mine, other = getattr(ours, key), getattr(theirs, key)
        if mine == other:
            continue
        if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other) > SHOWN_ENTRIES:
            index = next(index for index, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1])
            key, mine, other = f"{key}[{index}]", mine[index], other[index]
        return key, repr(_plain(mine)), repr(_plain(other))
    return None


def _compared(trained: Embodiment, data: Embodiment, key: str) -> CompatibilityRow:
    difference = first_difference(trained, data, [key])
    if difference is None:
        shown = _shown(getattr(trained, key))
        return CompatibilityRow(key, shown, shown, "fits")
    return CompatibilityRow(*difference, "refused", REMEDIES[key])


def _own_statistics(trained: Embodiment, data: Embodiment, label: str) -> FeatureStatistics | None:
    alike = trained.learned_kinds == data.learned_kinds and trained.rotations == data.rotations
    statistics: FeatureStatistics | None = getattr(data, f"{label}_statistics")
    return statistics if alike else None


def _range_rows(trained: Embodiment, label: str, theirs: FeatureStatistics | None) -> list[CompatibilityRow]:
    """A warning for every dim whose values lie largely where the checkpoint has seen none, and for radians."""
    ours: FeatureStatistics | None = getattr(trained, f"{label}_statistics")
    if ours is None or theirs is None:
        return []
    names = getattr(trained, f"model_{label}_names")
    center, scale = ours.affine(NormalizationMode.QUANTILE, trained.model_minimum_range(label))
    rows = []
    for dim, name in enumerate(names):
        low, high = center[dim] - scale[dim], center[dim] + scale[dim]
        first, last = theirs.q01[dim], theirs.q99[dim]
        share = _share_outside(first, last, low, high)
        if share > NOTICED_SHARE:
            furthest = max(abs(first - center[dim]), abs(last - center[dim])) / scale[dim]
            remedy = (
                f"{share:.0%} of the data's range was not trained on, up to {furthest:.3g} where the trained range "
                f"ends at 1: {_hint((last - first) / (high - low))}"
            )
            seen = [f"{ours.q01[dim]:.4g} to {ours.q99[dim]:.4g}", f"{first:.4g} to {last:.4g}"]
            rows.append(CompatibilityRow(f"{label} range {name!r}", seen[0], seen[1], "differs", remedy))
    ratio = float(np.median((np.asarray(theirs.q99) - theirs.q01) / (2 * scale)))
    if 0.5 < ratio * DEGREES < 2:  # all of it lies within what was trained on, and means next to nothing there
        remedy = "are the data in radians, the checkpoint in degrees?"
        rows.append(CompatibilityRow(f"{label} range", "100%", f"{ratio:.1%} of it", "differs", remedy))
    return rows


def _share_outside(first: float, last: float, low: float, high: float) -> float:
    """The share of [first, last] that lies outside [low, high]; of a single point, 0 or 1."""
    if last <= first:
        return float(not low <= first <= high)
    return 1 - max(0.0, min(last, high) - max(first, low)) / (last - first)


def _hint(ratio: float) -> str:
    if 0.5 < ratio / DEGREES < 2:
        return "are the data in degrees, the checkpoint in radians?"
    return "check units, zero positions and signs, or train on such data"


def _shown(value: Any) -> str:
    text = repr(_plain(value))
    if not isinstance(value, list) or len(text) <= COLUMN_WIDTH:
        return text
    alike = all(entry == value[0] for entry in value)
    return f"{value[0]!r} {len(value)} times" if alike else f"{len(value)} entries"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, NormalizationMode) else value


__all__ = [
    "BODY_KEYS",
    "CompatibilityReport",
    "CompatibilityRow",
    "compatibility_report",
    "first_difference",
    "require_compatible",
]
