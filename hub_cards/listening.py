"""Whether a policy listens, in the words of cards and the terminal, from the numbers that its training left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

PREFIX = "language_sensitivity/"
# What metrics.json calls it, behind the prefix -> what was done to the instruction. In this order.
CHANGES = {
    "swap": "another instruction",
    "paraphrase": "the same, reworded",
    "empty": "no instruction",
    "floor": "the same, by chance",
}


@dataclass(frozen=True)
class Listening:
    """How many times as far as chance a changed instruction moves the actions: `rows` of the change, the ratio and its
    interval (95 %), and what follows from them, `answer`, in a few sentences."""

    rows: list[tuple[str, str, str]]
    answer: str


def listening(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], Listening | None]:
    """`metrics` without those of language sensitivity, and what these say; None where nothing was measured."""
    others = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
    found = {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}
    if not found:
        return others, None
    # Where chance moves nothing, a change moves the actions infinitely far; metrics leave out what is not finite.
    ratios = {
        change: tuple(found.get(f"{change}{end}", inf) for end in ("", "_low", "_high"))
        for change in CHANGES
        if change in found or f"{change}_effect" in found
    }
    rows = [
        (CHANGES[change], f"{value:.2f}", f"{low:.2f} – {high:.2f}") for change, (value, low, high) in ratios.items()
    ]
    return others, Listening(rows, _answer(ratios))


def _answer(ratios: Mapping[str, tuple[float, ...]]) -> str:
    """A policy listens when a swap moves it further than the interval of chance reaches."""
    if "swap" not in ratios or "floor" not in ratios:
        return "Not known: all observations had the same instruction, so that none could be swapped for another."
    chance = ratios["floor"][2]
    times, low, _ = ratios["swap"]
    if low <= chance:
        return (
            f"No, not measurably: with another instruction its actions move {_as_far(times)}, which chance alone "
            "explains. Expect it to do the same whatever it is told."
        )
    answer = f"Yes: with another instruction its actions move {_as_far(times)}."
    if "paraphrase" not in ratios:
        return answer
    times, low, _ = ratios["paraphrase"]
    if times <= chance:
        return f"{answer} A rewording of the same instruction does not move them measurably."
    if low <= chance:
        return (
            f"{answer} Whether wording counts too cannot be told: with a rewording of the same instruction they move "
            f"{_as_far(times)}, but the interval reaches into what chance explains. More observations would tell."
        )
    return f"{answer} But so they do with a rewording of the same instruction, {_as_far(times)}: wording counts too."


def _as_far(times: float) -> str:
    return f"{times:.2g} times as far as chance moves them" if times < inf else "and chance does not move them at all"


__all__ = ["CHANGES", "PREFIX", "Listening", "listening"]
