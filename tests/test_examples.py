"""The examples run as they stand in the folder, with small numbers."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from priorvla import load_trajectories

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
