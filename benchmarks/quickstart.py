"""From motion to a policy on two CPU cores: an action prior, a policy with and without it, and its success.

    python benchmarks/quickstart.py --output-dir runs/quickstart

Every step is a `priorvla` command or a call that a user could make; a run that was stopped goes on where it was.
The two arms share architecture, data, steps, seed and evaluation starts; they differ in the weights that they begin
with, and the prior arm distils from its encoder for a while.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from quickstart_progress import Progress, can_resume, write_json, write_text
from quickstart_report import comparison, final_losses, write_report

from priorvla.configuration.recipe import load_recipe
from priorvla.deployment.collect import collect, load_collection_summary
from priorvla.deployment.environments.registry import list_tasks
from priorvla.deployment.evaluation import evaluate_policy, save_films
from priorvla.deployment.policy import PriorVLAPolicy, RandomPolicy
from priorvla.hub_cards.versions import VERSIONED, installed_versions
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

# Tasks whose goal a 112-pixel picture shows (RECIPE: reach, push and the like mark it with a few pixels).
TASKS = ("drawer-open", "drawer-close", "button-press-topdown", "door-open", "window-open", "faucet-open")
ARMS = ("prior", "control")
RESULTS = ("motion", "demonstrations", "prior", "policy-prior", "policy-control", "evaluations")  # a run's subfolders
MOST_CHECKPOINTS = 50  # of an arm; one takes about 36 MB, most of it the optimizer's state


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are the quickstart.

    Raises:
        ValueError: a number below its least, a budget named twice, or budgets so uneven that an arm would need more
            than `MOST_CHECKPOINTS` checkpoints.
    """

    tasks: tuple[str, ...] = TASKS
    motion_tasks: tuple[str, ...] = ()  # empty: every task that is not evaluated
    motion_episodes: int = 8  # state-only episodes of every motion task
    demonstrations: int = 5  # of every evaluated task, with pictures
    prior_steps: int = 450
    budgets: tuple[int, ...] = (200, 400)  # steps after which both arms are evaluated; they train for the largest
    trials: int = 8
    floor_trials: int = 4  # with black images and of random actions, which succeed next to never
    seed: int = 0
    prior_recipe: str = "action_prior_small"
    vla_recipe: str = "vla_small"

    def __post_init__(self) -> None:
        if not self.budgets:
            raise ValueError("--budgets names no number of steps")
        least = {"motion_episodes": 1, "demonstrations": 1, "prior_steps": 1, "trials": 1, "floor_trials": 1, "seed": 0}
        for name, value, low in [
            *(("budgets", budget, 1) for budget in self.budgets),
            *((name, getattr(self, name), low) for name, low in least.items()),
        ]:
            if value < low:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {low}")
        for budget in self.budgets:
            if self.budgets.count(budget) > 1:
                raise ValueError(f"--budgets names {budget} twice: once is enough")
        if self.checkpoints > MOST_CHECKPOINTS:
            raise ValueError(
                f"--budgets {' '.join(map(str, self.budgets))} need a checkpoint every {self.save_steps} steps, "
                f"{self.checkpoints} of an arm, and {MOST_CHECKPOINTS} at most are kept for the disk's sake: choose "
                "budgets with a larger common divisor"
            )

    @property
    def last_budget(self) -> int:
        return max(self.budgets)

    @property
    def save_steps(self) -> int:
        """Every budget is a multiple of it."""
        return math.gcd(*self.budgets)

    @property
    def checkpoints(self) -> int:
        return self.last_budget // self.save_steps

    def moved_tasks(self) -> list[str]:
        """The tasks whose motion the prior sees."""
        return list(self.motion_tasks) or [task for task in list_tasks("metaworld") if task not in self.tasks]


class Quickstart:
    """The steps of one run in `folder`, each skipped when its result is already there.

    Raises SystemExit when `folder` holds a run of other settings, or something that is not a quickstart's.
    """

    def __init__(self, folder: Path, settings: Settings, workers: int | None = None) -> None:
        self.folder, self.settings = folder, settings
        self.workers = workers or min(8, os.cpu_count() or 1)
        folder.mkdir(parents=True, exist_ok=True)
        self._require_own_folder()
        self.progress = Progress(folder / "progress.json")

    def run(self) -> dict[str, Any]:
        """All steps; returns the content of report.json."""
        settings, folder = self.settings, self.folder
        self._step("collect motion", folder / "motion", self._collect_motion)
        self._step("collect demonstrations", folder / "demonstrations", self._collect_demonstrations)
        self._step("pretrain the action prior", folder / "prior" / "metrics.json", self._pretrain)
        for arm in ARMS:
            self._step(f"train the {arm} arm", folder / arm_folder(arm) / "metrics.json", partial(self._train, arm))
        for arm in ARMS:
            for budget in settings.budgets:
                name = f"{arm}-{budget}"
                self._step(f"evaluate {name}", self._result(name), partial(self._evaluate, arm, budget))
        self._step("evaluate with blank images", self._result("blank"), self._evaluate_blank)
        self._step("evaluate random actions", self._result("random"), self._evaluate_random)
        report = self._report()
        write_json(folder / "report.json", report)
        write_report(report, folder)
        return report

    # --- steps --------------------------------------------------------------------------------------------------------

    def _collect_motion(self) -> None:
        collect(
            self.folder / "motion",
            self.settings.moved_tasks(),
            self.settings.motion_episodes,
            seed=self.settings.seed,
            images=False,
            num_workers=self.workers,
        )

    def _collect_demonstrations(self) -> None:
        collect(
            self.folder / "demonstrations",
            self.settings.tasks,
            self.settings.demonstrations,
            seed=self.settings.seed,
            num_workers=self.workers,
        )

    def _pretrain(self) -> None:
        datasets = [str(self.folder / "motion"), str(self.folder / "demonstrations")]
        self._command("pretrain", self.settings.prior_recipe, "prior", self.settings.prior_steps, *datasets)

    def _train(self, arm: str) -> None:
        options = ["--prior", str(self.folder / "prior"), "--cache-dir", str(self.folder / "features")]
        options += ["--listening", "8"]  # of six tasks; a few seconds
        options += ["--control"] if arm == "control" else []
        recipe, dataset = self._write_policy_recipe(), str(self.folder / "demonstrations")
        self._command("train", str(recipe), arm_folder(arm), self.settings.last_budget, dataset, options=options)

    def _write_policy_recipe(self) -> Path:
        """The recipe with a checkpoint at every budget, none of them removed."""
        recipe = load_recipe(self.settings.vla_recipe)
        saving = {"save_steps": self.settings.save_steps, "save_total_limit": self.settings.checkpoints}
        recipe["training"] = {**(recipe.get("training") or {}), **saving}
        file = self.folder / "policy.yaml"
        write_text(file, yaml.safe_dump(recipe, sort_keys=False))
        return file

    def _evaluate(self, arm: str, budget: int) -> None:
        films = 1 if budget == self.settings.last_budget else 0
        self._run_evaluation(f"{arm}-{budget}", self._policy(arm, budget), films, self.settings.trials)

    def _evaluate_blank(self) -> None:
        policy = self._policy("prior", self.settings.last_budget)
        self._run_evaluation("blank", policy, 0, self.settings.floor_trials, blank_images=True)

    def _evaluate_random(self) -> None:
        processor = PriorVLAProcessor.from_pretrained(self._checkpoint("prior", self.settings.last_budget))
        policy = partial(RandomPolicy, processor.embodiments[0])
        self._run_evaluation("random", policy, 0, self.settings.floor_trials)

    # --- how a step is done -------------------------------------------------------------------------------------------

    def _step(self, name: str, result: Path, work: Callable[[], None]) -> None:
        """Does the step unless `result` is there; the time of one that is stopped counts as well."""
        if result.exists():
            print(f"[{name}] done before", flush=True)
            return
        print(f"[{name}]", flush=True)
        with self.progress.measuring(name):
            work()

    def _command(
        self, name: str, recipe: str, output: str, steps: int, *datasets: str, options: list[str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "priorvla.cli", name, "--config", recipe, "--dataset", *datasets]
        command += ["--output-dir", str(self.folder / output), "--max-steps", str(steps)]
        command += ["--seed", str(self.settings.seed), *(options or [])]
        if can_resume(self.folder / output):
            command.append("--resume")
        print("$ " + " ".join(["priorvla", *command[3:]]), flush=True)
        subprocess.run(command, check=True)

    def _run_evaluation(self, name: str, policy: Callable[[], Any], films: int, trials: int, **options: Any) -> None:
        result = evaluate_policy(
            policy,
            self.settings.tasks,
            trials=trials,
            seed=self.settings.seed,
            num_workers=self.workers,
            films_per_task=films,
            **options,
        )
        if films:
            save_films(result, self.folder / "films" / name)
        write_json(self._result(name), result.to_dict())

    def _policy(self, arm: str, budget: int) -> Callable[[], PriorVLAPolicy]:
        backbone = load_recipe(self.settings.vla_recipe).get("backbone")
        # a checkpoint names its backbone and never the folder that it was taken from
        where = backbone if backbone and Path(backbone).is_dir() else "auto"
        return partial(PriorVLAPolicy.from_pretrained, str(self._checkpoint(arm, budget)), backbone=where)

    def _checkpoint(self, arm: str, budget: int) -> Path:
        folder = self.folder / arm_folder(arm)
        return folder if budget == self.settings.last_budget else folder / f"checkpoint-{budget}"

    def _result(self, name: str) -> Path:
        return self.folder / "evaluations" / f"{name}.json"

    def _require_own_folder(self) -> None:
        """A folder holds one run: results of others in it would be taken for this run's."""
        file, own = self.folder / "settings.json", json.loads(json.dumps(asdict(self.settings)))
        if not file.exists():
            if foreign := [name for name in RESULTS if (self.folder / name).exists()]:
                raise SystemExit(f"{self.folder} has a {foreign[0]!r} of another run: choose another --output-dir")
            write_json(file, own)
        elif (found := json.loads(file.read_text(encoding="utf-8"))) != own:
            changed = next(key for key in {**own, **found} if found.get(key) != own.get(key))
            raise SystemExit(
                f"{file}: this folder's run has {changed}={found.get(changed)!r}, not {own.get(changed)!r}: choose "
                "another --output-dir, or delete this one"
            )

    def _report(self) -> dict[str, Any]:
        evaluations = {
            file.stem: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted(self.folder.glob("evaluations/*.json"))
        }
        logs = {"prior": "prior", **{f"{arm} arm": arm_folder(arm) for arm in ARMS}}
        return {
            "kind": "quickstart",
            "settings": asdict(self.settings),
            "comparisons": {str(budget): comparison(evaluations, budget) for budget in self.settings.budgets},
            "evaluations": evaluations,
            "prior_metrics": json.loads((self.folder / "prior" / "metrics.json").read_text(encoding="utf-8")),
            "final_losses": {name: final_losses(self.folder / run / "log.csv") for name, run in logs.items()},
            "collection": {name: self._collected(name) for name in ("motion", "demonstrations")},
            "times_s": self.progress.times_s,
            "total_time_s": round(sum(self.progress.times_s.values()), 1),
            "peak_memory_gb": round(self.progress.peak_memory_gb, 2),
            "cores": os.cpu_count(),
            "versions": {
                "python": platform.python_version(),
                **installed_versions((*VERSIONED, "gymnasium", "metaworld", "mujoco")),
            },
        }

    def _collected(self, name: str) -> dict[str, Any]:
        summary = load_collection_summary(self.folder / name)
        return {"episodes": summary.episodes, "frames": summary.frames, "success_rates": summary.success_rates}


def arm_folder(arm: str) -> str:
    return f"policy-{arm}"


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: children are stopped, times are kept."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of data, weights and starts")
    parser.add_argument("--trials", type=int, default=defaults.trials, help="episodes a task and evaluation")
    parser.add_argument("--demonstrations", type=int, default=defaults.demonstrations, help="of every evaluated task")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(defaults.budgets), help="steps, each evaluated")
    options = parser.parse_args()
    try:
        settings = Settings(
            seed=options.seed,
            trials=options.trials,
            demonstrations=options.demonstrations,
            budgets=tuple(sorted(options.budgets)),
        )
    except ValueError as error:
        parser.error(str(error))
    with ending_in_order():
        report = Quickstart(options.output_dir, settings).run()
    print(f"\n{options.output_dir / 'report.html'} ({report['total_time_s'] / 60:.1f} minutes of work)")


if __name__ == "__main__":
    main()
