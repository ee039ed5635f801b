"""The quickstart's report.html, from its report.json and the logs of its runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from priorvla.hub_cards.intervals import difference_interval
from priorvla.hub_cards.plots import difference, loss_curves, success_against_steps, success_by_task
from priorvla.hub_cards.report import Report

Counts = tuple[int, int]


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes `report.html` into `folder`, the quickstart's."""
    page = Report("Motion first, then sight and words", subtitle(report))
    verdict(page, report)
    success(page, report)
    training(page, report, folder)
    rollouts(page, report, folder)
    prior(page, report)
    checks(page, report)
    following(page, report)
    facts(page, report)
    page.write(folder / "report.html")


def subtitle(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    return (
        f"Meta-World, {len(settings['tasks'])} tasks, {settings['demonstrations']} demonstrations each, seed "
        f"{settings['seed']}: one policy from an action prior, and its control from random weights"
    )


def verdict(page: Report, report: Mapping[str, Any]) -> None:
    page.section("What came out")
    for budget in report["settings"]["budgets"]:
        page.note(sentence(budget, counts(report, f"prior-{budget}"), counts(report, f"control-{budget}")))
    page.text(
        "Both arms have the same architecture, demonstrations, steps, seed and evaluation starts. The prior arm "
        "begins with the weights of an action prior, which saw motion and no image, and is aligned with the prior's "
        "latent while it begins; the control begins with random weights. One seed is one draw: repeat with `--seed` "
        "before you believe it."
    )


def sentence(budget: int, prior: Counts, control: Counts) -> str:
    """What may be said of two arms: never that one is ahead when the interval of the difference spans zero."""
    low, high = difference_interval(*prior, *control)
    rates = (
        f"After **{budget} steps** the policy from the prior solved {prior[0]} of {prior[1]} episodes "
        f"({prior[0] / prior[1]:.0%}), the control {control[0]} of {control[1]} ({control[0] / control[1]:.0%})."
    )
    gap = prior[0] / prior[1] - control[0] / control[1]
    interval = f"The difference is {100 * gap:+.0f} points, 95 % interval {100 * low:+.0f} to {100 * high:+.0f}"
    if low <= 0 <= high:
        return f"{rates} {interval}: it spans zero, so these episodes do not tell the arms apart."
    return f"{rates} {interval}: {'more' if gap > 0 else 'less'} success with the prior."


def comparison(evaluations: Mapping[str, Any], budget: int) -> dict[str, Any]:
    """Success rates of both arms after `budget` steps, over all tasks, and their difference with its 95 % interval."""
    arms = [evaluations[f"{arm}-{budget}"]["overall"] for arm in ("prior", "control")]
    (a, m), (b, n) = [(arm["successes"], arm["trials"]) for arm in arms]
    return {
        "prior": a / m,
        "control": b / n,
        "difference": a / m - b / n,
        "interval": list(difference_interval(a, m, b, n)),
    }


def success(page: Report, report: Mapping[str, Any]) -> None:
    budgets = report["settings"]["budgets"]
    page.section("Success")
    arms = {arm: {budget: counts(report, f"{arm}-{budget}") for budget in budgets} for arm in ("prior", "control")}
    page.figure(
        success_against_steps(arms),
        "Success against training steps, all tasks, with 95 % Wilson intervals. Stage 1's steps are not on this axis.",
    )
    comparisons = {f"{budget} steps": (*arms["prior"][budget], *arms["control"][budget]) for budget in budgets}
    page.figure(
        difference(comparisons, "prior", "control"),
        "The difference, with Newcombe's 95 % interval for independent proportions (conservative: starts are shared).",
    )
    last = max(budgets)
    page.figure(
        success_by_task({arm: by_task(report, f"{arm}-{last}") for arm in ("prior", "control")}),
        f"Success by task after {last} steps, with 95 % Wilson intervals.",
    )
    names = [f"{arm}-{budget}" for budget in budgets for arm in ("prior", "control")] + ["blank", "random"]
    rows = [[task, *(ratio(by_task(report, name)[task]) for name in names)] for task in report["settings"]["tasks"]]
    rows.append(["all tasks", *(ratio(counts(report, name)) for name in names)])
    rows.append(["95 % interval", *(interval(report, name) for name in names)])
    headers = ["task", *(f"{arm}, {budget}" for budget in budgets for arm in ("prior", "control"))]
    page.table(
        [*headers, "prior, black images", "random actions"],
        rows,
        "Solved episodes. The last two columns say what is solved without looking, and without a policy.",
    )


def training(page: Report, report: Mapping[str, Any], folder: Path) -> None:
    page.section("Training")
    logs = {arm: read_log(folder / f"policy-{arm}" / "log.csv") for arm in ("prior", "control")}
    page.figure(
        loss_curves({arm: log["loss_pred"] for arm, log in logs.items()}, ylabel="L_pred", log_y=True),
        "Flow-matching loss of the policy's own prediction, both arms.",
    )
    parts = {
        name.removeprefix("loss_"): log for name, log in logs["prior"].items() if name in ("loss_align", "loss_recon")
    }
    if parts:
        page.figure(
            loss_curves(parts, ylabel="loss", log_y=True),
            "What else the prior arm minimises while it is distilled: ||z' - z||² and the reconstruction from z.",
        )
    page.figure(
        loss_curves({"action prior": read_log(folder / "prior" / "log.csv")["loss"]}, ylabel="L_recon", log_y=True),
        "Stage 1: the action prior's reconstruction loss.",
    )
    final = report["final_losses"]
    names = sorted({name for losses in final.values() for name in losses})
    rows = [[run, *(losses.get(name) for name in names)] for run, losses in final.items()]
    page.table(["run", *names], rows, "Means over the last tenth of each curve.")


def rollouts(page: Report, report: Mapping[str, Any], folder: Path) -> None:
    last = max(report["settings"]["budgets"])
    page.section("Rollouts")
    page.text(f"The first evaluation start of every task after {last} steps, both arms, as the policy saw it.")
    for task in report["settings"]["tasks"]:
        for arm in ("prior", "control"):
            for film in sorted((folder / "films" / f"{arm}-{last}").glob(f"{task}-0-*.*")):
                page.video(film, f"{task}, {arm}: {film.stem.rsplit('-', 1)[-1]}")


def prior(page: Report, report: Mapping[str, Any]) -> None:
    page.section("The action prior")
    page.text(
        "It was trained on motion alone: states and actions of tasks that are not evaluated, and the demonstrations "
        "themselves, without their pictures. On episodes that it did not see:"
    )
    page.facts(report["prior_metrics"])
    page.text(
        "`reconstruction_error` is the mean absolute error, in raw action units, of chunks sampled from their own "
        "latent; `mean_chunk_error` that of always answering the mean chunk."
    )


def checks(page: Report, report: Mapping[str, Any]) -> None:
    last = max(report["settings"]["budgets"])
    seeing, blank = counts(report, f"prior-{last}"), counts(report, "blank")
    low, high = difference_interval(*seeing, *blank)
    gap = 100 * (seeing[0] / seeing[1] - blank[0] / blank[1])
    page.section("Does it see?")
    page.text(
        f"With black images the same policy solved {ratio(blank)} against {ratio(seeing)} with its eyes open: a "
        f"difference of {gap:+.0f} points, 95 % interval {100 * low:+.0f} to {100 * high:+.0f}. Random actions solved "
        f"{ratio(counts(report, 'random'))}."
    )


def following(page: Report, report: Mapping[str, Any]) -> None:
    page.section("What to try next")
    page.text(
        "- Another draw: `.venv/bin/python benchmarks/quickstart.py --seed 1 --output-dir runs/quickstart-1`.\n"
        "- More demonstrations, or fewer: `--demonstrations 10`.\n"
        "- Shorter or longer training: `--budgets 100 2000`. In paper A the gain is largest early, and shrinks.\n"
        "- Your own motion: write it with `priorvla.LeRobotDatasetWriter` and give it to `priorvla pretrain`.\n"
        "- Look inside: `priorvla info runs/quickstart/prior`, and the card (README.md) of every checkpoint."
    )


def facts(page: Report, report: Mapping[str, Any]) -> None:
    page.section("How it was run")
    settings, motion = report["settings"], report["collection"]["motion"]
    page.facts(
        {
            "seed": settings["seed"],
            "motion": f"{motion['episodes']} episodes of {len(motion['success_rates'])} other tasks",
            "demonstrations": f"{report['collection']['demonstrations']['episodes']} episodes",
            "steps of the prior": settings["prior_steps"],
            "steps of each arm": max(settings["budgets"]),
            "trials a task": settings["trials"],
            "peak memory, all processes": f"{report['peak_memory_gb']} GB",
            "cores": report["cores"],
            **report["versions"],
        }
    )
    rows = [[name, f"{seconds:.0f}"] for name, seconds in report["times_s"].items()]
    page.table(["step", "seconds"], [*rows, ["all", f"{report['total_time_s']:.0f}"]], "Wall time of every step.")


def counts(report: Mapping[str, Any], name: str) -> Counts:
    overall = report["evaluations"][name]["overall"]
    return overall["successes"], overall["trials"]


def by_task(report: Mapping[str, Any], name: str) -> dict[str, Counts]:
    tasks = report["evaluations"][name]["tasks"]
    return {task: (values["successes"], values["trials"]) for task, values in tasks.items()}


def ratio(values: Counts) -> str:
    return f"{values[0]} / {values[1]}"


def interval(report: Mapping[str, Any], name: str) -> str:
    low, high = report["evaluations"][name]["overall"]["interval"]
    return f"{low:.0%} to {high:.0%}"


def read_log(file: Path) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Columns of a run's log.csv: name -> (steps, values), where the column has a value."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and value:
                steps, values = columns.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(float(value))
    return columns


def final_losses(file: Path) -> dict[str, float]:
    """Mean of every loss in a run's log.csv over the last tenth of the steps that it was logged for."""
    losses = {}
    for name, (steps, values) in read_log(file).items():
        if name.startswith(("loss", "eval_loss")):
            last = [value for step, value in zip(steps, values, strict=True) if step > 0.9 * steps[-1]]
            losses[name] = sum(last) / len(last)
    return losses
