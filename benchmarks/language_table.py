"""What `language.py` tells of its cells: a table for each knob, its validity lines, the claim, JSON and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from language_trials import contradicted
from report_file import made_with, write_report

from priorvla.deployment.environments.tabletop_layouts import EXCEPTIONS, KINDS, TEST_SUITES, blind_chance
from priorvla.hub_cards.intervals import wilson_interval
from priorvla.hub_cards.plots import success_by_task
from priorvla.training.chunk_distances import bootstrap_mean

BLIND, ALL_READ = "blind", "all layers read"
ENOUGH = 0.7  # of what a policy was trained for, to say that it was learned
BY_CHANCE = 1 / 8  # two things, four places: where requests are made that training never makes
BLIND_CAN = {suite.removesuffix("-instruction"): blind_chance(suite) for suite in (*EXCEPTIONS, "one-instruction")}
SHORTCUT = {BLIND: "trained", "three rungs": "prior"}  # training -> what never reads did as it was trained
EVERY_OTHER_READS = ("one stage", "one stage, longer", "two stages", "three rungs")
CLAIM = ("two stages", "one stage, longer")  # the difference that the table is about
AS_LONG_HEARD = ("two stages", "one stage")  # the same with as many steps under instructions, the earlier ones given
CLAIM_SUITES = ("seen", "unseen-object")
PARTS = ("thing", "place")  # of a request; words may contradict the layout in either
SAID = tuple(suite for suite in TEST_SUITES if suite != "chained")  # where one request is made
ASKS_ANOTHER = "where another {} is asked for than the layout implies"
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
    parts = [shown(count([against(result, part) for result in results])) for part in PARTS]
    cells = [first["host"], first["training"] + mark, trained, silent, *suites, instead(results), *parts]
    cells.append(listens(results))
    return f"| {' | '.join([*cells, open_gates(results), f'{minutes:.0f}'])} |"


def instead(results: Results) -> str:
    """What was done on `seen` where not what was asked for: what the layout implies, another request, nothing."""
    outcomes = Counter(outcome for result in results for outcome in result["suites"]["seen"])
    return " / ".join(f"{outcomes[kind] / outcomes.total():.0%}" for kind in ("implied", "another", "nothing"))


def against(result: Mapping[str, Any], part: str) -> list[str]:
    """What was done where the words contradict the layout in a part: in which thing, or only in its place."""
    return [outcome for _, outcome in by_start(result, SAID, part)]


def by_start(
    result: Mapping[str, Any], suites: Sequence[str], part: str | None = None
) -> list[tuple[tuple[Any, ...], str]]:
    """Start and outcome of every episode of suites, or of those where the words contradict the layout in a part."""
    chosen = []
    for suite in suites:
        outcomes, seed = result["suites"][suite], result["seed"]
        parts = contradicted(suite, len(outcomes) // len(KINDS), seed)
        both = zip(parts, outcomes, strict=True)
        chosen += [((seed, suite, n), done) for n, (own, done) in enumerate(both) if part in (None, own)]
    return chosen


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
    """Whether a policy does at least 70 % of what it was trained for; of `many` instructions on `seen`, too."""
    return done_as(result, "trained") and (result["knob"] != "many" or done_as(result, "seen"))


def done_as(result: Mapping[str, Any], where: str) -> bool:
    """Whether at least 70 % was done in scenes as in training, or in a suite."""
    return enough(count([result["trained"] if where == "trained" else result["suites"][where]]))


def enough(counts: tuple[int, int], most: float = 1.0) -> bool:
    """At least 70 % of `most`."""
    return counts[0] >= ENOUGH * most * counts[1]


def validity(knob: str, cells: list[Results]) -> list[str]:
    """What must hold for a table to say something, and whether it does."""
    policies = [results for results in cells if results[0]["training"] != BLIND]
    lines = []
    for where, told in {"trained": "as trained", "seen": "on seen"}.items():
        if where == "trained" or knob == "many":
            done = [all(done_as(result, where) for result in results) for results in policies]
            verdict = "valid" if all(done) else "INVALID for the others"
            lines.append(f"learned: {sum(done)} of {len(done)} rows do at least {ENOUGH:.0%} {told}: {verdict}")
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
                seeds = f", by seed {', '.join(f'{count([own])[0]}' for own in outcomes)}" * (len(outcomes) > 1)
                told = f"{shown(count(outcomes))} as trained{seeds}, {most:.0%} at best"
                lines.append(f"shortcut: {who} does {told}: {verdict}")
    if BLIND not in never:
        return [*lines, f"{BLIND}: not measured, so that nobody knows whether the table is valid"]
    for suite in TEST_SUITES[:4]:
        counts = count([result["suites"][suite] for result in never[BLIND]])
        guess = blind_chance(suite) if suite in CLAIM_SUITES else BY_CHANCE
        verdict = "valid" if wilson_interval(*counts)[0] <= guess else "INVALID: the scene gives the answer away"
        lines.append(f"{BLIND} on {suite}: {shown(counts)}, by chance {guess:.0%}: {verdict}")
    return lines


def premise(knob: str, results: Results) -> list[str]:
    """Whether there is what two stages are to cure: where the words contradict the layout, which does one stage follow?

    Counted are episodes in which it did what was asked or what is implied; those in which it did neither say nothing.
    """
    one = [result for result in results if result["training"] == CLAIM[1]]
    lines = []
    for part in PARTS if knob in BLIND_CAN and one else ():
        outcomes = Counter(outcome for own in one for outcome in against(own, part))
        asked, either = outcomes["asked"], outcomes["asked"] + outcomes["implied"]
        low, high = wilson_interval(asked, either) if either else (0.0, 1.0)
        verdict = "follows the layout" if high < 0.5 else "follows the words" if low > 0.5 else "undecided"
        told = ", ".join(f"{kind} {outcomes[kind]}" for kind in ("asked", "implied", "another", "nothing"))
        lines.append(f"{knob}: premise: {CLAIM[1]}, {ASKS_ANOTHER.format(part)}: {told}: {verdict}")
    return lines


def claims(knob: str, results: Results, compared: tuple[str, str] = CLAIM) -> list[str]:
    """What paper B claims, as a difference over the same starts: of all together, and beside it by host, by seed, and
    where words contradict the layout.

    Of pairs that both learned, for what a policy that did not says is nothing about language; and once of all.
    """
    arms = {(r["training"], r["host"], r["seed"]): r for r in results}
    pairs = [(h, seed) for training, h, seed in arms if training == compared[0] and (compared[1], h, seed) in arms]
    good = [pair for pair in pairs if all(learned(arms[training, *pair]) for training in compared)]
    on, told = " and ".join(CLAIM_SUITES), " minus ".join(compared)
    if not pairs:
        return []
    if not good:
        return [f"{knob}: {told}: none of {len(pairs)} pairs learned both"]

    def difference(own: list[tuple[str, int]], suites: Sequence[str], part: str | None = None) -> str:
        starts, differences = [], []
        for host, seed in own:
            one, other = (by_start(arms[training, host, seed], suites, part) for training in compared)
            starts += ["/".join(map(str, start)) for start, _ in one]
            differences += [(a == "asked") - (b == "asked") for (_, a), (_, b) in zip(one, other, strict=True)]
        mean = bootstrap_mean(differences, starts, draws=2000)
        low, high = (round(100 * end) for end in mean.interval)
        return f"{100 * mean.value:+.0f} points ({low:+d} to {high:+d})"

    some = len(good) < len(pairs)
    kind = "claim" if knob in BLIND_CAN and compared == CLAIM else "beside it"
    whole = f"all {len(good)} pairs" + f" that learned, of {len(pairs)}" * some
    lines = [f"{knob}: {kind}: {told} on {on}, {whole}: {difference(good, CLAIM_SUITES)}"]
    chosen = {f"on {on}, all {len(pairs)} pairs, learned or not": (pairs, CLAIM_SUITES, None)} if some else {}
    for place, name in ((0, "{}"), (1, "seed {}")):
        values = dict.fromkeys(pair[place] for pair in good)
        if len(values) > 1:
            own = {value: [pair for pair in good if pair[place] == value] for value in values}
            chosen |= {f"on {on}, {name.format(v)}": (pairs_of, CLAIM_SUITES, None) for v, pairs_of in own.items()}
    chosen |= {ASKS_ANOTHER.format(part): (good, SAID, part) for part in PARTS}
    return lines + [f"{knob}: beside it: {told} {name}: {difference(*asked)}" for name, asked in chosen.items()]


def drawn(cells: list[Results]) -> dict[str, dict[str, tuple[int, int]]]:
    """What the plot of a host shows of each training: suites, and where the words contradict the layout.

    *Blind* comes first, so that the others have their colours in every plot, whatever is missing.
    """
    arms = {}
    for own in sorted(cells, key=lambda results: bool(results[0]["training"] != BLIND)):
        suites = {suite: count([result["suites"][suite] for result in own]) for suite in TEST_SUITES}
        parts = {f"another {part}\nthan implied": count([against(result, part) for result in own]) for part in PARTS}
        arms[own[0]["training"]] = suites | parts
    return arms


def by_part(results: Results) -> list[str]:
    """A table of which word is followed where it contradicts the layout: all hosts and seeds of a training together.

    Of policies that learned what they were trained for; *blind* is told as it is.
    """
    knobs = list(dict.fromkeys(result["knob"] for result in results))
    heads = ["training", *(f"{knob}: {part}" for knob in knobs for part in PARTS)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for training in dict.fromkeys(result["training"] for result in results):
        own = [r for r in results if r["training"] == training and (training == BLIND or learned(r))]
        done = [[against(r, part) for r in own if r["knob"] == knob] for knob in knobs for part in PARTS]
        lines.append(f"| {' | '.join([training, *(shown(count(each)) if each else '-' for each in done)])} |")
    return lines


def report(folder: Path, settings: Mapping[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """Prints tables, validity lines and claims; leaves them in `folder` as `table.md`, `report.json` and plots, one for
    each host and knob."""
    lines, sections = [], []
    for knob in dict.fromkeys(result["knob"] for result in results):
        of_knob = [result for result in results if result["knob"] == knob]
        keys = list(dict.fromkeys((result["host"], result["training"]) for result in of_knob))
        cells = [[r for r in of_knob if (r["host"], r["training"]) == key] for key in keys]
        said = [*validity(knob, cells), *premise(knob, of_knob)]
        said += [*claims(knob, of_knob), *claims(knob, of_knob, AS_LONG_HEARD)[:1]]
        lines += said
        heads = ["host", "training", "as trained", "without words", *TEST_SUITES, "`seen`: implied / another / nothing"]
        heads += [f"asked for another {part} than implied" for part in PARTS]
        heads += ["listens to which thing, x chance", GATES, "core minutes"]
        table = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *map(row, cells)]
        title = f"## {knob} instruction{'s' * (knob == 'many')} a training scene"
        sections.append("\n".join([title, "", *table, "", *(f"- {line}" for line in said)]))
        for host in dict.fromkeys(host for host, _ in keys):
            figure = success_by_task(drawn([own for own in cells if own[0]["host"] == host]))
            figure.savefig(folder / f"{host}-{knob}.png", dpi=150)
    content = {"kind": "language", **settings, "cells": list(results), "lines": lines}
    made = made_with(write_report(folder, content))
    seeds = ", ".join(map(str, sorted({result["seed"] for result in results})))
    parts = ["## Done of what is asked for where the words contradict the layout, by part", *by_part(list(results))]
    opening = ["# The language table", f"Seeds {seeds}. What its words mean: docs/language.md."]
    told = "\n\n".join([*opening, "\n".join([parts[0], "", *parts[1:]]), *sections, made])
    (folder / "table.md").write_text(told + "\n", encoding="utf-8")
    print("\n" + told)
