"""Bodies that swing, and priors that are trained on their motion in seconds: for the tests of what a prior knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims, fit_embodiments

CHUNK, RATE = 8, 10.0
STEPS, LEARNING_RATE, WINDOWS = 200, 1e-2, 48
WIDTHS = {"num_attention_heads": 2, "head_dim": 8, "intermediate_size": 32}


def body(name: str, dims: int, rate: float = RATE, **fields) -> Embodiment:
    names = [f"j{i}" for i in range(dims)]
    return Embodiment(name, action_names=names, state_names=names, control_rate=rate, **fields)


def motion(robot: Embodiment, kind: str, episodes: int, seed: int, steps: int = 40) -> TrajectorySource:
    """Every dim swings by itself, between -1 and 1: about once a second (`waves`), or in four seconds (`sways`)."""
    random = np.random.default_rng(seed)
    seconds = np.arange(steps)[:, None] / robot.control_rate
    trajectories = []
    for index in range(episodes):
        pace = random.uniform(0.85, 1.15, robot.action_dim) * (1.0 if kind == "waves" else 0.25)
        actions = np.sin(2 * np.pi * pace * seconds + random.uniform(0, 6.3, robot.action_dim))
        states = np.concatenate([actions[:1], actions[:-1]])
        trajectories.append(
            Trajectory(states, actions, "move", index, seconds[:, 0], frames=None, source=f"{kind}-{seed}")
        )
    return TrajectorySource(Path(kind), f"{seed:064x}", robot, trajectories)


def make_prior(
    sources: list[TrajectorySource], latent_dropout: float = 0.1
) -> tuple[ActionPriorModel, list[Embodiment]]:
    """An untrained prior for the bodies of `sources`, and these bodies."""
    bodies = fit_embodiments(sources)
    expert = {
        "chunk_size": CHUNK,
        "hidden_size": 32,
        "num_key_value_heads": 2,
        "latent_dim": 8,
        "expert_layers": ["motion", "motion"],
        **WIDTHS,
        **expert_dims(bodies),
    }
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, **WIDTHS}
    torch.manual_seed(0)
    config = ActionPriorConfig(expert=expert, encoder=encoder, latent_noise=0.1, latent_dropout=latent_dropout)
    return ActionPriorModel(config), bodies


def train_prior(
    sources: list[TrajectorySource], latent_dropout: float = 0.1
) -> tuple[ActionPriorModel, list[Embodiment]]:
    """As `make_prior`, trained a little on the sources."""
    model, bodies = make_prior(sources, latent_dropout)
    dataset = TrajectoryDataset(sources, bodies, CHUNK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    random = np.random.default_rng(0)
    model.train()
    for step in range(STEPS):
        batch = dataset.__getitems__(random.choice(len(dataset), WINDOWS).tolist())
        del batch["state"]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval(), bodies


def save_prior(model: ActionPriorModel, bodies: list[Embodiment], folder: Path) -> Path:
    """Writes the checkpoint's files, without metrics or report."""
    model.save_pretrained(folder)
    PriorVLAProcessor(embodiments=bodies, chunk_size=CHUNK).save_pretrained(folder)
    return folder
