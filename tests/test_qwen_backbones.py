"""Qwen's VLMs: images packed as their vision towers want them, positions in three axes, deepstack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from priorvla.modeling_priorvla.generative_backbone import ImageFrame
from priorvla.modeling_priorvla.qwen_vl_backbone import QwenVLBackbone, patches_in_merge_order

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IDS = {"vision_start_token_id": 1, "vision_end_token_id": 2, "image_token_id": 3, "video_token_id": 4}
FRAME = ImageFrame(start=(7, 8), before=(1,), after=(2, 9))
WORDS = torch.tensor([[10, 11, 12, 13], [14, 11, 15, 10]])
SIZE = (24, 40)  # pixels: 3 x 5 tokens, which leaves windows of 2 x 2 in part empty
TOKENS = 15
TAPS = (0, 1, 2, 3, 4)


def tiny(kind: str) -> QwenVLBackbone:
    """A language model of 4 layers, 32 wide; tokens of 8 pixels; two levels of deepstack where there is one."""
    text = {
        "vocab_size": 20,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 3, "num_heads": 2, "hidden_size": 16, "patch_size": 4, "initializer_range": 0.2}
    torch.manual_seed(0)
    if kind == "qwen2_vl":
        vision |= {"hidden_size": 32, "embed_dim": 16, "mlp_ratio": 2}
        return framed(Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision, **IDS)))
    vision |= {"intermediate_size": 24, "out_hidden_size": 32}
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        return framed(Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS)))
    del text["bos_token_id"], text["eos_token_id"]
    text |= {"head_dim": 16}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return framed(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision, **IDS)))


def framed(model: Any) -> QwenVLBackbone:
    backbone = QwenVLBackbone(model, SIZE)
    backbone.frame = FRAME
    return backbone


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest) -> QwenVLBackbone:
    return tiny(request.param)


def photographs(count: int, size: tuple[int, int] = SIZE) -> tuple[list[np.ndarray], Tensor]:
    """Random images, as bytes (h, w, 3) and as the processor normalises them (count, 3, h, w)."""
    images = list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor().image_mean, processor().image_std))
    return images, (pixels - mean) / std


def processor(patch_size: int = 4, merge_size: int = 2) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=patch_size, merge_size=merge_size, size={"shortest_edge": 8 * 8, "longest_edge": 80 * 80}
    )


def whole_prompt(cameras: int) -> dict[str, Tensor]:
    """`FRAME` around `cameras` images and then `WORDS`, as transformers takes it."""
    prompt = [*FRAME.start, *[*FRAME.before, *[IDS["image_token_id"]] * TOKENS, *FRAME.after] * cameras]
    input_ids = torch.cat([torch.tensor(prompt).expand(len(WORDS), -1), WORDS], dim=1)
    grids = torch.tensor([[1, SIZE[0] // 4, SIZE[1] // 4]]).expand(len(WORDS) * cameras, -1)
    is_image = (input_ids == IDS["image_token_id"]).int()
    return {"input_ids": input_ids, "image_grid_thw": grids, "mm_token_type_ids": is_image}


@pytest.mark.parametrize(("patch_size", "merge_size", "size"), [(4, 2, (24, 40)), (7, 2, (42, 28)), (4, 3, (24, 36))])
def test_patches_are_those_of_qwens_own_image_processor(
    patch_size: int, merge_size: int, size: tuple[int, int]
) -> None:
    images, pixels = photographs(3, size)
    own = processor(patch_size, merge_size)(images, return_tensors="pt")
    patches = patches_in_merge_order(pixels, patch_size, merge_size, temporal_patch_size=2)
    assert own["image_grid_thw"].tolist() == [[1, size[0] // patch_size, size[1] // patch_size]] * 3
    torch.testing.assert_close(patches, own["pixel_values"], atol=1e-5, rtol=0)


def test_tokens_are_those_of_transformers_image_after_image(backbone: QwenVLBackbone) -> None:
    images, pixels = photographs(3)
    own = processor()(images, return_tensors="pt")
    features = backbone.model.get_image_features(own["pixel_values"], own["image_grid_thw"])
    tokens = backbone.image_tokens(pixels)
    torch.testing.assert_close(tokens.embeddings, torch.stack(list(features.pooler_output)), atol=1e-5, rtol=0)
    deeper = getattr(features, "deepstack_features", None) or ()
    assert len(tokens.deeper) == len(deeper) == (2 if backbone.model.config.model_type == "qwen3_vl" else 0)
    for found, expected in zip(tokens.deeper, deeper, strict=True):
        torch.testing.assert_close(found.flatten(0, 1), torch.vstack(list(expected)), atol=1e-5, rtol=0)


def test_tokens_stand_row_after_row() -> None:
    numbered = torch.arange(TOKENS).view(1, 1, 3, 5).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    patches = patches_in_merge_order(numbered.expand(2, 3, -1, -1), 4, 2, 2)
    assert patches.unflatten(0, (2, TOKENS, 4)).eq(torch.arange(TOKENS)[:, None, None]).all()


def test_an_image_is_seen_as_if_it_were_alone(backbone: QwenVLBackbone) -> None:
    _, pixels = photographs(3)
    tokens = backbone.image_tokens(pixels)
    others = pixels.clone()
    others[[0, 2]] = float("nan")
    for seen, besides_others in zip((tokens[0], *tokens[1]), _levels(backbone, others), strict=True):
        assert torch.equal(seen[1], besides_others[1])
    for seen, alone in zip((tokens[0], *tokens[1]), _levels(backbone, pixels[1:2]), strict=True):
        torch.testing.assert_close(seen[1:2], alone, atol=1e-5, rtol=0)


def _levels(backbone: QwenVLBackbone, pixels: Tensor) -> tuple[Tensor, ...]:
    tokens = backbone.image_tokens(pixels)
    return (tokens.embeddings, *tokens.deeper)


def test_taps_are_the_layers_of_a_plain_forward(backbone: QwenVLBackbone) -> None:
    images, pixels = photographs(4)
    vision = backbone.encode_vision(pixels.unflatten(0, (2, 2)), taps=TAPS)
    language = backbone.encode_language(vision, WORDS, taps=TAPS)
    patches, prompt = processor()(images, return_tensors="pt")["pixel_values"], whole_prompt(cameras=2)
    states = backbone.model(**prompt, pixel_values=patches, output_hidden_states=True).hidden_states
    is_image = prompt["mm_token_type_ids"][0].bool()
    for tap in TAPS:
        torch.testing.assert_close(vision.tap(tap), states[tap][:, is_image], atol=2e-5, rtol=0)
        torch.testing.assert_close(language.tap(tap), states[tap][:, -WORDS.shape[1] :], atol=2e-5, rtol=0)


@pytest.mark.parametrize("present", [[[1, 1, 1], [1, 1, 1]], [[0, 1, 1], [1, 1, 0]]], ids=["all", "some"])
def test_positions_are_those_that_the_model_counts_itself(backbone: QwenVLBackbone, present: list[list[int]]) -> None:
    cameras, given = torch.tensor(present).bool(), []
    backbone.language_model.register_forward_pre_hook(
        lambda _, __, options: given.append(options["position_ids"]), with_kwargs=True
    )
    vision = backbone.encode_vision(photographs(6)[1].unflatten(0, (2, 3)), cameras)
    backbone.encode_tail(backbone.encode_language(vision, WORDS), torch.ones(2, 2, 32))
    prompt = whole_prompt(cameras=3)
    image = len(FRAME.before) + TOKENS + len(FRAME.after)
    mask = cameras.repeat_interleave(image, dim=1)
    mask = torch.cat([mask.new_ones(2, len(FRAME.start)), mask, mask.new_ones(2, WORDS.shape[1])], dim=1)
    prompt["image_grid_thw"] = prompt["image_grid_thw"][: cameras.sum()]
    expected, ahead = backbone.model.get_rope_index(**prompt, attention_mask=mask)
    assert torch.cat(given[:2], dim=2)[:, mask].equal(expected[:, mask])
    tail = mask.sum(dim=1, keepdim=True) + ahead + torch.arange(2)  # as transformers continues in generation
    assert given[2].equal(tail.expand(3, -1, -1))


def test_deepstack_reaches_the_image_tokens_behind_the_first_layers() -> None:
    backbone, (_, pixels) = tiny("qwen3_vl"), photographs(4)
    before = backbone.encode_vision(pixels.unflatten(0, (2, 2)), taps=TAPS)
    words = backbone.encode_language(before, WORDS)
    for merger in backbone.model.visual.deepstack_merger_list:
        torch.nn.init.zeros_(merger.linear_fc2.weight)
        torch.nn.init.zeros_(merger.linear_fc2.bias)
    after = backbone.encode_vision(pixels.unflatten(0, (2, 2)), taps=TAPS)
    for tap in (0, 1):
        assert torch.equal(before.tap(tap), after.tap(tap))
    for tap in (2, 3, 4):
        assert (before.tap(tap) - after.tap(tap)).abs().max() > 1e-2
    assert (words.hidden_states - backbone.encode_language(after, WORDS).hidden_states).abs().max() > 1e-2


@pytest.mark.parametrize("last", [1, 2, 3])
def test_truncated_amid_deepstack_its_taps_stay_the_same_bits(last: int) -> None:
    backbone, pixels = tiny("qwen3_vl"), photographs(4)[1].unflatten(0, (2, 2))
    whole = backbone.encode_vision(pixels, taps=(last,))
    words_of_whole = backbone.encode_language(whole, WORDS, taps=(last,))
    backbone.truncate(last)
    vision = backbone.encode_vision(pixels, taps=(last,))
    words = backbone.encode_language(vision, WORDS, taps=(last,))
    assert torch.equal(vision.hidden_states, whole.hidden_states)
    assert torch.equal(words.hidden_states, words_of_whole.hidden_states)
    assert len(backbone.image_tokens(pixels[0]).deeper) == min(last - 1, 2)


def test_a_size_that_is_no_multiple_of_a_token_is_refused_with_the_nearest_one() -> None:
    backbone = tiny("qwen3_vl")
    with pytest.raises(ValueError, match=r"multiples of 8 pixels, got \(30, 40\): use image_size=\[32, 40\]"):
        backbone.encode_vision(torch.zeros(1, 1, 3, 30, 40))
    with pytest.raises(ValueError, match=r"got \(3, 40\): use image_size=\[8, 40\]"):
        QwenVLBackbone(backbone.model, (3, 40))


def test_an_image_is_a_square_of_64_tokens_where_nobody_says_another_size() -> None:
    backbone = QwenVLBackbone(tiny("qwen2_5_vl").model)
    assert (backbone.image_size, backbone.tokens_per_image) == ((64, 64), 64)


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_vision_tokens_stand_around_every_image(tmp_path: Path, tiny_backbones: Any, prompt: str) -> None:
    folder = tiny_backbones.save_qwen3_vl(tmp_path)
    format_, tokenizer = QwenVLBackbone.prompt_format(folder, prompt), AutoTokenizer.from_pretrained(folder)
    assert (format_.before, format_.after) == ("<|vision_start|>", "<|vision_end|>")
    if prompt == "chat":
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "open the door"}]
        message = [{"role": "user", "content": content}]
        image = format_.before + "<|image_pad|>" + format_.after
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert format_.start + 2 * image + format_.text_template.format("open the door") == rendered
