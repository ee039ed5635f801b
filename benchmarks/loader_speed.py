"""How fast windows come: out of memory and off the disk, beside a plain dataset, and as a share of a training step.

    python benchmarks/loader_speed.py --output-dir runs/loader_speed

H 16, a 32 + 32 dim robot, with states, normalised and masked; one thread. Figures are windows a second of processor
time, which on an idle machine is the clock's, each the median of several repeats; the clock's stand beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report_file import write_report
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.recipe import load_recipe
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.data.trajectory_dataset import (
    MixtureSampler,
    TrajectoryDataset,
    expert_dims,
    fit_embodiments,
    whole_batch,
)
from priorvla.training.data.trajectory_store import TrajectoryStore

HORIZON, DIMS, EPISODES, STEPS = 16, 32, 400, 250
BATCHES, REPEATS, MEASURED_WINDOWS = (64, 512), 7, 1 << 15
TARGET, TARGET_SHARE = 150_000, 0.02


def walks(kind: str) -> TrajectorySource:
    """Random walks of a 32 + 32 dim robot that learns `kind`: the work does not depend on what the numbers mean."""
    random = np.random.default_rng(0)
    names = [f"joint_{index}" for index in range(DIMS)]
    body = Embodiment("walker", names, names, 30.0)
    body = body if kind == "absolute" else body.learning(kind)
    times = np.arange(STEPS) / 30.0
    states = random.normal(size=(EPISODES, STEPS, DIMS)).cumsum(axis=1).astype(np.float32)
    trajectories = [Trajectory(walk, walk, "walk", i, times, None, "synthetic") for i, walk in enumerate(states)]
    return TrajectorySource(Path("synthetic"), "synthetic", body, trajectories)


class PlainWindows(Dataset):
    """The control: a window at a time, sliced, normalised, padded and masked in numpy, collated by torch."""

    def __init__(self, source: TrajectorySource, body: Embodiment) -> None:
        self.source, self.body = source, body
        self.windows = [(e, step) for e, walk in enumerate(source.trajectories) for step in range(len(walk))]
        assert body.action_statistics is not None
        center, scale = body.action_statistics.affine(body.action_normalization, 0.01)
        self.center, self.scale = center.astype(np.float32), scale.astype(np.float32)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        episode, step = self.windows[index]
        trajectory = self.source.trajectories[episode]
        actions, states = (np.zeros((HORIZON, DIMS), dtype=np.float32) for _ in range(2))
        mask = np.zeros((HORIZON, DIMS), dtype=bool)
        real = min(HORIZON, len(trajectory) - step)
        actions[:real] = (trajectory.actions[step : step + real] - self.center) / self.scale
        states[:real] = (trajectory.states[step : step + real] - self.center) / self.scale
        mask[:real] = True
        return {
            "actions": torch.from_numpy(actions),
            "action_mask": torch.from_numpy(mask),
            "states": torch.from_numpy(states),
            "state": torch.from_numpy(states[0]),
            "embodiment_ids": torch.tensor(0),
        }


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Median seconds of one call, of processor time and of the clock."""
    work()
    spent = []
    for _ in range(repeats):
        began = time.process_time(), time.perf_counter()
        work()
        spent.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return statistics.median(cpu for cpu, _ in spent), statistics.median(clock for _, clock in spent)


def windows_per_second(work: Callable[[], object], windows: int) -> dict[str, int]:
    cpu, clock = seconds(work)
    return {"per_cpu_second": round(windows / cpu), "per_second": round(windows / clock)}


def gathered(dataset: TrajectoryDataset, batch_size: int) -> dict[str, int]:
    """Batches asked for by index."""
    order = list(MixtureSampler(dataset, seed=0))[:MEASURED_WINDOWS]
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return windows_per_second(lambda: [dataset.__getitems__(batch) for batch in batches], len(order))


def loaded(dataset: Dataset, batch_size: int, windows: int = MEASURED_WINDOWS, **arguments: Any) -> dict[str, int]:
    """Batches out of a DataLoader."""

    def work() -> None:
        loader = iter(DataLoader(dataset, batch_size=batch_size, **arguments))
        for _ in range(windows // batch_size):
            next(loader)

    return windows_per_second(work, windows // batch_size * batch_size)


def measure_loader(folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Windows a second, by what is learned, where the steps lie, how batches are asked for, and batch size."""
    result: dict[str, dict[str, dict[str, int]]] = {}
    for kind in ("absolute", "relative", "delta"):
        source = walks(kind)
        bodies = fit_embodiments([source], chunk_size=HORIZON)
        dataset = TrajectoryDataset([source], bodies, HORIZON)
        mapped = TrajectoryDataset(TrajectoryStore.build([source], folder / kind), bodies, HORIZON)
        sampler = MixtureSampler(dataset, seed=0)
        for size in BATCHES:
            result[f"{kind}, batch {size}"] = {
                "gathered": gathered(dataset, size),
                "gathered from a mapped store": gathered(mapped, size),
                "DataLoader and sampler": loaded(dataset, size, sampler=sampler, collate_fn=whole_batch),
            }
            if kind == "absolute":
                plain = PlainWindows(source, bodies[0])
                result[f"{kind}, batch {size}"]["plain dataset"] = loaded(plain, size, windows=4096, shuffle=True)
    return result


def measure_share() -> dict[str, Any]:
    """What of a training step of the small recipe the loader takes, when nothing runs beside it."""
    source = walks("absolute")
    bodies = fit_embodiments([source])
    recipe = load_recipe("action_prior_small")
    expert = {**recipe["model"]["expert"], **expert_dims(bodies)}
    torch.manual_seed(0)
    model = ActionPriorModel(ActionPriorConfig(**{**recipe["model"], "expert": expert})).train()
    size = recipe["training"]["per_device_train_batch_size"]
    dataset = TrajectoryDataset([source], bodies, model.config.expert.chunk_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = dataset.__getitems__(range(0, 100 * size, 100))
    inputs = {key: batch[key] for key in ("actions", "action_mask", "states", "embodiment_ids")}

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    training = seconds(step, 9)[0]
    loader = size / loaded(dataset, size, sampler=MixtureSampler(dataset, 0), collate_fn=whole_batch)["per_cpu_second"]
    return {
        "batch": size,
        "training_step_ms": round(1e3 * training, 2),
        "loader_ms": round(1e3 * loader, 3),
        "loader_share_of_step": round(loader / (loader + training), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/loader_speed"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loader = measure_loader(Path(folder))
    share = measure_share()
    slowest = min(row["gathered"]["per_cpu_second"] for row in loader.values())
    plain = {size: loader[f"absolute, batch {size}"] for size in BATCHES}
    result = {
        "windows_per_second": loader,
        "slowest_gathered": slowest,
        "reaches_150000": slowest >= TARGET,
        "times_a_plain_dataset": {
            size: round(row["DataLoader and sampler"]["per_cpu_second"] / row["plain dataset"]["per_cpu_second"], 1)
            for size, row in plain.items()
        },
        "training": share,
        "share_under_2_percent": share["loader_share_of_step"] < TARGET_SHARE,
    }
    print(json.dumps(write_report(options.output_dir, result, threads=1), indent=2))


if __name__ == "__main__":
    main()
