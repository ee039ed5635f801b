"""openpi's keys to an observation of one robot: which camera is which, and what is refused with a remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.serving.client_requests import BadRequestError, RequestReader

_RANDOM = np.random.default_rng(0)
ARM = Embodiment("arm", ["x", "y"], ["a", "b", "c"], 10.0, cameras=["top", "wrist"]).with_statistics(
    _RANDOM.normal(size=(50, 3)), _RANDOM.normal(size=(50, 2))
)
PICTURES = {
    "top": np.full((4, 6, 3), 10, dtype=np.uint8),
    "wrist": np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3),
}


@pytest.fixture
def reader() -> RequestReader:
    return RequestReader(ARM, chunk_size=6, language=True)


def request(**changes) -> dict:
    """A request in openpi's own keys; `None` leaves one out."""
    message = {
        "observation/image": PICTURES["top"],
        "observation/wrist_image": PICTURES["wrist"],
        "observation/state": np.array([1.0, 2.0, 3.0]),
        "prompt": "open the drawer",
        **{key.replace("__", "/"): value for key, value in changes.items()},
    }
    return {key: value for key, value in message.items() if value is not None}


def assert_sees_the_pictures(observation: dict) -> None:
    assert list(observation["images"]) == ["top", "wrist"]
    for camera, picture in PICTURES.items():
        np.testing.assert_array_equal(observation["images"][camera], picture)


def test_openpis_two_pictures_are_the_first_and_the_second_camera(reader):
    read = reader.read(request())
    assert reader.positional_cameras == {"observation/image": "top", "observation/wrist_image": "wrist"}
    assert_sees_the_pictures(read.observation)
    assert read.observation["state"].dtype == np.float32 and read.observation["state"].tolist() == [1, 2, 3]
    assert read.observation["instruction"] == "open the drawer"
    assert (read.reset, read.seed, read.executed, read.prefix) == (False, None, None, None)


def test_cameras_may_be_named_flat_or_nested_and_heights_may_come_last(reader):
    without = {"observation__image": None, "observation__wrist_image": None}
    flat = {f"observation__images__{camera}": picture for camera, picture in PICTURES.items()}
    short = {f"observation__{camera}": picture for camera, picture in PICTURES.items()}
    aloha = {"images": {camera: picture.transpose(2, 0, 1) for camera, picture in PICTURES.items()}}
    for pictures in (flat, short, aloha):
        assert_sees_the_pictures(reader.read(request(**without, **pictures)).observation)


def test_a_cameras_own_name_goes_before_its_place():
    wrist_first = replace(ARM, cameras=["wrist_image", "image"])
    read = RequestReader(wrist_first, chunk_size=6, language=False).read(request())
    np.testing.assert_array_equal(read.observation["images"]["wrist_image"], PICTURES["wrist"])
    np.testing.assert_array_equal(read.observation["images"]["image"], PICTURES["top"])


def test_a_named_picture_goes_before_a_positional_one(reader):
    other = np.full_like(PICTURES["top"], 99)
    read = reader.read(request(observation__image=other, observation__images__top=PICTURES["top"]))
    np.testing.assert_array_equal(read.observation["images"]["top"], PICTURES["top"])


def test_what_the_robot_does_not_have_is_left_alone(reader):
    read = reader.read(request(observation__images__third=PICTURES["top"], timestamp=12.5))
    assert list(read.observation["images"]) == ["top", "wrist"]


def test_a_model_that_cannot_read_needs_no_prompt():
    assert "instruction" not in RequestReader(ARM, chunk_size=6, language=False).read(request(prompt=None)).observation


def test_an_episode_begins_with_a_seed_or_without(reader):
    assert reader.read(request(reset=True)).reset and reader.read(request(reset=True)).seed is None
    assert reader.read(request(reset=np.True_, seed=np.int64(7))).seed == 7


def test_what_was_executed_comes_with_the_next_request(reader):
    states, actions = reader.read(request(executed__states=np.ones((4, 3)), executed__actions=np.ones((4, 2)))).executed
    assert states.shape == (4, 3) and actions.shape == (4, 2) and states.dtype == np.float32


def test_what_will_be_executed_anyway_may_come_along(reader):
    assert reader.read(request(prefix__actions=np.ones((6, 2)))).prefix.shape == (6, 2)
    assert reader.read(request(prefix__actions=np.ones((0, 2)))).prefix.shape == (0, 2)


picture = PICTURES["top"]
REFUSED = {
    "no state": ({"observation__state": None}, "observation/state is missing: send the 3 numbers"),
    "a state of another robot": ({"observation__state": np.zeros(4)}, r"shape \(4,\): send \(3,\)"),
    "a state in a batch": ({"observation__state": np.zeros((1, 3))}, r"shape \(1, 3\): send \(3,\)"),
    "a state of words": ({"observation__state": ["a", "b", "c"]}, "observation/state is a list: send .* numbers"),
    "a ragged state": ({"observation__state": [1, [2, 3]]}, "observation/state"),
    "a state that is not a number": ({"observation__state": [1, 2, float("nan")]}, "not finite"),
    "a state beyond float32": ({"observation__state": [1, 2, 1e300]}, "not finite"),
    "a state that no robot measures": (
        {"observation__state": [1, 2, 3e38]},
        "observation/state is more than 1e.06 ranges",
    ),
    "a prefix that no robot does": ({"prefix__actions": np.full((2, 2), 3e38)}, "prefix/actions is more than"),
    "no first camera": ({"observation__image": None}, "camera 'top' is missing: .*observation/images/top or .*"),
    "no second camera": ({"observation__wrist_image": None}, "camera 'wrist' is missing"),
    "a float image": ({"observation__image": picture / 255}, "float64 array: multiply by 255 .* send uint8"),
    "an image in int64": ({"observation__image": picture.astype(int)}, "int64 array: send uint8"),
    "an image as lists": ({"observation__image": picture.tolist()}, "observation/image is a list: send uint8"),
    "a grey image": ({"observation__image": picture[..., 0]}, r"shape \(4, 6\): send \(height, width, 3\)"),
    "a batch of images": ({"observation__image": picture[None]}, r"shape \(1, 4, 6, 3\)"),
    "an image with alpha": ({"observation__image": np.zeros((4, 6, 4), np.uint8)}, r"shape \(4, 6, 4\)"),
    "an image without pixels": ({"observation__image": np.zeros((0, 6, 3), np.uint8)}, r"shape \(0, 6, 3\)"),
    "images in a list": ({"observation__image": None, "images": [picture]}, "images is a list: send a map"),
    "no prompt": ({"prompt": None}, "prompt is missing: send the instruction"),
    "a prompt of bytes": ({"prompt": b"go"}, "prompt is a bytes"),
    "a book": ({"prompt": "go " * 10_000}, "30000 characters: send at most 2000"),
    "a reset that is neither": ({"reset": 1}, "reset is a int: send true or false"),
    "a seed without a reset": ({"seed": 3}, "send reset: true with it"),
    "a seed below zero": ({"reset": True, "seed": -1}, "seed is no whole number from 0"),
    "a seed that is true": ({"reset": True, "seed": True}, "seed is no whole number from 0"),
    "half a past": ({"executed__states": np.zeros((2, 3))}, "belong together"),
    "a prefix longer than a chunk": ({"prefix__actions": np.zeros((7, 2))}, "7 steps: a chunk has 6"),
    "another robot's prefix": ({"prefix__actions": np.zeros((3, 7))}, r"shape \(3, 7\): send \(n, 2\)"),
    "a past that no robot measured": (
        {"executed__states": np.full((2, 3), -3e38), "executed__actions": np.zeros((2, 2))},
        "executed/states is more than",
    ),
    "a past that no robot did": (
        {"executed__states": np.zeros((2, 3)), "executed__actions": np.full((2, 2), 3e38)},
        "executed/actions is more than",
    ),
    "a past without an end": (
        {"executed__states": np.zeros((4097, 3)), "executed__actions": np.zeros((4097, 2))},
        "executed/states has 4097 steps: send the last 4096",
    ),
    "a past of two lengths": (
        {"executed__states": np.zeros((2, 3)), "executed__actions": np.zeros((3, 2))},
        r"executed/actions has shape \(3, 2\): send \(2, 2\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_names_the_key_and_the_remedy(reader, name):
    changes, message = REFUSED[name]
    with pytest.raises(BadRequestError, match=message):
        reader.read(request(**changes))


@pytest.mark.parametrize("message", [None, 3, "hello", [1, 2], np.zeros(3), b"x"])
def test_a_request_that_is_no_map_is_refused(reader, message):
    with pytest.raises(BadRequestError, match="a request is a map"):
        reader.read(message)
