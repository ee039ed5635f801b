"""One stage, two rungs, three rungs: closed-loop success on Meta-World after equal steps of rung 3.

    python benchmarks/ladder.py --output-dir runs/ladder
    python benchmarks/ladder.py --fusion cross --seeds 0 1 2 --quickstart runs/quickstart

Every arm ends as a policy of one host, trained on the same demonstrations for the same number of rung-3 steps:

    one stage           from random weights
    motion              from an action prior (rungs 1, 3: paper A's ladder in this host)
    sight               from a vision-action prior that began at random (rungs 2, 3: paper B's)
    motion, sight       from a vision-action prior that began as the action prior (rungs 1, 2, 3)
    one stage, longer   from random weights, with rung 2's steps added to rung 3's
    motion, longer      from an action prior, likewise: these two are the controls of equal compute

Rung 2 sees rung 3's own demonstrations, and nobody sees others. The motion of the action prior comes from those and
from tasks that are not evaluated. `--quickstart` takes data and action prior from a finished quickstart; otherwise they
are made as there. Success is told with Wilson's 95 % interval, and how far each policy listens as a multiple of chance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from report_file import made_with, write_report

from priorvla.deployment.environments import list_tasks
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.hub_cards.intervals import wilson_interval

TASKS = ("drawer-open", "drawer-close", "button-press-topdown", "door-open", "window-open", "faucet-open")
ARMS = ("one stage", "motion", "sight", "motion, sight", "one stage, longer", "motion, longer")
MOTION_EPISODES, DEMONSTRATIONS = 8, 5  # of every task, as in the quickstart
LISTENING = 18  # observations, three of every task


def run(*arguments: object) -> None:
    """One command of `priorvla`."""
    subprocess.run([sys.executable, "-m", "priorvla.cli", *map(str, arguments)], check=True)


def done(folder: Path) -> bool:
    return (folder / "metrics.json").is_file()


class Ladder:
    """The arms of one seed, in `folder`; what is there already is not done again."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.folder = options.output_dir / f"{options.fusion}-seed-{seed}"
        source = options.quickstart or self.folder
        self.motion, self.demonstrations, self.prior = (source / n for n in ("motion", "demonstrations", "prior"))

    def prepare(self) -> None:
        """Data and action prior."""
        common = ("--seed", self.seed)
        if not self.motion.is_dir():
            others = [task for task in list_tasks("metaworld") if task not in TASKS]
            run("collect", "--no-images", "--episodes", MOTION_EPISODES, "--output-dir", self.motion, *common,
                "--tasks", *others)  # fmt: skip
        if not self.demonstrations.is_dir():
            run(
                "collect", "--episodes", DEMONSTRATIONS, "--output-dir", self.demonstrations, *common, "--tasks", *TASKS
            )
        if not done(self.prior):
            run("pretrain", "--config", "action_prior_small", "--output-dir", self.prior, *common, "--max-steps",
                self.options.motion_steps, "--dataset", self.motion, self.demonstrations)  # fmt: skip

    def see(self, name: str, prior: Path | None) -> Path:
        """A vision-action prior."""
        folder = self.folder / name
        if not done(folder):
            start = ("--prior", prior) if prior else ()
            host = ("--fusion", self.options.fusion, "--max-steps", self.options.sight_steps)
            run("pretrain", "--config", "vision_action_prior_small", *host, *self._common(folder), *start)
        return folder

    def train(self, arm: str) -> Path:
        """The arm's policy."""
        prior, steps = None, self.options.max_steps
        if arm in ("motion", "motion, longer"):
            prior = self.prior
        elif arm == "sight":
            prior = self.see("sight-prior", None)
        elif arm == "motion, sight":
            prior = self.see("motion-sight-prior", self.prior)
        if arm.endswith("longer"):
            steps += self.options.sight_steps
        folder = self.folder / arm.replace(", ", "-").replace(" ", "-")
        if not done(folder):
            start = ("--prior", prior) if prior else ()
            host = () if arm.endswith("sight") else ("--fusion", self.options.fusion)
            run("train", "--config", "vla_seeing_small", *host, *self._common(folder), *start, "--max-steps", steps,
                "--listening", LISTENING)  # fmt: skip
        return folder

    def evaluate(self, arm: str, policy: Path) -> dict[str, Any]:
        file = self.folder / f"{policy.name}.json"
        if not file.is_file():
            result = evaluate_policy(
                partial(PriorVLAPolicy.from_pretrained, str(policy)),
                TASKS,
                trials=self.options.trials,
                seed=self.seed,
                num_workers=self.options.workers,
            )
            file.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        tasks = content["tasks"].values()
        metrics = json.loads((policy / "metrics.json").read_text(encoding="utf-8"))
        return {
            "successes": sum(task["successes"] for task in tasks),
            "trials": sum(task["trials"] for task in tasks),
            "tasks": {name: task["successes"] for name, task in content["tasks"].items()},
            "listening": {name: value for name, value in metrics.items() if name.startswith("language_sensitivity/")},
        }

    def _common(self, folder: Path) -> tuple[object, ...]:
        features = self.folder / "features"
        return ("--dataset", self.demonstrations, "--output-dir", folder, "--cache-dir", features, "--seed", self.seed)


def told(arm: str, results: list[dict[str, Any]]) -> str:
    """A line of the table: all seeds together, then each."""
    successes, trials = (sum(result[key] for result in results) for key in ("successes", "trials"))
    low, high = wilson_interval(successes, trials)
    each = " ".join(f"{result['successes']}/{result['trials']}" for result in results)
    swaps = " ".join(f"{result['listening'].get('language_sensitivity/swap', float('nan')):.2f}" for result in results)
    return (
        f"{arm:<20}{successes / trials:>6.0%}  [{low:.0%}, {high:.0%}]  ({each})  another instruction: {swaps} x chance"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--fusion", choices=("cross", "joint", "gated"), default="gated")
    parser.add_argument("--quickstart", type=Path, help="a finished quickstart with data and action prior")
    parser.add_argument("--max-steps", type=int, default=400, help="of rung 3, of every arm")
    parser.add_argument("--sight-steps", type=int, default=400, help="of rung 2")
    parser.add_argument("--motion-steps", type=int, default=450, help="of rung 1")
    parser.add_argument("--trials", type=int, default=8, help="episodes a task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes of an evaluation")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        ladder = Ladder(options, seed)
        ladder.prepare()
        for arm in options.arms:
            runs[arm].append(ladder.evaluate(arm, ladder.train(arm)))
            print(told(arm, runs[arm]), flush=True)
    print(f"\n{options.fusion}, {options.max_steps} steps of rung 3, {options.sight_steps} of rung 2")
    print("\n".join(told(arm, results) for arm, results in runs.items()))
    settings = {key: getattr(options, key) for key in ("fusion", "max_steps", "sight_steps", "motion_steps", "seeds")}
    print(made_with(write_report(options.output_dir, {"kind": "ladder", **settings, "arms": runs})))


if __name__ == "__main__":
    main()
