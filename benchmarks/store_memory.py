"""What a large corpus costs: a memory-mapped store of 50 million transitions of four bodies, and the memory it takes.

    python benchmarks/store_memory.py --output-dir runs/store_memory

Builds a synthetic store in the output folder (2.7 GB), fits statistics, draws batches through the sampler and removes
it again. The peak is the process's resident memory from its start, everything counted: Python, torch, private pages
and the pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from report_file import write_report
from torch.utils.data import DataLoader

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.data.trajectory_dataset import MixtureSampler, TrajectoryDataset, fit_embodiments, whole_batch
from priorvla.training.data.trajectory_store import TrajectoryStore

BODIES = {"pusher": 2, "sawyer": 4, "arm": 7, "two_arms": 14}  # state and action dims
EPISODE, EPISODES = 250, 1000  # steps in an episode, episodes in a dataset
HORIZON, BATCH = 16, 64
LIMIT_GB = 1.0

Result = TypeVar("Result")


def datasets(transitions: int) -> Iterator[TrajectorySource]:
    """Datasets of 250,000 steps, each a shifted and scaled copy of its body's random walks, made when it is its turn.

    They differ, so that statistics have something to do; the loader's work does not depend on what the numbers mean.
    """
    random = np.random.default_rng(0)
    walks = {
        name: random.normal(size=(EPISODES, EPISODE, dims)).cumsum(axis=1).astype(np.float32)
        for name, dims in BODIES.items()
    }
    times = np.arange(EPISODE) / 20.0
    for number in range(-(-transitions // (EPISODE * EPISODES))):
        name = list(BODIES)[number % len(BODIES)]
        joints = [f"joint_{index}" for index in range(BODIES[name])]
        body = Embodiment(name, joints, joints, control_rate=20.0)
        states = walks[name] * np.float32(random.uniform(0.5, 2)) + np.float32(random.normal())
        actions = np.roll(states, -1, axis=1)
        root = f"dataset-{number:03d}"
        trajectories = [Trajectory(states[i], actions[i], name, i, times, None, root) for i in range(EPISODES)]
        yield TrajectorySource(Path(root), f"{number:064x}", body, trajectories)


def resident_gb() -> dict[str, float]:
    """Resident memory now, private and of mapped files, and the process's peak of both together."""
    result = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else []:
        key, _, value = line.partition(":")
        if key in ("RssAnon", "RssFile"):
            result[key] = int(value.split()[0]) * 1024
    return {key: round(size / 1e9, 3) for key, size in result.items()}


def timed(work: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
    began = time.perf_counter(), time.process_time()
    result = work()
    spent = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
    return result, {**{key: round(value, 2) for key, value in spent.items()}, "resident_gb": resident_gb()}


def draw(dataset: TrajectoryDataset, weights: list[float] | None, batches: int) -> dict[str, Any]:
    """Batches out of a DataLoader, in the sampler's order."""
    dataset.source_weights = weights
    loader = DataLoader(dataset, BATCH, sampler=MixtureSampler(dataset, seed=0), collate_fn=whole_batch)
    batch_stream = iter(loader)
    _, first = timed(lambda: next(batch_stream))
    count, rest = timed(lambda: sum(len(batch["actions"]) for batch in islice(batch_stream, batches)))
    speed = {
        "first_batch_seconds": first["seconds"],
        "windows": count,
        "windows_per_second": round(count / rest["seconds"]),
        "windows_per_cpu_second": round(count / rest["cpu_seconds"]),
    }
    return {**speed, "resident_gb": rest["resident_gb"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/store_memory"))
    parser.add_argument("--transitions", type=int, default=50_000_000)
    parser.add_argument("--batches", type=int, default=10_000, help="of 64 windows, with and without weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.output_dir / "store"
    needed = options.transitions * 2 * 4 * sum(BODIES.values()) // len(BODIES)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.output_dir).free < 1.2 * needed:
        raise OSError(f"{options.output_dir}: the store needs {needed / 1e9:.1f} GB of disk: free some")
    started = resident_gb()
    try:
        store, building = timed(lambda: TrajectoryStore.build(datasets(options.transitions), folder))
        size = sum(file.stat().st_size for file in folder.iterdir())
        store, opening = timed(lambda: TrajectoryStore.open(folder))
        bodies, fitting = timed(lambda: fit_embodiments(store))
        dataset, windows = timed(lambda: TrajectoryDataset(store, bodies, HORIZON))
        drawing = draw(dataset, None, options.batches)
        weights = [1.0 + number % 5 for number in range(len(store.sources))]
        weighted = draw(dataset, weights, options.batches)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "transitions": store.num_steps,
        "episodes": len(store),
        "datasets": len(store.sources),
        "windows": len(dataset),
        "store_gb": round(size / 1e9, 3),
        "bytes_per_transition": round(size / store.num_steps, 1),
        "after_imports": started,
        "build": {**building, "steps_per_second": round(store.num_steps / building["seconds"])},
        "open": opening,
        "statistics": {**fitting, "steps_per_second": round(store.num_steps / fitting["seconds"])},
        "dataset": windows,
        "drawn": drawing,
        "drawn_by_weight": weighted,
        "peak_resident_gb": resident_gb()["peak"],
        "peak_under_1_gb": resident_gb()["peak"] < LIMIT_GB,
    }
    print(json.dumps(write_report(options.output_dir, result, threads=1), indent=2))


if __name__ == "__main__":
    main()
