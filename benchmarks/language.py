"""Does a first stage without language make a policy listen? Hosts, trainings and the knob of the tabletop.

    python benchmarks/language.py --output-dir runs/language --jobs 2
    python benchmarks/language.py --output-dir docs/language --knobs many usually-one mostly-one one --finished-only
    python benchmarks/language.py --output-dir runs/language --hosts cross --knobs many --trainings "two stages"

A cell is a host, a training, a knob and a seed. The knob is how many instructions a training scene allows: `one`, which
follows from what lies there; `mostly-one` and `usually-one`, with exceptions in one and three scenes of ten; or `many`.
All cells of a knob and a seed see the same demonstrations:

    one stage           the layers of `two stages`, of which every second one reads, from random weights; as many steps
                        as the others have of rung 3
    one stage, longer   the same, as many steps as the others have in all
    two stages          rung 2 without language, then rung 3 with new layers that read (paper B)
    token insertion     the same rung 2, then its own layers read: none is inserted
    three rungs         motion, sight, language; the steps of motion are taken from those of sight
    blind               rung 2 alone: the prior that `two stages` begins with, for what can be done without reading
    all layers read     from random weights, four layers that all read, as a host usually is; as many steps as the
                        others have in all. Of the first host alone, and only when it is asked for

Success is told by suite (docs/language.md) with Wilson's 95 % interval, and what was done instead: another request of
the scene, the one that its layout implies, or nothing. The claim was named before the reported seeds were run: *two
stages* minus *one stage, longer* on `seen` and `unseen-object` where a scene allows one instruction, episode by episode
from the same starts, all hosts and seeds together, with a 95 % bootstrap interval over starts (which knows nothing of
how trainings differ by their seed). The same by host, by seed and for `many` stands beside it.

Every table has its validity lines. *Learned*: in scenes as it was trained in a policy does at least 70 % of what it is
asked for, with every seed, or its row is marked and counts in no claim; with `many` it must on `seen`, too. *Shortcut*:
where the layout implies the request, `blind` and the prior of three rungs do at least 70 % of what they can do (all of
it; with exceptions 92 or 75 %), or the knob is marked: nobody was tempted, and a first stage was not done.
*Blind*: on test scenes `blind` does no more than the best guess, or where requests are made that training never makes,
an eighth; or the table is marked. A premise is told: whether *one stage, longer* follows words or layout where these
contradict each other, in which thing is meant, or only in where it goes.

Whatever is finished is not done again, a training that was stopped is begun again, an evaluation goes on. A finished
cell is a file in `cells`; with these and `settings.json` alone another machine goes on with the others (it trains their
priors again). Encoding the pictures is no row's cost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from language_table import ALL_READ, BLIND, BLIND_CAN, report, row
from language_trials import PICTURE, done_by, listening
from report_file import machine
from same_settings import require_same_settings

from priorvla.configuration.expert_layout import even_taps, inserted_layout
from priorvla.configuration.recipe import load_recipe
from priorvla.deployment.environments.tabletop_layouts import EXCEPTIONS, TEST_SUITES
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel

HOSTS, KNOBS = ("cross", "joint", "gated"), ("many", "usually-one", "mostly-one", "one")
TRAININGS = ("one stage", "one stage, longer", "two stages", "token insertion", "three rungs", BLIND, ALL_READ)
SETTINGS = ("episodes", "frame_stride", "sight_steps", "motion_steps", "language_steps", "trials", "listening")
LAYERS = 2  # of a prior; a policy with inserted layers has twice as many
DEPTH = 8  # layers of the packaged vision encoder that a policy reads
FLOW = {"time_distribution": "beta", "prefix_probability": 0.0}
FLOW_DRAWS = 4  # noises a window: a step takes 1.2 to 1.8 times as long, and fewer are needed (docs/language.md)
CHUNK = {"chunk_size": 8}  # an episode has about 20 steps; four are executed before the next chunk
LEARNING_RATE = 2e-3
INFERENCE_STEPS = 10  # with five, a prior that was not quite learned did 23 of 40; with ten or twenty, 27
TWICE = 2  # as many trials decide whether a row was learned
SCENES = 2  # raise it when what a scene is, asks for or counts has changed: cells of another number are refused
RECIPES = {"motion": "action_prior_small", "sight": "vision_action_prior_small", "policy": "vla_seeing_small"}


@dataclass(frozen=True)
class Cell:
    """One policy of the table."""

    host: str
    training: str
    knob: str
    seed: int


class Group:
    """The cells of one host, knob and seed; they share demonstrations and priors."""

    def __init__(self, options: argparse.Namespace, host: str, knob: str, seed: int) -> None:
        self.options, self.host, self.knob, self.seed = options, host, knob, seed
        self.shared = options.output_dir / f"{knob}-seed-{seed}"
        self.folder = self.shared / host
        self.data = self.shared / "demonstrations"

    def collect(self) -> None:
        """The demonstrations, once for all hosts."""
        if not self.data.is_dir():
            command("collect", "--env", "tabletop", "--tasks", suite_of(self.knob), "--episodes", self.options.episodes,
                    "--seed", self.seed, "--output-dir", self.data, "--image-size", PICTURE,
                    "--image-every", self.options.frame_stride, "--workers", self.options.jobs)  # fmt: skip

    def policy(self, training: str) -> Path:
        """The policy of a training, whatever it takes first."""
        steps, sight = self.options.language_steps, self.options.sight_steps
        if training == ALL_READ:
            return self._train(training, steps + sight, fresh=True)
        if training == BLIND:
            return self.sight()
        if training.startswith("one stage"):
            own = steps + sight if training.endswith("longer") else steps
            return self._train(training, own, "--prior", self.sight(), "--control")  # whose layers, not whose weights
        insertion = ("--insertion", "token") if training == "token insertion" else ()
        return self._train(training, steps, "--prior", self.prior(training), *insertion)

    def prior(self, training: str) -> Path:
        """The vision-action prior that a training's rung 3 begins with."""
        return self.sight(self.motion() if training == "three rungs" else None)

    def motion(self) -> Path:
        """An action prior of the same demonstrations, once for all hosts."""
        model = {**FLOW, "expert": {**CHUNK, "expert_layers": ["motion"] * LAYERS}}
        return self._run("pretrain", self.shared / "motion", "motion", self.options.motion_steps, model)

    def sight(self, motion: Path | None = None) -> Path:
        """A vision-action prior, of random weights or of an action prior."""
        steps = self.options.sight_steps
        if motion is not None:
            steps -= self.options.motion_steps
            return self._run("pretrain", self.folder / "sight-of-motion", "sight", steps, {},
                             "--prior", motion, *self._seeing())  # fmt: skip
        return self._sight("sight", steps)

    def _sight(self, name: str, steps: int) -> Path:
        model = {**FLOW, "expert": self._layers("vision", even_taps(self.host, LAYERS, DEPTH))}
        return self._run("pretrain", self.folder / name, "sight", steps, model, *self._seeing())

    def encode(self) -> None:
        """Everything that is seen and said, so that no training pays for it."""
        self._train("encoding", 1, fresh=True)
        self._sight("encoding-of-two-layers", 1)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Ends the program where another process, perhaps of a run that was killed, works on this group."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise SystemExit(f"another process works on {self.folder}: wait for it, or end it") from error

    def file(self, training: str) -> Path:
        """Where a cell's results are kept."""
        return self.options.output_dir / "cells" / f"{self.knob}-{self.seed}-{self.host}-{folder_name(training)}.json"

    @property
    def trainings(self) -> list[str]:
        """Those of this host."""
        return [own for own in self.options.trainings if own != ALL_READ or self.host == HOSTS[0]]

    def is_done(self) -> bool:
        return all(self.file(training).is_file() for training in self.trainings)

    def measured(self, training: str) -> dict[str, Any]:
        """A cell's results: those that are there, or those of now."""
        file = self.file(training)
        if not file.is_file():
            with self.alone():
                result = self.measure(training)
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(".new")
            new.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            new.replace(file)
        return dict(json.loads(file.read_text(encoding="utf-8")))

    def measure(self, training: str) -> dict[str, Any]:
        """What was done in a cell's episodes, by suite, in scenes as in training, and there without words; and what
        else is known."""
        cell = Cell(self.host, training, self.knob, self.seed)
        self.encode()
        policy = self.policy(training)
        trained, trials, seed = suite_of(self.knob), self.options.trials, self.seed
        result: dict[str, Any] = {
            "trained": done_by(policy, [trained], TWICE * trials, seed)[trained],
            "suites": done_by(policy, TEST_SUITES, trials, seed),
        }
        if training != BLIND:
            result["without_words"] = done_by(policy, [trained], trials, seed, words=False)[trained]
            result["listening"] = listening(policy, self.options.listening, seed)
        if training == "three rungs" and self.knob in BLIND_CAN:
            result["prior"] = done_by(self.prior(training), [trained], TWICE * trials, seed)[trained]
        known = {
            "gates": PriorVLAModel.from_pretrained(policy).gate_values(),
            "core_minutes": self._minutes(training, policy),
            "machine": machine(),
        }
        return {**asdict(cell), **result, **known}

    def _minutes(self, training: str, policy: Path) -> float:
        """Of a core at work, all stages together."""
        sight = [self.folder / "sight"]
        before = {"two stages": sight, "token insertion": sight}
        before["three rungs"] = [self.shared / "motion", self.folder / "sight-of-motion"]
        folders = [*before.get(training, []), policy]
        return sum(json.loads((folder / "cost.json").read_text())["core_minutes"] for folder in folders)

    def _train(self, training: str, steps: int, *arguments: object, fresh: bool = False) -> Path:
        model: dict[str, Any] = {}
        if fresh:
            model = {**FLOW, "expert": self._layers("vision_language", all_taps(self.host))}
        return self._run("train", self.folder / folder_name(training), "policy", steps, model, *arguments,
                         *self._seeing(arguments), "--listening", 0)  # fmt: skip

    def _layers(self, kind: str, taps: list[int]) -> dict[str, Any]:
        return {**CHUNK, "expert_layers": [kind] * len(taps), "tap_layers": taps}

    def _seeing(self, arguments: tuple[object, ...] = ()) -> tuple[object, ...]:
        host = () if "--prior" in arguments else ("--fusion", self.host)
        return (*host, "--image-size", PICTURE, "--frame-stride", self.options.frame_stride,
                "--cache-dir", self.shared / "features")  # fmt: skip

    def _run(self, action: str, folder: Path, rung: str, steps: int, model: dict[str, Any], *arguments: object) -> Path:
        """A training; afterwards its folder has `cost.json`."""
        if not (folder / "cost.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a training that was stopped
            folder.parent.mkdir(parents=True, exist_ok=True)
            file = folder.with_suffix(".yaml")
            file.write_text(yaml.safe_dump(adapted(rung, model)), encoding="utf-8")
            minutes = command(action, "--config", file, "--dataset", self.data, "--output-dir", folder, "--max-steps",
                              steps, "--seed", self.seed, *arguments)  # fmt: skip
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            (folder / "cost.json").write_text(json.dumps({"core_minutes": round(minutes, 2)}) + "\n", encoding="utf-8")
        return folder


def all_taps(host: str) -> list[int]:
    """Of a prior's layers and those that are inserted after them."""
    inserted, _ = inserted_layout(host, even_taps(host, LAYERS, DEPTH), DEPTH, "after")
    return list(inserted["tap_layers"])


def adapted(rung: str, model: dict[str, Any]) -> dict[str, Any]:
    """A shipped recipe with another model and learning rate; nothing is saved on the way, because a training that was
    stopped begins again."""
    content = dict(load_recipe(RECIPES[rung]))
    expert = {**content.get("model", {}).get("expert", {}), **model.get("expert", {})}
    content["model"] = {**content.get("model", {}), **model, **({"expert": expert} if expert else {})}
    content["training"] = {**content["training"], "save_steps": 1_000_000, "learning_rate": LEARNING_RATE}
    if rung != "motion":
        content["training"]["flow_draws"] = FLOW_DRAWS
        content["model"]["num_inference_steps"] = INFERENCE_STEPS
    return content


def fixed() -> dict[str, Any]:
    """What decides the table and is no option: the recipes (a hash of them), and what scenes are like."""
    recipes = [LAYERS, DEPTH, *(adapted(rung, {**FLOW, "expert": CHUNK}) for rung in RECIPES)]
    told = json.dumps(recipes, sort_keys=True).encode()
    hashed = hashlib.sha256(told).hexdigest()[:16]
    return {"recipes": hashed, "picture": PICTURE, "scenes": SCENES, "exceptions": EXCEPTIONS}


def suite_of(knob: str) -> str:
    """The tabletop's suite for training."""
    return f"{knob}-instruction{'s' * (knob == 'many')}"


def folder_name(training: str) -> str:
    return training.replace(", ", "-").replace(" ", "-")


def command(*arguments: object) -> float:
    """One command of `priorvla` on one core; the minutes that it worked."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "priorvla.cli", *map(str, arguments)], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def run_group(options: argparse.Namespace, group: Group) -> None:
    """All cells of a group, in a process of their own; the last lines of its log are in an error."""
    host, knob, seed = group.host, group.knob, group.seed
    log = options.output_dir / f"{host}-{knob}-{seed}.log"
    settings = [part for name in SETTINGS for part in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    chosen = ["--cells-only", "--hosts", host, "--knobs", knob, "--seeds", str(seed), "--trainings", *options.trainings]
    arguments = [sys.executable, __file__, "--output-dir", str(options.output_dir), *settings, *chosen]
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            arguments, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    if ended.returncode:
        error = f"{host}, {knob}, seed {seed} failed: see {log}\n{log.read_text(encoding='utf-8')[-2000:]}"
        print(error, file=sys.stderr, flush=True)  # now; the other groups go on
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/language"))
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS))
    usual = [training for training in TRAININGS if training != ALL_READ]
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=usual, help=f"default: but {ALL_READ}")
    parser.add_argument("--knobs", nargs="+", choices=KNOBS, default=["many", "one"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7])
    parser.add_argument("--episodes", type=int, default=1500, help="demonstrations of each of the two kinds")
    parser.add_argument(
        "--frame-stride", type=int, default=8, help="pictures and training windows: every so many steps"
    )
    parser.add_argument("--sight-steps", type=int, default=2400, help="of rung 2; with motion, of both earlier rungs")
    parser.add_argument("--motion-steps", type=int, default=300, help="of rung 1, in three rungs")
    parser.add_argument("--language-steps", type=int, default=1600, help="of rung 3")
    parser.add_argument("--trials", type=int, default=10, help="episodes of each kind in each suite")
    parser.add_argument("--listening", type=int, default=32, help="scenes for language_sensitivity")
    parser.add_argument("--jobs", type=int, default=1, help="groups (host, knob, seed) side by side, a core each")
    parser.add_argument("--cells-only", action="store_true", help="no table and no report: another process makes them")
    parser.add_argument("--finished-only", action="store_true", help="the table of what is there; nothing is trained")
    options = parser.parse_args()
    if options.motion_steps >= options.sight_steps:
        raise SystemExit(f"--motion-steps {options.motion_steps} must be below --sight-steps {options.sight_steps}")
    require_same_settings(options.output_dir, options, SETTINGS, **fixed())
    groups = [Group(options, h, k, s) for s in options.seeds for h in options.hosts for k in options.knobs]
    missing = [] if options.finished_only else [group for group in groups if not group.is_done()]
    for group in missing:
        group.collect()
        if "three rungs" in options.trainings:
            group.motion()
    if options.jobs > 1:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(partial(run_group, options), missing))
    results = []
    for group in groups:
        for training in group.trainings:
            if options.finished_only and not group.file(training).is_file():
                continue
            results.append(group.measured(training))
            print(row(results[-1:]), flush=True)
    if not results:
        raise SystemExit(f"{options.output_dir} has no finished cell of these hosts, knobs, seeds and trainings")
    if not options.cells_only:
        report(options.output_dir, {name: getattr(options, name) for name in SETTINGS} | fixed(), results)


if __name__ == "__main__":
    main()
