"""What `language.py` tells of its cells: a table for each knob, its validity lines, JSON and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report_file import made_with, write_report

from priorvla.deployment.environments.tabletop_layouts import TEST_SUITES, blind_chance
from priorvla.hub_cards.intervals import wilson_interval
from priorvla.hub_cards.plots import success_by_task

BLIND = "rung 2, which cannot read"
TRAINED_AT_LEAST = 0.7


def shown(counts: list[list[int]]) -> str:
    """Successes of all seeds, as a percentage with its interval."""
    successes, trials = (sum(own[part] for own in counts) for part in (0, 1))
    low, high = wilson_interval(successes, trials)
    return f"{successes / trials:.0%} ({low:.0%} to {high:.0%})"


def row(results: list[dict[str, Any]]) -> str:
    """A line of the table: one cell, all seeds together."""
    first = results[0]
    suites = [shown([result["suites"][suite] for result in results]) for suite in TEST_SUITES]
    swap = [result.get("listening", {}).get("language_sensitivity/swap") for result in results]
    heard = " ".join(f"{value:.2f}" for value in swap if value is not None) or "-"
    silent = shown([result["without_words"] for result in results]) if "without_words" in first else "-"
    minutes = sum(result["core_minutes"] for result in results) / len(results)
    mark = "" if first["training"] == BLIND or learned(results) else " **not learned**"
    name = (
        f"{first['host']} | {first['training']}{mark} | {shown([result['trained'] for result in results])} | {silent}"
    )
    return f"| {name} | {' | '.join(suites)} | {heard} | {open_gates(results)} | {minutes:.0f} |"


def open_gates(results: list[dict[str, Any]]) -> str:
    """How far the gates of each kind are open, the mean of all layers and seeds."""
    kinds = list(dict.fromkeys(kind for result in results for kind in result["gates"]))
    means = {kind: [result["gates"][kind] for result in results if kind in result["gates"]] for kind in kinds}
    return ", ".join(f"{kind} {sum(own) / len(own):.2f}" for kind, own in means.items()) or "-"


def learned(results: list[dict[str, Any]]) -> bool:
    """Whether the cell does at least 70 % of what it was trained for."""
    return sum(r["trained"][0] for r in results) >= TRAINED_AT_LEAST * sum(r["trained"][1] for r in results)


def validity(knob: str, cells: list[list[dict[str, Any]]]) -> list[str]:
    """What must hold for a table to say something, and whether it does."""
    policies = [results for results in cells if results[0]["training"] != BLIND]
    done = sum(map(learned, policies))
    lines = [
        f"learned: {done} of {len(policies)} rows do at least {TRAINED_AT_LEAST:.0%} in fresh scenes as they were "
        f"trained in: {'valid' if done == len(policies) else 'INVALID where a row is marked'}"
    ]
    blind = [result for results in cells for result in results if result["training"] == BLIND]
    for suite in TEST_SUITES[:4] if blind else ():
        successes, trials = (sum(result["suites"][suite][part] for result in blind) for part in (0, 1))
        guess, low = blind_chance(suite), wilson_interval(successes, trials)[0]
        verdict = "valid" if low <= guess else "INVALID: the scene gives the answer away"
        lines.append(f"blind on {suite}: {shown([[successes, trials]])}, the best guess is {guess:.0%}: {verdict}")
    return [f"{knob}: {line}" for line in lines]


def report(folder: Path, settings: Mapping[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """Prints tables and validity lines; leaves `report.json` and a plot for each host and knob in `folder`."""
    lines = []
    for knob in dict.fromkeys(result["knob"] for result in results):
        of_knob = [result for result in results if result["knob"] == knob]
        keys = list(dict.fromkeys((result["host"], result["training"]) for result in of_knob))
        cells = [[r for r in of_knob if (r["host"], r["training"]) == key] for key in keys]
        lines += validity(knob, cells)
        print(f"\n{knob} instruction{'s' * (knob == 'many')} a training scene\n\n| host | training | as trained | "
              f"without words | {' | '.join(TEST_SUITES)} | listens, x chance | gates | core minutes |")  # fmt: skip
        print(f"|---|---|---|---|{'---|' * len(TEST_SUITES)}--:|---|--:|")
        print("\n".join(map(row, cells)))
        for host in dict.fromkeys(host for host, _ in keys):
            arms = {
                own[0]["training"]: {
                    suite: tuple(sum(r["suites"][suite][part] for r in own) for part in (0, 1)) for suite in TEST_SUITES
                }
                for own in cells
                if own[0]["host"] == host
            }
            success_by_task(arms).savefig(folder / f"{host}-{knob}.png", dpi=150)
    guess = {suite: blind_chance(suite) for suite in TEST_SUITES}
    content = {"kind": "language", **settings, "cells": list(results), "validity": lines, "guess": guess}
    print("\n" + "\n".join([*lines, made_with(write_report(folder, content))]))
