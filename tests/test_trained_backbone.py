"""A backbone that is trained: what moves and at what rate, what a checkpoint has of it, and what stays at step 0."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, set_seed

from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.attached_backbone import TRAINED
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

H = 6
LORA = {"r": 2, "lora_alpha": 4}
TRAININGS = ["lora", "full"]
KINDS = ["frozen", *TRAININGS]


@pytest.fixture(scope="module", params=["tiny_backbone", "tiny_smolvlm"])
def folder(request):
    """Of either backbone."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def processor(folder, bodies):
    return PriorVLAProcessor.for_backbone(folder, bodies[:1], chunk_size=H)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, bodies, write_demonstrations, processor):
    """Eight windows with pixels and words."""
    data = write_demonstrations(tmp_path_factory.mktemp("data") / "small", bodies[0], [5, 3])
    sources = [load_trajectories(data, frames=True)]
    return LiveObservationDataset(TrajectoryDataset(sources, bodies[:1], H), sources, processor)


@pytest.fixture(scope="module")
def make_model(folder, bodies, tiny_fields):
    """`(training, fusion="cross", dtype=None, attached=True, **fields)`; always the same weights."""

    def make(training, fusion="cross", dtype=None, attached=True, **fields):
        described = describe_backbone(folder, source="hub", name="tiny", dtype=dtype)
        config = PriorVLAConfig(
            expert={**tiny_fields["expert"], **expert_dims(bodies[:1])},
            fusion_transformer={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
            backbone={key: described[key] for key in BACKBONE_KEYS},
            backbone_layers=described["num_layers"],
            vision_hidden_size=described["vision_hidden_size"],
            text_hidden_size=described["text_hidden_size"],
            fusion=fusion,
            backbone_training=training,
            lora=LORA if training == "lora" else None,
            **fields,
        )
        set_seed(1)
        model = awake(PriorVLAModel(config))
        return model.attach_backbone(folder) if attached else model

    return make


@pytest.fixture
def make_trainer(tmp_path, dataset):
    """`(model, folder="run", **arguments)`, of four steps unless told."""

    def make(model, folder="run", *, callbacks=(), **arguments):
        arguments = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "backbone_learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        return VLATrainer(
            model,
            VLATrainingArguments(output_dir=str(tmp_path / folder), **arguments),
            train_dataset=dataset,
            callbacks=list(callbacks),
        )

    return make


class SaveAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step


def awake(model: PriorVLAModel) -> PriorVLAModel:
    """What starts at zero has moved, so that every path has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(ours, theirs) -> set[str]:
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def act(model: PriorVLAModel, dataset) -> torch.Tensor:
    """A chunk for each of two windows."""
    batch = dataset.__getitems__([0, 6])
    given = ("state", "embodiment_ids", "pixel_values", "pixel_attention_mask", "input_ids", "attention_mask")
    noise = torch.randn(2, H, 4, generator=torch.Generator().manual_seed(0))
    return model.eval().sample_actions(**{key: batch[key] for key in given}, noise=noise)


# --- what moves, and at what rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", KINDS)
def test_a_backbone_has_its_own_learning_rate_and_weight_decay(make_model, make_trainer, training):
    model = make_model(training)
    trainer = make_trainer(model, weight_decay=0.1, backbone_weight_decay=0.3, gate_lr_scale=5.0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    seen = {name_of[id(parameter)] for group in groups for parameter in group["params"]}
    assert seen == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith(TRAINED) for name in seen) == (training != "frozen")
    for group in groups:
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            own, gate = name.startswith(TRAINED), name.endswith("_gate.weight")
            assert group["lr"] == pytest.approx(1e-3 if own else 5e-2 if gate else 1e-2), name
            assert group["weight_decay"] in (0.0, 0.3 if own else 0.1), name
    decays = {group["weight_decay"] for group in groups}
    assert decays == ({0.0, 0.1} if training == "frozen" else {0.0, 0.1, 0.3})


@pytest.mark.parametrize("training", TRAININGS)
def test_training_with_its_backbone_lowers_the_loss(make_model, make_trainer, training):
    trainer = make_trainer(make_model(training), max_steps=9)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_bfloat16_backbone_is_trained_by_adapters_and_in_full_refused_with_the_remedy(make_model, make_trainer):
    adapted = make_model("lora", dtype="bfloat16")
    assert adapted.backbone.dtype == torch.bfloat16
    make_trainer(adapted, max_steps=1).train()
    with pytest.raises(ValueError, match=r"a backbone in torch.bfloat16.*--backbone-dtype float32.*'lora'"):
        make_trainer(make_model("full", dtype="bfloat16"))


# --- knowledge insulation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fusion", "training"), [("latent", "lora"), ("gated", "full")])
def test_the_flow_loss_does_not_reach_an_insulated_backbone_and_the_alignment_does(
    make_model, dataset, tiny_fields, fusion, training
):
    fields = {"use_latent": fusion != "latent", "encoder": tiny_fields["encoder"]}
    batch = dataset.__getitems__(range(4))

    def reached(part: str, insulated: bool = True) -> set[str]:
        model = make_model(training, fusion, stop_gradient_into_backbone=insulated, **fields)
        losses = model(**batch, distillation_weight=1.0, generator=torch.Generator().manual_seed(0)).losses
        losses[part].backward()
        return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    assert reached("pred", insulated=False) >= {"expert", "fusion", TRAINED[:-1]}
    assert reached("pred") >= {"expert", "fusion"} and TRAINED[:-1] not in reached("pred")
    assert reached("align") == {"fusion", TRAINED[:-1]}


# --- step 0 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "dtype"), [("cross", "bfloat16"), ("joint", "bfloat16"), ("gated", "bfloat16"), ("gated", "float32")]
)
def test_a_policy_with_fresh_adapters_is_its_vision_action_prior_to_the_bit(make_model, folder, dataset, fusion, dtype):
    prior = make_model("frozen", fusion, dtype=dtype, language=False)
    policy = PriorVLAModel.from_vision_action_prior(prior, backbone_training="lora", lora=LORA)
    assert policy.backbone is None and not any(".lora_" in name for name, _ in prior.backbone.named_parameters())
    policy.attach_backbone(folder)
    for model in (prior, policy):
        model.to(getattr(torch, dtype))
    assert policy.trained_tensors() and torch.equal(act(policy, dataset), act(prior, dataset))


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", KINDS)
def test_a_checkpoint_has_of_a_backbone_what_was_trained_and_gives_the_same_chunk(
    make_model, make_trainer, dataset, folder, training
):
    trainer = make_trainer(make_model(training), callbacks=[SaveAt(2)], ema_decay=0.5)
    backbone = trainer.model.backbone
    before = weights_of(backbone)
    trainer.train()
    trainer.save_model()
    adapters = {name for name in before if ".lora_" in name}
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    moved = differing(before, weights_of(backbone))
    assert moved <= learning == {"frozen": set(), "lora": adapters, "full": learning}[training]
    assert len(moved) >= 0.8 * len(learning)
    expected = {f"{TRAINED}{name}" for name in {"frozen": set(), "lora": adapters, "full": set(before)}[training]}
    for place in (trainer.run_folder, trainer.run_folder / "checkpoint-2"):
        saved = load_file(place / "model.safetensors")
        assert {name for name in saved if name.startswith(TRAINED)} == expected
    with trainer.average.applied():
        chunk, average = act(trainer.model, dataset), weights_of(trainer.model)
    assert not torch.allclose(chunk, act(trainer.model, dataset), atol=1e-5), "averaged and raw weights must differ"
    loaded = PriorVLAModel.from_pretrained(trainer.run_folder, backbone=folder)
    assert not differing(average, loaded.state_dict())
    torch.testing.assert_close(act(loaded, dataset), chunk, atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", TRAININGS)
def test_an_interrupted_training_of_a_backbone_resumes_to_the_bit(make_model, make_trainer, training):
    whole = make_trainer(make_model(training), callbacks=[SaveAt(2)])
    whole.train()
    resumed = make_trainer(make_model(training), "resumed")
    with torch.no_grad():  # the weights that a new process starts with do not matter
        for parameter in resumed.average.trained.values():
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(whole.run_folder / "checkpoint-2"))
    assert not differing(weights_of(whole.model), weights_of(resumed.model))
    whole.save_model(), resumed.save_model()
    saved = [load_file(trainer.run_folder / "model.safetensors") for trainer in (whole, resumed)]
    assert not differing(*saved) and any(name.startswith(TRAINED) for name in saved[0])


@pytest.mark.parametrize("training", TRAININGS)
def test_a_checkpoint_without_a_tensor_that_was_trained_is_refused_by_its_name(make_model, folder, tmp_path, training):
    model = make_model(training)
    model.save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    lost = max(name for name in whole if name.startswith(TRAINED))
    save_file({name: tensor for name, tensor in whole.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"'{lost.removeprefix(TRAINED)}' of the backbone is missing.*is damaged"):
        PriorVLAModel.from_pretrained(tmp_path, backbone=folder)


@pytest.mark.parametrize("training", TRAININGS)
def test_a_trained_backbone_has_no_layers_that_nobody_reads(tiny_smolvlm, bodies, tiny_fields, tmp_path, training):
    sizes = describe_backbone(tiny_smolvlm, source="hub", name="tiny")
    fields = {name: sizes[name] for name in ("vision_hidden_size", "text_hidden_size")}
    expert = {**tiny_fields["expert"], **expert_dims(bodies)}
    config = PriorVLAConfig(fusion="cross", backbone_layers=2, backbone_training=training, expert=expert, **fields)
    module = load_backbone(None, tiny_smolvlm)
    model = PriorVLAModel(config).attach_backbone(module)
    assert len(model.backbone.language_model.layers) == 2 and len(module.language_model.layers) == 4
    model.save_pretrained(tmp_path)
    again = PriorVLAModel.from_pretrained(tmp_path, backbone=module)
    assert not differing(weights_of(model.backbone), weights_of(again.backbone))


@pytest.mark.parametrize("training", ["lora", "full"])
def test_a_backbone_that_is_attached_later_is_the_trained_one_too(make_model, folder, tmp_path, training):
    model = make_model(training)
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PriorVLAModel.from_pretrained(tmp_path, backbone=None).attach_backbone(folder)
    assert not differing(model.state_dict(), loaded.state_dict())
