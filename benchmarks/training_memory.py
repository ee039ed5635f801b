"""Peak memory of training: rung 2 on a frozen backbone, rung 3 with adapters in it, rung 3 with all of it trained.

    python benchmarks/training_memory.py --output-dir runs/training_memory

Every arm is a Trainer with its defaults (AdamW, moving average) in a process of its own, 32 windows a step, float32.
Reported is the most memory that was resident (VmHWM) above what the process had when everything was imported. Two steps
reach it: from the second on the optimizer has its states. Mapped pages count as far as they were touched: of the
feature cache those that were read, and of a frozen backbone that no step uses next to none. The arms with cached
features run twice, because the first run fills the cache; its peak is in the report too.

Rung 3 comes from rung 2, reads the instruction and has twice the layers; its arm with cached features tells what is due
to that. Backbones: the packaged dual encoder (real weights, 112 px), and a SmolVLM of the shape of SmolVLM-256M with
random weights, images of 256 px; frames are made up. The SmolVLM takes most of the ten minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chunk_latency import save_smolvlm
from report_file import write_report
from rung2_speed import BACKBONE, vision_action_prior, write_demonstrations
from torch.utils.data import Dataset
from transformers import PrinterCallback

from priorvla.configuration.configuration_priorvla import SEEING_FUSIONS
from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, fit_embodiments
from priorvla.training.vision_action_prior_trainer import VisionActionPriorTrainer, VisionActionPriorTrainingArguments
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer


@dataclass(frozen=True)
class Arm:
    rung: int
    cached: bool
    training: str = "frozen"  # of the backbone


TRAINERS = {
    2: (VisionActionPriorTrainer, VisionActionPriorTrainingArguments),
    3: (VLATrainer, VLATrainingArguments),
}
ARMS = {
    "rung 2, cached features": Arm(2, cached=True),
    "rung 2, frozen backbone in the step": Arm(2, cached=False),
    "rung 3, cached features": Arm(3, cached=True),
    "rung 3, LoRA": Arm(3, cached=False, training="lora"),
    "rung 3, full": Arm(3, cached=False, training="full"),
}
PEAK, NOW = "VmHWM", "VmRSS"


def resident_mb(key: str) -> float:
    """Of this process. Not by getrusage, whose peak starts at that of the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))


def train(arm: Arm, data: Path, folder: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the arm in this process."""
    imported = resident_mb(NOW)
    backbone = load_backbone(None, folder)
    source = load_trajectories(data, frames=True)
    bodies = fit_embodiments([source])
    model = vision_action_prior(options.fusion, backbone, bodies)
    if arm.rung == 3:
        model = PriorVLAModel.from_vision_action_prior(model, backbone_training=arm.training)
        model.attach_backbone(backbone)
    horizon, language = model.config.expert.chunk_size, model.config.language
    processor = PriorVLAProcessor.for_backbone(folder, bodies, chunk_size=horizon)
    windows = TrajectoryDataset([source], bodies, horizon)
    dataset: Dataset = LiveObservationDataset(windows, [source], processor, language=language)
    if arm.cached:
        place, taps = scratch / f"features of rung {arm.rung}", model.config.taps
        dataset = ObservationDataset(windows, [source], backbone, processor, place, taps=taps, language=language)
    trainer_class, arguments_class = TRAINERS[arm.rung]
    arguments = arguments_class(
        output_dir=str(scratch / "run"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        logging_steps=options.steps,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = trainer_class(model, arguments, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return {
        "peak_mb": round(resident_mb(PEAK) - imported),
        "imports_mb": round(imported),
        "trained_parameters": sum(trained),
    }


def measure_backbone(folder: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All arms with one backbone."""
    data = write_demonstrations(scratch / "data", options.steps * options.batch_size)

    def run(name: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--arm", name, str(data), str(folder), str(scratch)]
        for option in ("batch_size", "steps", "fusion", "threads"):
            command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
        began = time.perf_counter()
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        print(f"{folder.name}, {name}: {result['peak_mb']} MB, {time.perf_counter() - began:.0f} s", flush=True)
        return result

    arms = {}
    for name, arm in ARMS.items():
        filling = {"peak_mb_while_filling_the_cache": run(name)["peak_mb"]} if arm.cached else {}
        arms[name] = run(name) | filling
    full = arms["rung 3, full"]["peak_mb"]
    for result in arms.values():
        result["share_of_full"] = round(result["peak_mb"] / full, 3)
    parameters = sum(parameter.numel() for parameter in load_backbone(None, folder).parameters())
    return {"parameters": parameters, "arms": arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/training_memory"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--fusion", choices=SEEING_FUSIONS, default="gated")
    parser.add_argument("--vlm-layers", type=int, default=30, help="of the SmolVLM's language model; 0 leaves it out")
    parser.add_argument("--vlm-image-size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: what torch takes")
    parser.add_argument("--arm", nargs=4, metavar=("NAME", "DATA", "BACKBONE", "SCRATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not Path("/proc/self/status").is_file():
        parser.error("peak memory is read from /proc/self/status: run this on Linux")
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: the peak is in the second step, take 2 at least")
    torch.set_num_threads(options.threads)
    if options.arm:
        name, *places = options.arm
        print(json.dumps(train(ARMS[name], *map(Path, places), options)))
        return
    backbones = {}
    with tempfile.TemporaryDirectory() as scratch:
        backbones[BACKBONE] = measure_backbone(packaged_backbone_folder(BACKBONE), Path(scratch), options)
    if options.vlm_layers:
        with tempfile.TemporaryDirectory() as scratch:
            folder = save_smolvlm(Path(scratch) / "smolvlm", options.vlm_layers, options.vlm_image_size)
            name = f"SmolVLM-256M's shape, {options.vlm_layers} layers, random weights, {options.vlm_image_size} px"
            backbones[name] = measure_backbone(folder, Path(scratch), options)
    result = {
        "kind": "training-memory",
        "fusion": options.fusion,
        "windows_a_step": options.batch_size,
        "backbones": backbones,
    }
    print(json.dumps(write_report(options.output_dir, result, threads=options.threads), indent=2))


if __name__ == "__main__":
    main()
