"""The registry: every shipped body describes a robot as it is recorded, and a user's own comes from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.embodiment_registry import list_embodiments, load_embodiment

DIMS = {  # raw and model's action dims
    "aloha": (14, 14),
    "franka_eef": (8, 10),
    "franka_joint": (8, 8),
    "iiwa_eef": (8, 10),
    "iiwa_joint": (8, 8),
    "kinova3_eef": (8, 10),
    "kinova3_joint": (8, 8),
    "metaworld_sawyer": (4, 4),
    "pusht": (2, 2),
    "so100": (6, 6),
    "so101": (6, 6),
    "tabletop_sawyer": (4, 4),
    "unitree_g1": (26, 26),
    "ur5e_eef": (8, 10),
    "ur5e_joint": (7, 7),
    "widowx": (7, 7),
}


def test_the_common_bodies_are_there() -> None:
    assert list_embodiments() == sorted(DIMS)


@pytest.mark.parametrize("name", DIMS)
def test_a_shipped_body_can_be_fitted_and_its_actions_come_back(name: str) -> None:
    body = load_embodiment(name)
    assert (body.name, (body.action_dim, body.model_action_dim)) == (name, DIMS[name])
    random = np.random.default_rng(0)
    states, actions = random.normal(size=(50, body.state_dim)), random.normal(size=(50, 6, body.action_dim))
    for group in body.rotations:
        for values, dims in ((states, group.state_dims), (actions, group.action_dims)):
            values[..., dims] /= np.linalg.norm(values[..., dims], axis=-1, keepdims=True)
            values[..., dims] *= np.sign(values[..., dims[-1:]])
    fitted = body.with_statistics(states, actions)
    back = fitted.denormalize_actions(fitted.normalize_actions(actions, states), states)
    for group in body.rotations:  # of a quaternion either sign is the same rotation
        back[..., group.action_dims] *= np.sign(back[..., group.action_dims[-1:]])
    np.testing.assert_allclose(back, actions, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in DIMS if not name.endswith(("pusht", "_sawyer"))])
def test_a_gripper_has_a_wider_minimum_range_or_its_own_and_stays_absolute(name: str) -> None:
    body = load_embodiment(name)
    assert body.gripper_dims
    assert {body.learned_kinds[dim] for dim in body.gripper_dims} == {"absolute"}
    learns_relative = [kind == "relative" for kind in body.learned_kinds]
    assert any(learns_relative) == name.endswith("_eef")


def test_the_meta_world_body_is_the_simulators_own() -> None:
    environment = pytest.importorskip("priorvla.deployment.environments.metaworld_env")
    assert load_embodiment("metaworld_sawyer") == environment.metaworld_embodiment()


def test_a_users_file_says_only_what_is_not_a_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\naction_names: [a, grip]\nstate_names: [a, grip]\ncontrol_rate: 25\ngripper_dims: [1]\n"
        "learned_kinds: relative\nstate_minimum_range: [0.1, 0.2]\n"
    )
    expected = Embodiment(
        "mine",
        ["a", "grip"],
        ["a", "grip"],
        25,
        gripper_dims=[1],
        learned_kinds=["relative", "absolute"],
        state_minimum_range=[0.1, 0.2],
    )
    assert load_embodiment(file) == expected == load_embodiment(str(file))


@pytest.mark.parametrize(
    ("asked", "near"), [("frnka_joint", "franka_joint"), ("g1", "unitree_g1"), ("SO-101", "so101")]
)
def test_an_unknown_name_is_answered_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{asked} is neither.*did you mean '{near}'\?.*pusht"):
        load_embodiment(asked)


def test_a_file_that_is_not_there_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml is neither a YAML file"):
        load_embodiment(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: a\naction_nmes: [x]\n", "unknown key 'action_nmes', did you mean 'action_names'"),
        ("name: a\naction_names: [x]\n", "key 'state_names' is missing"),
        ("- x\n", "found list"),
        ("name: [\n", "mine.yaml: not an embodiment"),
        ("name: a\naction_names: [x]\nstate_names: []\ncontrol_rate: fast\n", "mine.yaml: not an embodiment"),
        ("name: a\naction_names: [x]\nstate_names: [x]\ncontrol_rate: 5\nlearned_kinds: sideways\n", "'sideways'"),
        (
            "name: a\naction_names: [x]\nstate_names: [x]\ncontrol_rate: 5\nrotations: [{action_dims: [0]}]\n",
            "mine.yaml: not an embodiment: .*state_dims",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_key(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_embodiment(file)


def test_a_body_without_statistics_survives_json() -> None:
    for name in DIMS:
        body = load_embodiment(name)
        assert Embodiment.from_dict(json.loads(json.dumps(body.to_dict()))) == body
