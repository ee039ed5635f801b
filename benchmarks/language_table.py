"""What `language.py` tells of its cells: a table for each knob, its validity lines, the claim, JSON and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
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
PARTS = {"thing": "which thing", "container": "which container", "side": "the side"}  # in which words may contradict
SAID = tuple(suite for suite in TEST_SUITES if suite != "chained")  # where one request is made
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


def together(results: Results, suites: Sequence[str], part: str | None = None) -> tuple[float, float, float]:
    """The success rate of several hosts, too, and its interval: that of as many trials as there are starts, which
    hosts share."""
    done = [each for result in results for each in by_start(result, suites, part)]
    starts = len({start for start, _ in done})
    rate = sum(outcome == "asked" for _, outcome in done) / len(done)
    return rate, *wilson_interval(round(rate * starts), starts)


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
        done = [all(done_as(result, where) for result in results) for results in policies]
        verdict = "valid" if all(done) else "INVALID for the others"
        if where == "seen" and knob in BLIND_CAN:
            verdict = "what whoever follows the layout cannot do"
        lines.append(f"learned: {sum(done)} of {len(done)} rows do at least {ENOUGH:.0%} {told}: {verdict}")
    hosts = list(dict.fromkeys(results[0]["host"] for results in cells))
    for host in hosts:
        own = {results[0]["training"]: results for results in cells if results[0]["host"] == host}
        lines += [f"{host}: {line}" for line in [*first_stage(knob, own), *at_chance(own.get(BLIND, []))]]
    if len(hosts) > 1:
        never = [result for results in cells for result in results if result["training"] == BLIND]
        lines += [f"all hosts: {line}" for line in at_chance(never)]
    return [f"{knob}: {line}" for line in lines]


def first_stage(knob: str, cells: Mapping[str, Results]) -> list[str]:
    """Of one host: whether what never reads has learned what it can, with every seed: to do what the layout implies,
    or, where it implies nothing, any of a scene's requests."""
    lines = []
    for name, key in SHORTCUT.items():
        done = {}
        for result in cells.get(name, []):
            if key in result:  # with `many` the prior of three rungs is not measured
                outcomes = Counter(result[key])
                some = outcomes.total() - outcomes["nothing"] if knob == "many" else outcomes["asked"]
                done[result["seed"]] = (some, outcomes.total())
        if done:
            who = name if name == BLIND else f"the prior of {name}"
            most = BLIND_CAN.get(knob, 1.0)
            what = f"acts: {who} does any request" if knob == "many" else f"shortcut: {who} does, {most:.0%} at best"
            told = ", ".join(f"seed {seed} {shown(counts)}" for seed, counts in done.items())
            verdict = "valid" if all(enough(counts, most) for counts in done.values()) else "INVALID: not learned"
            lines.append(f"{what}, as trained, {told}: {verdict}")
    return lines


def at_chance(never: Results) -> list[str]:
    """Whether what never reads can only guess on test scenes."""
    if not never:
        return [f"{BLIND}: not measured, so that nobody knows whether the table is valid"]
    lines = []
    for suite in TEST_SUITES[:4]:
        guess = blind_chance(suite) if suite in CLAIM_SUITES else BY_CHANCE
        rate, low, high = together(never, (suite,))
        verdict = "valid" if low <= guess else "INVALID: the scene gives the answer away"
        lines.append(f"{BLIND} on {suite}: {rate:.0%} ({low:.0%} to {high:.0%}), by chance {guess:.0%}: {verdict}")
    return lines


def premise(knob: str, results: Results) -> list[str]:
    """Whether there is what two stages are to cure: where the words contradict the layout, which does one stage follow?

    Counted are episodes in which it did what was asked or what is implied; those in which it did neither say nothing.
    """
    one = [result for result in results if result["training"] == CLAIM[1]]
    lines = []
    for part, name in PARTS.items() if knob in BLIND_CAN and one else ():
        outcomes = Counter(outcome for own in one for outcome in against(own, part))
        asked, either = outcomes["asked"], outcomes["asked"] + outcomes["implied"]
        low, high = wilson_interval(asked, either) if either else (0.0, 1.0)
        verdict = "follows the layout" if high < 0.5 else "follows the words" if low > 0.5 else "undecided"
        told = ", ".join(f"{kind} {outcomes[kind]}" for kind in ("asked", "implied", "another", "nothing"))
        lines.append(f"{knob}: premise: {CLAIM[1]}, where the words contradict the layout in {name}: {told}: {verdict}")
    return lines


def claims(knob: str, results: Results, compared: tuple[str, str] = CLAIM) -> list[str]:
    """What paper B claims, as a difference over the same starts: of all pairs of a host and a seed, and beside it pair
    by pair, of those that both learned, by host, by seed, and where words contradict the layout."""
    arms = {(r["training"], r["host"], r["seed"]): r for r in results}
    pairs = [(h, seed) for training, h, seed in arms if training == compared[0] and (compared[1], h, seed) in arms]
    good = [pair for pair in pairs if all(learned(arms[training, *pair]) for training in compared)]
    if not pairs:
        return []

    def gained(own: list[tuple[str, int]], suites: Sequence[str], part: str | None) -> tuple[list[int], list[str]]:
        values, starts = [], []
        for host, seed in own:
            one, other = (by_start(arms[training, host, seed], suites, part) for training in compared)
            values += [(a == "asked") - (b == "asked") for (_, a), (_, b) in zip(one, other, strict=True)]
            starts += ["/".join(map(str, start)) for start, _ in one]
        return values, starts

    def told(own: list[tuple[str, int]], suites: Sequence[str] = CLAIM_SUITES, part: str | None = None) -> str:
        if not own:
            return "none"
        mean = bootstrap_mean(*gained(own, suites, part), draws=2000)
        low, high = (round(100 * end) for end in mean.interval)
        return f"{100 * mean.value:+.0f} points ({low:+d} to {high:+d})"

    def alone(pair: tuple[str, int]) -> str:
        return f"{pair[0]} {pair[1]} {100 * fmean(gained([pair], CLAIM_SUITES, None)[0]):+.0f}"

    on = f"on {' and '.join(CLAIM_SUITES)}"
    lines = {f"{on}, all {len(pairs)} pairs": told(pairs), f"{on}, pair by pair": ", ".join(map(alone, pairs))}
    if len(good) < len(pairs):
        lines[f"{on}, the {len(good)} pairs that both learned"] = told(good)
    for place, name in ((0, "{}"), (1, "seed {}")):
        values = dict.fromkeys(pair[place] for pair in pairs)
        for value in values if len(values) > 1 else ():
            lines[f"{on}, {name.format(value)}"] = told([pair for pair in pairs if pair[place] == value])
    for part, name in PARTS.items():
        lines[f"where the words contradict the layout in {name}"] = told(pairs, SAID, part)
    first = "claim" if knob in BLIND_CAN and compared == CLAIM else "beside it"
    kinds = [first, *["beside it"] * (len(lines) - 1)]
    what = " minus ".join(compared)
    return [f"{knob}: {kind}: {what} {where}: {lines[where]}" for kind, where in zip(kinds, lines, strict=True)]


def drawn(cells: list[Results]) -> dict[str, dict[str, tuple[int, int]]]:
    """What the plot of a host shows of each training: suites, and where the words contradict the layout.

    *Blind* comes first, so that the others have their colours in every plot, whatever is missing.
    """
    arms = {}
    for own in sorted(cells, key=lambda results: bool(results[0]["training"] != BLIND)):
        suites = {suite: count([result["suites"][suite] for result in own]) for suite in TEST_SUITES}
        parts = {f"against layout:\n{name}": count([against(r, part) for r in own]) for part, name in PARTS.items()}
        arms[own[0]["training"]] = suites | parts
    return arms


def by_part(results: Results) -> list[str]:
    """A table of what is done where the words contradict the layout, by the word: all hosts and seeds of a training
    together, learned or not, which is told."""
    trainings = list(dict.fromkeys(result["training"] for result in results))
    lines = [f"| knob | against the layout | {' | '.join(trainings)} |", "|" + "---|" * (2 + len(trainings))]
    for knob in dict.fromkeys(result["knob"] for result in results):
        for part, name in PARTS.items():
            cells = [knob, name]
            for training in trainings:
                own = [r for r in results if (r["knob"], r["training"]) == (knob, training)]
                rate, low, high = together(own, SAID, part) if own else (0.0, 0.0, 0.0)
                good = sum(map(learned, own)) if training != BLIND else len(own)
                some = f"; {good} of {len(own)} learned" * (good < len(own))
                cells.append(f"{rate:.0%} ({low:.0%} to {high:.0%}{some})" if own else "-")
            lines.append(f"| {' | '.join(cells)} |")
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
        said += [*claims(knob, of_knob), *claims(knob, of_knob, AS_LONG_HEARD)]
        lines += said
        heads = ["host", "training", "as trained", "without words", *TEST_SUITES, "`seen`: implied / another / nothing"]
        heads += [f"against the layout: {name}" for name in PARTS.values()]
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
    parts = ["## Done of what is asked for where the words contradict the layout", *by_part(list(results))]
    opening = ["# The language table", f"Seeds {seeds}. What its words mean: docs/language.md."]
    told = "\n\n".join([*opening, "\n".join([parts[0], "", *parts[1:]]), *sections, made])
    (folder / "table.md").write_text(told + "\n", encoding="utf-8")
    print("\n" + told)
