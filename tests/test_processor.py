"""The processor: raw robot data in, model tensors out, and back; saved and loaded without a difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedConfig

from priorvla.configuration.embodiment import Embodiment, NormalizationMode, RotationGroup
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-2, 3, shape).astype(np.float32)


def image(height: int = 28, width: int = 28, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def embodiment(name: str, action_dim: int, state_dim: int, cameras: list[str]) -> Embodiment:
    body = Embodiment(
        name=name,
        action_names=[f"a{i}" for i in range(action_dim)],
        state_names=[f"s{i}" for i in range(state_dim)],
        control_rate=10.0,
        cameras=cameras,
        state_normalization=NormalizationMode.MEAN_STD,
    )
    return body.with_statistics(random(50, state_dim, seed=1), random(50, action_dim, seed=2))


@pytest.fixture(scope="module")
def embodiments() -> list[Embodiment]:
    return [embodiment("arm", 4, 3, ["front", "wrist"]), embodiment("humanoid", 6, 5, ["head"])]


@pytest.fixture(scope="module")
def processor(tiny_backbone: Path, embodiments: list[Embodiment]) -> PriorVLAProcessor:
    return PriorVLAProcessor.for_backbone(tiny_backbone, embodiments, chunk_size=5, max_text_length=8)


def mixed_batch(processor: PriorVLAProcessor) -> dict[str, torch.Tensor]:
    return processor(
        embodiment=["arm", "humanoid"],
        state=[random(3), random(5)],
        actions=[random(5, 4), random(2, 6)],
        states=[random(5, 3), random(2, 5)],
        images=[{"wrist": image()}, {"head": image(seed=1)}],
        text=["open the drawer", "pick up"],
        history_states=[random(4, 3), random(2, 5)],
        history_actions=[random(4, 4), random(2, 6)],
    )


def test_a_batch_has_the_shapes_and_types_of_the_design(processor: PriorVLAProcessor) -> None:
    batch = mixed_batch(processor)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "embodiment_ids": (2,),
        "state": (2, 5),
        "actions": (2, 5, 6),
        "action_mask": (2, 5, 6),
        "states": (2, 5, 5),
        "pixel_values": (2, 2, 3, 28, 28),
        "pixel_attention_mask": (2, 2),
        "input_ids": (2, 8),
        "attention_mask": (2, 8),
        "history_states": (2, 4, 5),
        "history_actions": (2, 4, 6),
        "history_mask": (2, 4),
    }
    assert batch["embodiment_ids"].tolist() == [0, 1]
    for name in ("action_mask", "pixel_attention_mask", "history_mask"):
        assert batch[name].dtype == torch.bool, name
    for name in ("state", "actions", "states", "pixel_values", "history_states", "history_actions"):
        assert batch[name].dtype == torch.float32, name
    for name in ("embodiment_ids", "input_ids", "attention_mask"):
        assert batch[name].dtype == torch.long, name
    assert set(batch) <= set(processor.model_input_names)


def test_real_values_are_normalised_and_padding_is_zero(
    processor: PriorVLAProcessor, embodiments: list[Embodiment]
) -> None:
    batch = mixed_batch(processor)
    arm, humanoid = embodiments
    np.testing.assert_array_equal(batch["actions"][0, :, :4], arm.normalize_actions(random(5, 4)))
    np.testing.assert_array_equal(batch["actions"][1, :2], humanoid.normalize_actions(random(2, 6)))
    np.testing.assert_array_equal(batch["state"][0, :3], arm.normalize_state(random(3)))
    np.testing.assert_array_equal(batch["history_actions"][1, 2:], humanoid.normalize_actions(random(2, 6)))
    assert batch["action_mask"][0].equal(torch.tensor([True] * 4 + [False] * 2).expand(5, 6))
    assert batch["action_mask"][1].any(1).tolist() == [True, True, False, False, False]
    assert batch["history_mask"][1].tolist() == [False, False, True, True]
    assert batch["actions"][~batch["action_mask"]].eq(0).all()
    assert batch["state"][0, 3:].eq(0).all()
    assert batch["states"][1, 2:].eq(0).all()
    assert batch["history_states"][1, :2].eq(0).all()


def test_one_example_is_a_batch_of_one(processor: PriorVLAProcessor) -> None:
    single = processor(
        embodiment="arm", state=random(3), actions=random(5, 4), images={"front": image()}, text="open the door"
    )
    listed = processor(
        embodiment=["arm"],
        state=random(1, 3),
        actions=random(1, 5, 4),
        images=[{"front": image()}],
        text=["open the door"],
    )
    assert all(torch.equal(single[name], listed[name]) for name in listed)
    assert len(single["embodiment_ids"]) == 1


def test_one_embodiment_and_one_text_serve_a_whole_batch(processor: PriorVLAProcessor) -> None:
    batch = processor(embodiment="arm", state=random(3, 3).tolist(), text="open the door")
    assert batch["embodiment_ids"].tolist() == [0, 0, 0]
    assert batch["input_ids"].shape == (3, 8)


def test_without_actions_the_mask_tells_which_dims_to_sample(processor: PriorVLAProcessor) -> None:
    batch = processor(embodiment=["humanoid", "arm"])
    assert set(batch) == {"embodiment_ids", "action_mask"}
    assert batch["action_mask"].sum((1, 2)).tolist() == [5 * 6, 5 * 4]


@pytest.mark.parametrize("whole_steps", [True, False])
def test_masked_actions_are_zero(processor: PriorVLAProcessor, whole_steps: bool) -> None:
    mask = np.array([True, True, False])
    mask = mask if whole_steps else np.repeat(mask[:, None], 4, axis=1)
    batch = processor(embodiment="arm", actions=random(3, 4), action_mask=mask)
    assert batch["action_mask"][0, :, :4].all(1).tolist() == [True, True, False, False, False]
    assert batch["actions"][0, 2:].eq(0).all()


def test_cameras_go_to_their_slots_and_absent_ones_are_masked(processor: PriorVLAProcessor) -> None:
    batch = mixed_batch(processor)
    assert batch["pixel_attention_mask"].tolist() == [[False, True], [True, False]]
    assert batch["pixel_values"][~batch["pixel_attention_mask"]].eq(0).all()
    settings = processor.image_processor
    expected = (image() / 255 - np.array(settings.image_mean)) / np.array(settings.image_std)
    np.testing.assert_allclose(batch["pixel_values"][0, 1], expected.transpose(2, 0, 1), atol=1e-5)
    none = processor(embodiment="arm", images={})
    assert none["pixel_values"].shape == (1, 2, 3, 28, 28)
    assert not none["pixel_values"].any()


def test_pil_images_and_other_sizes_are_taken(processor: PriorVLAProcessor) -> None:
    array = processor(embodiment="arm", images={"front": image(40, 56)})["pixel_values"]
    pil = processor(embodiment="arm", images={"front": Image.fromarray(image(40, 56))})["pixel_values"]
    assert torch.equal(array, pil)
    assert array.shape == (1, 2, 3, 28, 28)


def test_a_long_text_is_cut_with_a_warning(processor: PriorVLAProcessor, caplog: pytest.LogCaptureFixture) -> None:
    long = "pick up the red block now close the drawer"
    with caplog.at_level("WARNING"):
        from transformers.utils import logging

        logging.get_logger("transformers").propagate = True
        tokens = processor(embodiment="arm", text=long)
        logging.get_logger("transformers").propagate = False
    assert tokens["attention_mask"].sum() == 8
    assert "11 tokens is cut to max_text_length=8" in caplog.text


def test_actions_come_back_in_raw_units(processor: PriorVLAProcessor) -> None:
    raw = random(5, 4)
    batch = processor(embodiment=["arm", "humanoid"], actions=[raw, random(5, 6)])
    decoded = processor.decode_actions(batch["actions"][:1], "arm", state=random(3))
    assert decoded.shape == (1, 5, 4)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded[0], raw, atol=1e-5)
    low_precision = processor.decode_actions(batch["actions"][0].bfloat16(), "arm")
    np.testing.assert_allclose(low_precision, raw, atol=0.05)


@pytest.fixture(scope="module")
def turning() -> PriorVLAProcessor:
    """Two bodies: one learns a pose relative to the state (8 raw dims, 10 learned), the other 4 dims as recorded."""
    names = ["x", "y", "z", "qx", "qy", "qz", "qw", "grip"]
    body = Embodiment(
        "hand",
        names,
        names[:7],
        10.0,
        gripper_dims=[7],
        learned_kinds=["relative"] * 7 + ["absolute"],
        rotations=[RotationGroup([3, 4, 5, 6], [3, 4, 5, 6], "quaternion_xyzw")],
    )
    actions, states = poses(30 * 5, 8, seed=3).reshape(30, 5, 8), poses(30, 7, seed=4)
    return PriorVLAProcessor(
        embodiments=[body.with_statistics(states, actions), embodiment("arm", 4, 3, [])], chunk_size=5
    )


def poses(steps: int, dims: int, seed: int) -> np.ndarray:
    values = random(steps, dims, seed=seed)
    values[:, 3:7] /= np.linalg.norm(values[:, 3:7], axis=-1, keepdims=True)
    return values


def turned_to(values: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`values` with the sign of quaternion that `other` has."""
    signs = np.sign((values[..., 3:7] * other[..., 3:7]).sum(-1, keepdims=True))
    return np.concatenate([values[..., :3], signs * values[..., 3:7], values[..., 7:]], axis=-1)


@pytest.mark.parametrize("given", ["state", "states"])
def test_actions_relative_to_the_state_come_back_by_the_same_state(turning: PriorVLAProcessor, given: str) -> None:
    actions, states = poses(4, 8, seed=5), poses(4, 7, seed=6)
    batch = turning(embodiment="hand", actions=actions, **{given: states if given == "states" else states[0]})
    assert batch["actions"].shape == batch["action_mask"].shape == (1, 5, 10)
    assert batch["action_mask"][0, :4].all() and not batch["action_mask"][0, 4].any()
    body = turning.embodiment("hand")
    np.testing.assert_array_equal(batch["actions"][0, :4], body.normalize_actions(actions, states[0]))
    decoded = turning.decode_actions(batch["actions"], "hand", state=states[0])
    assert decoded.shape == (1, 5, 8)
    np.testing.assert_allclose(turned_to(decoded[0, :4], actions), actions, atol=1e-5)
    assert (decoded[0, 0, 3:7] @ states[0, 3:7]) > 0  # the sign goes on from the state's


def test_the_state_of_a_chunks_first_step_is_what_its_actions_are_relative_to(turning: PriorVLAProcessor) -> None:
    actions, states = poses(4, 8, seed=5), poses(4, 7, seed=6)
    both = turning(embodiment="hand", actions=actions, states=states, state=poses(1, 7, seed=9)[0])
    alone = turning(embodiment="hand", actions=actions, states=states)
    assert torch.equal(both["actions"], alone["actions"])


def test_bodies_of_other_learned_dims_are_padded_to_the_widest_of_them(turning: PriorVLAProcessor) -> None:
    states = [poses(2, 7, seed=6), random(2, 3)]
    batch = turning(embodiment=["hand", "arm"], actions=[poses(2, 8, seed=5), random(2, 4)], states=states)
    assert batch["actions"].shape == (2, 5, 10) and batch["states"].shape == (2, 5, 9)
    assert batch["action_mask"][:, 0].sum(-1).tolist() == [10, 4]
    np.testing.assert_allclose(turning.decode_actions(batch["actions"][1:], "arm")[0, :2], random(2, 4), atol=1e-5)


def test_every_chunk_of_a_batch_is_decoded_with_its_own_state(turning: PriorVLAProcessor) -> None:
    states, chunks = poses(3, 7, seed=6), torch.from_numpy(random(3, 5, 10))
    together = turning.decode_actions(chunks, "hand", state=states)
    alone = [turning.decode_actions(chunk, "hand", state=state) for chunk, state in zip(chunks, states, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_state_that_is_needed_and_missing_is_asked_for(turning: PriorVLAProcessor) -> None:
    with pytest.raises(ValueError, match=r"'hand' learns relative actions.*pass the raw state \(7 dims\)"):
        turning(embodiment="hand", actions=poses(4, 8, seed=5))
    with pytest.raises(ValueError, match=r"'hand' learns relative actions.*pass the raw state \(7 dims\)"):
        turning.decode_actions(random(5, 10), "hand")


def test_a_history_is_relative_to_its_first_real_step(turning: PriorVLAProcessor) -> None:
    actions, states = poses(3, 8, seed=5), poses(3, 7, seed=6)
    body = turning.embodiment("hand")
    expected = body.normalize_actions(actions, states[0])
    short = turning(embodiment="hand", history_states=states, history_actions=actions)
    np.testing.assert_array_equal(short["history_actions"][0], expected)
    blank = np.zeros((2, 8), dtype=np.float32)  # no rotation, and never looked at
    padded = turning(
        embodiment="hand",
        history_states=np.concatenate([blank[:, :7], states]),
        history_actions=np.concatenate([blank, actions]),
        history_mask=[False, False, True, True, True],
    )
    assert padded["history_actions"][0, :2].eq(0).all() and padded["history_states"][0, :2].eq(0).all()
    np.testing.assert_array_equal(padded["history_actions"][0, 2:], expected)


def test_a_rotation_with_a_masked_number_is_masked_as_a_whole(turning: PriorVLAProcessor) -> None:
    mask = np.ones((4, 8), dtype=bool)
    mask[:, 4] = False
    batch = turning(embodiment="hand", actions=poses(4, 8, seed=5), state=poses(1, 7, seed=6)[0], action_mask=mask)
    assert batch["action_mask"][0, 0].tolist() == [True] * 3 + [False] * 6 + [True]
    assert batch["actions"][0, :, 3:9].eq(0).all()


def test_padding_by_a_wider_embodiment_changes_nothing_of_a_narrower(
    tiny_backbone: Path, embodiments: list[Embodiment], processor: PriorVLAProcessor
) -> None:
    alone = PriorVLAProcessor.for_backbone(tiny_backbone, embodiments[:1], chunk_size=5, max_text_length=8)
    few, many = (p(embodiment="arm", state=random(3), actions=random(5, 4)) for p in (alone, processor))
    assert torch.equal(few["state"], many["state"][:, :3])
    assert torch.equal(few["actions"], many["actions"][..., :4])


@pytest.mark.parametrize("auto", [True, False])
def test_it_is_saved_and_loaded_without_a_difference(processor: PriorVLAProcessor, tmp_path: Path, auto: bool) -> None:
    processor.save_pretrained(tmp_path / "first")
    (tmp_path / "first" / "config.json").write_text(json.dumps({"model_type": "test-priorvla-processor"}))
    if auto:

        class Config(PreTrainedConfig):
            model_type = "test-priorvla-processor"

        AutoProcessor.register(Config, PriorVLAProcessor, exist_ok=True)
    loaded = (AutoProcessor if auto else PriorVLAProcessor).from_pretrained(tmp_path / "first")
    assert type(loaded) is PriorVLAProcessor
    assert loaded.embodiments == processor.embodiments
    assert (loaded.chunk_size, loaded.max_text_length) == (5, 8)
    before, after = mixed_batch(processor), mixed_batch(loaded)
    assert all(torch.equal(before[name], after[name]) for name in before)
    np.testing.assert_array_equal(
        processor.decode_actions(before["actions"], "arm"), loaded.decode_actions(before["actions"], "arm")
    )
    loaded.save_pretrained(tmp_path / "second")
    for file in ("processor_config.json", "embodiments.json", "tokenizer.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_the_processor_of_an_action_prior_has_no_eyes_and_no_words(
    embodiments: list[Embodiment], tmp_path: Path
) -> None:
    processor = PriorVLAProcessor(embodiments=[body.to_dict() for body in embodiments], chunk_size=5)
    processor.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embodiments.json", "processor_config.json"]
    loaded = PriorVLAProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor is None
    assert loaded.tokenizer is None
    assert loaded.embodiments == embodiments
    with pytest.raises(ValueError, match="no image_processor"):
        loaded(embodiment="arm", images={"front": image()})
    with pytest.raises(ValueError, match="no tokenizer"):
        loaded(embodiment="arm", text="open the door")


def test_a_folder_without_embodiments_is_refused(processor: PriorVLAProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "embodiments.json").unlink()
    with pytest.raises(OSError, match=r"embodiments\.json"):
        PriorVLAProcessor.from_pretrained(tmp_path)


def with_nan(values: np.ndarray) -> np.ndarray:
    values[-1, -1] = np.nan
    return values


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embodiment": "so101"}, ValueError, "'so101' is unknown.*arm, humanoid"),
        ({"state": random(5)}, ValueError, "'arm' has 3 state dims, got 5"),
        ({"state": random(2, 2, 3)}, ValueError, r"state has shape \(2, 2, 3\)"),
        ({"actions": random(5, 6)}, ValueError, "'arm' has 4 action dims, got 6"),
        ({"actions": with_nan(random(5, 4))}, ValueError, "'arm': action is nan .*'a3'"),
        ({"actions": random(6, 4)}, ValueError, "6 steps, chunk_size is 5"),
        ({"actions": random(5, 4), "states": random(4, 3)}, ValueError, "actions 5, states 4"),
        (
            {"actions": random(5, 4), "action_mask": np.ones((5, 3))},
            ValueError,
            r"\(5, 3\), expected \(5,\) or \(5, 4\)",
        ),
        ({"action_mask": np.ones(5)}, ValueError, "without actions"),
        ({"state": random(2, 3), "text": ["a", "b", "c"]}, ValueError, "state 2, text 3"),
        ({"state": random(0, 3)}, ValueError, "state"),
        ({"images": {"side": image()}}, ValueError, "no camera 'side'.*front, wrist"),
        ({"images": {"front": image() / 255.0}}, TypeError, "'front'.*float64.*uint8"),
        ({"images": {"front": image()[..., 0]}}, ValueError, r"'front'.*\(28, 28\)"),
        ({"text": [3]}, TypeError, "text of example 0 is a int"),
        ({"history_states": random(2, 3)}, ValueError, "history_actions is missing"),
    ],
)
def test_bad_input_is_refused_by_name(
    processor: PriorVLAProcessor, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        processor(**{"embodiment": "arm", **arguments})


def test_bad_chunks_and_settings_are_refused(processor: PriorVLAProcessor, embodiments: list[Embodiment]) -> None:
    with pytest.raises(ValueError, match=r"expected \(\.\.\., H, 6\).*'arm' has 4"):
        processor.decode_actions(random(5, 5), "arm")
    with pytest.raises(ValueError, match="'nobody' is unknown"):
        processor.decode_actions(random(5, 6), "nobody")
    with pytest.raises(ValueError, match="nan"):
        processor.decode_actions(with_nan(random(5, 6)), "humanoid")
    with pytest.raises(ValueError, match="'arm' is given 2 times"):
        PriorVLAProcessor(embodiments=[embodiments[0], replace(embodiments[1], name="arm")])
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        PriorVLAProcessor(chunk_size=0)
    with pytest.raises(TypeError, match="image_processor"):
        PriorVLAProcessor(image_processor=processor.tokenizer)
