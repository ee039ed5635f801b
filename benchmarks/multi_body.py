"""One prior of several bodies against one prior a body, of equal compute, on every body's held-out motion.

    python benchmarks/multi_body.py                          # collects the four simulated bodies first
    python benchmarks/multi_body.py --dataset data/pusht data/metaworld data/libero data/aloha data/unitree_g1

The multi-body prior trains for `--max-steps` steps that draw every body equally often; each single-body prior trains
for its share of them, so that both sides make the same number of steps in all and see as many windows of each body.
With `--all-steps`, a third prior of each body alone makes all the steps: what that body could have for itself at a
multiple of the compute.
Every pair shares its architecture, batch size, held-out episodes and seed. Losses and errors are compared as a ratio,
multi-body prior over the other; energy distances, which may be zero or less, as a difference. Below 1, or below 0, it
speaks for the multi-body prior. Every seed is told, because a median of few hides how much they differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from report_file import made_with, write_report

# simulator -> (tasks, episodes a task): a few minutes of state-only collecting
SIMULATED = {
    "pusht": (["all"], 60),
    "metaworld": (["all"], 4),
    "libero": (["libero_object"], 4),
    "aloha": (["all"], 30),
}
RATIOS, DIFFERENCES = ("velocity_loss", "reconstruction_error"), ("energy_distance",)


def collect_bodies(folder: Path) -> list[str]:
    """Motion of every simulated body, collected unless it is there."""
    for environment, (tasks, episodes) in SIMULATED.items():
        if not (folder / environment).is_dir():
            command = [sys.executable, "-m", "priorvla.cli", "collect", "--env", environment, "--tasks", *tasks]
            command += ["--episodes", str(episodes), "--no-images", "--output-dir", str(folder / environment)]
            subprocess.run(command, check=True)
    return [str(folder / environment) for environment in SIMULATED]


def train(datasets: list[str], folder: Path, steps: int, seed: int, recipe: str) -> dict[str, float]:
    """Runs `priorvla pretrain` unless it is done, and returns its metrics."""
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, "-m", "priorvla.cli", "pretrain", "--config", recipe, "--holdout", "0.1"]
        command += ["--dataset", *datasets, "--output-dir", str(folder), "--max-steps", str(steps)]
        subprocess.run([*command, "--seed", str(seed)], check=True)
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def body_of(folder: Path) -> str:
    """The body of a single-body prior."""
    content = json.loads((folder / "embodiments.json").read_text(encoding="utf-8"))
    name: str = content["embodiments"][0]["name"]
    return name


def single_arms(options: argparse.Namespace) -> dict[str, int]:
    """The arms that train on one body alone, with their steps."""
    share: int = options.max_steps // len(options.dataset)
    return {"single": share} | ({"single, all steps": share * len(options.dataset)} if options.all_steps else {})


def compare(options: argparse.Namespace, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """{body: {arm: {measure: value}}} of one seed."""
    datasets: list[str] = options.dataset
    share = options.max_steps // len(datasets)
    folder = options.output_dir / f"{Path(options.recipe).stem}-{options.max_steps}-seed-{seed}"
    weighted = [f"{dataset}:1" for dataset in datasets]
    multi = train(weighted, folder / "multi", share * len(datasets), seed, options.recipe)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for index, dataset in enumerate(datasets):
        arms = {"multi": multi}
        for arm, steps in single_arms(options).items():
            place = folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{index}"
            arms[arm] = train([dataset], place, steps, seed, options.recipe)
            body = body_of(place)
        result[body] = {arm: {m: values[f"{m}/{body}"] for m in RATIOS + DIFFERENCES} for arm, values in arms.items()}
    return result


def compared(runs: list[dict[str, Any]], body: str, arm: str, measure: str) -> list[float]:
    """The multi-body prior against `arm`, a seed each."""
    pairs = [(run[body]["multi"][measure], run[body][arm][measure]) for run in runs]
    return [multi / other if measure in RATIOS else multi - other for multi, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", help="one a body; default: the simulated ones")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/multi_body"))
    parser.add_argument("--max-steps", type=int, default=1500, help="of the multi-body prior")
    parser.add_argument("--all-steps", action="store_true", help="also priors of one body that make all the steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="action_prior_small")
    options = parser.parse_args()
    options.dataset = options.dataset or collect_bodies(options.output_dir / "data")
    runs = [compare(options, seed) for seed in options.seeds]
    lines = []
    for body in runs[0]:
        for measure in RATIOS + DIFFERENCES:
            line = f"{body:<24}{measure:<22}"
            for arm in single_arms(options):
                values = compared(runs, body, arm, measure)
                told, sign = " ".join(f"{value:.2f}" for value in values), "/" if measure in RATIOS else "-"
                line += f"  multi {sign} {arm}: {statistics.median(values):.2f} ({told})"
            lines.append(line)
    result = {"kind": "multi-body", "max_steps": options.max_steps, "seeds": options.seeds, "runs": runs}
    print("\n".join([*lines, made_with(write_report(options.output_dir, result))]))


if __name__ == "__main__":
    main()
