"""What each action dim's error weighs in the loss."""

import pytest
import torch

from priorvla.configuration.embodiment import Embodiment, RotationGroup
from priorvla.configuration.embodiment_registry import load_embodiment
from priorvla.training.component_weights import component_weights

PAPER_B = {"position": 30.0, "rotation": 10.0, "gripper": 10.0}


def body(name: str, dims: int, **fields) -> Embodiment:
    names = [f"d{index}" for index in range(dims)]
    return Embodiment(name=name, action_names=names, state_names=names, control_rate=10.0, **fields)


# A rotation between positions, and the gripper first: the model's dims then stand elsewhere than the robot's.
ARM = body(
    "arm", 7, gripper_dims=[0], rotations=[RotationGroup([2, 3, 4, 5], [], "quaternion_xyzw")]
)  # g p [r r r r] p -> g p [r r r r r r] p
PLAIN = body("plain", 3)


def test_a_rotation_weighs_at_the_six_dims_that_the_model_learns_it_as():
    weights = component_weights([ARM], PAPER_B)[0]
    assert torch.allclose(weights / weights[0], torch.tensor([1.0, 3, 1, 1, 1, 1, 1, 1, 3]))
    assert ARM.model_action_names[2:8] == [f"rotation0_{entry}" for entry in ("x1", "x2", "x3", "y1", "y2", "y3")]


def test_papers_ten_numbers_weigh_three_one_one():
    weights = component_weights([load_embodiment("franka_eef")], PAPER_B)
    assert torch.allclose(weights / weights[0, -1], torch.tensor([[3.0] * 3 + [1.0] * 7]))


def test_every_body_has_a_mean_of_one_over_its_own_dims_and_zeros_beyond():
    weights = component_weights([PLAIN, ARM], PAPER_B)
    assert weights.shape == (2, 9)
    assert torch.equal(weights[0], torch.tensor([1.0] * 3 + [0.0] * 6))
    assert weights[1].mean() == pytest.approx(1)


def test_equal_weights_change_nothing():
    weights = component_weights([ARM], dict.fromkeys(PAPER_B, 7.0))
    assert torch.equal(weights, torch.ones(1, 9))


def test_three_rotation_deltas_are_positions_until_they_are_declared():
    deltas = {"action_kinds": ["delta"] * 7, "gripper_dims": [6]}
    undeclared = component_weights([body("osc", 7, **deltas)], PAPER_B)[0]
    assert torch.allclose(undeclared / undeclared[-1], torch.tensor([3.0] * 6 + [1.0]))
    declared = body("osc", 7, **deltas, rotations=[RotationGroup([3, 4, 5], [], "axis_angle")])
    weights = component_weights([declared], PAPER_B)[0]
    assert torch.allclose(weights / weights[-1], torch.tensor([3.0] * 3 + [1.0] * 7))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({**PAPER_B, "griper": 10.0}, "'griper' is unknown.*position, rotation, gripper"),
        ({**PAPER_B, "rotation": -1.0}, "'rotation' is -1.0"),
        ({**PAPER_B, "rotation": float("nan")}, "'rotation' is nan"),
        (dict.fromkeys(PAPER_B, 0.0), "no component has a positive weight"),
        ({}, "no component has a positive weight"),
        ({"position": 1.0, "rotation": 1.0}, "'arm' has 1 gripper dims.*0 leaves these dims out"),
    ],
)
def test_impossible_weights_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        component_weights([ARM], weights)


def test_a_component_that_no_body_has_needs_no_weight_and_one_that_weighs_nothing_alone_is_refused():
    assert torch.equal(component_weights([PLAIN], {"position": 30.0}), torch.ones(1, 3))
    with pytest.raises(ValueError, match="'plain': all its components weigh 0"):
        component_weights([PLAIN], {"position": 0.0, "gripper": 1.0})
