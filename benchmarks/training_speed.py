"""How fast rung 1 trains: windows a second out of the loader, steps a second, their share of the machine's peak.

    python benchmarks/training_speed.py --output-dir runs/training_speed

One thread by default. Every figure is the median of several repeats; the machine's matrix-multiply rate is measured in
the same run, so that the share means something elsewhere too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report_file import write_report

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims

HORIZON, DIMS, BATCH = 16, 32, 64


def synthetic_source(episodes: int = 200, steps: int = 250) -> TrajectorySource:
    """Random walks of a 32 + 32 dim robot: the loader's work does not depend on what the numbers mean."""
    random = np.random.default_rng(0)
    names = [f"joint_{index}" for index in range(DIMS)]
    walks = random.normal(size=(episodes, steps, DIMS)).cumsum(axis=1).astype(np.float32)
    body = Embodiment("walker", names, names, 30.0).with_statistics(walks.reshape(-1, DIMS), walks.reshape(-1, DIMS))
    times = np.arange(steps) / 30.0
    trajectories = [Trajectory(walk, walk, "walk", i, times, None, "synthetic") for i, walk in enumerate(walks)]
    return TrajectorySource(Path("synthetic"), "synthetic", body, trajectories)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of one call."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/training_speed"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    source = synthetic_source()
    dataset = TrajectoryDataset([source], [source.embodiment], HORIZON)
    batches = torch.randperm(len(dataset))[: 100 * BATCH].view(100, BATCH).tolist()
    loader = seconds(lambda: [dataset.__getitems__(batch) for batch in batches], 5) / len(batches)

    model = ActionPriorModel(ActionPriorConfig(expert=expert_dims([source.embodiment]))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = dataset.__getitems__(batches[0])

    def step() -> None:
        model(**{key: batch[key] for key in ("actions", "action_mask", "states", "embodiment_ids")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    training = seconds(step, 9)
    flops = (
        6 * BATCH * (matrix_entries(model.expert) * (HORIZON + 3) + matrix_entries(model.encoder) * (2 * HORIZON + 3))
    )
    square = torch.randn(1024, 1024)
    peak = 2 * 1024**3 / seconds(lambda: square @ square, 15)
    result = {
        "kind": "training-speed",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loader_windows_per_s": round(BATCH / loader),
        "training_chunks_per_s": round(BATCH / training, 1),
        "loader_share_of_step": round(loader / (loader + training), 4),
        "matmul_gflop_per_s": round(peak / 1e9, 1),
        "share_of_matmul_peak": round(flops / training / peak, 3),
    }
    print(json.dumps(write_report(options.output_dir, result, threads=options.threads), indent=2))


def matrix_entries(module: torch.nn.Module) -> int:
    """Weights of the linear maps that every token goes through (time's own are few and left out)."""
    return sum(p.numel() for name, p in module.named_parameters() if p.ndim == 2 and "modulation" not in name)


if __name__ == "__main__":
    main()
