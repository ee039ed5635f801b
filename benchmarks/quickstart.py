"""The whole ladder on two CPU cores: motion, an action prior, a policy with and without it, and its success.

    python benchmarks/quickstart.py --output-dir runs/quickstart

Every step is a `priorvla` command or a call that a user could make; a run that was stopped goes on where it was.
The two arms share architecture, data, steps, seed and evaluation starts; they differ in the weights that they begin
with, and the prior arm distils from its encoder for a while.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from quickstart_report import write_report

from priorvla.deployment.collect import collect, load_collection_summary
from priorvla.deployment.environments.registry import list_tasks
from priorvla.deployment.evaluate import installed_versions
from priorvla.deployment.evaluation import evaluate_policy, save_films
from priorvla.deployment.policy import PriorVLAPolicy, RandomPolicy

# Tasks whose goal a 112-pixel picture shows (RECIPE: reach, push and the like mark it with a few pixels).
TASKS = ("drawer-open", "drawer-close", "button-press-topdown", "door-open", "window-open", "faucet-open")
ARMS = ("prior", "control")


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are the quickstart."""

    tasks: tuple[str, ...] = TASKS
    motion_episodes: int = 12  # state-only episodes of every other task
    demonstrations: int = 5  # of every evaluated task, with pictures
    prior_steps: int = 1000
    budgets: tuple[int, ...] = (250, 500)
    trials: int = 10
    seed: int = 0
    prior_recipe: str = "action_prior_small"
    vla_recipe: str = "vla_small"

    @property
    def motion_tasks(self) -> list[str]:
        return [task for task in list_tasks("metaworld") if task not in self.tasks]


class Quickstart:
    """The steps of one run, each skipped when its result is already there."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.workers = min(8, os.cpu_count() or 1)
        folder.mkdir(parents=True, exist_ok=True)
        self._require_same_settings()

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
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_report(report, folder)
        return report

    # --- steps --------------------------------------------------------------------------------------------------------

    def _collect_motion(self) -> None:
        collect(
            self.folder / "motion",
            self.settings.motion_tasks,
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
        options += ["--control"] if arm == "control" else []
        steps, dataset = max(self.settings.budgets), str(self.folder / "demonstrations")
        self._command("train", self.settings.vla_recipe, arm_folder(arm), steps, dataset, options=options)

    def _evaluate(self, arm: str, budget: int) -> None:
        films = 1 if budget == max(self.settings.budgets) else 0
        self._run_evaluation(f"{arm}-{budget}", self._policy(arm, budget), films)

    def _evaluate_blank(self) -> None:
        policy = self._policy("prior", max(self.settings.budgets))
        self._run_evaluation("blank", policy, 0, blank_images=True)

    def _evaluate_random(self) -> None:
        policy = PriorVLAPolicy.from_pretrained(self._checkpoint("prior", max(self.settings.budgets)), backbone=None)
        self._run_evaluation("random", partial(RandomPolicy, policy.embodiment), 0)

    # --- how a step is done -------------------------------------------------------------------------------------------

    def _step(self, name: str, result: Path, work: Callable[[], None]) -> None:
        if result.exists():
            print(f"[{name}] done before", flush=True)
            return
        print(f"[{name}]", flush=True)
        began = time.perf_counter()
        work()
        times = self._times()
        times[name] = round(time.perf_counter() - began, 1)
        (self.folder / "times.json").write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")

    def _command(
        self, name: str, recipe: str, output: str, steps: int, *datasets: str, options: list[str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "priorvla.cli", name, "--config", recipe, "--dataset", *datasets]
        command += ["--output-dir", str(self.folder / output), "--max-steps", str(steps)]
        command += ["--seed", str(self.settings.seed), *(options or [])]
        if list((self.folder / output).glob("checkpoint-*")):
            command.append("--resume")
        print("$ " + " ".join(["priorvla", *command[3:]]), flush=True)
        subprocess.run(command, check=True)

    def _run_evaluation(self, name: str, policy: Callable[[], Any], films: int, **options: Any) -> None:
        result = evaluate_policy(
            policy,
            self.settings.tasks,
            trials=self.settings.trials,
            seed=self.settings.seed,
            num_workers=self.workers,
            films_per_task=films,
            **options,
        )
        if films:
            save_films(result, self.folder / "films" / name)
        self._result(name).parent.mkdir(exist_ok=True)
        self._result(name).write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")

    def _policy(self, arm: str, budget: int) -> Callable[[], PriorVLAPolicy]:
        return partial(PriorVLAPolicy.from_pretrained, str(self._checkpoint(arm, budget)))

    def _checkpoint(self, arm: str, budget: int) -> Path:
        folder = self.folder / arm_folder(arm)
        return folder if budget == max(self.settings.budgets) else folder / f"checkpoint-{budget}"

    def _result(self, name: str) -> Path:
        return self.folder / "evaluations" / f"{name}.json"

    def _times(self) -> dict[str, float]:
        file = self.folder / "times.json"
        times: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return times

    def _require_same_settings(self) -> None:
        """A folder holds one run: results of other settings in it would be taken for this run's."""
        file, own = self.folder / "settings.json", json.loads(json.dumps(asdict(self.settings)))
        if not file.exists():
            file.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        elif (found := json.loads(file.read_text(encoding="utf-8"))) != own:
            changed = next(key for key in own if found.get(key) != own[key])
            raise SystemExit(
                f"{file}: this folder's run has {changed}={found.get(changed)!r}, not {own[changed]!r}: choose another "
                "--output-dir, or delete this one"
            )

    def _report(self) -> dict[str, Any]:
        evaluations = {
            file.stem: json.loads(file.read_text()) for file in sorted(self.folder.glob("evaluations/*.json"))
        }
        times = self._times()
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "kind": "quickstart",
            "settings": asdict(self.settings),
            "evaluations": evaluations,
            "prior_metrics": json.loads((self.folder / "prior" / "metrics.json").read_text()),
            "collection": {
                name: {
                    key: getattr(load_collection_summary(self.folder / name), key)
                    for key in ("episodes", "frames", "wall_time", "success_rates")
                }
                for name in ("motion", "demonstrations")
            },
            "times_s": times,
            "total_time_s": round(sum(times.values()), 1),
            "peak_memory_gb_of_one_process": round(peak / 1e6, 2),
            "cores": os.cpu_count(),
            "versions": installed_versions(),
        }


def arm_folder(arm: str) -> str:
    return f"policy-{arm}"


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of data, weights and starts")
    parser.add_argument("--trials", type=int, default=defaults.trials, help="episodes a task and evaluation")
    parser.add_argument("--demonstrations", type=int, default=defaults.demonstrations, help="of every evaluated task")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(defaults.budgets), help="steps, each evaluated")
    options = parser.parse_args()
    settings = Settings(
        seed=options.seed,
        trials=options.trials,
        demonstrations=options.demonstrations,
        budgets=tuple(sorted(options.budgets)),
    )
    report = Quickstart(options.output_dir, settings).run()
    print(f"\n{options.output_dir / 'report.html'} ({report['total_time_s'] / 60:.1f} minutes of work)")


if __name__ == "__main__":
    main()
