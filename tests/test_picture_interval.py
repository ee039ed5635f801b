"""Datasets of cameras that are slower than the robot: a policy learns, and is looked at, where pictures are new."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from priorvla.cli import main
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.replay_report import replay_source
from priorvla.training.data.picture_interval import picture_interval
from priorvla.training.data.readers import load_trajectories


@pytest.fixture
def slow(bodies, write_demonstrations, tmp_path) -> Path:
    """Two episodes of 11 and 9 steps with a new picture at every fourth step."""
    folder = write_demonstrations(tmp_path / "slow", bodies[0], [11, 9])
    (folder / "meta" / "collection.json").write_text(json.dumps({"image_every": 4}))
    return folder


def test_a_training_whose_windows_begin_with_old_pictures_is_refused(slow, tiny_backbone, tmp_path, capsys) -> None:
    command = ["train", "--dataset", str(slow), "--backbone", str(tiny_backbone), "--max-steps", "1", "--holdout", "0"]
    for stride in ("1", "2", "6"):
        assert main([*command, "--output-dir", str(tmp_path / stride), "--frame-stride", stride]) == 2
        said = capsys.readouterr().err
        assert f"--frame-stride {stride}: slow was collected with --image-every 4" in said
        assert "use --frame-stride 4, or a multiple of it" in said
    small = [*command, "--output-dir", str(tmp_path / "policy"), "--listening", "0", "--frame-stride", "8"]
    assert main(small) == 0


def test_a_replay_asks_where_pictures_are_new(slow, save_policy, bodies, tiny_backbone, tmp_path) -> None:
    checkpoint = save_policy(tmp_path / "policy", bodies[:1])
    policy = PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, execute_steps=3)
    source = load_trajectories(slow, frames=True)
    assert [list(episode.starts) for episode in replay_source(policy, source).episodes] == [[0, 4, 8], [0, 4, 8]]
    (slow / "meta" / "collection.json").unlink()
    assert picture_interval(slow) == 1
    starts = replay_source(policy, load_trajectories(slow, frames=True)).episodes[0].starts
    np.testing.assert_array_equal(starts, [0, 3, 6, 9])
