"""Under how many noises should a window be shown? Policies of equal minutes of a core, by `flow_draws`.

    python benchmarks/flow_draws.py --output-dir runs/flow_draws
    python benchmarks/flow_draws.py --hosts cross joint gated --draws 1 2 4 8 --seeds 0 1 2

What is seen and heard is computed once for all noises of a window: with more of them a step costs more, but less than
as many steps, and leaves less to chance. On the tabletop's `many-instructions` (docs/language.md), in policies of four
layers that all read, from random weights. How long a step takes is measured first, as the difference of a longer and a
shorter run, so that neither start nor encoding counts; then each arm is trained for as many steps as fit into
`--minutes`, with its own whole schedule of the learning rate. Told is what policies do in fresh scenes as they were
trained in and on `seen`, of all seeds together, with Wilson's 95 % interval; the interval does not know how trainings
differ by their seed, so each stands in `report.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from language import CHUNK, FLOW, HOSTS, adapted, all_taps, command
from language_table import count, shown
from language_trials import PICTURE, done_by
from report_file import made_with, write_report
from same_settings import require_same_settings

SUITE, STRIDE = "many-instructions", 8
SHORT, LONG = 20, 120  # steps of the runs that tell how long one takes


def train(options: argparse.Namespace, folder: Path, host: str, draws: int, seed: int, steps: int) -> float:
    """A policy in `folder`; the minutes of a core that it took, those of a run that is there already too."""
    cost = folder / "cost.json"
    if not cost.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        taps = all_taps(host)
        expert = {**CHUNK, "expert_layers": ["vision_language"] * len(taps), "tap_layers": taps}
        recipe = adapted("policy", {**FLOW, "expert": expert})
        recipe["training"]["flow_draws"] = draws
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        shared = options.output_dir / f"seed-{seed}"
        minutes = command("train", "--config", file, "--dataset", shared / "demonstrations", "--output-dir", folder,
                          "--max-steps", steps, "--seed", seed, "--fusion", host, "--image-size", PICTURE,
                          "--frame-stride", STRIDE, "--cache-dir", shared / "features", "--listening", 0)  # fmt: skip
        cost.write_text(json.dumps({"core_minutes": minutes, "steps": steps}) + "\n", encoding="utf-8")
    return float(json.loads(cost.read_text(encoding="utf-8"))["core_minutes"])


def minutes_of_a_step(options: argparse.Namespace, host: str, draws: int) -> float:
    """Of a core, with everything encoded."""
    seed, folder = options.seeds[0], options.output_dir / "steps" / host
    train(options, folder / "encoding", host, 1, seed, 1)
    short, long = (train(options, folder / f"{draws}-{steps}", host, draws, seed, steps) for steps in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/flow_draws"))
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=["cross"])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=4.0, help="of a core, for every training")
    parser.add_argument("--episodes", type=int, default=1500, help="demonstrations of each of the two kinds")
    parser.add_argument("--trials", type=int, default=20, help="episodes of each kind")
    options = parser.parse_args()
    require_same_settings(options.output_dir, options, ("minutes", "episodes", "trials"), picture=PICTURE)
    for seed in options.seeds:
        data = options.output_dir / f"seed-{seed}" / "demonstrations"
        if not data.is_dir():
            command("collect", "--env", "tabletop", "--tasks", SUITE, "--episodes", options.episodes, "--seed", seed,
                    "--output-dir", data, "--image-size", PICTURE, "--image-every", STRIDE)  # fmt: skip
    rows: list[dict[str, Any]] = []
    print("| host | noises | a step | steps | as trained | `seen` |\n|---|--:|--:|--:|--:|--:|")
    for host in options.hosts:
        for draws in options.draws:
            step = minutes_of_a_step(options, host, draws)
            steps, done = round(options.minutes / step), []
            for seed in options.seeds:
                folder = options.output_dir / f"seed-{seed}" / f"{host}-{draws}"
                train(options, folder, host, draws, seed, steps)
                done.append({s: done_by(folder, [s], options.trials, seed)[s] for s in (SUITE, "seen")})
            rows.append({"host": host, "draws": draws, "step_s": 60 * step, "steps": steps, "by_seed": done})
            told = (shown(count([own[suite] for own in done])) for suite in (SUITE, "seen"))
            print(f"| {host} | {draws} | {6e4 * step:.0f} ms | {steps} | {' | '.join(told)} |", flush=True)
    asked = {name: getattr(options, name) for name in ("seeds", "minutes", "episodes", "trials")}
    print("\n" + made_with(write_report(options.output_dir, {"kind": "flow_draws", **asked, "rows": rows})))


if __name__ == "__main__":
    main()
