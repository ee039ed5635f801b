"""From joint logs to an action prior: no pictures, no simulator, minutes on a laptop.

    python examples/pretrain_from_joint_logs.py logs/*.npz --control-rate 50 --output-dir runs/my-arm

Every .npz is an episode with two arrays: `states` (T, S), where the joints were, and `actions` (T, D), what they were
told. Without a file the example makes up an arm of three joints that swings, so that you can try it at once.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import priorvla


def made_up_logs(episodes: int = 8, steps: int = 200) -> list[dict[str, np.ndarray]]:
    speeds = np.random.default_rng(0).uniform(0.02, 0.1, (episodes, 1, 3))
    return [{"states": joints[:-1], "actions": joints[1:]} for joints in np.sin(speeds * np.arange(steps + 1)[:, None])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", type=Path, help=".npz files, an episode each")
    parser.add_argument("--control-rate", type=float, default=50.0, help="steps a second (Hz)")
    parser.add_argument("--max-steps", type=int, default=500, help="of training")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/my-arm"))
    options = parser.parse_args()
    logs, prior_dir = [np.load(file) for file in options.logs] or made_up_logs(), options.output_dir / "prior"

    # 1. The logs become a LeRobot dataset, which every later run can read.
    states, actions = ([f"{kind}_{i}" for i in range(logs[0][f"{kind}s"].shape[1])] for kind in ("state", "action"))
    arm = priorvla.Embodiment("my_arm", actions, states, control_rate=options.control_rate)
    with priorvla.LeRobotDatasetWriter(options.output_dir / "dataset", arm) as writer:
        for log in logs:
            writer.add_episode(log["states"], log["actions"], task="Move the arm.")

    # 2. The prior learns from motion alone; it is saved with its processor and its card.
    source = priorvla.load_trajectories(options.output_dir / "dataset")
    arms = priorvla.fit_embodiments([source])  # with the statistics that normalise its numbers
    config = priorvla.ActionPriorConfig(expert=priorvla.expert_dims(arms))
    windows = priorvla.TrajectoryDataset([source], arms, config.expert.chunk_size)
    processor = priorvla.PriorVLAProcessor(embodiments=arms, chunk_size=config.expert.chunk_size)
    arguments = priorvla.ActionPriorTrainingArguments(str(prior_dir), max_steps=options.max_steps, warmup_steps=20)
    model = priorvla.ActionPriorModel(config)
    trainer = priorvla.ActionPriorTrainer(model, arguments, windows, processor=processor, datasets=[str(source.root)])
    trainer.train()
    trainer.save_model()

    # 3. What it knows of motion: a chunk of actions out of noise alone, in the arm's own units.
    prior = priorvla.ActionPriorModel.from_pretrained(prior_dir)
    chunk = prior.sample_actions(embodiment_ids=torch.tensor([0]), generator=torch.Generator().manual_seed(0))
    print(np.array2string(processor.decode_actions(chunk, "my_arm")[0], precision=3, suppress_small=True))


if __name__ == "__main__":
    main()
