"""`priorvla evaluate --open-loop`: a checkpoint and recorded episodes in, report.html and report.json out."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..configuration.embodiment import Embodiment
from ..hub_cards.privacy import scrub
from ..hub_cards.replay_plots import errors_by_step, relative_errors, replayed_actions
from ..hub_cards.report import Report
from ..hub_cards.versions import installed_versions
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from ..training.data.picture_interval import picture_interval
from ..training.data.readers import load_trajectories
from ..training.data.trajectory import TrajectorySource
from ..training.held_out import find_held_out
from ..training.inspection.inspection_options import InspectionOptions
from .evaluation_arguments import REPORT_FILE
from .policy import PriorVLAPolicy
from .replay import (
    ChunkPolicy,
    ReplayedEpisode,
    ReplayErrors,
    relative_error,
    replay_episode,
    replay_errors,
    require_replayable,
)
from .replay_arguments import check_replay

LAST_EPISODES = 3  # replayed where nobody says which and it is not known what the training held out
MOST_HELD_OUT = 10  # of them are replayed unless more are named: a policy is asked 25 times an episode of 200 steps
SHOWN_EPISODES = 4  # whose actions are plotted

UNKNOWN = (
    "It is not known which episodes the training held out: these may be episodes that the policy was trained on, and "
    "then small errors say little. Name others with `--episodes`."
)


@dataclass(frozen=True)
class Replay:
    """Episodes beside what a policy would have done, and its errors; `held_out` is None where that is not known."""

    body: Embodiment
    execute_steps: int
    episodes: list[ReplayedEpisode]
    errors: ReplayErrors
    held_out: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Errors by dim (in the robot's units) and by step in the chunk, and over the baselines'. NaN becomes None."""
        errors = self.errors
        whole, executed = (
            {
                name: errors.by_dim(values, steps)
                for name, values in (
                    ("policy", errors.policy),
                    ("mean_action", errors.mean_action),
                    ("last_action", errors.last_action),
                )
            }
            for steps in (None, self.execute_steps)
        )
        dims = self.body.action_names
        return {
            "episodes": [episode.episode_index for episode in self.episodes],
            "held_out": self.held_out,
            "chunks": sum(len(episode.starts) for episode in self.episodes),
            "execute_steps": self.execute_steps,
            "action_names": dims,
            "overall": {
                span: {
                    f"over_{name}": _finite(relative_error(values["policy"], values[name]))
                    for name in ("mean_action", "last_action")
                }
                for span, values in (("chunk", whole), ("executed", executed))
            },
            "mean_absolute_error": {
                "chunk": {name: values.tolist() for name, values in whole.items()},
                "executed": {name: values.tolist() for name, values in executed.items()},
            },
            "by_step": {
                "steps": errors.counts.tolist(),
                "policy": errors.policy.tolist(),
                "mean_action": errors.mean_action.tolist(),
                "last_action": errors.last_action.tolist(),
                "over_mean_action": [_finite(value) for value in errors.relative(errors.mean_action)],
                "over_last_action": [_finite(value) for value in errors.relative(errors.last_action)],
            },
        }


def replay_source(
    policy: ChunkPolicy,
    source: TrajectorySource,
    *,
    others: TrajectorySource | None = None,
    seed: int = 0,
    held_out: bool | None = None,
    named: bool = False,
) -> Replay:
    """Replays every episode of `source`, loaded with frames; the mean action is that of `others`, or of `source`.

    Raises ValueError as `require_replayable`.
    """
    require_replayable(policy.embodiment, source, named=named)
    known = others if others is not None and len(others) else source
    mean = np.concatenate([trajectory.actions for trajectory in known.trajectories]).mean(0, dtype=np.float64)
    every = picture_interval(source.root)
    episodes = [
        replay_episode(policy, trajectory, seed, every)
        for trajectory in tqdm(source.trajectories, desc="replaying", unit="episode")
    ]
    errors = replay_errors(episodes, policy.embodiment, mean)
    return Replay(policy.embodiment, policy.execute_steps, episodes, errors, held_out)


def replay_checkpoint(
    checkpoint: str,
    dataset: str,
    output_dir: Path,
    *,
    episodes: Sequence[str] | None = None,
    execute_steps: int | None = None,
    backbone: str = "auto",
    seed: int = 0,
    device: str = "cpu",
    embodiment: str | None = None,
) -> Replay:
    """Replays episodes of `dataset`, a folder, file or Hub id, and writes the reports into `output_dir`.

    `checkpoint` is a policy, an adapter, or a prior that sees. `episodes` are numbers and ranges (`0 7-9`), by default
    up to 10 of those that the training held out, or where that is not known the last 3. `embodiment` is the
    checkpoint's name for the robot, by default the dataset's, or where it knows only one robot, that.

    Raises:
        ValueError: as `check_replay` and `require_replayable`, or an unknown episode or embodiment.
        FileNotFoundError: no such checkpoint or dataset.
    """
    check_replay(
        checkpoint, dataset, output_dir, episodes=episodes, execute_steps=execute_steps, seed=seed, device=device
    )
    motion = load_trajectories(dataset)
    known = find_held_out(checkpoint, motion)
    chosen = InspectionOptions(dataset, episodes=episodes).episode_numbers()
    there = [trajectory.episode_index for trajectory in motion.trajectories]
    if chosen is None:
        chosen = known[:MOST_HELD_OUT] if known else there[-LAST_EPISODES:]
    if absent := sorted(set(chosen) - set(there)):
        raise ValueError(f"--episodes {absent[0]}: {motion.root.name} has {len(there)}, {there[0]} to {there[-1]}")
    source = load_trajectories(dataset, episodes=chosen, frames=True)
    others = [trajectory for trajectory in motion.trajectories if trajectory.episode_index not in chosen]
    bodies = [body.name for body in PriorVLAProcessor.from_pretrained(checkpoint).embodiments]
    policy = PriorVLAPolicy.from_pretrained(
        checkpoint,
        backbone=backbone,
        device=device,
        execute_steps=execute_steps,
        embodiment=embodiment or (source.embodiment.name if len(bodies) > 1 else None),
    )
    replay = replay_source(
        policy,
        source,
        others=TrajectorySource(motion.root, motion.fingerprint, motion.embodiment, others),
        seed=seed,
        held_out=None if known is None else set(chosen) <= set(known),
        named=embodiment is not None,
    )
    settings = {
        "checkpoint": scrub(checkpoint),
        "dataset": scrub(dataset),
        "embodiment": replay.body.name,
        "seed": seed,
    }
    page = write_replay(replay, settings, output_dir)
    over = replay.to_dict()["overall"]["executed"]
    print(
        f"{len(replay.episodes)} episodes: its error is {_times(over['over_mean_action'])} that of the mean action and "
        f"{_times(over['over_last_action'])} that of repeating the last one, over the steps that would be executed"
    )
    print(f"Report: {page}", file=sys.stderr)
    return replay


def write_replay(replay: Replay, settings: dict[str, Any], output_dir: Path) -> Path:
    """Writes `report.json` and `report.html` into `output_dir`; returns the page's path."""
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {"kind": "open-loop", **settings, **replay.to_dict(), "versions": installed_versions()}
    partial = output_dir / f".{REPORT_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, output_dir / REPORT_FILE)
    return _page(replay, settings).write(output_dir / "report.html")


def _page(replay: Replay, settings: dict[str, Any]) -> Report:
    content, errors, names = replay.to_dict(), replay.errors, replay.body.action_names
    page = Report("Open-loop replay", f"{len(replay.episodes)} recorded episodes, {content['chunks']} chunks")
    page.text(
        f"Every {replay.execute_steps} steps the policy saw what was recorded, and said what it would do in the next "
        f"{len(errors.counts)}. This shows whether observations and actions fit the checkpoint, and how far ahead it "
        "is right; it is no success rate, for what it would have done has no consequences here."
    )
    if replay.held_out is not True:
        seen = "Not all of these episodes were held out of the training: small errors on the others say little."
        page.note(UNKNOWN if replay.held_out is None else seen)
    page.section("Error by step in the chunk")
    baselines = {"mean action": errors.mean_action, "repeating the last action": errors.last_action}
    page.figure(
        relative_errors({name: errors.relative(own) for name, own in baselines.items()}, replay.execute_steps),
        caption="Mean absolute error over that of two ways of not looking, mean over dims; 1 (dashed) is no better. "
        "Shaded: what would be executed before the next chunk.",
    )
    page.figure(
        errors_by_step({"policy": errors.policy, **baselines}, names),
        caption="Mean absolute error of every dim, in the robot's units.",
    )
    page.section("Error by dim")
    executed = content["mean_absolute_error"]["executed"]
    page.table(
        ["dim", "kind", "policy", "mean action", "last action", "over mean", "over last"],
        [
            [
                name,
                kind,
                *own,
                _ratio(own[0], own[1]),
                _ratio(own[0], own[2]),
            ]
            for name, kind, *own in zip(names, replay.body.action_kinds, *executed.values(), strict=True)
        ],
        "Mean absolute error over the steps that would be executed, in the robot's units, and over the baselines'.",
    )
    page.section("Actions")
    for episode in replay.episodes[:SHOWN_EPISODES]:
        page.text(f"**Episode {episode.episode_index}**: {episode.task}")
        page.figure(
            replayed_actions(
                episode.recorded,
                episode.starts,
                episode.predicted,
                names,
                replay.body.control_rate,
                replay.execute_steps,
            ),
            caption="Recorded actions and predicted chunks, in the robot's units.",
        )
    page.section("Settings")
    page.facts(
        {
            **settings,
            "episodes": content["episodes"],
            "held out": replay.held_out if replay.held_out is not None else "unknown",
            "execute steps": replay.execute_steps,
            **installed_versions(),
        }
    )
    return page


def _ratio(error: float, baseline: float) -> float | None:
    return error / baseline if baseline > 1e-9 else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _times(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f} times"


__all__ = ["Replay", "replay_checkpoint", "replay_source", "write_replay"]
