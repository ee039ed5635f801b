"""Who gets gradients in a backbone: nobody, adapters that start without effect, or every weight that matters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from priorvla.modeling_priorvla.backbone import Backbone, load_backbone
from priorvla.modeling_priorvla.backbone_training import attention_maps, train_backbone

IMAGES = torch.randn(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
WORDS = torch.tensor([[6, 8, 9, 11], [10, 7, 8, 9]])


@pytest.fixture(params=["tiny_backbone", "tiny_smolvlm"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def features(backbone: Backbone) -> tuple[Tensor, Tensor]:
    taps = (1, backbone.num_layers)
    vision = backbone.encode_vision(IMAGES, taps=taps)
    return vision.hidden_states, backbone.encode_language(vision, WORDS, taps=taps).hidden_states


def trained(backbone: Backbone) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def step(backbone: Backbone) -> None:
    """One of sign descent on the squared features."""
    loss = sum(part.float().square().mean() for part in features(backbone))
    assert isinstance(loss, Tensor)
    loss.backward()
    with torch.no_grad():
        for parameter in trained(backbone).values():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad.sign()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_have_no_effect_at_birth_and_one_after_a_step(folder: Path, dtype: str) -> None:
    reference = {"source": "hub", "name": "owner/tiny", "dtype": dtype}
    backbone = load_backbone(reference, folder)
    before = features(backbone)
    train_backbone(backbone, "lora", {"r": 2})
    assert all(torch.equal(*pair) for pair in zip(before, features(backbone), strict=True))
    step(backbone)
    assert not any(torch.equal(*pair) for pair in zip(before, features(backbone), strict=True))


def test_adapters_alone_are_trained_beside_every_attention_map(folder: Path) -> None:
    backbone = load_backbone(None, folder)
    frozen = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    maps = attention_maps(backbone)
    assert len(maps) == 4 * len([name for name in maps if name.endswith(("q_proj", "query"))]) >= 4 * 4
    train_backbone(backbone, "lora", {"r": 2, "lora_alpha": 4})
    for _ in range(2):
        step(backbone)
    adapters = trained(backbone)
    assert len(adapters) == 2 * len(maps)
    assert all(".lora_" in name and adapter.grad.abs().sum() > 0 for name, adapter in adapters.items())
    for name, parameter in backbone.named_parameters():
        if ".lora_" not in name:
            assert parameter.grad is None
            assert torch.equal(parameter, frozen[name.replace(".base_layer.", ".")])


def test_adapters_are_float32_beside_weights_that_are_not(folder: Path) -> None:
    backbone = load_backbone({"source": "hub", "name": "owner/tiny", "dtype": "bfloat16"}, folder)
    train_backbone(backbone, "lora")
    assert {parameter.dtype for parameter in trained(backbone).values()} == {torch.float32}
    assert backbone.dtype == features(backbone)[0].dtype == torch.bfloat16


def test_a_float32_backbone_works_and_learns_under_bfloat16_autocast(folder: Path) -> None:
    backbone = load_backbone(None, folder)
    train_backbone(backbone, "lora", {"r": 2})
    with torch.autocast("cpu", torch.bfloat16):
        step(backbone)
    assert all(adapter.grad is not None for adapter in trained(backbone).values())


def test_trained_adapters_go_from_one_backbone_into_another(folder: Path) -> None:
    one, other = (load_backbone(None, folder) for _ in range(2))
    train_backbone(one, "lora", {"r": 2})
    step(one)
    train_backbone(other, "lora", {"r": 2})
    missing, unexpected = other.load_state_dict(trained(one), strict=False)
    assert not unexpected and not any(".lora_" in name for name in missing)
    assert all(torch.equal(*pair) for pair in zip(features(one), features(other), strict=True))


def test_in_full_every_weight_that_a_feature_comes_through_is_trained(folder: Path) -> None:
    backbone = load_backbone(None, folder)
    train_backbone(backbone, "full")
    step(backbone)
    assert not [name for name, parameter in trained(backbone).items() if parameter.grad is None]
    heads = ("pooler", "visual_projection", "text_projection", "logit_scale", "mask_token")
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert all(any(head in name for head in heads) for name in frozen)
    train_backbone(backbone, "frozen")
    assert not trained(backbone)


def test_a_trained_backbone_follows_its_host_into_training_mode(folder: Path) -> None:
    backbone = load_backbone(None, folder)
    for mode, training in (("frozen", False), ("full", True)):
        train_backbone(backbone, mode)
        torch.nn.Sequential(backbone).train()
        assert backbone.model.training is training
    train_backbone(backbone, "frozen")
    assert not backbone.model.training


def test_bad_settings_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(None, folder)
    with pytest.raises(ValueError, match="backbone_training='partly' is unknown, use frozen, lora or full"):
        train_backbone(backbone, "partly")
    with pytest.raises(ValueError, match="no field 'init_lora_weights', there are: r, lora_alpha"):
        train_backbone(backbone, "lora", {"init_lora_weights": False})
    train_backbone(backbone, "lora")
    with pytest.raises(ValueError, match="adapters already"):
        train_backbone(backbone, "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"priorvla\[peft\]"):
        train_backbone(load_backbone(None, folder), "lora")
