"""LIBERO-PRO on two arms: a policy of the first on its suite and its four splits, and what a second arm gets from it.

    python benchmarks/libero_pro.py --output-dir runs/libero_pro
    python benchmarks/libero_pro.py --trials 2 --splits seen swap --demonstrations 10

The first arm's policy is trained on scripted demonstrations of the ten tasks of libero_object. It is evaluated on that
suite (`seen`) and on what LIBERO-PRO makes of it: `lan` (other words), `object` (other things), `swap` (other places),
`task` (another goal); all from the benchmark's recorded starts, of which the demonstrations know nothing. The second
arm's policies are trained on few demonstrations, all for the same number of steps, but for one that is not:

    the first arm's as it is      no training: both arms are driven by displacements of the hand
    from the action prior         of the first arm's motion, to which the second arm is added, begun like the first (its
                                  projections and soft tokens are trained on its motion, nothing else of the prior)
    from the first arm's policy   LoRA beside the layers of its expert, the new arm begun like the first
    control                       the same architecture as from the action prior, random weights

Success is told with Wilson's 95 % interval, beside that of the scripted expert from the same starts. A finished
collection, training or trial is not done again; an interrupted training is begun again. More `--trials` or `--splits`
extend what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from report_file import made_with, write_report
from same_settings import require_same_settings

from priorvla.configuration.recipe import load_recipe
from priorvla.deployment.environments.libero_robots import ARMS, libero_embodiment
from priorvla.deployment.environments.registry import expand_tasks, make_environment
from priorvla.deployment.environments.trial_starts import start_seed
from priorvla.hub_cards.intervals import wilson_interval
from priorvla.hub_cards.plots import success_by_task
from priorvla.hub_cards.report import Report
from priorvla.hub_cards.versions import installed_versions

SUITE = "libero_object"
SPLITS = {"seen": SUITE, **{split: f"{SUITE}_{split}" for split in ("lan", "object", "swap", "task")}}
PORTION = 5  # demonstrations of each task that are collected together
LOOK_EVERY = 4  # steps between two pictures of a demonstration, and between the windows of training
SETTINGS = ("arms", "demonstrations", "few", "motion_steps", "max_steps", "few_steps", "max_episode_steps", "seed")
Counts = dict[str, tuple[int, int]]  # split -> successes, trials


@dataclass(frozen=True)
class Trained:
    """How a policy is made: for which arm, by which command, and with what further options."""

    second: bool
    command: str | None  # None: nothing is trained, the second arm is driven as if it were the first
    options: tuple[str, ...] = ()


POLICIES = {
    "first arm": Trained(False, "train"),
    "second arm, the first arm's policy as it is": Trained(True, None),
    "second arm, from the action prior": Trained(True, "train"),
    "second arm, from the first arm's policy": Trained(True, "finetune", ("--preset", "expert")),
    "second arm, control": Trained(True, "train", ("--control",)),
}


class LiberoPro:
    """Everything of one seed, in `folder`; what is there already is not done again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = options.output_dir / f"seed-{options.seed}"
        require_same_settings(self.folder, options, SETTINGS)

    def demonstrations(self, second: bool) -> list[Path]:
        """The datasets of one arm, a portion each."""
        arm = self.options.arms[second]
        wanted = self.options.few if second else self.options.demonstrations
        folders = []
        for portion in range(-(-wanted // PORTION)):
            folder = self.folder / "demonstrations" / f"{arm}-{portion}"
            if not folder.is_dir():
                command("collect", "--env", "libero", "--suite", SUITE, "--arm", arm, "--output-dir", folder,
                        "--episodes", min(PORTION, wanted - portion * PORTION), "--image-every", LOOK_EVERY,
                        "--seed", 100 * self.options.seed + portion, "--workers", self.options.workers)  # fmt: skip
            folders.append(folder)
        return folders

    def prior(self, second: bool) -> Path:
        """The action prior of the first arm's motion, or that with the second arm added."""
        recipe: tuple[object, ...] = ("--config", "action_prior_small", "--max-steps", self.options.motion_steps)
        if second:
            first = libero_embodiment(self.options.arms[0], "eef").name
            started = ("--prior", self.prior(second=False), "--like", first, "--max-steps", self.options.few_steps)
            recipe = ("--config", self._recipe("pretrain", self.options.few_steps), *started)
        name = "prior-second-arm" if second else "prior"
        return self._run("pretrain", name, second, *recipe)

    def policy(self, name: str) -> Path:
        made, folder = POLICIES[name], folder_name(name)
        if made.command is None:
            return self.policy("first arm")
        steps = self.options.few_steps if made.second else self.options.max_steps
        said: tuple[object, ...]
        if made.command == "finetune":
            first, second = (libero_embodiment(arm, "eef").name for arm in self.options.arms)
            said = ("--base", self.policy("first arm"), "--embodiment", second, "--like", first)
        else:
            said = ("--prior", self.prior(made.second))
        return self._run(made.command, folder, made.second, "--config", self._recipe(made.command, steps), *said,
                         *made.options, "--max-steps", steps,
                         "--frame-stride", LOOK_EVERY, "--cache-dir", self.folder / "features",
                         "--listening", 0 if made.second else 20)  # fmt: skip

    def evaluate(self, name: str, splits: list[str]) -> Counts:
        """Of a policy: trials that are there count, the others are run; `report.html` is in `evaluations`."""
        made, policy = POLICIES[name], self.policy(name)
        folder = self.folder / "evaluations" / folder_name(name)
        file = folder / "report.json"
        known = json.loads(file.read_text(encoding="utf-8"))["suites"] if file.is_file() else {}
        suites = [suite for split, suite in SPLITS.items() if split in splits or suite in known]
        command("evaluate", policy, "--env", "libero", "--suite", *suites, "--starts", "recorded",
                "--arm", self.options.arms[made.second], "--embodiment", self._body(made), "--output-dir", folder,
                "--trials", self.options.trials, "--max-episode-steps", self.options.max_episode_steps,
                "--seed", self.options.seed, "--workers", self.options.workers)  # fmt: skip
        counted = json.loads(file.read_text(encoding="utf-8"))["suites"]
        return {split: (counted[SPLITS[split]]["successes"], counted[SPLITS[split]]["trials"]) for split in splits}

    def expert(self, second: bool, splits: list[str]) -> Counts:
        """The scripted expert's, from the same starts; a task's outcomes are written when they are all there."""
        arm, trials = self.options.arms[second], self.options.expert_trials
        file = self.folder / f"expert-{arm}.json"
        known: dict[str, list[bool]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        tasks = {split: expand_tasks("libero", [SPLITS[split]]) for split in splits}
        for task in (task for own in tasks.values() for task in own):
            if len(known.get(task, [])) < trials:
                known[task] = solved_by_expert(task, arm, self.options)
                file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        return {
            split: (sum(sum(known[task][:trials]) for task in own), trials * len(own)) for split, own in tasks.items()
        }

    def _body(self, made: Trained) -> str:
        """The arm by the name that the policy has for it."""
        return libero_embodiment(self.options.arms[made.second and made.command is not None], "eef").name

    def _recipe(self, action: str, steps: int) -> Path:
        """The shipped one; a prior is distilled for the same share of the steps as there."""
        shipped = {"pretrain": "action_prior_small", "train": "vla_small", "finetune": "finetune_small"}
        recipe = load_recipe(shipped[action])
        if action == "pretrain":
            recipe.pop("model")  # the shape of a prior that goes on is its own
        elif action == "train":
            share = recipe["training"]["distillation_steps"] / recipe["max_steps"]
            recipe["training"]["distillation_steps"] = round(share * steps)
        file = self.folder / f"recipe-{action}-{steps}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return file

    def _run(self, action: str, name: str, second: bool, *arguments: object) -> Path:
        """A training on the demonstrations of the first or the second arm, unless it is there already."""
        folder = self.folder / name
        if not (folder / "metrics.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a training that was interrupted
            command(action, "--seed", self.options.seed, "--output-dir", folder, *arguments,
                    "--dataset", *self.demonstrations(second))  # fmt: skip
        return folder


def solved_by_expert(task: str, arm: str, options: argparse.Namespace) -> list[bool]:
    """Whether the scripted expert solves each start of the policies' first trials; an expert without a way does not."""
    environment = make_environment("libero", task, robot=arm, starts="recorded", render=False)
    outcomes = []
    for trial in range(options.expert_trials):
        _, info = environment.reset(seed=start_seed(options.seed, trial))
        with suppress(NotImplementedError):
            for _ in range(options.max_episode_steps):
                *_, info = environment.step(environment.expert_action())
                if info["success"]:
                    break
        outcomes.append(bool(info["success"]))
    environment.close()
    return outcomes


def folder_name(policy: str) -> str:
    return policy.replace(", ", "-").replace(" ", "-").replace("'", "")


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "priorvla.cli", *map(str, arguments)], check=True)


def told(counts: tuple[int, int]) -> str:
    low, high = wilson_interval(*counts)
    return f"{counts[0]} / {counts[1]} ({low:.0%} to {high:.0%})"


def write_page(folder: Path, results: dict[str, Counts], settings: dict[str, Any]) -> Path:
    """One page of all policies; each policy's own, with its tasks, films and failures, is in `evaluations`."""
    page = Report("LIBERO-PRO on two arms", f"{settings['arms'][0]}, then {settings['arms'][1]}")
    page.section("Success by split and arm")
    splits = list(next(iter(results.values())))
    rows = [[name, *(told(counts[split]) for split in splits)] for name, counts in results.items()]
    page.table(["policy", *splits], rows, "Successes / trials with 95 % Wilson intervals, from recorded starts.")
    by_split = {split: {name: counts[split] for name, counts in results.items()} for split in splits}
    page.figure(success_by_task(by_split), caption="Success by policy, on each split.")
    page.section("Settings")
    page.facts({**settings, **installed_versions()})
    return page.write(folder / "report.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/libero_pro"))
    parser.add_argument("--arms", nargs=2, choices=ARMS, default=["panda", "ur5e"], help="the first and the second")
    parser.add_argument("--demonstrations", type=int, default=25, help="of each task, of the first arm")
    parser.add_argument("--few", type=int, default=5, help="of each task, of the second arm")
    parser.add_argument("--motion-steps", type=int, default=800, help="of the action prior")
    parser.add_argument("--max-steps", type=int, default=1500, help="of the first arm's policy")
    parser.add_argument("--few-steps", type=int, default=300, help="of each policy of the second arm")
    parser.add_argument("--max-episode-steps", type=int, default=200, help="20 are a second; experts need 100 to 140")
    parser.add_argument("--trials", type=int, default=5, help="episodes of each task of each split")
    parser.add_argument("--expert-trials", type=int, default=2, help="likewise, of the scripted experts")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes")
    options = parser.parse_args()
    work = LiberoPro(options)
    results: dict[str, Counts] = {}
    for name in options.policies:
        results[name] = work.evaluate(name, options.splits)
        print(f"{name}: {', '.join(f'{split} {told(counts)}' for split, counts in results[name].items())}", flush=True)
    for second in sorted({POLICIES[name].second for name in options.policies}):
        results[f"expert of the {options.arms[second]}"] = work.expert(second, options.splits)
    print(f"\n| {options.arms[0]}, then {options.arms[1]} | {' | '.join(options.splits)} |")
    print(f"|---|{'---|' * len(options.splits)}")
    for name, counts in results.items():
        print(f"| {name} | {' | '.join(told(counts[split]) for split in options.splits)} |")
    settings = {**{name: getattr(options, name) for name in SETTINGS}, "trials": options.trials}
    print("\n" + "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()))
    report = write_report(work.folder, {"kind": "libero_pro", **settings, "results": results})
    settings["machine"] = report["machine"]
    print(made_with(report))
    print(f"Report: {write_page(work.folder, results, settings)}")


if __name__ == "__main__":
    main()
