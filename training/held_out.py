"""Which recorded episodes a training held out: written beside its checkpoint, known again by what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..hub_cards.privacy import scrub
from .data.trajectory import Trajectory, TrajectorySource

HELD_OUT_FILE = "held_out.json"


def write_held_out(folder: str | Path, sources: Sequence[TrajectorySource]) -> None:
    """Leaves `held_out.json` in a run's `folder`: the episodes of `sources`, all held out, with their digests."""
    content = [
        {
            "dataset": scrub(source.root.name),
            "episodes": {str(trajectory.episode_index): _digest(trajectory) for trajectory in source.trajectories},
        }
        for source in sources
    ]
    (Path(folder) / HELD_OUT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_held_out(checkpoint: str | Path, source: TrajectorySource) -> list[int] | None:
    """The episodes of `source` that the training of `checkpoint` held out; None where that is not known.

    Known by what they hold, so that a dataset may move. A `checkpoint-N` is of the run in whose folder it lies.
    """
    for folder in (Path(checkpoint), Path(checkpoint).resolve().parent):
        file = folder / HELD_OUT_FILE
        if file.is_file():
            known = {digest for entry in json.loads(file.read_text("utf-8")) for digest in entry["episodes"].values()}
            found = [own.episode_index for own in source.trajectories if _digest(own) in known]
            return found or None
    return None


def _digest(trajectory: Trajectory) -> str:
    return hashlib.sha256(trajectory.states.tobytes() + trajectory.actions.tobytes()).hexdigest()[:32]


__all__ = ["HELD_OUT_FILE", "find_held_out", "write_held_out"]
