"""What `language.py` tells of its cells: a table for each knob, its validity lines, the claim, JSON and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report_file import made_with, write_report

from priorvla.deployment.environments.tabletop_layouts import EXCEPTIONS, TEST_SUITES, blind_chance
from priorvla.hub_cards.intervals import wilson_interval
from priorvla.hub_cards.plots import success_by_task
from priorvla.training.chunk_distances import bootstrap_mean

BLIND, ALL_READ = "blind", "all layers read"
ENOUGH = 0.7  # of what a policy was trained for, to say that it was learned
BY_CHANCE = 1 / 8  # two things, four places: where requests are made that training never makes
BLIND_CAN = {"one": 1.0, "mostly-one": 1 - EXCEPTIONS * (1 - blind_chance("many-instructions"))}  # at best, by knob
SHORTCUT = {BLIND: "trained", "three rungs": "prior"}  # training -> what never reads did as it was trained
EVERY_OTHER_READS = ("one stage", "one stage, longer", "two stages", "three rungs")
CLAIM = ("two stages", "one stage, longer")  # the difference that the table is about
AS_LONG_HEARD = ("two stages", "one stage")  # the same with as many steps under instructions, the earlier ones given
CLAIM_SUITES = ("seen", "unseen-object")
GATES = "gates, blind / reading (inserted ones begin at 0, all others at 1)"
Results = list[dict[str, Any]]  # of one cell, a seed each


def count(outcomes: list[list[str]]) -> tuple[int, int]:
    """Successes and trials of all seeds."""
    together = [outcome for own in outcomes for outcome in own]
    return together.count("asked"), len(together)


def shown(counts: tuple[int, int]) -> str:
    """A percentage with its interval."""
    low, high = wilson_interval(*counts)
    return f"{counts[0] / counts[1]:.0%} ({low:.0%} to {high:.0%})"


def row(results: Results) -> str:
    """A line of the table: one cell, all seeds together."""
    first = results[0]
    suites = [shown(count([result["suites"][suite] for result in results])) for suite in TEST_SUITES]
    silent = shown(count([result["without_words"] for result in results])) if "without_words" in first else "-"
    minutes = sum(result["core_minutes"] for result in results) / len(results)
    mark = "" if first["training"] == BLIND or all(map(learned, results)) else " **not learned**"
    trained = shown(count([result["trained"] for result in results]))
    cells = [first["host"], first["training"] + mark, trained, silent, *suites, instead(results), listens(results)]
    return f"| {' | '.join([*cells, open_gates(results), f'{minutes:.0f}'])} |"


def instead(results: Results) -> str:
    """What was done on `seen` where not what was asked for: what the layout implies, another request, nothing."""
    outcomes = Counter(outcome for result in results for outcome in result["suites"]["seen"])
    return " / ".join(f"{outcomes[kind] / outcomes.total():.0%}" for kind in ("implied", "another", "nothing"))


def listens(results: Results) -> str:
    """How far another instruction moves the actions, in multiples of chance, of every seed with its interval."""
    told = []
    for result in results:
        known = result.get("listening", {})
        if (swap := known.get("language_sensitivity/swap")) is not None:
            low, high = (known[f"language_sensitivity/swap_{end}"] for end in ("low", "high"))
            told.append(f"{swap:.1f} ({low:.1f} to {high:.1f})")
    return ", ".join(told) or "-"


def open_gates(results: Results) -> str:
    """How far gates are open at the end, by kind: the mean of all layers, or of every other one and of those after
    them, which read."""
    values: dict[str, dict[int, list[float]]] = {}
    for result in results:
        for name, value in result["gates"].items():
            _, layer, gate = name.split(".")  # layers.3.cross_gate
            place = int(layer) % 2 if result["training"] in EVERY_OTHER_READS else 0
            values.setdefault(gate.removesuffix("_gate"), {}).setdefault(place, []).append(value)
    told = {kind: [sum(own) / len(own) for _, own in sorted(places.items())] for kind, places in values.items()}
    return ", ".join(f"{kind} {' / '.join(f'{mean:.2f}' for mean in means)}" for kind, means in told.items()) or "-"


def learned(result: Mapping[str, Any]) -> bool:
    """Whether a policy does at least 70 % of what it was trained for."""
    return enough(count([result["trained"]]))


def enough(counts: tuple[int, int], most: float = 1.0) -> bool:
    """At least 70 % of `most`."""
    return counts[0] >= ENOUGH * most * counts[1]


def validity(knob: str, cells: list[Results]) -> list[str]:
    """What must hold for a table to say something, and whether it does."""
    policies = [results for results in cells if results[0]["training"] != BLIND]
    kinds = {"as trained": [all(map(learned, results)) for results in policies]}
    if knob == "many":
        kinds["on seen"] = [enough(count([r["suites"]["seen"] for r in results])) for results in policies]
    lines = []
    for where, done in kinds.items():
        verdict = "valid" if all(done) else "INVALID for the others"
        lines.append(f"learned: {sum(done)} of {len(done)} rows do at least {ENOUGH:.0%} {where}: {verdict}")
    for host in dict.fromkeys(results[0]["host"] for results in cells):
        own = [results for results in cells if results[0]["host"] == host]
        lines += [f"{host}: {line}" for line in without_reading(knob, own)]
    return [f"{knob}: {line}" for line in lines]


def without_reading(knob: str, cells: list[Results]) -> list[str]:
    """Of one host: whether what never reads has learned what it can, and that on test scenes it can only guess."""
    lines = []
    never = {own[0]["training"]: own for own in cells}
    if knob in BLIND_CAN:
        most = BLIND_CAN[knob]
        asked = {name: [result[key] for result in never.get(name, [])] for name, key in SHORTCUT.items()}
        for name, outcomes in asked.items():
            if outcomes:
                verdict = "valid" if enough(count(outcomes), most) else "INVALID: not learned"
                who = name if name == BLIND else f"the prior of {name}"
                lines.append(f"shortcut: {who} does {shown(count(outcomes))} as trained, {most:.0%} at best: {verdict}")
    if BLIND not in never:
        return [*lines, f"{BLIND}: not measured, so that nobody knows whether the table is valid"]
    for suite in TEST_SUITES[:4]:
        counts = count([result["suites"][suite] for result in never[BLIND]])
        guess = blind_chance(suite) if suite in CLAIM_SUITES else BY_CHANCE
        verdict = "valid" if wilson_interval(*counts)[0] <= guess else "INVALID: the scene gives the answer away"
        lines.append(f"{BLIND} on {suite}: {shown(counts)}, by chance {guess:.0%}: {verdict}")
    return lines


def premise(knob: str, results: Results) -> list[str]:
    """Whether there is what two stages are to cure: where a layout implies a request, does one stage do that one?"""
    one = [result["suites"]["seen"] for result in results if result["training"] == CLAIM[1]]
    if knob not in BLIND_CAN or not one:
        return []
    outcomes = Counter(outcome for own in one for outcome in own)
    told = ", ".join(f"{kind} {outcomes[kind]}" for kind in ("asked", "implied", "another", "nothing"))
    verdict = "follows the shortcut" if outcomes["implied"] > outcomes["asked"] else "does not follow the shortcut"
    return [f"{knob}: premise: {CLAIM[1]}, on seen: {told} of {outcomes.total()}: {verdict}"]


def claims(knob: str, results: Results, compared: tuple[str, str] = CLAIM) -> list[str]:
    """What paper B claims, as a difference over the same starts: of all together, and beside it by host and by seed.

    Of pairs that both learned: what a policy that did not says is nothing about language.
    """
    told = " minus ".join(compared)
    arms = {(r["training"], r["host"], r["seed"]): r for r in results}
    pairs = [
        (host, seed) for training, host, seed in arms if training == compared[0] and (compared[1], host, seed) in arms
    ]
    good = [pair for pair in pairs if all(learned(arms[training, *pair]) for training in compared)]
    chosen = {f"all {len(good)} pairs" + f" that learned, of {len(pairs)}" * (len(good) < len(pairs)): good}
    for part, name in ((0, "{}"), (1, "seed {}")):
        values = dict.fromkeys(pair[part] for pair in good)
        if len(values) > 1:
            chosen |= {name.format(value): [pair for pair in good if pair[part] == value] for value in values}
    lines = []
    for place, (name, own) in enumerate(chosen.items()):
        differences, starts = [], []
        for host, seed in own:
            for suite in CLAIM_SUITES:
                both = zip(*(arms[training, host, seed]["suites"][suite] for training in compared), strict=True)
                for trial, (one, other) in enumerate(both):
                    differences.append((one == "asked") - (other == "asked"))
                    starts.append(f"{seed}/{suite}/{trial}")
        if differences:
            mean = bootstrap_mean(differences, starts, draws=2000)
            low, high = (round(100 * end) for end in mean.interval)
            kind = "claim" if place == 0 and knob in BLIND_CAN and compared == CLAIM else "beside it"
            points = f"{100 * mean.value:+.0f} points ({low:+d} to {high:+d})"
            lines.append(f"{knob}: {kind}: {told} on {' and '.join(CLAIM_SUITES)}, {name}: {points}")
        elif pairs and not place:
            lines.append(f"{knob}: {told}: none of {len(pairs)} pairs learned both")
    return lines


def report(folder: Path, settings: Mapping[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """Prints tables, validity lines and claims; leaves `report.json` and a plot for each host and knob in `folder`."""
    lines = []
    for knob in dict.fromkeys(result["knob"] for result in results):
        of_knob = [result for result in results if result["knob"] == knob]
        keys = list(dict.fromkeys((result["host"], result["training"]) for result in of_knob))
        cells = [[r for r in of_knob if (r["host"], r["training"]) == key] for key in keys]
        lines += [*validity(knob, cells), *premise(knob, of_knob)]
        lines += [*claims(knob, of_knob), *claims(knob, of_knob, AS_LONG_HEARD)[:1]]
        heads = ["host", "training", "as trained", "without words", *TEST_SUITES, "`seen`: implied / another / nothing"]
        heads += ["listens, x chance", GATES, "core minutes"]
        print(f"\n{knob} instruction{'s' * (knob == 'many')} a training scene\n\n| {' | '.join(heads)} |")
        print("|" + "---|" * len(heads))
        print("\n".join(map(row, cells)))
        for host in dict.fromkeys(host for host, _ in keys):
            arms = {
                own[0]["training"]: {suite: count([r["suites"][suite] for r in own]) for suite in TEST_SUITES}
                for own in cells
                if own[0]["host"] == host
            }
            success_by_task(arms).savefig(folder / f"{host}-{knob}.png", dpi=150)
    content = {"kind": "language", **settings, "cells": list(results), "lines": lines}
    print("\n" + "\n".join([*lines, made_with(write_report(folder, content))]))
