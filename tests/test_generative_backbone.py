"""Generative backbones: what they are tapped for is what transformers computes, in two phases that cannot mix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.backbone import VisionFeatures, describe_backbone, load_backbone
from priorvla.modeling_priorvla.generative_backbone import GenerativeBackbone, ImageFrame
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

TAPS = (0, 1, 3, 4)
WORDS = torch.tensor([[6, 8, 9, 17], [13, 14, 8, 15]])


@pytest.fixture(scope="module")
def backbone(tiny_smolvlm: Path) -> GenerativeBackbone:
    loaded = load_backbone(None, tiny_smolvlm)
    assert isinstance(loaded, GenerativeBackbone)
    return loaded


def pixels(batch: int = 2, cameras: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, cameras, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def test_its_sizes_are_told_before_it_is_loaded(backbone: GenerativeBackbone, tiny_smolvlm: Path) -> None:
    reference = describe_backbone(tiny_smolvlm, source="hub", name="owner/tiny")
    vision = backbone.encode_vision(pixels())
    assert vision.hidden_states.shape == (2, 1, 2 * reference["tokens_per_image"], reference["vision_hidden_size"])
    assert reference["image_size"] == [28, 28] and reference["tokens_per_image"] == 4
    assert (reference["num_layers"], reference["tail_hidden_size"], reference["language_reads_vision"]) == (4, 32, True)
    assert load_backbone(reference, tiny_smolvlm).sha256 == reference["sha256"]


def test_the_familys_tokens_stand_around_every_image(backbone: GenerativeBackbone, tiny_smolvlm: Path) -> None:
    from transformers import AutoTokenizer

    frame, tokenizer = backbone.frame, AutoTokenizer.from_pretrained(tiny_smolvlm)
    names = [tokenizer.convert_ids_to_tokens(list(part)) for part in (frame.start, frame.before, frame.after)]
    fake = "<fake_token_around_image>"
    assert names == [["<|im_start|>"], [fake, "<global-img>"], [fake]]


def test_another_prompt_leaves_vision_bit_identical_and_its_cache_as_it_was(backbone: GenerativeBackbone) -> None:
    vision = backbone.encode_vision(pixels(), taps=TAPS)
    untouched = backbone.encode_vision(pixels(), taps=TAPS)
    first = backbone.encode_language(vision, WORDS, taps=TAPS)
    other = backbone.encode_language(vision, WORDS.flip(1), taps=TAPS)
    again = backbone.encode_language(vision, WORDS, taps=TAPS)
    assert not torch.equal(first.hidden_states, other.hidden_states)
    assert torch.equal(first.hidden_states, again.hidden_states)
    assert torch.equal(vision.hidden_states, untouched.hidden_states)
    for used, unused in zip(vision.cache.keys_values.layers, untouched.cache.keys_values.layers, strict=True):
        assert torch.equal(used.keys, unused.keys) and torch.equal(used.values, unused.values)


def test_gradients_reach_the_tails_embeddings_through_frozen_weights(backbone: GenerativeBackbone) -> None:
    language = backbone.encode_language(backbone.encode_vision(pixels()), WORDS)
    embeddings = torch.zeros(2, 3, 32, requires_grad=True)
    backbone.encode_tail(language, embeddings)[:, -1].sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().amax(dim=-1).gt(0).all()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_padding_before_words_changes_nothing(backbone: GenerativeBackbone) -> None:
    place = slice(3, 7)
    padded_words, mask = torch.full((2, 7), 7), torch.zeros(2, 7)
    padded_words[:, place], mask[:, place] = WORDS, 1
    vision = backbone.encode_vision(pixels())
    plain = backbone.encode_language(vision, WORDS, taps=TAPS)
    padded = backbone.encode_language(vision, padded_words, mask, taps=TAPS)
    torch.testing.assert_close(padded.hidden_states[:, :, place], plain.hidden_states, atol=1e-5, rtol=0)
    assert padded.hidden_states.transpose(1, 2)[mask == 0].eq(0).all()
    tails = [backbone.encode_tail(language, torch.ones(2, 2, 32)) for language in (plain, padded)]
    torch.testing.assert_close(*tails, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_camera_and_no_words_give_zeros(tiny_smolvlm: Path, dtype: str) -> None:
    backbone = load_backbone({"source": "hub", "name": "owner/tiny", "dtype": dtype}, tiny_smolvlm)
    for frame in (backbone.frame, ImageFrame()):
        backbone.frame = frame
        vision = backbone.encode_vision(pixels(), torch.zeros(2, 2))
        language = backbone.encode_language(vision, WORDS, torch.zeros_like(WORDS))
        assert vision.hidden_states.dtype == language.hidden_states.dtype == getattr(torch, dtype)
        assert vision.hidden_states.eq(0).all() and language.hidden_states.eq(0).all()
        assert backbone.encode_tail(language, torch.ones(2, 1, 32)).isfinite().all()


def test_an_image_of_one_grey_is_seen(backbone: GenerativeBackbone) -> None:
    assert backbone.encode_vision(torch.zeros(1, 2, 3, 28, 28)).hidden_states.abs().amax(dim=-1).gt(0).all()


def test_what_it_cannot_do_is_said(backbone: GenerativeBackbone) -> None:
    vision = backbone.encode_vision(pixels())
    cached = VisionFeatures(vision.hidden_states, vision.mask, vision.num_cameras, vision.taps)
    for missing in (None, cached):
        with pytest.raises(ValueError, match="pass the vision features that encode_vision returned"):
            backbone.encode_language(missing, WORDS)
    with pytest.raises(ValueError, match="3 rows are to continue from 2"):
        backbone.encode_language(vision, WORDS[:1].expand(3, -1))
    with pytest.raises(ValueError, match=r"square images of a multiple of 2 patches of 7 pixels, got \(28, 42\)"):
        backbone.encode_vision(torch.zeros(1, 1, 3, 28, 42))


def test_gradient_checkpointing_which_drops_the_cache_is_refused(tiny_smolvlm: Path) -> None:
    backbone = load_backbone(None, tiny_smolvlm)
    backbone.requires_grad_(True).train()
    backbone.model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="leave gradient checkpointing to the expert"):
        backbone.encode_vision(pixels())


def test_a_language_model_with_a_sliding_window_serves_sequences_that_fit_into_it() -> None:
    from transformers import MistralConfig, SmolVLMConfig, SmolVLMModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = MistralConfig(sliding_window=8, num_key_value_heads=2, vocab_size=20, **sizes)
    model = SmolVLMModel(SmolVLMConfig(vision_config={"image_size": 28, "patch_size": 7, **sizes}, text_config=text))
    backbone = load_backbone(None, model)
    vision = backbone.encode_vision(pixels(batch=1, cameras=1))  # 4 tokens
    assert backbone.encode_language(vision, WORDS[:1] % 8).hidden_states.isfinite().all()
    with pytest.raises(ValueError, match="images and words are 12 tokens, layers of this language model see 8: use"):
        backbone.encode_language(vision, torch.ones(1, 8, dtype=torch.long))


def test_the_processor_gives_it_one_square_an_image(backbone: GenerativeBackbone, tiny_smolvlm: Path) -> None:
    body = Embodiment("arm", ["a"], ["s"], 10.0, cameras=["front", "wrist"])
    processor = PriorVLAProcessor.for_backbone(tiny_smolvlm, [body], max_text_length=6)
    wide, square = np.full((28, 56, 3), 255, np.uint8), np.zeros((200, 200, 3), np.uint8)
    batch = processor(embodiment="arm", images=[{"wrist": wide, "front": square}, {}], text="open the drawer")
    assert batch["pixel_values"].shape == (2, 2, 3, 28, 28)
    assert batch["pixel_values"][0].mean((1, 2, 3)).tolist() == [-1, 1]
    language = backbone.encode_language(
        backbone.encode_vision(batch["pixel_values"], batch["pixel_attention_mask"]),
        batch["input_ids"],
        batch["attention_mask"],
    )
    assert language.mask.sum(dim=1).tolist() == [3, 3]
