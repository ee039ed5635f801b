"""The examples run as they stand in the folder, with small numbers."""

import runpy
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from priorvla import (
    ActionPriorConfig,
    ActionPriorModel,
    PriorVLAModel,
    PriorVLAProcessor,
    expert_dims,
    load_trajectories,
)
from priorvla.configuration.embodiment import load_embodiments
from priorvla.hub_cards.checkpoints import kind_of

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as a program and returns what it printed."""

    def start(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def printed_chunk(text: str) -> np.ndarray:
    rows = text[text.index("[[") : text.index("]]")].replace("[", "").split("]")
    return np.array([[float(number) for number in row.split()] for row in rows])


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_is_short_and_says_how_it_is_run(example, run, capsys):
    text = (EXAMPLES / example).read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{example}" in text
    with pytest.raises(SystemExit) as stopped:
        run(example, "--help")
    assert stopped.value.code == 0
    assert f"python examples/{example}" in capsys.readouterr().out


def test_joint_logs_become_a_dataset_a_prior_and_a_chunk_of_actions(run, tmp_path):
    random, files = np.random.default_rng(0), []
    for episode in range(3):
        files.append(tmp_path / f"log{episode}.npz")
        np.savez(files[-1], states=random.normal(size=(20, 5)), actions=random.uniform(3, 4, size=(20, 2)))
    said = run("pretrain_from_joint_logs.py", *files, "--max-steps", 2, "--output-dir", tmp_path / "arm")
    source = load_trajectories(tmp_path / "arm" / "dataset")
    assert [len(trajectory) for trajectory in source.trajectories] == [20, 20, 20]
    assert source.embodiment.control_rate == 50
    np.testing.assert_allclose(source.trajectories[2].actions, np.load(files[2])["actions"], rtol=1e-6)
    saved = {path.name for path in (tmp_path / "arm" / "prior").iterdir()}
    assert {"config.json", "model.safetensors", "embodiments.json", "README.md"} <= saved
    chunk = printed_chunk(said)
    assert chunk.shape == (16, 2) and abs(chunk.mean() - 3.5) < 2  # the logs' units, whatever two steps have taught


def test_without_logs_an_arm_is_made_up(run, tmp_path):
    said = run("pretrain_from_joint_logs.py", "--max-steps", 1, "--output-dir", tmp_path / "arm")
    assert printed_chunk(said).shape == (16, 3)


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra 'metaworld'")
def test_a_checkpoint_drives_a_robot(run, save_policy, tiny_backbone, tmp_path):
    from priorvla.deployment.environments.metaworld_env import metaworld_embodiment

    body = metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))
    checkpoint = save_policy(tmp_path, [body])
    options = ["--backbone", tiny_backbone, "--episodes", 2, "--max-episode-steps", 7]
    lines = run("drive_a_robot.py", checkpoint, *options).splitlines()
    assert lines[0].startswith("metaworld_sawyer: '")
    assert lines[1:] == ["episode 0: no success after 7 steps", "episode 1: no success after 7 steps"]


def test_a_prior_learns_to_see_and_then_to_listen(
    run, write_demonstrations, tiny_fields, tiny_backbone, bodies, tmp_path
):
    data = write_demonstrations(tmp_path / "demonstrations", bodies[0], [6, 5])
    blind = [replace(bodies[0], cameras=[])]
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(blind)}
    moving = ActionPriorModel(ActionPriorConfig(**{**tiny_fields, "expert": expert}, num_inference_steps=2))
    moving.save_pretrained(tmp_path / "prior")
    PriorVLAProcessor(embodiments=blind, chunk_size=6).save_pretrained(tmp_path / "prior")
    options = ["--prior", tmp_path / "prior", "--backbone", tiny_backbone, "--max-steps", 2]
    said = run("see_then_listen.py", data, *options, "--output-dir", tmp_path / "arm")
    assert "Does it listen?" in said and "another instruction" in said
    sight, policy = (
        PriorVLAModel.from_pretrained(tmp_path / "arm" / name, backbone=None) for name in ("sight", "policy")
    )
    assert kind_of(sight.config) == "vision-action-prior" and kind_of(policy.config) == "vla"
    assert len(policy.expert.layers) == 2 * len(sight.expert.layers) == 2 * len(moving.expert.layers)
    assert load_embodiments(tmp_path / "arm" / "policy")[0].cameras == ["front"]
