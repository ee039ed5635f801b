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

from priorvla.configuration.embodiment import Embodiment, NormalizationMode
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
