"""An adapter and its base: which weights it was trained on, whose bodies, and what a model is after it was merged."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

pytest.importorskip("peft")

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla.adapter_processor import processor_for
from priorvla.modeling_priorvla.adapters import (
    adapter_tensors,
    adapters_in,
    add_adapter,
    load_adapted,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from priorvla.modeling_priorvla.attached_backbone import TRAINED
from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_policy, bodies) -> Path:
    """A policy for the robots `small` and `large`."""
    return save_policy(tmp_path_factory.mktemp("base") / "policy", bodies, fusion="joint")


@pytest.fixture(scope="module")
def make(base, tiny_backbone, bodies):
    """`(folder, name, seed=0, preset="expert")`: an adapter of `base` for one more robot, with its processor."""

    def saved(folder: Path, name: str, seed: int = 0, preset: str = "expert", source: Path = base) -> Path:
        model = PriorVLAModel.from_pretrained(source, backbone=tiny_backbone)
        torch.manual_seed(seed)
        model.add_embodiment(name, 4, 3)
        add_adapter(model, lora_config(model, preset, [name], rank=2))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        robots = [*bodies, robot(bodies, name)]
        PriorVLAProcessor.from_pretrained(source, embodiments=robots).save_pretrained(folder)
        return folder

    return saved


def robot(bodies: list[Embodiment], name: str) -> Embodiment:
    return replace(bodies[0], name=name)


def chunk(model: PriorVLAModel, processor: PriorVLAProcessor, name: str) -> torch.Tensor:
    body = processor.embodiment(name)
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    inputs = processor(images={"front": image}, text="go", state=np.ones(body.state_dim), embodiment=name)
    sampled = model.eval().sample_actions(**inputs, generator=torch.Generator().manual_seed(0))
    return sampled[..., : body.action_dim]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def change_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def test_a_policy_from_a_prior_is_not_taken_for_that_prior(bodies, save_policy, tiny_backbone, tmp_path):
    prior = save_policy(tmp_path / "prior", bodies, fusion="cross", language=False)
    policy = PriorVLAModel.from_vision_action_prior(prior)
    assert policy.config._name_or_path == ""
    policy.save_pretrained(tmp_path / "policy")
    add_adapter(policy, lora_config(policy, "expert", ["small"], rank=2), base=str(tmp_path / "policy"))
    policy.save_pretrained(tmp_path / "adapter")
    again = PriorVLAModel.from_pretrained(tmp_path / "adapter", backbone=tiny_backbone)
    assert same(adapter_tensors(policy), adapter_tensors(again))


# --- whose bodies -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(make, tmp_path_factory) -> tuple[Path, Path]:
    """Adapters for the robots `one` and `two`; each is body 2 in its own folder."""
    folder = tmp_path_factory.mktemp("two")
    return make(folder / "one", "one", 1), make(folder / "two", "two", 2)


def test_each_of_two_adapters_drives_its_own_robot_with_the_processor_of_both(base, two, tiny_backbone, caplog):
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    with caplog.at_level(logging.WARNING):
        load_adapter(model, two[0], "one")
        assert not [record for record in caplog.records if "processor_for" in record.message]
        adapters = load_adapter(model, two[1], "two")
    assert [record for record in caplog.records if "'two' is embodiment 3 in this model and 2" in record.message]
    processor = processor_for(model, *two)
    assert [body.name for body in processor.embodiments] == ["small", "large", "one", "two"]
    for name, folder in zip(("one", "two"), two, strict=True):
        alone = load_adapted(PriorVLAModel, folder, backbone=tiny_backbone)
        adapters.set_adapter(name)
        wanted = chunk(alone, PriorVLAProcessor.from_pretrained(folder), name)
        assert torch.equal(chunk(model, processor, name), wanted)
    with pytest.raises(ValueError, match=r"'two' of the model is in none of these"):
        processor_for(model, two[0])


def test_a_body_may_begin_like_one_that_an_adapter_holds(base, two, tiny_backbone):
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    adapters = load_adapter(model, two[0], "one")
    adapters.set_adapter("one")
    new = model.add_embodiment("three", 4, 3, like="one")
    projections, tensors = model.expert.action_in_proj.projections, load_file(two[0] / "adapter_model.safetensors")
    (name,) = [name for name in tensors if name.endswith("expert.action_in_proj.projections.2.weight")]
    assert torch.equal(projections[new].weight, tensors[name])


def test_one_of_two_adapters_is_saved_without_the_others_robot(base, two, tiny_backbone, tmp_path):
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    for name, folder in zip(("one", "two"), two, strict=True):
        load_adapter(model, folder, name)
    save_adapter(model, tmp_path, "two")
    assert AutoConfig.from_pretrained(tmp_path).expert.embodiments == ["small", "large", "two"]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (two[1], tmp_path))
    assert same(before, after)
    again = load_adapted(PriorVLAModel, tmp_path, backbone=tiny_backbone)
    processor = PriorVLAProcessor.from_pretrained(two[1])
    assert torch.equal(
        chunk(again, processor, "two"),
        chunk(load_adapted(PriorVLAModel, two[1], backbone=tiny_backbone), processor, "two"),
    )


def test_a_name_is_of_one_adapter(base, two, tiny_backbone):
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    load_adapter(model, two[0])
    before = weights(model)
    with pytest.raises(ValueError, match=r"an adapter 'default' in this model already"):
        load_adapter(model, two[1])
    assert same(weights(model), before) and model.config.expert.embodiments[2:] == ["one"]


# --- which weights ----------------------------------------------------------------------------------------------------


def test_an_adapter_is_refused_by_a_base_of_other_weights(base, make, tiny_backbone, tmp_path):
    moving = shutil.copytree(base, tmp_path / "base")
    folder = make(tmp_path / "adapter", "one", source=moving)
    same_base = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    load_adapter(same_base, folder)  # wherever it lies
    change_weights(moving)
    for attempt in (
        lambda: load_adapted(PriorVLAModel, folder, backbone=tiny_backbone),
        lambda: load_adapter(PriorVLAModel.from_pretrained(moving, backbone=tiny_backbone), folder),
    ):
        with pytest.raises(ValueError, match=r"belongs to another base: it was trained on weights of SHA-256"):
            attempt()
    config = json.loads((folder / "config.json").read_text())
    assert len(config.pop("adapter_base_sha256")) == 64
    (folder / "config.json").write_text(json.dumps(config))  # of an earlier release, which does not tell
    assert adapters_in(load_adapted(PriorVLAModel, folder, backbone=tiny_backbone)) is not None


def test_a_base_stays_the_same_when_it_is_published_without_its_encoder_or_in_shards(
    base, make, tiny_backbone, tmp_path
):
    folder = make(tmp_path / "adapter", "one")
    model = PriorVLAModel.from_pretrained(base, backbone=None)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    assert len(kept) < len(model.state_dict())
    model.save_pretrained(tmp_path / "published", state_dict=kept, max_shard_size="20KB")
    assert (tmp_path / "published" / "model.safetensors.index.json").is_file()
    load_adapted(PriorVLAModel, folder, base=tmp_path / "published", backbone=tiny_backbone)


@pytest.mark.parametrize("preset", ["expert", "all"])
def test_an_adapter_that_cannot_be_loaded_leaves_the_model_as_it_was(base, make, tiny_backbone, tmp_path, preset):
    folder = make(tmp_path / "adapter", "one", preset=preset)
    saved = load_file(folder / "adapter_model.safetensors")
    saved.pop(max(saved))
    save_file(saved, folder / "adapter_model.safetensors", {"format": "pt"})
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    before, learning = weights(model), [parameter.requires_grad for parameter in model.parameters()]
    chance, backbone = torch.get_rng_state(), model.backbone
    with pytest.raises(ValueError, match=r"is not in the file"):
        load_adapter(model, folder)
    assert same(weights(model), before) and model.config.expert.embodiments == ["small", "large"]
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert adapters_in(model) is None and model.backbone is backbone and TRAINED[:-1] not in model._modules
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_base_in_a_folder_is_named_by_its_absolute_path(base, make, tiny_backbone, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "runs" / "policy")
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path / "adapter", "one", source=Path("runs/policy"))
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "runs" / "policy")
    monkeypatch.chdir(tmp_path / "adapter")
    assert adapters_in(load_adapted(PriorVLAModel, folder, backbone=tiny_backbone)) is not None


@pytest.mark.parametrize(
    "fields", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_settings_that_would_change_the_base_are_refused(base, tiny_backbone, fields):
    from peft import LoraConfig

    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    before = weights(model)
    for attempt in (
        lambda: lora_config(model, "expert", ["small"], **fields),
        lambda: add_adapter(model, LoraConfig(target_modules=["q_proj"], **fields)),
    ):
        with pytest.raises(ValueError, match=rf"lora\.{next(iter(fields))}=.* the base's own weights"):
            attempt()
    assert same(weights(model), before)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", False])
def test_other_starts_leave_the_base_as_it_was(base, tiny_backbone, start):
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    processor = PriorVLAProcessor.from_pretrained(base)
    before = chunk(model, processor, "large")
    adapters = add_adapter(model, lora_config(model, "expert", ["small"], rank=2, init_lora_weights=start))
    with adapters.disable_adapter():
        assert torch.equal(chunk(model, processor, "large"), before)


def test_an_action_prior_takes_no_adapter():
    from peft import LoraConfig

    prior = ActionPriorModel(ActionPriorModel.config_class())
    for attempt in (lambda: lora_config(prior), lambda: add_adapter(prior, LoraConfig(target_modules=["q_proj"]))):
        with pytest.raises(ValueError, match=r"goes into a policy \(PriorVLAModel\), this is a ActionPriorModel"):
            attempt()


# --- files of either kind ---------------------------------------------------------------------------------------------


def test_a_folder_has_weights_or_an_adapter_and_never_both(base, make, tiny_backbone, tmp_path):
    folder = make(tmp_path / "adapter", "one")
    merged = merge_adapter(load_adapted(PriorVLAModel, folder, backbone=tiny_backbone))
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.mul_(2)
    merged.save_pretrained(folder)
    assert not list(folder.glob("adapter_*"))
    again = PriorVLAModel.from_pretrained(folder, backbone=tiny_backbone)
    assert adapters_in(again) is None and same(weights(again), weights(merged))
    make(folder, "one")
    assert not list(folder.glob("model*")) and (folder / "adapter_model.safetensors").is_file()


def test_an_adapter_is_not_saved_over_its_base(base, tiny_backbone, tmp_path):
    place = shutil.copytree(base, tmp_path / "base")
    model = PriorVLAModel.from_pretrained(place, backbone=tiny_backbone)
    add_adapter(model, lora_config(model, "expert", ["small"], rank=2))
    with pytest.raises(ValueError, match=r"is the adapter's base, which would be replaced"):
        model.save_pretrained(place)
    assert (place / "model.safetensors").is_file()


def test_an_adapter_saved_from_our_own_class_promises_no_code(base, make, tiny_backbone, tmp_path):
    place = shutil.copytree(base, tmp_path / "base")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.PriorVLAModel"}}))
    folder = make(tmp_path / "adapter", "one", source=place)
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


# --- loading, and merged ----------------------------------------------------------------------------------------------


def test_what_from_pretrained_is_told_holds_for_an_adapter_too(make, tiny_backbone, tmp_path):
    folder = make(tmp_path / "adapter", "one")
    for loader in (AutoModel, PriorVLAModel):
        model = loader.from_pretrained(folder, backbone=tiny_backbone, num_inference_steps=3)
        assert model.config.num_inference_steps == 3 and model.config.expert.embodiments[2] == "one"
    model, told = PriorVLAModel.from_pretrained(folder, backbone=tiny_backbone, output_loading_info=True)
    assert adapters_in(model) is not None and not told["missing_keys"]


def test_an_adapter_on_the_hub_is_loaded_at_a_commit(base, make, tiny_backbone, tmp_path, hub):
    shutil.copytree(base, hub.repository("models", "somebody/base"), dirs_exist_ok=True)
    for seed in (1, 2):
        folder = make(tmp_path / str(seed), "one", seed)
        file = folder / "adapter_config.json"
        settings = {**json.loads(file.read_text()), "base_model_name_or_path": "somebody/base"}
        file.write_text(json.dumps(settings))
        shutil.copytree(folder, hub.repository("models", "me/adapter"), dirs_exist_ok=True)
        if seed == 1:
            first = hub.opened("models", "me/adapter").head().id
    assert hub.opened("models", "me/adapter").head().id != first
    wanted = load_adapted(PriorVLAModel, tmp_path / "1", base=base, backbone=tiny_backbone)
    given = {"revision": first, "backbone": tiny_backbone}
    config = AutoConfig.from_pretrained("me/adapter", revision=first)
    for model in (
        PriorVLAModel.from_pretrained("me/adapter", **given),
        PriorVLAPolicy.from_pretrained("me/adapter", embodiment="one", **given).model,
        AutoModel.from_pretrained("me/adapter", config=config, **given),
    ):
        assert same(adapter_tensors(model), adapter_tensors(wanted))


@pytest.mark.parametrize("preset", ["expert", "all"])
def test_a_merged_model_is_trained_again_like_any_other(make, tiny_backbone, tmp_path, preset):
    merged = merge_adapter(load_adapted(PriorVLAModel, make(tmp_path, "one", preset=preset), backbone=tiny_backbone))
    unused = {f"{TRAINED}model.{name}" for name, _ in merged.backbone.model.named_parameters()}
    unused = {name for name in unused if merged.backbone.is_unused(name.removeprefix(f"{TRAINED}model."))}
    still = {name for name, parameter in merged.named_parameters() if not parameter.requires_grad}
    assert still <= unused
    assert any(parameter.requires_grad for parameter in merged.backbone.parameters()) == (preset == "all")


def test_a_merged_model_tells_the_base_that_others_can_find(base, tiny_backbone, tmp_path):
    for named, revision in (("somebody/base", "v2"), (str(base), None)):
        model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
        config = lora_config(model, "expert", ["small"], rank=2, revision=revision)
        add_adapter(model, config, base=named)
        merge_adapter(model).save_pretrained(tmp_path)
        told = AutoConfig.from_pretrained(tmp_path)
        hub_id = named if revision else None
        assert (getattr(told, "base_model", None), getattr(told, "base_model_revision", None)) == (hub_id, revision)
        assert str(base) not in (tmp_path / "config.json").read_text()


def test_an_adapter_of_a_base_that_reads_only_the_lower_layers(save_policy, bodies, tiny_backbone, tmp_path):
    source = save_policy(tmp_path / "base", bodies, fusion="joint", backbone_layers=1)
    whole = load_backbone(None, tiny_backbone)  # somebody else's too: it stays as it is
    model = PriorVLAModel.from_pretrained(source, backbone=whole)
    add_adapter(model, lora_config(model, "all", ["small"], rank=2))
    assert (whole.last_layer, model.backbone.last_layer) == (2, 1)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "adapter")
    processor = PriorVLAProcessor.from_pretrained(source)
    processor.save_pretrained(tmp_path / "adapter")
    expected = chunk(model, processor, "small")
    assert torch.equal(
        chunk(
            load_adapted(PriorVLAModel, tmp_path / "adapter", base=source, backbone=tiny_backbone), processor, "small"
        ),
        expected,
    )

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    saved = load_file(file)
    lower = [name for name in saved if TRAINED in name and ".vision_model." in name and ".layer.0." in name]
    assert lower
    # older releases put maps beside layers that nobody reads, too
    save_file({**saved, **{name.replace(".layer.0.", ".layer.1."): saved[name].clone() for name in lower}}, file)
    assert torch.equal(
        chunk(
            load_adapted(PriorVLAModel, tmp_path / "adapter", base=source, backbone=tiny_backbone), processor, "small"
        ),
        expected,
    )
