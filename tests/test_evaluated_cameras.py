"""Which pictures of an environment a policy is shown: those of its own cameras, and all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from priorvla.deployment.episodes import SeenImages, require_same_robot
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy

TASK = "open the drawer"


class Drawn(Mapping):
    """Pictures by camera; notes which were looked at."""

    def __init__(self, cameras: tuple[str, ...], looked_at: list[str]) -> None:
        self.cameras, self.looked_at = cameras, looked_at

    def __getitem__(self, camera: str) -> np.ndarray:
        self.looked_at.append(camera)
        return np.full((28, 28, 3), 40 + 100 * self.cameras.index(camera), dtype=np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cameras)

    def __len__(self) -> int:
        return len(self.cameras)


class Drawer:
    """An environment of one's own: eight steps, and it notes the commands and the cameras that were looked at."""

    def __init__(self, task: str, cameras: tuple[str, ...], commands: list, looked_at: list[str]) -> None:
        self.unwrapped, self.cameras, self.commands, self.looked_at = self, cameras, commands, looked_at

    def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.steps = 0
        return self.seen(), {}

    def seen(self) -> dict[str, Any]:
        return {"state": np.zeros(3, np.float32), "images": Drawn(self.cameras, self.looked_at)}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.commands.append(action)
        self.steps += 1
        return self.seen(), 0.0, False, self.steps == 8, {"success": False}

    def close(self) -> None:
        pass


@pytest.fixture
def drive(save_policy, bodies, tiny_backbone, tmp_path):
    """The commands and the cameras looked at, of a policy of the camera `front`."""
    checkpoint = save_policy(tmp_path, bodies[:1])
    policy = PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone)

    def run(*cameras: str) -> tuple[np.ndarray, set[str]]:
        commands, looked_at = [], []
        environment = partial(Drawer, cameras=cameras, commands=commands, looked_at=looked_at)
        evaluate_policy(policy, [TASK], environment=environment, trials=1)
        return np.stack(commands), {*looked_at}

    return run


def test_a_policy_of_one_camera_acts_as_if_there_were_no_other_and_no_other_is_drawn(drive):
    alone, _ = drive("front")
    beside, looked_at = drive("front", "wrist")
    np.testing.assert_array_equal(beside, alone)
    assert looked_at == {"front"}
    other, _ = drive("wrist", "front")  # the second of the pictures is another
    assert (other != alone).any()


def test_a_policy_whose_camera_is_missing_is_refused_with_both_lists(drive, bodies):
    with pytest.raises(ValueError, match=r"by the cameras front, the environment has left, right: evaluate a policy"):
        drive("left", "right")
    three = replace(bodies[0], cameras=["front", "wrist", "ceiling"])
    with pytest.raises(ValueError, match=r"by the cameras front, wrist, ceiling, matrix has front: "):
        require_same_robot(three, bodies[0], "matrix", None)
    require_same_robot(bodies[0], three, "matrix", None)


def test_blank_pictures_are_of_the_same_cameras():
    images = Drawn(("front", "wrist"), [])
    blank = SeenImages(images, ["wrist", "ceiling"], blank=True)
    assert list(blank) == ["wrist"] and len(blank) == 1 and not blank["wrist"].any()
    assert SeenImages(images, ["wrist"])["wrist"].all()
    with pytest.raises(KeyError):
        blank["front"]
