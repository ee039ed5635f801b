"""Backbones in 8 and 4 bits: what they save, how far their features are, and what can be trained beside them."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from priorvla.cli import main
from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.modeling_priorvla.adapters import add_adapter, load_adapted, merge_adapter, save_adapter
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone, used_before
from priorvla.modeling_priorvla.backbone_quantization import four_bit_map
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config
from priorvla.training.data.feature_cache import FeatureCache
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

H = 6
NEAR = {"int8": 0.1, "nf4": 0.5}  # of the norm, in tiny random models; any other would be at 1.4
CODES = {"int8": torch.int8, "nf4": torch.uint8}


def reference(folder: Path, quantization: str | None) -> dict:
    return describe_backbone(folder, source="hub", name="tiny", quantization=quantization)


def test_unknown_kinds_are_refused_with_those_there_are(tiny_backbone, save_policy, bodies, tmp_path):
    for kind in ("int4", "fp8"):
        with pytest.raises(ValueError, match=f"quantization='{kind}' is unknown, use int8, nf4 or None"):
            reference(tiny_backbone, kind)
    with pytest.raises(ValueError, match="'int4' is unknown"):
        PriorVLAModel.from_pretrained(
            save_policy(tmp_path, bodies), backbone=tiny_backbone, backbone_quantization="int4"
        )


def test_a_checkpoint_that_does_not_say_is_not_quantized(tiny_backbone):
    older = {key: value for key, value in reference(tiny_backbone, None).items() if key in BACKBONE_KEYS[:5]}
    assert load_backbone(older, tiny_backbone).quantization is None
    assert used_before(older, tiny_backbone)["quantization"] is None


@pytest.mark.parametrize(("kind", "module"), [("int8", "torchao.quantization"), ("nf4", "bitsandbytes.nn")])
def test_without_the_library_it_is_said_what_to_install(kind, module, tiny_backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"'priorvla\[quantization\]'.*backbone_quantization=None"):
        load_backbone(reference(tiny_backbone, kind), tiny_backbone)


@pytest.fixture(params=["int8", "nf4"])
def kind(request) -> str:
    library = {"int8": "torchao", "nf4": "bitsandbytes"}[request.param]
    pytest.importorskip(library, reason="needs the extra 'quantization'")
    return request.param


@pytest.fixture(params=["tiny_backbone", "tiny_smolvlm"])
def folder(request) -> Path:
    """Of a dual encoder and of a generative backbone."""
    return request.getfixturevalue(request.param)


def features(backbone, taps=None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 1, 3, *backbone.image_size, generator=generator)
    words = torch.tensor([[1, 2, 3], [3, 2, 1]])
    vision = backbone.encode_vision(pixels, None, taps)
    return vision.hidden_states, backbone.encode_language(vision, words, None, taps).hidden_states


def moved(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_features_are_near_those_of_the_whole_weights_and_the_same_every_time(kind, folder):
    whole, small = (load_backbone(reference(folder, each), folder) for each in (None, kind))
    assert (whole.quantization, small.quantization) == (None, kind)
    again = load_backbone(reference(folder, kind), folder)
    with torch.no_grad():
        for found, repeated, expected in zip(*map(features, (small, again, whole)), strict=True):
            assert 0 < moved(found, expected) < NEAR[kind]
            assert torch.equal(found, repeated) and found.dtype == expected.dtype
    maps = {name: module for name, module in small.model.named_modules() if isinstance(module, nn.Linear)}
    codes = [module.weight for name, module in maps.items() if not small.is_unused(name)]
    assert codes and {getattr(code, "qdata", code).dtype for code in codes} == {CODES[kind]}
    assert small.dtype == whole.dtype and not any(parameter.requires_grad for parameter in small.parameters())


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 128), (6, 4304), (64, 48), (5, 80)])
def test_four_bits_are_near_the_whole_weights_whatever_the_shape(outputs, inputs):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra 'quantization'")
    torch.manual_seed(0)
    weight, seen = torch.randn(outputs, inputs), torch.randn(3, inputs, requires_grad=True)
    small = four_bit_map()(inputs, outputs, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
    small.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    small.bias = nn.Parameter(torch.randn(outputs))
    small = small.to("cpu").eval()
    identity = torch.eye(inputs)
    assert moved(small(identity).detach() - small.bias.detach(), weight.T) < 0.11
    first = small(seen)
    assert torch.equal(first, small(seen))
    small(seen).sum().backward()
    torch.testing.assert_close(seen.grad[0], (small(identity) - small.bias).sum(1), atol=1e-4, rtol=1e-4)


def test_the_hash_of_the_files_still_holds_and_cached_features_get_a_key_of_their_own(
    kind, folder, bodies, write_demonstrations, tmp_path
):
    whole, small = (load_backbone(reference(folder, each), folder) for each in (None, kind))
    assert whole.sha256 == small.sha256 == reference(folder, kind)["sha256"]
    source = load_trajectories(write_demonstrations(tmp_path / "data", bodies[0], [3]), frames=True)
    processor = PriorVLAProcessor.for_backbone(folder, bodies, chunk_size=H)
    caches = [FeatureCache(tmp_path, source, backbone, processor, (1,)) for backbone in (whole, small)]
    caches[0].encode(torch.arange(3))
    assert [len(cache.missing(torch.arange(3))) for cache in caches] == [0, 3]
    with pytest.raises(ValueError, match="changed"):
        load_backbone({**reference(folder, kind), "sha256": "0" * 64}, folder)


def test_a_backbone_in_memory_must_be_quantized_as_the_model_was_trained_with(kind, folder):
    whole, small = (load_backbone(reference(folder, each), folder) for each in (None, kind))
    assert load_backbone(reference(folder, kind), copy.deepcopy(small)).quantization == kind
    with pytest.raises(ValueError, match=f"has quantization=None, the model was built for {kind}"):
        load_backbone(reference(folder, kind), whole)
    with pytest.raises(ValueError, match=f"has quantization={kind}, the model was built for None"):
        load_backbone(reference(folder, None), small)


@pytest.fixture
def policy(save_policy, bodies, tmp_path) -> Path:
    return save_policy(tmp_path / "policy", bodies, fusion="cross")


def load(place: Path, backbone: Path, **arguments) -> PriorVLAModel:
    return PriorVLAModel.from_pretrained(place, backbone=backbone, **arguments).eval()


def observation() -> dict:
    random = torch.Generator().manual_seed(0)
    return {
        "embodiment_ids": torch.tensor([0]),
        "state": torch.zeros(1, 5),
        "pixel_values": torch.rand(1, 1, 3, 28, 28, generator=random),
        "input_ids": torch.tensor([[1, 2, 3]]),
        "noise": torch.randn(1, H, 7, generator=random),
    }


def test_a_policy_says_how_it_was_used_last_and_loads_so_again(kind, policy, tiny_backbone, tmp_path):
    whole = load(policy, tiny_backbone)
    small = load(policy, tiny_backbone, backbone_quantization=kind)
    chunk = small.sample_actions(**observation())
    assert 0 < moved(chunk, whole.sample_actions(**observation())) < NEAR[kind]
    small.save_pretrained(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["backbone"]["quantization"] == kind
    weights, before = ((place / "model.safetensors").read_bytes() for place in (tmp_path / "small", policy))
    assert weights == before, "a frozen backbone is not among them"
    assert torch.equal(load(tmp_path / "small", tiny_backbone).sample_actions(**observation()), chunk)
    assert load(tmp_path / "small", tiny_backbone, backbone_quantization=None).backbone.quantization is None


def test_quantized_maps_are_not_trained(kind, policy, tiny_backbone):
    model = PriorVLAModel.from_pretrained(policy, backbone=None, backbone_quantization=kind)
    model.config.backbone_training = "full"
    with pytest.raises(ValueError, match=rf"'full' with quantization='{kind}'.*'lora'.*backbone_quantization=None"):
        model.attach_backbone(tiny_backbone)


@pytest.fixture
def make_trainer(bodies, tiny_backbone, write_demonstrations, tmp_path):
    """`(model, **arguments)` trains four steps on pixels."""

    def make(model, **arguments) -> VLATrainer:
        data = write_demonstrations(tmp_path / "data", bodies[0], [5, 4])
        sources = [load_trajectories(data, frames=True)]
        processor = PriorVLAProcessor.for_backbone(tiny_backbone, bodies, chunk_size=H)
        settings = {"max_steps": 4, "per_device_train_batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-2}
        settings |= {"backbone_learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        return VLATrainer(
            model,
            VLATrainingArguments(output_dir=str(tmp_path / "run"), **settings),
            train_dataset=LiveObservationDataset(TrajectoryDataset(sources, bodies, H), sources, processor),
            processor=processor,
            **arguments,
        )

    return make


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_is_trained_beside_quantized_maps_saved_alone_and_found_again(
    kind, policy, tiny_backbone, make_trainer, tmp_path, checkpointing
):
    pytest.importorskip("peft")
    model = load(policy, tiny_backbone, backbone_quantization=kind)
    if checkpointing:
        model.gradient_checkpointing_enable()
    before = model.sample_actions(**observation())
    trainer = make_trainer(model, peft_config=lora_config(model, "all", ["small"], rank=2), base_model=str(policy))
    assert torch.equal(model.eval().sample_actions(**observation()), before), "it starts without effect"
    trainer.train()
    trainer.save_model()
    maps = {name: value for name, value in model.named_parameters() if "trained_backbone" in name and "lora_B" in name}
    assert maps and all(value.abs().sum() > 0 for value in maps.values())
    assert not list((tmp_path / "run").glob("model*.safetensors"))
    again = load_adapted(PriorVLAModel, tmp_path / "run", backbone=tiny_backbone)
    assert again.backbone.quantization == kind, "as it was trained, although its base is not"
    with trainer.average.applied():
        assert torch.equal(again.sample_actions(**observation()), model.eval().sample_actions(**observation()))


def test_adapters_are_not_merged_into_quantized_maps_but_into_the_whole_weights(kind, policy, tiny_backbone, tmp_path):
    pytest.importorskip("peft")
    model = load(policy, tiny_backbone, backbone_quantization=kind)
    add_adapter(model, lora_config(model, "all", rank=2), base=str(policy))
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match=rf"quantization='{kind}'.*backbone_quantization=None.*preset 'expert'"):
        merge_adapter(model)
    whole = load_adapted(PriorVLAModel, tmp_path / "adapter", backbone=tiny_backbone, backbone_quantization=None)
    assert merge_adapter(whole).config.backbone_training == "full"
    expert = load(policy, tiny_backbone, backbone_quantization=kind)
    add_adapter(expert, lora_config(expert, "expert", rank=2))
    assert merge_adapter(expert).backbone.quantization == kind


def test_backbone_adapters_of_a_checkpoint_are_trained_beside_quantized_maps_and_read_back(
    kind, policy, tiny_backbone, make_trainer, tmp_path
):
    pytest.importorskip("peft")
    model = PriorVLAModel.from_pretrained(policy, backbone=None, backbone_quantization=kind)
    model.config.backbone_training = "lora"
    model.attach_backbone(tiny_backbone)
    trainer = make_trainer(model)
    trainer.train()
    trainer.save_model()
    again = load(tmp_path / "run", tiny_backbone)
    with trainer.average.applied():
        assert torch.equal(again.sample_actions(**observation()), model.eval().sample_actions(**observation()))


@pytest.fixture
def command(bodies, tiny_backbone, write_demonstrations, tiny_fields, tmp_path):
    """`(name, command, *arguments, **recipe)`: its exit status; it trains two steps in `tmp_path / name`."""
    data = write_demonstrations(tmp_path / "demonstrations", bodies[0], [6, 5])

    def run(name: str, command: str, *arguments: object, **recipe) -> int:
        training = {"per_device_train_batch_size": 4, "disable_tqdm": True}
        recipe = {"max-steps": 2, "holdout": 0, "device": "cpu", "listening": 0, "training": training, **recipe}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        told = [command, "--config", tmp_path / f"{name}.yaml", "--dataset", data, "--output-dir", tmp_path / name]
        return main([str(argument) for argument in (*told, "--backbone", tiny_backbone, *arguments)])

    return run


def test_train_says_in_the_config_that_its_backbone_is_quantized(kind, command, tiny_fields, tiny_backbone, tmp_path):
    tiny = {"expert": tiny_fields["expert"], "encoder": None}
    assert command("run", "train", "--fusion", "cross", "--backbone-quantization", kind, model=tiny) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["backbone"]["quantization"] == kind
    assert load(tmp_path / "run", tiny_backbone).backbone.quantization == kind


@pytest.mark.parametrize("preset", ["expert", "all"])
def test_finetune_trains_an_adapter_beside_quantized_maps_on_a_base_that_has_none(
    kind, command, policy, tiny_backbone, tmp_path, preset
):
    pytest.importorskip("peft")
    options = ["--base", policy, "--preset", preset, "--backbone-quantization", kind]
    assert command("mine", "finetune", *options, rank=2) == 0
    assert load_adapted(PriorVLAModel, tmp_path / "mine", backbone=tiny_backbone).backbone.quantization == kind


def test_finetune_in_full_takes_whole_weights_and_refuses_quantized_ones(
    kind, command, policy, tmp_path, tiny_backbone, capsys
):
    load(policy, tiny_backbone, backbone_quantization=kind).save_pretrained(policy)
    assert command("full", "finetune", "--base", policy, "--preset", "full") == 0
    assert load(tmp_path / "full", tiny_backbone).backbone.quantization is None
    options = ["--preset", "full", "--backbone-quantization", kind]
    assert command("none", "finetune", "--base", policy, *options) == 2
    assert "--preset full: its maps have no gradients" in capsys.readouterr().err
