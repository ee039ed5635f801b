"""What every training run does: loads its datasets, makes its arguments, and leaves a finished folder."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..configuration.recipe import checked_fields
from ..hub_cards.card_pictures import LOSS, plots_in
from ..hub_cards.card_plots import save_plot, save_prior_plots
from ..hub_cards.plots import loss_curves
from .data.readers import load_trajectories
from .data.trajectory import TrajectorySource
from .held_out import write_held_out
from .prior_report import read_report
from .run_options import RunOptions, split_weight
from .stage_arguments import StageTrainingArguments
from .stage_trainer import StageTrainer

StageArguments = TypeVar("StageArguments", bound=StageTrainingArguments)


def load_sources(datasets: Sequence[str], frames: bool = False) -> tuple[list[TrajectorySource], list[float] | None]:
    """The datasets (`path` or `path:weight`), and their weights when any was given (the others then weigh 1)."""
    sources = [load_trajectories(split_weight(dataset)[0], frames=frames) for dataset in datasets]
    return sources, source_weights(datasets)


def source_weights(datasets: Sequence[str]) -> list[float] | None:
    """The weights given as `path:weight`; 1 where others were given and none here; None when none was given."""
    weights = [split_weight(dataset)[1] for dataset in datasets]
    if all(weight is None for weight in weights):
        return None
    return [1.0 if weight is None else weight for weight in weights]


def training_arguments(arguments_class: type[StageArguments], options: RunOptions, **overrides: Any) -> StageArguments:
    """Training arguments of a run: the class's defaults, under `options.training`, under `overrides`.

    Raises ValueError naming a field that is unknown, or an option of the command itself.
    """
    given = checked_fields(arguments_class, options.training or {}, "training")
    own = {"output_dir": str(options.output_dir), "max_steps": options.max_steps, "seed": options.seed}
    if options.device == "cpu":
        own["use_cpu"] = True
    if clash := sorted(set(given) & set(own)):
        raise ValueError(f"training.{clash[0]} is an option of the command itself: give it there")
    # a short run still warms up and shows a curve
    defaults = {
        "warmup_steps": min(100, max(1, options.max_steps // 10)),
        "logging_steps": max(1, options.max_steps // 100),
    }
    return arguments_class(**{**defaults, **given, **overrides, **own})


def finish_run(trainer: StageTrainer, metrics: Mapping[str, float], held_out: Sequence[TrajectorySource] = ()) -> None:
    """Writes `log.csv`, plots, the trained model and, last of all, `metrics.json` into the run's folder.

    Which episodes were `held_out`, if any, stands in `held_out.json`. The plots are those that the card shows. Of
    several processes the first writes. Where the arguments say so, the folder is pushed to the Hub then.
    """
    folder = trainer.run_folder
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        _write_log(trainer)
        if held_out:
            write_held_out(folder, held_out)
    trainer.card_facts |= {"metrics": dict(metrics) or None, "plots": plots_in(folder)}
    trainer.save_model()
    if trainer.is_world_process_zero():
        unfinished = folder / ".metrics.json"
        unfinished.write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / "metrics.json")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def first_look(folder: Path, dataset: str, embodiment: str | None = None, backbone: str = "auto") -> str:
    """The command that shows a new policy beside recorded episodes of `dataset` (`path` or `path:weight`).

    `embodiment` is the policy's name for the robot where the dataset has another, `backbone` what was said in training.
    """
    command = ["priorvla", "evaluate", str(folder), "--open-loop", split_weight(dataset)[0]]
    command += ["--output-dir", f"{folder}-replay"]
    if embodiment is not None:
        command += ["--embodiment", embodiment]
    if Path(backbone).is_dir():  # of which a checkpoint knows only name and hash
        command += ["--backbone", backbone]
    return shlex.join(command)


def _write_log(trainer: StageTrainer) -> None:
    """`log.csv`, the curves in it as a plot, and of a prior with a report the plots of that."""
    folder = trainer.run_folder
    history = [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line]
    columns = sorted({key for line in history for key in line})
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *(column for column in columns if column != "step")])
        writer.writeheader()
        writer.writerows(history)
    curves = {}
    parts = [column for column in columns if column.startswith("loss_")]
    for name in ("loss", *(parts if len(parts) > 1 else ()), "eval_loss"):  # one part is all of the loss
        points = [(line["step"], line[name]) for line in history if name in line]
        if points:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    if curves:
        save_plot(loss_curves(curves, ylabel="loss"), folder / LOSS)
    save_prior_plots(read_report(folder), folder)


__all__ = ["finish_run", "first_look", "load_sources", "source_weights", "training_arguments"]
