"""What it brings to evaluate episodes side by side, in one batch (`priorvla evaluate --batch-size`).

    python benchmarks/side_by_side.py --output-dir runs/side_by_side

Episodes of the tabletop, one camera of 112 px, by policies over the packaged dual encoder with eight expert layers of
random weights, on which time does not depend; they are ended after as many steps, which nobody solves. Batch sizes are
taken in turns; told are the processor's milliseconds an episode, simulator and pictures included, as medians over
rounds, and how many times fewer than one after the other, with the lowest and the highest of the rounds. What was done
must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chunk_latency import policy
from report_file import made_with, write_report
from rung2_speed import BACKBONE, over_rounds

from priorvla.configuration.configuration_priorvla import FUSIONS
from priorvla.configuration.recipe import load_recipe
from priorvla.deployment.environments.tabletop_env import tabletop_embodiment
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

TASK = "seen/put"


def measure(fusion: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One host."""
    body = tabletop_embodiment()
    spread = np.array([[-0.1], [0.1]])
    body = body.with_statistics(*(np.repeat(spread, len(names), 1) for names in (body.state_names, body.action_names)))
    horizon = load_recipe("action_prior_small")["model"]["expert"]["chunk_size"]
    processor = PriorVLAProcessor.for_backbone(folder, [body], chunk_size=horizon)
    driver = PriorVLAPolicy(policy(fusion, load_backbone(None, folder), body), processor)
    times: dict[int, list[float]] = {size: [] for size in options.batch_sizes}
    outcomes = set()
    for _ in range(options.rounds + 1):  # the first warms up
        for size, own in times.items():
            began = time.process_time()
            result = evaluate_policy(
                driver,
                [TASK],
                environment="tabletop",
                trials=options.trials,
                batch_size=size,
                environment_options={"max_episode_steps": options.max_episode_steps},
            )
            own.append(1e3 * (time.process_time() - began) / options.trials)
            outcomes.add(tuple(result.tasks[TASK].outcomes))
    alone = times[options.batch_sizes[0]][1:]
    row: dict[str, Any] = {"outcomes_agree": len(outcomes) == 1}
    for size, (_, *own) in times.items():
        fewer = over_rounds([a / b for a, b in zip(alone, own, strict=True)])
        row[str(size)] = {"processor_ms": round(statistics.median(own)), "times_fewer": fewer}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/side_by_side"))
    parser.add_argument("--hosts", nargs="+", choices=FUSIONS, default=["cross"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 5, 10], help="the first is compared with")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--max-episode-steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, hosts = packaged_backbone_folder(BACKBONE), {}
    print("| host | batch | processor ms an episode | times fewer |\n|---|--:|--:|---|")
    for fusion in options.hosts:
        hosts[fusion] = row = measure(fusion, folder, options)
        for size in options.batch_sizes:
            told = row[str(size)]
            print(f"| {fusion} | {size} | {told['processor_ms']} | {told['times_fewer']} |", flush=True)
        print(f"{fusion}: outcomes {'agree' if row['outcomes_agree'] else 'DIFFER'}")
    asked = {name: getattr(options, name) for name in ("trials", "max_episode_steps", "rounds")}
    print("\n" + made_with(write_report(options.output_dir, {"kind": "side-by-side", **asked, "hosts": hosts})))


if __name__ == "__main__":
    main()
