"""How a backbone's tokens are taken in: of its first layers, on one scale, and told where they lie."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.backbone import DualEncoderBackbone, LanguageFeatures, VisionFeatures
from priorvla.modeling_priorvla.image_places import place_codes, placed, taken_in
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel


def test_codes_tell_every_place_apart_and_neighbours_are_alike() -> None:
    codes = place_codes(6, 8, 32)
    assert codes.shape == (48, 32) and codes.abs().max() <= 1
    distances = torch.cdist(codes, codes)
    apart = distances + 99 * torch.eye(48)
    assert apart.min() > 0.3
    beside, below, across = distances[0, 1], distances[0, 8], distances[0, 47]
    assert max(beside, below) < across
    torch.testing.assert_close(place_codes(2, 2, 30)[:, :28], place_codes(2, 2, 28))  # what is left over is zero


def test_the_same_place_has_the_same_code_in_every_camera_and_without_a_grid_there_is_none() -> None:
    tokens, cameras = torch.zeros(2, 3, 4, 16), torch.arange(3.0)[:, None].expand(3, 16)
    told = placed(tokens, cameras, (2, 2)).unflatten(1, (3, 4))
    torch.testing.assert_close(told[:, 1] - 1, told[:, 0])
    torch.testing.assert_close(told[0, 0], place_codes(2, 2, 16))
    torch.testing.assert_close(placed(tokens, cameras, None), cameras.repeat_interleave(4, 0).expand(2, -1, -1))


def test_images_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 tokens an image.*2 x 3.*image size"):
        placed(torch.zeros(1, 1, 4, 16), torch.zeros(1, 16), (2, 3))


def test_every_token_is_brought_to_one_scale_by_itself() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, 16) * torch.tensor([1e-2, 1.0, 50.0, 1.0, 0.0])[:, None] + 3
    even = taken_in(features, normalize=True, dtype=torch.float32)
    torch.testing.assert_close(even[:, :4].mean(-1), torch.zeros(2, 4), atol=1e-3, rtol=0)
    torch.testing.assert_close(even[:, :4].std(-1, correction=0), torch.ones(2, 4), atol=1e-3, rtol=0)
    assert (even[:, 4] == 0).all()  # of an absent camera or word nothing is made up
    for seen in (features, features.bfloat16()):
        assert torch.equal(taken_in(seen, normalize=False, dtype=torch.float32), seen.float())


NETWORK = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
EXPERT = {
    **{**NETWORK, "num_key_value_heads": 1, "latent_dim": 8, "chunk_size": 4, "expert_layers": ["motion"] * 2},
    **{"embodiments": ["arm"], "action_dims": [3], "state_dims": [2]},
}


@pytest.mark.parametrize("fusion", ["latent", "cross", "joint", "gated"])
def test_a_host_that_normalizes_does_not_see_the_scale_of_its_backbone(fusion) -> None:
    def chunk(scale: float, shift: float, normalize: bool) -> torch.Tensor:
        torch.manual_seed(0)
        config = PriorVLAConfig(
            fusion=fusion,
            expert=EXPERT,
            encoder={**NETWORK, "num_hidden_layers": 1},
            fusion_transformer={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
            backbone_layers=4,
            vision_hidden_size=12,
            text_hidden_size=10,
            normalize_features=normalize,
        )
        model, taps = PriorVLAModel(config).eval(), config.taps
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        seen = scale * torch.randn(1, len(taps), 6, 12) + shift
        heard = scale * torch.randn(1, 1, 4, 10) + shift
        return model.sample_actions(
            state=torch.zeros(1, 2),
            embodiment_ids=torch.zeros(1, dtype=torch.long),
            vision_features=VisionFeatures(seen, torch.ones(1, 6, dtype=torch.bool), 1, taps),
            language_features=LanguageFeatures(heard, torch.ones(1, 4, dtype=torch.bool), taps=None),
            noise=torch.randn(1, 4, 3),
        )

    torch.testing.assert_close(chunk(20.0, 3.0, True), chunk(1.0, 0.0, True), atol=1e-4, rtol=1e-3)
    assert (chunk(20.0, 3.0, False) - chunk(1.0, 0.0, False)).abs().max() > 1e-3


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", ["dinov2", "siglip_vision_model", "clip_vision_model", "vit", "aimv2_vision_model"])
def test_a_vision_encoder_loses_the_layers_that_nobody_reads_and_the_others_give_the_same_bits(kind) -> None:
    torch.manual_seed(0)
    vision = AutoConfig.for_model(kind, **VISION, image_size=28, patch_size=14)
    text = AutoConfig.for_model("bert", **VISION, vocab_size=20)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=8)
    model = VisionTextDualEncoderModel(config=config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    whole, cut = DualEncoderBackbone(model), DualEncoderBackbone(copy.deepcopy(model))
    assert whole.policy_layers == 3
    cut.truncate(3)
    assert cut.last_layer == 3 and sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    pixels = torch.randn(2, 1, 3, 28, 28)
    for taps in ((3,), (0, 2, 3)):
        with torch.no_grad():
            assert torch.equal(
                cut.encode_vision(pixels, taps=taps).hidden_states, whole.encode_vision(pixels, taps=taps).hidden_states
            )
    with pytest.raises(ValueError, match="the others of 4 were dropped"):
        cut.encode_vision(pixels, taps=(4,))
