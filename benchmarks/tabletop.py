"""The tabletop: how often its expert does what it is told, what a guess is worth, and what a picture costs.

    python benchmarks/tabletop.py --episodes 100

Every task is a suite and a kind of instruction. `guess` is the best that a policy can do which knows everything but the
instruction. Times are those of a core at work (CPU time), which a busy machine hardly changes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from report_file import made_with, write_report

from priorvla.deployment.environments import list_tasks, make_environment
from priorvla.deployment.environments.tabletop_layouts import blind_chance
from priorvla.hub_cards.intervals import wilson_interval

PICTURES = 60


def expert(task: str, episodes: int, noise: float) -> tuple[int, float, float]:
    """Episodes solved, their mean length in steps, and milliseconds of a step without a picture."""
    environment = make_environment("tabletop", task, render=False)
    solved, steps, seconds = 0, 0, 0.0
    for seed in range(episodes):
        random = np.random.default_rng(seed)
        environment.reset(seed=seed)
        started, success, over = time.process_time(), False, False
        while not (success or over):
            action = environment.expert_action() + random.normal(0, noise * environment.noise_scale * (seed % 2), 4)
            _, _, terminated, truncated, info = environment.step(action)
            success, over, steps = info["success"], terminated or truncated, steps + 1
        seconds += time.process_time() - started
        solved += success
    environment.close()
    return solved, steps / episodes, 1000 * seconds / steps


def picture_time(size: int) -> float:
    """Milliseconds of a picture."""
    environment = make_environment("tabletop", "seen/put", image_size=size)
    environment.reset(seed=0)
    environment.render()
    seconds = 0.0
    for _ in range(PICTURES):
        environment.step(np.zeros(4))
        started = time.process_time()
        environment.render()
        seconds += time.process_time() - started
    environment.close()
    return 1000 * seconds / PICTURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100, help="of every task")
    parser.add_argument("--noise", type=float, default=0.15, help="in every second episode, as `collect` has it")
    parser.add_argument("--sizes", type=int, nargs="+", default=[84, 112, 128], help="sides of pictures in pixels")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/tabletop"))
    options = parser.parse_args()
    tasks = {}
    print("| task | expert | 95 % interval | steps | ms a step | guess |\n|---|--:|---|--:|--:|--:|")
    for task in list_tasks("tabletop"):
        solved, steps, milliseconds = expert(task, options.episodes, options.noise)
        interval = wilson_interval(solved, options.episodes)
        chance = blind_chance(task.partition("/")[0])
        tasks[task] = {"solved": solved, "trials": options.episodes, "interval": interval, "guess": chance}
        tasks[task] |= {"steps": steps, "step_ms": milliseconds}
        shown = "{:.0%} to {:.0%}".format(*interval)
        print(
            f"| {task} | {solved}/{options.episodes} | {shown} | {steps:.0f} | {milliseconds:.1f} | {chance:.2f} |",
            flush=True,
        )
    pictures = {size: picture_time(size) for size in options.sizes}
    print("; ".join(f"{size} px: {value:.1f} ms a picture" for size, value in pictures.items()))
    print(made_with(write_report(options.output_dir, {"kind": "tabletop", "tasks": tasks, "picture_ms": pictures})))


if __name__ == "__main__":
    main()
