"""How actions and states hang together: is an action where the state will be, or how far it will move, and when?

What is declared here decides what a model learns; an action that is a difference already and is made one again cost
openpi's users 25 points of success (openpi#1047).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from .findings import Finding, Severity, counted, listed
from .recording import Recording
from .thresholds import InspectionThresholds

MOST_STEPS = 200_000  # compared; more would tell no more
BEHIND = 5  # steps: an action may also repeat a state of so long ago, when columns are shifted
DIFFERENCES = ("delta", "velocity")

Fit = tuple[NDArray[np.float64], NDArray[np.float64]]  # explained share and factor, each (lags, ...)


@dataclass(frozen=True)
class DimAgreement:
    """How one action dim relates to its state dim.

    Args:
        action, state: their names; declared: the embodiment's kind of the action dim.
        relation: `absolute` (the action is the state `lag` steps later), `scaled absolute` (in other units), `delta`
            (the state's difference over the step that begins `lag` steps later), `velocity` (proportional to it), or
            `unrelated`.
        lag: steps; negative where the action repeats an earlier state.
        explained: share of the action's variance that the relation explains.
        factor: of a `velocity` or `scaled absolute`: action units a state unit.
    """

    action: str
    state: str
    declared: str
    relation: str
    lag: int
    explained: float
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of all comparable dims; `level` and `change` (lags,) are medians over dims of what share of the action's variance
    the state so many steps later explains, and its change over a step (by any factor)."""

    dims: list[DimAgreement] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    level: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)

    @property
    def relation(self) -> str | None:
        """The most frequent relation; None where no dims could be compared."""
        return Counter(dim.relation for dim in self.dims).most_common(1)[0][0] if self.dims else None

    @property
    def lag(self) -> float | None:
        """Median lag, in steps, of the dims of the most frequent relation."""
        lags = [dim.lag for dim in self.dims if dim.relation == self.relation]
        return float(np.median(lags)) if lags and self.relation != "unrelated" else None


def pair_dims(embodiment: Embodiment) -> list[tuple[int, int]]:
    """(action dim, its reference state dim) that can be compared; a gripper's command is no target and left out."""
    return [
        (action, state)
        for action, state in enumerate(embodiment.reference_dims)
        if state is not None and action not in embodiment.gripper_dims
    ]


def _moving_pairs(recording: Recording) -> list[tuple[int, int]]:
    """Pairs whose state moves and whose action changes at all: differences may all be smaller than a minimum range."""
    statistics = recording.action_statistics
    actions, states = statistics.max > statistics.min, recording.state_statistics.moves
    return [(action, state) for action, state in pair_dims(recording.embodiment) if actions[action] and states[state]]


def measure_agreement(recording: Recording, thresholds: InspectionThresholds) -> Agreement:
    """Which relation explains each action dim best, over all lags up to `longest_lag`; dims that rest are left out."""
    pairs = _moving_pairs(recording)
    if not pairs:
        return Agreement()
    actions, states, owner = _sample(recording, pairs)
    ahead = max(2, round(thresholds.longest_lag / recording.period))
    lags = np.arange(-BEHIND, ahead + 1)
    absolute, scaled = _level_fits(actions, states, owner, lags)
    delta, velocity = _difference_fits(actions, states, owner, lags)
    every = {"absolute": absolute, "delta": delta, "scaled absolute": scaled, "velocity": velocity}
    dims = []
    for column, (action, state) in enumerate(pairs):
        fits = {name: (fit[0][:, column], fit[1][:, column]) for name, fit in every.items()}
        relation = _best_relation(fits, lags, thresholds)
        explained, factors = fits.get(relation, fits["absolute"])
        best = int(explained.argmax())
        dims.append(
            DimAgreement(
                action=recording.embodiment.action_names[action],
                state=recording.embodiment.state_names[state],
                declared=recording.embodiment.action_kinds[action],
                relation=relation,
                lag=int(lags[best]),
                explained=float(explained[best]),
                factor=float(factors[best]),
            )
        )
    curves = [np.maximum(np.median(part[0], axis=1), 0).tolist() for part in (absolute, velocity)]
    return Agreement(dims, lags.tolist(), *curves)


def _best_relation(fits: dict[str, Fit], lags: NDArray[np.int64], thresholds: InspectionThresholds) -> str:
    """The relation that explains enough of an action dim, of `fits` by name: (explained, factor), each (lags,).

    A relation without a free factor says more than one with, so those come first. A wave is its own slope a quarter of
    a period later: where both a scaled target and a velocity fit, the one with the smaller lag is meant.
    """
    peak = {name: float(explained.max()) for name, (explained, _) in fits.items()}
    delay = {name: abs(int(lags[explained.argmax()])) for name, (explained, _) in fits.items()}
    plain = max("absolute", "delta", key=lambda name: peak[name])
    if peak[plain] >= thresholds.agreement:
        return plain
    scaled_fits, velocity_fits = (peak[name] >= thresholds.agreement for name in ("scaled absolute", "velocity"))
    if scaled_fits and velocity_fits:
        return min("velocity", "scaled absolute", key=lambda name: delay[name])
    if peak["velocity"] >= thresholds.velocity_agreement and peak["velocity"] > peak["scaled absolute"]:
        return "velocity"
    return "scaled absolute" if scaled_fits else "unrelated"


def _sample(
    recording: Recording, pairs: list[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Paired columns of actions and states (n, pairs) and the owner (n,) of each step, of evenly chosen episodes.

    Values are clipped to one range beyond q01 and q99: a single outlier would outweigh all the motion.
    """
    share = min(1.0, MOST_STEPS / recording.num_steps)
    count = max(1, int(share * len(recording.lengths)))
    chosen = np.zeros(len(recording.lengths), dtype=bool)
    chosen[np.linspace(0, len(chosen) - 1, count).astype(np.int64)] = True
    kept = chosen[recording.owner]
    action_dims, state_dims = (list(dims) for dims in zip(*pairs, strict=True))
    columns = []
    for values, statistics, dims in (
        (recording.actions, recording.action_statistics, action_dims),
        (recording.states, recording.state_statistics, state_dims),
    ):
        middle = statistics.middle_range[dims]
        own = values[kept][:, dims].astype(np.float64)
        columns.append(np.clip(own, statistics.q01[dims] - middle, statistics.q99[dims] + middle))
    return columns[0], columns[1], recording.owner[kept]


def _level_fits(
    actions: NDArray[np.float64], states: NDArray[np.float64], owner: NDArray[np.int64], lags: NDArray[np.int64]
) -> tuple[Fit, Fit]:
    """a[t] = s[t + lag] + offset, and a[t] = factor s[t + lag] + offset."""
    plain, scaled = [], []
    for lag in lags.tolist():
        a, s = _lagged(actions, states, owner, lag)
        plain.append((_explained(a - s, a, centred=True), np.ones(a.shape[1])))
        scaled.append(_scaled(a - _mean(a), s - _mean(s)))
    return _stack(plain), _stack(scaled)


def _difference_fits(
    actions: NDArray[np.float64], states: NDArray[np.float64], owner: NDArray[np.int64], lags: NDArray[np.int64]
) -> tuple[Fit, Fit]:
    """a[t] = s[t + lag + 1] - s[t + lag], and a[t] = factor times that."""
    plain, scaled = [], []
    same = (owner[1:] == owner[:-1])[:, None]
    change = np.diff(states, axis=0) * same
    for lag in lags.tolist():
        a, d = _lagged(actions[:-1], change, owner[:-1], lag)
        plain.append((_explained(a - d, a, centred=False), np.ones(a.shape[1])))
        scaled.append(_scaled(a, d))
    return _stack(plain), _stack(scaled)


def _lagged(
    early: NDArray[np.float64], late: NDArray[np.float64], owner: NDArray[np.int64], lag: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows t of `early` beside rows t + lag of `late`, within episodes."""
    if lag < 0:
        back, ahead = _lagged(late, early, owner, -lag)
        return ahead, back
    if lag == 0:
        return early, late
    same = owner[lag:] == owner[:-lag]
    return early[:-lag][same], late[lag:][same]


def _explained(rest: NDArray[np.float64], whole: NDArray[np.float64], centred: bool) -> NDArray[np.float64]:
    """1 - |rest|^2 / |whole|^2 by column; 0 where nothing is left to compare."""
    if len(whole) < 2:
        return np.zeros(whole.shape[1])
    if centred:
        rest, whole = rest - rest.mean(0), whole - whole.mean(0)
    energy = (whole**2).sum(0)
    return np.where(energy > 0, 1 - (rest**2).sum(0) / np.maximum(energy, 1e-300), 0.0)


def _scaled(a: NDArray[np.float64], b: NDArray[np.float64]) -> Fit:
    """(explained, factor) by column of the best a = factor b."""
    energy = (b**2).sum(0)
    factor = np.where(energy > 0, (a * b).sum(0) / np.maximum(energy, 1e-300), 0.0)
    return _explained(a - factor * b, a, centred=False), factor


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.mean(0) if len(values) else np.zeros(values.shape[1])


def _stack(fits: list[Fit]) -> Fit:
    return np.stack([explained for explained, _ in fits]), np.stack([factor for _, factor in fits])


def check_agreement(recording: Recording, agreement: Agreement, thresholds: InspectionThresholds) -> list[Finding]:
    """`action-is-state`, `action-behind-state` and `action-kind` (declared otherwise than the numbers behave)."""
    if not agreement.dims:
        return []
    copied = _copied_dims(recording, thresholds)
    if len(copied) == len(agreement.dims):
        return [
            Finding(
                "action-is-state",
                Severity.WARNING,
                f"Every comparable action dim ({len(copied)}) equals the state of the same step.",
                "Record the commanded target, or shift the action column by a step: a policy that is trained on this "
                "learns to stay where it is.",
                dims=copied,
                numbers={"count": len(copied)},
            )
        ]
    findings = []
    behind = [dim for dim in agreement.dims if dim.lag < 0 and dim.relation == "absolute"]
    if 2 * len(behind) > len(agreement.dims):
        lag = int(-np.median([dim.lag for dim in behind]))
        findings.append(
            Finding(
                "action-behind-state",
                Severity.WARNING,
                f"In {len(behind)} of {counted(len(agreement.dims), 'dim')} the action repeats the state of "
                f"{counted(lag, 'step')} before ({lag * recording.period * 1000:.0f} ms).",
                "The columns are shifted against each other: move the actions so many steps (and one more) ahead.",
                dims=[dim.action for dim in behind],
                numbers={"count": len(behind), "lag_steps": -lag},
            )
        )
    return findings + _kind_findings(agreement)


def _copied_dims(recording: Recording, thresholds: InspectionThresholds) -> list[str]:
    names = []
    for action, state in _moving_pairs(recording):
        apart = np.abs(recording.actions[:, action] - recording.states[:, state]).max()
        if apart <= thresholds.copy_distance * recording.state_statistics.middle_range[state]:
            names.append(recording.embodiment.action_names[action])
    return names


def _kind_findings(agreement: Agreement) -> list[Finding]:
    findings = []
    for declared, relations, meaning, remedy in (
        (
            "absolute",
            DIFFERENCES,
            "how far the state moves, not where it goes",
            "Declare these dims 'delta' in the embodiment's action_kinds, so that they are never made a difference "
            "again.",
        ),
        (
            "a difference",
            ("absolute", "scaled absolute"),
            "where the state goes, not how far it moves",
            "Declare these dims 'absolute' in the embodiment's action_kinds; choose what the model learns from them "
            "apart.",
        ),
    ):
        dims = [
            dim
            for dim in agreement.dims
            if (dim.declared == "absolute") == (declared == "absolute") and dim.relation in relations
        ]
        if dims:
            explained = float(np.median([dim.explained for dim in dims]))
            findings.append(
                Finding(
                    "action-kind",
                    Severity.WARNING,
                    f"{counted(len(dims), 'action dim')} taken as {declared} are {meaning}: "
                    f"{listed([f'{dim.action} ({dim.relation})' for dim in dims])}; that explains {explained:.0%} of "
                    "their variance.",
                    remedy,
                    dims=[dim.action for dim in dims],
                    numbers={"count": len(dims), "declared": declared, "explained": explained},
                )
            )
    return findings


__all__ = ["Agreement", "DimAgreement", "check_agreement", "measure_agreement", "pair_dims"]
