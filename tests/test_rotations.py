"""Rotations: every representation is the same rotation as scipy's, comes back, and has no seam in 6-D."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from priorvla.configuration.rotations import REPRESENTATIONS, from_matrix, require_rotations, to_6d, to_matrix

ANGLED = ("axis_angle", "euler_xyz")
CORNERS = [
    np.eye(3),
    Rotation.from_euler("xyz", [0, np.pi / 2, 0]).as_matrix(),  # gimbal lock, both ways and nearly
    Rotation.from_euler("xyz", [0.3, -np.pi / 2, 1.1]).as_matrix(),
    Rotation.from_euler("xyz", [-2.0, np.pi / 2 - 1e-6, 0.4]).as_matrix(),
    *(Rotation.from_rotvec(np.pi * np.eye(3)[axis]).as_matrix() for axis in range(3)),  # half turns
    Rotation.from_rotvec([0, np.pi - 1e-7, 0]).as_matrix(),
    Rotation.from_rotvec([1e-9, -1e-9, 1e-9]).as_matrix(),  # hardly any turn
    Rotation.from_rotvec(np.pi * np.array([1, -2, 3]) / np.sqrt(14)).as_matrix(),
]


def matrices() -> np.ndarray:
    return np.concatenate([Rotation.random(500, rng=np.random.default_rng(0)).as_matrix(), np.stack(CORNERS)])


def scipy_values(rotations: np.ndarray, representation: str) -> np.ndarray:
    rotation = Rotation.from_matrix(rotations)
    return {
        "quaternion_xyzw": lambda: rotation.as_quat(),
        "quaternion_wxyz": lambda: rotation.as_quat(scalar_first=True),
        "axis_angle": lambda: rotation.as_rotvec(),
        "euler_xyz": lambda: rotation.as_euler("xyz"),
        "rotation_6d": lambda: rotations[..., :2].swapaxes(-1, -2).reshape(-1, 6),
    }[representation]()


@pytest.mark.filterwarnings("ignore:Gimbal lock")
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_representation_means_what_scipy_means_by_it(representation: str) -> None:
    expected = matrices()
    np.testing.assert_allclose(to_matrix(scipy_values(expected, representation), representation), expected, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_it_inverts_to_the_same_rotation_at_the_singularities_too(representation: str, dtype: type) -> None:
    rotations = matrices().astype(dtype)
    values = from_matrix(rotations, representation)
    assert values.shape == (len(rotations), REPRESENTATIONS[representation]) and values.dtype == dtype
    back = to_matrix(values, representation)
    assert back.dtype == dtype
    np.testing.assert_allclose(back, rotations, atol=2e-6 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("representation", ANGLED)
def test_numbers_away_from_the_singularities_come_back_as_they_were(representation: str) -> None:
    values = np.random.default_rng(1).uniform(-1.5, 1.5, (200, 3))
    np.testing.assert_allclose(from_matrix(to_matrix(values, representation), representation), values, atol=1e-9)


@pytest.mark.parametrize("representation", ["quaternion_xyzw", "quaternion_wxyz"])
def test_both_signs_of_a_quaternion_are_learned_as_the_same_numbers(representation: str) -> None:
    values = scipy_values(matrices(), representation)
    np.testing.assert_allclose(
        to_6d(to_matrix(values, representation)), to_6d(to_matrix(-values, representation)), atol=1e-12
    )


@pytest.mark.parametrize("representation", ["quaternion_xyzw", "quaternion_wxyz"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_decoded_quaternion_continues_the_sign_of_the_state_without_a_jump(representation: str, sign: int) -> None:
    turns = Rotation.from_rotvec(np.linspace(0.0, 3 * np.pi, 50)[:, None] * [0.6, 0.0, 0.8])  # w changes its sign
    values = from_matrix(turns.as_matrix()[None], representation, sign * scipy_values(np.eye(3)[None], representation))[
        0
    ]
    assert np.linalg.norm(np.diff(values, axis=0), axis=-1).max() < 0.2
    np.testing.assert_allclose(values[0], sign * scipy_values(np.eye(3)[None], representation)[0], atol=1e-9)


def test_without_a_state_a_sequence_begins_with_positive_w() -> None:
    values = from_matrix(matrices()[:, None], "quaternion_xyzw")[:, 0]
    assert (values[:, 3] >= 0).all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_six_predicted_numbers_of_any_length_are_a_rotation(scale: float) -> None:
    predicted = scale * np.random.default_rng(2).normal(size=(100, 6))
    rotation = to_matrix(predicted, "rotation_6d")
    np.testing.assert_allclose(rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), (100, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-9)


@pytest.mark.parametrize("columns", [np.zeros(6), [1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, -1]])
def test_columns_that_are_no_rotation_at_all_still_give_one(columns: list[float]) -> None:
    rotation = to_matrix(np.asarray(columns, dtype=np.float32), "rotation_6d")
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)


def test_a_zero_quaternion_as_padding_gives_no_nan() -> None:
    np.testing.assert_array_equal(to_matrix(np.zeros((2, 4), dtype=np.float32), "quaternion_xyzw")[1], np.eye(3))


@pytest.mark.parametrize(
    ("values", "representation"),
    [
        ([0.0, 0.0, 0.0, 0.5], "quaternion_xyzw"),
        ([0.0] * 4, "quaternion_wxyz"),
        ([1.0, 0, 0, 1.0, 0, 0], "rotation_6d"),
    ],
)
def test_numbers_that_are_no_rotation_are_refused(values: list[float], representation: str) -> None:
    with pytest.raises(ValueError, match=rf"hand is \[.*no {representation}: are these the dims"):
        require_rotations(np.array([values]), representation, "hand")
