"""LoRA adapters: what they change and what they leave alone, their files, resuming, switching and merging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from priorvla.configuration.embodiment import Embodiment
from priorvla.hub_cards.card import load_card
from priorvla.modeling_priorvla.adapters import (
    adapter_tensors,
    adapters_in,
    adapts_backbone,
    add_adapter,
    load_adapted,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from priorvla.modeling_priorvla.attached_backbone import TRAINED
from priorvla.modeling_priorvla.backbone_training import attention_maps
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset
from priorvla.training.finetune_options import ADAPTER_PRESETS
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

H, RANK = 6, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_policy, bodies) -> Path:
    """A published policy for two robots."""
    return save_policy(tmp_path_factory.mktemp("base"), bodies, fusion="cross")


@pytest.fixture(scope="module")
def newcomer(bodies) -> Embodiment:
    """A robot that the base has never seen, of 3 + 2 dims."""
    return body("newcomer", 3, 2)


@pytest.fixture(scope="module")
def processor(tiny_backbone, bodies, newcomer):
    return PriorVLAProcessor.for_backbone(tiny_backbone, [*bodies, newcomer], chunk_size=H)


@pytest.fixture(scope="module")
def windows(tmp_path_factory, newcomer, write_demonstrations, processor):
    """Eight windows of the new robot, and what they were made from."""
    data = write_demonstrations(tmp_path_factory.mktemp("data") / "newcomer", newcomer, [5, 3])
    sources = [load_trajectories(data, frames=True)]
    return TrajectoryDataset(sources, processor.embodiments, H), sources


@pytest.fixture(scope="module")
def dataset(windows, processor):
    return LiveObservationDataset(*windows, processor)


@pytest.fixture
def make_trainer(tmp_path, dataset, processor, base):
    """`(model, preset="all", folder="run", **arguments)`, of four steps unless told."""

    def make(model, preset="all", folder="run", *, callbacks=(), lora=None, data=dataset, **arguments):
        arguments = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "backbone_learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        return VLATrainer(
            model,
            VLATrainingArguments(output_dir=str(tmp_path / folder), **arguments),
            train_dataset=data,
            processor=processor,
            peft_config=lora_config(model, preset, ["newcomer"], rank=RANK, **(lora or {})),
            base_model=str(base),
            callbacks=list(callbacks),
        )

    return make


class SaveAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step


def body(name: str, action_dim: int, state_dim: int) -> Embodiment:
    actions, states = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(3)).numpy()
    return Embodiment(
        name=name,
        action_names=[f"a{i}" for i in range(action_dim)],
        state_names=[f"s{i}" for i in range(state_dim)],
        control_rate=10.0,
        cameras=["front"],
    ).with_statistics(states[:, :state_dim], actions[:, :action_dim])


def load(base: Path, backbone: Path, *new: tuple[str, int, int]) -> PriorVLAModel:
    model = PriorVLAModel.from_pretrained(base, backbone=backbone)
    torch.manual_seed(7)
    for name, action_dim, state_dim in new:
        model.add_embodiment(name, action_dim, state_dim)
    return model.eval()


def with_newcomer(base: Path, backbone: Path) -> PriorVLAModel:
    return load(base, backbone, ("newcomer", 3, 2))


def shaken(model: PriorVLAModel, seed: int = 0, name: str = "default") -> PriorVLAModel:
    """Its adapter has learned something: what is trained of it, not the rows of others, has moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def act(model: PriorVLAModel, dataset, body: int = 2) -> torch.Tensor:
    """A chunk for each of two windows, as if the body had seen them."""
    batch = dataset.__getitems__([0, 6])
    given = ("pixel_values", "pixel_attention_mask", "input_ids", "attention_mask")
    expert = model.config.expert
    dims = max(expert.state_dims)
    noise = torch.randn(2, H, max(expert.action_dims), generator=torch.Generator().manual_seed(0))
    state = torch.nn.functional.pad(batch["state"][:, :2], (0, dims - 2))
    ids = torch.full((2,), body)
    return model.eval().sample_actions(
        **{key: batch[key] for key in given}, state=state, embodiment_ids=ids, noise=noise
    )


def weights_of(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(ours, theirs) -> set[str]:
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "preset"), [("latent", "all"), ("cross", "backbone"), ("joint", "all"), ("gated", "expert")]
)
def test_a_preset_reaches_its_layers_and_starts_without_effect(
    save_policy, tmp_path, bodies, tiny_backbone, dataset, fusion, preset
):
    model = with_newcomer(save_policy(tmp_path, bodies, fusion=fusion), tiny_backbone)
    before = act(model, dataset)
    add_adapter(model, lora_config(model, preset, ["newcomer"], rank=RANK))
    assert torch.equal(act(model, dataset), before)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    in_backbone = {name for name in adapted if name.startswith(TRAINED)}
    assert bool(in_backbone) == adapts_backbone(model) == (preset != "expert")
    assert bool(adapted - in_backbone) == (preset != "backbone")
    if preset != "backbone":
        assert any(name.startswith("fusion." if fusion == "latent" else "expert.layers.") for name in adapted)
        assert any("self_attn.q_proj" in name for name in adapted) and any("mlp.down_proj" in name for name in adapted)


@pytest.mark.parametrize("family", ["tiny_backbone", "tiny_smolvlm"])
def test_the_backbones_targets_are_its_attention_and_nothing_else(request, save_policy, tmp_path, bodies, family):
    backbone = request.getfixturevalue(family)
    model = load(save_policy(tmp_path, bodies, backbone, fusion="cross"), backbone)
    wanted = set(attention_maps(model.backbone))
    adapters = add_adapter(model, lora_config(model, "backbone", rank=RANK))
    found = {
        name.split(".lora_A")[0].partition(f"{TRAINED}model.")[2]
        for name, _ in adapters.named_parameters()
        if ".lora_A" in name
    }
    assert found == wanted and wanted


def test_wrong_presets_bodies_and_fields_are_refused_by_name(base, tiny_backbone):
    model = load(base, tiny_backbone)
    for wrong, message in (
        ({"preset": "everything"}, r"preset='everything' is unknown, use expert, backbone, all"),
        ({"rank": 0}, r"rank=0"),
        ({"embodiments": ["nobody"]}, r"'nobody' is not in this checkpoint"),
        ({"use_dorra": True}, r"no field 'use_dorra'"),
    ):
        with pytest.raises(ValueError, match=message):
            lora_config(model, **wrong)
    with pytest.raises(ValueError, match=r"attach_backbone"):
        lora_config(PriorVLAModel.from_pretrained(base, backbone=None), "all")


# --- training ---------------------------------------------------------------------------------------------------------


def test_only_the_adapter_and_the_new_body_move_and_everybody_elses_weights_stay_to_the_bit(
    base, tiny_backbone, make_trainer, dataset
):
    model = with_newcomer(base, tiny_backbone)
    trainer = make_trainer(model, max_steps=8, ema_decay=0.5)
    before = weights_of(model)
    trainer.train()
    moved = differing(before, weights_of(model))
    averaged = trainer.average.trained
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(averaged)
    assert moved <= set(averaged) and len(moved) > 0.9 * len(averaged)
    assert all("lora_" in name or ".modules_to_save.default." in name for name in moved)
    assert not [name for name in moved if ".projections.0" in name or ".projections.1" in name]
    assert not [name for name in moved if name.endswith(("tokens.0", "tokens.1"))]
    assert any(name.endswith("soft_tokens.modules_to_save.default.tokens.2") for name in moved)
    assert any(name.startswith(TRAINED) and "lora_B" in name for name in moved)
    with adapters_in(model).disable_adapter():
        untouched = load(base, tiny_backbone)
        untouched.add_embodiment("newcomer", 3, 2)
        for known in (0, 1):
            assert torch.equal(act(model, dataset, known), act(untouched, dataset, known))
    assert sum(p.numel() for p in averaged.values()) < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("lora", [{}, {"use_dora": True, "use_rslora": True}], ids=["lora", "dora"])
def test_training_lowers_the_loss(base, tiny_backbone, make_trainer, lora):
    trainer = make_trainer(with_newcomer(base, tiny_backbone), max_steps=12, lora=lora)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("preset", ["expert", "all"])
def test_an_interrupted_training_goes_on_to_the_bit(base, tiny_backbone, make_trainer, preset):
    whole = make_trainer(with_newcomer(base, tiny_backbone), preset, callbacks=[SaveAt(2)], ema_decay=0.5)
    whole.train()
    checkpoint = whole.run_folder / "checkpoint-2"
    assert not (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(with_newcomer(base, tiny_backbone), preset, "resumed", ema_decay=0.5)
    with torch.no_grad():  # the weights that a new process starts with do not matter
        for parameter in resumed.average.trained.values():
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not differing(weights_of(whole.model), weights_of(resumed.model))
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys() and states[0]
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
    whole.save_model(), resumed.save_model()
    saved = [load_file(trainer.run_folder / "adapter_model.safetensors") for trainer in (whole, resumed)]
    assert not differing(*saved)


def test_a_checkpoint_is_an_adapter_with_processor_bodies_card_and_the_name_of_its_base(
    base, tiny_backbone, make_trainer, dataset
):
    trainer = make_trainer(with_newcomer(base, tiny_backbone), callbacks=[SaveAt(2)], ema_decay=0.5)
    trainer.train()
    trainer.save_model()
    for place in (trainer.run_folder, trainer.run_folder / "checkpoint-2"):
        names = {file.name for file in place.iterdir()}
        assert names >= {"adapter_config.json", "adapter_model.safetensors", "embodiments.json", "README.md"}
        assert names >= {"config.json", "processor_config.json"} and "model.safetensors" not in names
        assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        assert "lora" in load_card(place).data.tags
        assert PriorVLAProcessor.from_pretrained(place).embodiments[2].name == "newcomer"
    with trainer.average.applied():
        expected = act(trainer.model, dataset)
    assert torch.equal(act(load_adapted(PriorVLAModel, trainer.run_folder, backbone=tiny_backbone), dataset), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "random"}, r"decoder='random' does not go together"),
        ({"distillation_steps": 5}, r"distillation_steps=5 with peft_config"),
    ],
)
def test_settings_that_an_adapter_has_no_use_for_are_refused(base, tiny_backbone, make_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(with_newcomer(base, tiny_backbone), **arguments)


def test_a_second_adapter_is_not_trained_over_a_first(base, tiny_backbone, make_trainer):
    model = make_trainer(with_newcomer(base, tiny_backbone), "expert").model
    with pytest.raises(ValueError, match=r"has an adapter already: merge it"):
        make_trainer(model, "expert")


def test_cached_features_are_for_adapters_that_leave_the_backbone_alone(
    base, tiny_backbone, make_trainer, windows, processor, tmp_path
):
    model = with_newcomer(base, tiny_backbone)
    cached = ObservationDataset(*windows, model.backbone, processor, tmp_path / "features", taps=model.config.taps)
    make_trainer(model, "expert", data=cached, max_steps=1).train()
    with pytest.raises(ValueError, match=r"train_dataset holds features of the backbone as it was.*preset 'expert'"):
        make_trainer(with_newcomer(base, tiny_backbone), "all", data=cached)


# --- files ------------------------------------------------------------------------------------------------------------


def adapted(base: Path, backbone: Path, folder: Path, new: tuple[str, int, int], seed: int, preset: str = "all"):
    """The folder of an adapter for one more body, that has learned something, and the model it came from."""
    model = load(base, backbone, new)
    add_adapter(model, lora_config(model, preset, [new[0]], rank=RANK), base=str(base))
    save_adapter(shaken(model, seed), folder)
    return folder, model


@pytest.mark.parametrize("preset", ADAPTER_PRESETS)
def test_an_adapter_is_loaded_by_its_folder_alone_and_acts_to_the_bit(base, tiny_backbone, dataset, tmp_path, preset):
    folder, model = adapted(base, tiny_backbone, tmp_path, ("newcomer", 3, 2), 0, preset)
    loaded = load_adapted(PriorVLAModel, folder, backbone=tiny_backbone)
    assert torch.equal(act(loaded, dataset), act(model, dataset))
    assert not torch.equal(act(loaded, dataset), act(with_newcomer(base, tiny_backbone), dataset))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_pefts_own_loader_gives_the_same_once_the_base_has_the_body(base, tiny_backbone, dataset, tmp_path):
    from peft import PeftModel

    folder, model = adapted(base, tiny_backbone, tmp_path, ("newcomer", 3, 2), 0, "expert")
    theirs = with_newcomer(base, tiny_backbone)
    PeftModel.from_pretrained(theirs, folder)
    assert torch.equal(act(theirs, dataset), act(model, dataset))


def test_an_adapter_has_the_size_that_its_rank_says(base, tiny_backbone, tmp_path):
    folder, model = adapted(base, tiny_backbone, tmp_path, ("newcomer", 3, 2), 0)
    low_rank = 0
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and ".modules_to_save" not in name:
            low_rank += RANK * (module.in_features + module.out_features)
    own = sum(p.numel() for name, p in model.named_parameters() if ".modules_to_save.default." in name)
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == low_rank + own
    assert (folder / "adapter_model.safetensors").stat().st_size < 4 * (low_rank + own) + 300 * len(saved)


def test_several_robots_adapters_live_on_one_base_and_are_switched(base, tiny_backbone, dataset, tmp_path):
    """Both were the third body where they were trained, with other dims."""
    first, one = adapted(base, tiny_backbone, tmp_path / "one", ("one", 3, 2), 1)
    second, two = adapted(base, tiny_backbone, tmp_path / "two", ("two", 5, 4), 2)
    model = load(base, tiny_backbone)
    before = [act(model, dataset, known) for known in (0, 1)]
    load_adapter(model, first, "one")
    adapters = load_adapter(model, second, "two")
    assert model.config.expert.embodiments[2:] == ["one", "two"]
    for _ in range(2):
        adapters.set_adapter("one")
        assert torch.equal(act(model, dataset, 2), act(one, dataset, 2))
        adapters.set_adapter("two")
        assert torch.equal(act(model, dataset, 3), act(two, dataset, 2))
    with adapters.disable_adapter():
        assert all(torch.equal(act(model, dataset, known), before[known]) for known in (0, 1))


@pytest.mark.parametrize("preset", ["expert", "all"])
def test_merging_and_unmerging_change_nothing_but_the_last_digits(base, tiny_backbone, dataset, tmp_path, preset):
    folder, _ = adapted(base, tiny_backbone, tmp_path / "adapter", ("newcomer", 3, 2), 0, preset)
    model = load_adapted(PriorVLAModel, folder, backbone=tiny_backbone)
    chunk = act(model, dataset)
    adapters_in(model).base_model.merge_adapter()
    torch.testing.assert_close(act(model, dataset), chunk, atol=1e-5, rtol=0)
    adapters_in(model).base_model.unmerge_adapter()
    torch.testing.assert_close(act(model, dataset), chunk, atol=1e-5, rtol=0)
    merged = merge_adapter(model)
    assert adapters_in(merged) is None and not any("lora_" in name for name in merged.state_dict())
    torch.testing.assert_close(act(merged, dataset), chunk, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = PriorVLAModel.from_pretrained(tmp_path / "merged", backbone=tiny_backbone)
    assert torch.equal(act(again, dataset), act(merged, dataset))


def test_an_adapter_of_another_base_or_another_body_is_refused(base, tiny_backbone, save_policy, bodies, tmp_path):
    folder, _ = adapted(base, tiny_backbone, tmp_path / "adapter", ("newcomer", 3, 2), 0)
    with pytest.raises(ValueError, match=r"'newcomer' has 4 action and 2 state dims here, 3 and 2 in the adapter"):
        load_adapter(load(base, tiny_backbone, ("newcomer", 4, 2)), folder)
    other = save_policy(tmp_path / "other", bodies, fusion="gated")
    with pytest.raises(ValueError, match=r"belongs to another base"):
        load_adapter(load(other, tiny_backbone), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    lost = max(saved)
    save_file({name: tensor for name, tensor in saved.items() if name != lost}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"tensor '{lost}' is not in the file"):
        load_adapter(load(base, tiny_backbone), folder)


def test_an_adapter_without_base_and_a_model_without_adapter_say_so(base, tiny_backbone, tmp_path):
    folder, _ = adapted(base, tiny_backbone, tmp_path, ("newcomer", 3, 2), 0)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"names no base_model_name_or_path: pass base="):
        load_adapted(PriorVLAModel, folder, backbone=tiny_backbone)
    assert load_adapted(PriorVLAModel, folder, base=base, backbone=tiny_backbone) is not None
    with pytest.raises(ValueError, match=r"no adapter in this model"):
        adapter_tensors(load(base, tiny_backbone))


def test_a_base_with_adapters_among_its_own_weights_is_refused(save_policy, bodies, tiny_backbone, tmp_path):
    model = load(save_policy(tmp_path, bodies, fusion="cross"), tiny_backbone)
    model.config.backbone_training = "lora"
    with pytest.raises(ValueError, match=r"start from one that was trained with 'frozen' or 'full'"):
        add_adapter(model, lora_config(model, "expert", rank=RANK))


def test_a_base_in_half_precision_takes_an_adapter(base, tiny_backbone, dataset, tmp_path):
    folder, model = adapted(base, tiny_backbone, tmp_path, ("newcomer", 3, 2), 0)
    half = load_adapted(PriorVLAModel, folder, backbone=tiny_backbone, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(act(half, dataset), act(model, dataset), atol=0.2, rtol=0)
