"""From a dataset on disk to a trained small prior: the wall clock of one command, and what the prior is worth.

    python benchmarks/time_to_prior.py --dataset data/unitree_g1

The control is in the report of the run itself: straight lines and principal components with as many numbers a chunk as
the latent has, and the mean chunk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from report_file import write_report


def collect_episodes(folder: Path) -> str:
    if not folder.is_dir():
        command = [sys.executable, "-m", "priorvla.cli", "collect", "--tasks", "all", "--episodes", "2", "--no-images"]
        subprocess.run([*command, "--output-dir", str(folder)], check=True)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", help="default: 100 state-only episodes of Meta-World, collected before the clock runs"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/time_to_prior"))
    parser.add_argument("--max-steps", type=int, default=800)
    parser.add_argument("--recipe", default="action_prior_small")
    options = parser.parse_args()
    dataset = options.dataset or collect_episodes(options.output_dir / "data")
    prior = options.output_dir / "prior"
    shutil.rmtree(prior, ignore_errors=True)
    command = [sys.executable, "-m", "priorvla.cli", "pretrain", "--config", options.recipe, "--dataset"]
    command += [dataset, "--output-dir", str(prior), "--max-steps", str(options.max_steps)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    result = {
        "kind": "time-to-prior",
        "seconds": round(time.perf_counter() - began, 1),
        "steps": options.max_steps,
        "megabytes": round((prior / "model.safetensors").stat().st_size / 1e6, 1),
        "metrics": json.loads((prior / "metrics.json").read_text(encoding="utf-8")),
    }
    print(json.dumps(write_report(options.output_dir, result), indent=2))


if __name__ == "__main__":
    main()
