"""A training run's folder: checked before anything heavy, logged while it trains, plotted and described afterwards."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME

from ..configuration.recipe import checked_fields
from ..hub_cards.plots import loss_curves
from .data.lerobot_reader import load_trajectories
from .data.trajectory import TrajectorySource
from .stage_arguments import StageTrainingArguments
from .stage_trainer import StageTrainer

DEVICES = ("auto", "cpu", "cuda")

FEATURES_FOLDER = "features"  # of a run that was stopped before its first checkpoint; a new start goes on with it


@dataclass(frozen=True)
class RunOptions:
    """What every training command takes.

    Args:
        datasets: folders or Hub ids, each with an optional weight: `path:weight`.
        output_dir: the run's folder; must be new or empty unless `resume`.
        max_steps: optimizer steps.
        seed: of weights, order, noise and held-out episodes.
        device: `auto`, `cpu` or `cuda`.
        resume: continue from the last checkpoint in `output_dir`.
        holdout: share of every dataset's episodes kept for evaluation, [0, 1).
        model, training: fields of the model's config and of the training arguments, over their defaults.
    """

    datasets: Sequence[str]
    output_dir: Path
    max_steps: int
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    holdout: float = 0.05
    model: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raises ValueError naming the option, before anything heavy is loaded."""
        if self.max_steps < 1:
            raise ValueError(f"--max-steps {self.max_steps} must be at least 1")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"--holdout {self.holdout} must be in [0, 1)")
        if self.device not in DEVICES:
            raise ValueError(f"--device {self.device} is unknown, use {', '.join(DEVICES)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device is available here, use --device cpu")
        if not self.datasets:
            raise ValueError("--dataset is missing: give at least one folder or Hub id")
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"--output-dir {self.output_dir} is a file: name a folder")
        if self.resume and self.last_checkpoint() is None:
            raise ValueError(f"--resume: {self.output_dir} has no complete checkpoint-* to continue from")
        if (
            not self.resume
            and self.output_dir.is_dir()
            and any(entry.name != FEATURES_FOLDER for entry in self.output_dir.iterdir())
        ):
            raise ValueError(
                f"--output-dir {self.output_dir} is not empty: choose another, or continue it with --resume"
            )

    def last_checkpoint(self) -> str | None:
        """The newest complete checkpoint in `output_dir`: the Trainer's state is what it writes last."""
        complete = [file.parent for file in self.output_dir.glob(f"checkpoint-[0-9]*/{TRAINER_STATE_NAME}")]
        return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None

    def load_sources(self, frames: bool = False) -> tuple[list[TrajectorySource], list[float] | None]:
        """The datasets, and their weights when any was given (the others then weigh 1)."""
        pairs = [split_weight(dataset) for dataset in self.datasets]
        sources = [load_trajectories(path, frames=frames) for path, _ in pairs]
        if all(weight is None for _, weight in pairs):
            return sources, None
        return sources, [1.0 if weight is None else weight for _, weight in pairs]

    def arguments(self, arguments_class: type[StageTrainingArguments], **overrides: Any) -> Any:
        """Training arguments of this run: the class's defaults, under `training`, under `overrides`."""
        given = checked_fields(arguments_class, self.training or {}, "training")
        own = {"output_dir": str(self.output_dir), "max_steps": self.max_steps, "seed": self.seed}
        if self.device == "cpu":
            own["use_cpu"] = True
        if clash := sorted(set(given) & set(own)):
            raise ValueError(f"training.{clash[0]} is an option of the command itself: give it there")
        # a short run still warms up and shows a curve
        defaults = {
            "warmup_steps": min(100, max(1, self.max_steps // 10)),
            "logging_steps": max(1, self.max_steps // 100),
        }
        return arguments_class(**{**defaults, **given, **overrides, **own})


def split_weight(dataset: str) -> tuple[str, float | None]:
    """`path:weight` -> (path, weight). Raises ValueError on a weight that is not a positive number."""
    path, separator, weight = dataset.rpartition(":")
    if not separator or Path(dataset).exists():
        return dataset, None
    try:
        value = float(weight)
    except ValueError:
        raise ValueError(f"--dataset {dataset}: the weight {weight!r} after ':' is not a number") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"--dataset {dataset}: the weight {weight!r} after ':' must be positive and finite")
    return path, value


def finish_run(trainer: StageTrainer, metrics: Mapping[str, float]) -> None:
    """Writes the trained model, `metrics.json`, `log.csv` and `loss.png` into the run's folder."""
    folder = trainer.run_folder
    trainer.card_facts["metrics"] = dict(metrics) or None
    trainer.save_model()
    (folder / "metrics.json").write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")
    history = [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line]
    columns = sorted({key for line in history for key in line})
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *(column for column in columns if column != "step")])
        writer.writeheader()
        writer.writerows(history)
    curves = {}
    for name in ("loss", *(column for column in columns if column.startswith("loss_")), "eval_loss"):
        points = [(line["step"], line[name]) for line in history if name in line]
        if points:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    if curves:
        loss_curves(curves, ylabel="loss").savefig(folder / "loss.png", dpi=120)


__all__ = ["RunOptions", "finish_run", "split_weight"]
