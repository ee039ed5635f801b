"""What should layers begin with that are inserted to read instructions: copies of their neighbours, or random weights?

    python benchmarks/inserted_layers.py --output-dir runs/inserted_layers
    python benchmarks/inserted_layers.py --hosts cross joint gated --seeds 1 3 5

A vision-action prior of the tabletop's `many-instructions` (docs/language.md), then rung 3 twice from it, with the same
windows, noise and steps: as `PriorVLAModel.from_vision_action_prior` makes a policy, whose inserted layers are copies
of the inherited ones beside them; and the control, whose tensors named by `transfer_report.copied` are drawn afresh.
Both are their prior to the bit when they begin, since the gates of inserted layers are shut.

Told is the loss on demonstrations that neither has seen, under the same noise for both, over all windows and over those
at which an episode begins, where the words decide most; by how much the copies' is lower, with a 95 % bootstrap
interval over groups of episodes (which does not know how trainings differ by their seed, so each seed is a line); and
what each does in fresh scenes as it was trained in, with Wilson's 95 % interval. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from language import HOSTS, Group, adapted, command, suite_of
from language_causes import EPISODES, loaded, loss_of, windows_of
from language_table import count, shown
from language_trials import PICTURE, done_by
from report_file import made_with, write_report
from same_settings import require_same_settings
from transformers import set_seed

from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.chunk_distances import bootstrap_mean
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

KNOB = "many"
BEGINNINGS = ("copies", "random weights")
SETTINGS = ("episodes", "fresh_episodes", "frame_stride", "sight_steps", "language_steps", "trials")
WARMUP = 100  # steps, as `priorvla train` has them
NOISES = {"all": 1, "first": 6}  # draws for every window: those at which an episode begins are few


def begun(prior: Path, beginning: str, seed: int) -> PriorVLAModel:
    """The policy with which rung 3 begins."""
    set_seed(seed)
    model = PriorVLAModel.from_vision_action_prior(prior)
    if beginning == "random weights":
        draw_afresh(model)
    return model


@torch.no_grad()
def draw_afresh(model: PriorVLAModel) -> None:
    """Random weights where there were copies, behind gates that are as shut as before."""
    report = model.transfer_report
    assert report is not None and report.copied
    own, drawn = model.state_dict(), PriorVLAModel(model.config).state_dict()
    for name in report.copied:
        own[name].copy_(drawn[name])
    for index, layer in enumerate(model.expert.layers):
        if any(name.startswith(f"expert.layers.{index}.") for name in report.copied):
            layer.start_absent()


def train(options: argparse.Namespace, group: Group, beginning: str) -> Path:
    """Rung 3, in the folder that is returned."""
    folder = group.folder / beginning.replace(" ", "-")
    if not (folder / "model.safetensors").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        recipe = adapted("policy", {})["training"]
        model = begun(group.sight(), beginning, group.seed)
        model.attach_backbone()
        processor = PriorVLAProcessor.from_pretrained(group.sight())
        windows = windows_of(model, processor, group.data, group.shared / "features", options.frame_stride)
        steps = options.language_steps
        arguments = VLATrainingArguments(
            str(folder), max_steps=steps, warmup_steps=min(WARMUP, steps // 10), seed=group.seed, **recipe
        )
        trainer = VLATrainer(model, arguments, train_dataset=windows, processor=processor)
        trainer.train()
        trainer.save_model()
    return folder


def losses(model: PriorVLAModel, windows: ObservationDataset, part: str) -> list[float]:
    """The loss of each group of episodes, all windows or the first of every episode; the same noise for every model."""
    model.eval()
    trajectory, step = windows.windows.frame_of(range(len(windows)))
    told = []
    with torch.no_grad():
        for group in (trajectory // EPISODES).unique():
            chosen = (trajectory // EPISODES == group) & ((step == 0) | (part == "all"))
            batch = windows.__getitems__(chosen.nonzero().squeeze(-1).tolist())
            drawn = [loss_of(model, batch, 1_000 * noise + int(group)).item() for noise in range(NOISES[part])]
            told.append(sum(drawn) / len(drawn))
    return told


def compared(options: argparse.Namespace, group: Group) -> dict[str, Any]:
    """Both beginnings of a host and a seed."""
    fresh = options.output_dir / f"fresh-{group.seed}"
    if not fresh.is_dir():
        command("collect", "--env", "tabletop", "--tasks", suite_of(KNOB), "--episodes", options.fresh_episodes,
                "--seed", 10_000 + group.seed, "--output-dir", fresh, "--image-size", PICTURE,
                "--image-every", options.frame_stride)  # fmt: skip
    by_beginning: dict[str, dict[str, Any]] = {}
    for beginning in BEGINNINGS:
        folder = train(options, group, beginning)
        model, processor = loaded(folder)
        windows = windows_of(model, processor, fresh, options.output_dir / "features", options.frame_stride)
        outcomes = done_by(folder, [suite_of(KNOB)], options.trials, group.seed)[suite_of(KNOB)]
        by_beginning[beginning] = {part: losses(model, windows, part) for part in NOISES} | {"as_trained": outcomes}
    lower = {}
    for part in NOISES:
        copies, random = (by_beginning[beginning][part] for beginning in BEGINNINGS)
        gained = bootstrap_mean([b - a for a, b in zip(copies, random, strict=True)], draws=2000)
        lower[part] = {"value": gained.value, "interval": list(gained.interval)}
    return {"host": group.host, "seed": group.seed, "by_beginning": by_beginning, "lower_by": lower}


def row(result: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [result["host"], str(result["seed"])]
    for part in NOISES:
        means = [sum(own[part]) / len(own[part]) for own in result["by_beginning"].values()]
        low, high = result["lower_by"][part]["interval"]
        gained = f"{result['lower_by'][part]['value']:.4f} ({low:.4f} to {high:.4f})"
        cells += [*(f"{mean:.4f}" for mean in means), gained]
    cells += [shown(count([own["as_trained"]])) for own in result["by_beginning"].values()]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/inserted_layers"))
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=["cross"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--episodes", type=int, default=1500, help="demonstrations of each of the two kinds")
    parser.add_argument("--fresh-episodes", type=int, default=100, help="of each kind, to tell the loss on")
    parser.add_argument("--frame-stride", type=int, default=8, help="pictures and windows: every so many steps")
    parser.add_argument("--sight-steps", type=int, default=2400, help="of rung 2")
    parser.add_argument("--language-steps", type=int, default=1600, help="of rung 3")
    parser.add_argument("--trials", type=int, default=20, help="episodes of each kind")
    options = parser.parse_args()
    if options.fresh_episodes < EPISODES:
        raise SystemExit(f"--fresh-episodes {options.fresh_episodes}: at least {EPISODES} make two groups of episodes")
    require_same_settings(options.output_dir, options, SETTINGS)
    options.jobs = 1  # what a group of `language.py` asks for
    parts = [f"{part}, {beginning}" for part in NOISES for beginning in (*BEGINNINGS, "lower by")]
    titles = ["host", "seed", *parts, *(f"as trained, {beginning}" for beginning in BEGINNINGS)]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    results = []
    for seed in options.seeds:
        for host in options.hosts:
            group = Group(options, host, KNOB, seed)
            group.collect()
            group.encode()
            results.append(compared(options, group))
            print(row(results[-1]), flush=True)
    asked = {name: getattr(options, name) for name in SETTINGS}
    print("\n" + made_with(write_report(options.output_dir, {"kind": "inserted_layers", **asked, "rows": results})))


if __name__ == "__main__":
    main()
