"""A task that the base never saw, from 10 and 25 demonstrations: LoRA with prior and control, whole weights, scratch.

    python benchmarks/new_task.py --output-dir runs/new_task
    python benchmarks/new_task.py --output-dir runs/new_task --arms "LoRA" "from scratch" --demonstrations 10

Two bases are trained on the same demonstrations of six Meta-World tasks for the same number of steps: one from an
action prior, one from random weights (the control). Nothing of a target task is in them: neither pictures nor motion.
Every arm then gets the same demonstrations of one target task, batches of one size and the same number of steps:

    base as it is             the base with the prior, which has never heard of the task
    LoRA                      beside the expert's layers, on the base with the prior
    LoRA, control base        the same on the control base
    LoRA, new robot           the same on the base with the prior, told that the arm is one it has never met: soft
                              tokens and projections of its own, from random weights
    LoRA with the backbone    beside the backbone's attention too
    whole expert              all weights of the expert, on the base with the prior
    whole policy              those of the backbone too
    from scratch              random weights, these demonstrations alone
    from the action prior     a fresh policy around the prior's expert, these demonstrations alone
    from scratch, longer      random weights, with the base's steps added

Success is told with Wilson's 95 % interval. Minutes are those of a core at work (CPU time of the training command, with
the encoding of its images), which a busy machine hardly changes; megabytes are those of the weights that are saved.
A finished training or evaluation is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from report_file import made_with, write_report
from same_settings import require_same_settings

from priorvla.configuration.recipe import load_recipe
from priorvla.deployment.environments import list_tasks
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.hub_cards.intervals import wilson_interval
from priorvla.training.finetune_options import WHOLE_PRESETS

BASE_TASKS = ("drawer-open", "drawer-close", "button-press-topdown", "door-open", "window-open", "faucet-open")
TARGETS = ("window-close", "button-press")
TUNED_ON = "faucet-close"  # where the learning rates were chosen: no base sees it, and no result is from it
SETTINGS = ("max_steps", "base_demonstrations", "base_steps", "motion_steps", "trials", "seeds")
MOTION_EPISODES = 8  # of every task that is neither the base's nor a target


@dataclass(frozen=True)
class Arm:
    """How a policy for a target is made: a command, where it starts, and further options."""

    command: str | None  # None: nothing is trained
    start: str | None = None
    options: tuple[str, ...] = ()
    robot: str | None = None  # its name, where the base is to know no such robot
    longer: bool = False  # with the base's steps added


ARMS = {
    "base as it is": Arm(None, "base"),
    "LoRA": Arm("finetune", "base", ("--preset", "expert")),
    "LoRA, control base": Arm("finetune", "control-base", ("--preset", "expert")),
    "LoRA, new robot": Arm("finetune", "base", ("--preset", "expert"), robot="my_arm"),
    "whole expert": Arm("finetune", "base", ("--preset", "expert-only")),
    "from scratch": Arm("train"),
    "from the action prior": Arm("train", "prior"),
    "from scratch, longer": Arm("train", longer=True),
    "LoRA with the backbone": Arm("finetune", "base", ("--preset", "all")),
    "whole policy": Arm("finetune", "base", ("--preset", "full")),
}


class NewTask:
    """Bases, data and arms of one seed in `folder`; what is there already is not done again."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.folder = options.output_dir / f"seed-{seed}"
        require_same_settings(self.folder, options, [name for name in SETTINGS if name != "seeds"])

    def prepare(self) -> None:
        """The base's data and both bases."""
        unseen = [
            task for task in list_tasks("metaworld") if task not in (*BASE_TASKS, *self.options.targets, TUNED_ON)
        ]
        demonstrations = self._collect("demonstrations", BASE_TASKS, self.options.base_demonstrations)
        motion = self._collect("motion", unseen, MOTION_EPISODES, "--no-images")
        prior = self._run("pretrain", "prior", "--config", "action_prior_small", "--dataset", motion, demonstrations,
                          "--max-steps", self.options.motion_steps)  # fmt: skip
        train = ("train", "base", "--config", "vla_small", "--dataset", demonstrations, "--prior", prior,
                 "--max-steps", self.options.base_steps)  # fmt: skip
        self._run(*train)
        self._run(train[0], "control-base", *train[2:], "--control")

    def measure(self, name: str, target: str, demonstrations: int) -> dict[str, Any]:
        """Success of an arm's policy on its target, and what it took to make it."""
        arm, policy = ARMS[name], self.folder / "base"
        if arm.command is not None:
            policy = self._train(name, arm, target, demonstrations)
        result = policy / f"{target}.json"
        if not result.is_file():
            evaluation = evaluate_policy(
                partial(PriorVLAPolicy.from_pretrained, str(policy), embodiment=arm.robot),
                [target],
                trials=self.options.trials,
                seed=self.seed,
                num_workers=self.options.workers,
                embodiment=arm.robot,
            )
            result.write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n", encoding="utf-8")
        counts = json.loads(result.read_text(encoding="utf-8"))["overall"]
        cost = json.loads((policy / "cost.json").read_text(encoding="utf-8"))
        return {"successes": counts["successes"], "trials": counts["trials"], **(cost if arm.command else {})}

    def _train(self, name: str, arm: Arm, target: str, demonstrations: int) -> Path:
        data = self._collect(f"{target}-{demonstrations}", [target], demonstrations)
        steps = self.options.max_steps + (self.options.base_steps if arm.longer else 0)
        start: tuple[object, ...] = ()
        if arm.start is not None:
            start = ("--base" if arm.command == "finetune" else "--prior", self.folder / arm.start)
        folder = f"{target}-{demonstrations}-{name.replace(', ', '-').replace(' ', '-')}"
        return self._run(arm.command, folder, "--config", self._recipe(arm), "--dataset", data, "--max-steps", steps,
                         *start, *arm.options, *(("--embodiment", arm.robot) if arm.robot else ()))  # fmt: skip

    def _recipe(self, arm: Arm) -> Path:
        """The shipped ones, adapted: whole weights learn as slowly as when the base was trained, and the prior of a new
        policy is distilled for the same share of the steps as there."""
        base, recipe = load_recipe("vla_small"), load_recipe("finetune_small")
        if arm.command == "train":
            share = base["training"]["distillation_steps"] / base["max_steps"]
            base["training"]["distillation_steps"] = round(share * self.options.max_steps)
            recipe = base
        elif arm.options[1] in WHOLE_PRESETS:
            recipe["training"]["learning_rate"] = base["training"]["learning_rate"]
        file = self.folder / f"recipe-{'-'.join((str(arm.command), *arm.options[1:]))}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return file

    def _collect(self, name: str, tasks: list[str] | tuple[str, ...], episodes: int, *options: str) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            command("collect", "--tasks", *tasks, "--episodes", episodes, "--seed", self.seed, "--output-dir", folder,
                    *options)  # fmt: skip
        return folder

    def _run(self, action: str | None, name: str, *arguments: object) -> Path:
        """A training; afterwards its folder has `cost.json`, and no image features."""
        folder = self.folder / name
        if not (folder / "cost.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a training that was interrupted
            minutes = command(action, "--seed", self.seed, "--output-dir", folder, *arguments)
            shutil.rmtree(folder / "features", ignore_errors=True)
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            cost = {"core_minutes": round(minutes, 2), "megabytes": round(weights / 1e6, 2)}
            (folder / "cost.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
        return folder


def command(*arguments: object) -> float:
    """One command of `priorvla`; the minutes that cores worked on it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "priorvla.cli", *map(str, arguments)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def told(arm: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """A row of the table: all targets and seeds together, then each target, and the means of minutes and megabytes."""
    every = [result for own in results.values() for result in own]
    successes, trials = (sum(result[key] for result in every) for key in ("successes", "trials"))
    low, high = wilson_interval(successes, trials)
    each = ", ".join(f"{target} {' '.join(str(r['successes']) for r in own)}" for target, own in results.items())
    text = f"| {arm} | {successes} / {trials} ({low:.0%} to {high:.0%}) | {each} |"
    if "core_minutes" not in every[0]:
        return f"{text} | |"
    minutes, size = (sum(result[key] for result in every) / len(every) for key in ("core_minutes", "megabytes"))
    return f"{text} {minutes:.1f} | {size:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/new_task"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="tasks that the bases never see")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[10, 25], help="of a target")
    parser.add_argument("--max-steps", type=int, default=150, help="of every arm, on a target")
    parser.add_argument("--base-demonstrations", type=int, default=10, help="of each of the base's tasks")
    parser.add_argument("--base-steps", type=int, default=600, help="of both bases")
    parser.add_argument("--motion-steps", type=int, default=800, help="of the action prior")
    parser.add_argument("--trials", type=int, default=24, help="episodes of a target")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes of an evaluation")
    options = parser.parse_args()
    rounds = []
    for seed in options.seeds:
        rounds.append(NewTask(options, seed))
        rounds[-1].prepare()
    table: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for arm in options.arms:
        for count in options.demonstrations:
            cells = {target: [own.measure(arm, target, count) for own in rounds] for target in options.targets}
            table.setdefault(str(count), {})[arm] = cells
            print(f"{count} demonstrations: {told(arm, cells)}", flush=True)
    for count, arms in table.items():
        print(f"\n| {count} demonstrations, {options.max_steps} steps | success | by target | core minutes | MB |")
        print("|---|---|---|--:|--:|")
        print("\n".join(told(arm, cells) for arm, cells in arms.items()))
    settings = {name: getattr(options, name) for name in SETTINGS}
    print(f"\n{made_with(write_report(options.output_dir, {'kind': 'new_task', **settings, 'table': table}))}")


if __name__ == "__main__":
    main()
