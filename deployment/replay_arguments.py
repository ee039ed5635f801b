"""The arguments of an open-loop replay, checked before anything heavy is loaded: imports no deep learning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..hub_cards.checkpoints import kind_of, require_checkpoint
from ..training.inspection.inspection_options import InspectionOptions
from ..training.run_options import require_device
from .evaluation_arguments import DEVICES, REPORT_FILE, TRIALS_FILE


def check_replay(
    checkpoint: str,
    open_loop: str,
    output_dir: Path,
    *,
    episodes: Sequence[str] | None = None,
    execute_steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Checks what `replay_checkpoint` takes; `open_loop` is the dataset.

    Raises:
        ValueError: naming the option and its value: a number out of range, episodes that are no numbers or ranges, an
            `output_dir` that is a file or has a report or trials, a checkpoint of an action prior, which sees nothing.
        FileNotFoundError: checkpoint or dataset are neither here nor named like one on the Hub.
    """
    for name, value, least in (("--execute-steps", execute_steps, 1), ("--seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} {value} must be at least {least}")
    require_checkpoint(checkpoint, "checkpoint")
    config = Path(checkpoint) / "config.json"
    if config.is_file() and kind_of(json.loads(config.read_text(encoding="utf-8"))) == "action-prior":
        raise ValueError(
            f"{checkpoint} is an action prior, which sees nothing and so follows no recording: compare it with "
            f"priorvla info {checkpoint} --dataset {open_loop}"
        )
    InspectionOptions(open_loop, output_dir, episodes=episodes).check()
    if (output_dir / TRIALS_FILE).exists():
        raise ValueError(
            f"--output-dir {output_dir} has trials of an evaluation in a simulator, whose report would lie there too: "
            "choose another folder"
        )
    if (output_dir / REPORT_FILE).exists():
        raise ValueError(f"--output-dir {output_dir} already has a report: choose another folder")
    require_device(device, DEVICES)


__all__ = ["check_replay"]
