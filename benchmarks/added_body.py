"""A body joins a prior and is trained alone: how long that takes, and how many numbers of the old bodies change.

    python benchmarks/added_body.py                                   # Meta-World, which PushT joins
    python benchmarks/added_body.py --prior runs/prior --dataset data/my-arm

Latents, velocities and samples of every old body are computed with fixed inputs before and after, and compared bit by
bit. The control is the same addition with all weights trained (`--train-all`): there the old bodies do change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from report_file import write_report

from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel

WINDOWS = 64


def run(*arguments: object) -> float:
    """Seconds that a `priorvla` command takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "priorvla.cli", *map(str, arguments)], check=True)
    return time.perf_counter() - began


def collected(environment: str, episodes: int, folder: Path) -> str:
    """State-only motion of all tasks of a simulator, recorded unless it is there."""
    if not folder.is_dir():
        options = ("--tasks", "all", "--episodes", episodes, "--no-images", "--output-dir", folder)
        run("collect", "--env", environment, *options)
    return str(folder)


@torch.no_grad()
def outputs(model: ActionPriorModel, body: int, dims: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What the model makes of fixed inputs of one body, its own dims of it."""
    expert, (action_dim, state_dim) = model.config.expert, dims
    generator = torch.Generator().manual_seed(body)
    own = torch.randn(3, WINDOWS, expert.chunk_size, max(dims), generator=generator)
    wide = torch.zeros(3, WINDOWS, expert.chunk_size, max(expert.action_dim, expert.state_dim))
    wide[..., : max(dims)] = own
    actions, noise = wide[0, ..., : expert.action_dim].clone(), wide[1, ..., : expert.action_dim].clone()
    states = wide[2, ..., : expert.state_dim].clone()
    for values, dim in ((actions, action_dim), (noise, action_dim), (states, state_dim)):
        values[..., dim:] = 0
    ids = torch.full((WINDOWS,), body)
    times = torch.linspace(0, 1, WINDOWS)
    told = model.eval()(actions, ids, states, noise=noise, timestep=times)
    samples = model.sample_actions(told.latent, embodiment_ids=ids, state=states[:, 0], generator=generator)
    return {
        "latent": told.latent,
        "velocity": told.velocity[..., :action_dim],
        "sample": samples[..., :action_dim],
    }


def changed(before: ActionPriorModel, after: ActionPriorModel) -> dict[str, dict[str, int]]:
    """{body: {output: how many of its numbers differ}} over the bodies of `before`."""
    expert = before.config.expert
    result = {}
    for body, name in enumerate(expert.embodiments):
        dims = (expert.action_dims[body], expert.state_dims[body])
        old, new = outputs(before, body, dims), outputs(after, body, dims)
        result[name] = {key: int((old[key] != new[key]).sum()) for key in old}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", help="default: trained on Meta-World first")
    parser.add_argument("--dataset", help="of a body that the prior does not know; default: PushT, collected first")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/added_body"))
    parser.add_argument("--max-steps", type=int, default=150)
    options = parser.parse_args()
    folder = options.output_dir
    prior = options.prior or str(folder / "prior")
    if not Path(prior, "metrics.json").is_file() and options.prior is None:
        motion = collected("metaworld", 2, folder / "metaworld")
        run(
            "pretrain", "--config", "action_prior_small", "--dataset", motion, "--output-dir", prior, "--max-steps", 200
        )
    dataset = options.dataset or collected("pusht", 30, folder / "pusht")
    result: dict[str, object] = {"kind": "added-body", "steps": options.max_steps}
    before = ActionPriorModel.from_pretrained(prior)
    for arm, flags in (("alone", ()), ("all weights", ("--train-all",))):
        place = folder / arm.replace(" ", "-")
        shutil.rmtree(place, ignore_errors=True)
        command = ("pretrain", "--prior", prior, "--dataset", dataset, "--output-dir", place)
        seconds = run(*command, "--max-steps", options.max_steps, "--holdout", 0.2, *flags)
        loss = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["eval_loss"]
        after = ActionPriorModel.from_pretrained(place)
        result[arm] = {"seconds": round(seconds, 1), "eval_loss": loss, "numbers changed": changed(before, after)}
    print(json.dumps(write_report(folder, result), indent=2))


if __name__ == "__main__":
    main()
