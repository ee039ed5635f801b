"""Trainers of the rungs that see: every cell of the ladder learns, what is logged, what weighs, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, set_seed

import priorvla
from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone
from priorvla.training.observing_trainer import as_features

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

H = 6
HOSTS = ["cross", "joint", "gated"]
STARTS = ["random", "action prior", "vision-action prior", "both"]
CELLS = [("latent", start) for start in STARTS[:2]] + [(fusion, start) for fusion in HOSTS for start in STARTS]
BACKBONES = ["tiny_backbone", "tiny_smolvlm"]


@pytest.fixture(scope="module")
def robots(bodies):
    """The small body with a gripper, and the large one."""
    return [replace(bodies[0], gripper_dims=[3]), bodies[1]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, robots, write_demonstrations):
    """Two datasets, of 12 windows of the small and 5 of the large body."""
    folder = tmp_path_factory.mktemp("data")
    paths = [
        write_demonstrations(folder / body.name, body, lengths, seed)
        for seed, (body, lengths) in enumerate(zip(robots, ([7, 5], [5]), strict=True))
    ]
    return [priorvla.load_trajectories(path, frames=True) for path in paths]


@pytest.fixture(scope="module")
def make_dataset(tmp_path_factory, sources, robots, request):
    """`(model, backbone, language)`: windows with cached features, as the model reads them."""
    cache, made = tmp_path_factory.mktemp("features"), {}

    def make(model, backbone="tiny_backbone", language=None):
        language = model.config.language if language is None else language
        key = (backbone, model.config.taps, language)
        if key not in made:
            folder = request.getfixturevalue(backbone)
            made[key] = priorvla.ObservationDataset(
                priorvla.TrajectoryDataset(sources, robots, H),
                sources,
                load_backbone(None, folder),
                priorvla.PriorVLAProcessor.for_backbone(folder, robots, chunk_size=H),
                cache,
                taps=model.config.taps,
                language=language,
            )
        return made[key]

    return make


@pytest.fixture(scope="module")
def make_model(robots, tiny_fields, request):
    """`(fusion, start, backbone, **fields)`: a model of rung 3, or with `language=False` of rung 2."""

    def make(fusion, start="random", backbone="tiny_backbone", **fields):
        folder = request.getfixturevalue(backbone)
        described = describe_backbone(folder, source="hub", name="tiny")
        expert = {**tiny_fields["expert"], **priorvla.expert_dims(robots)}
        complete = {
            "fusion": fusion,
            "backbone": {key: described[key] for key in BACKBONE_KEYS},
            "backbone_layers": described["num_layers"],
            "vision_hidden_size": described["vision_hidden_size"],
            "text_hidden_size": described["text_hidden_size"],
            "fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
            **fields,
        }
        set_seed(1)
        if start == "random":
            return priorvla.PriorVLAModel(priorvla.PriorVLAConfig(expert=expert, **complete))
        if start == "action prior":
            config = priorvla.ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"])
            return priorvla.PriorVLAModel.from_action_prior(priorvla.ActionPriorModel(config), **complete)
        seeing = make(
            fusion, "action prior" if start == "both" else "random", backbone, **{**fields, "language": False}
        )
        return priorvla.PriorVLAModel.from_vision_action_prior(seeing)

    return make


@pytest.fixture
def make_trainer(tmp_path, make_dataset, robots, request):
    """`(model)`: the Trainer of its rung, of four steps unless told; `whole`: with the processor a folder needs."""

    def make(model, folder="run", *, backbone="tiny_backbone", language=None, whole=False, callbacks=(), **arguments):
        arguments = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "warmup_steps": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        kinds = {
            False: (priorvla.VisionActionPriorTrainer, priorvla.VisionActionPriorTrainingArguments),
            True: (priorvla.VLATrainer, priorvla.VLATrainingArguments),
        }
        trainer_class, arguments_class = kinds[model.config.language]
        dataset = make_dataset(model, backbone, language)
        processor = None
        if whole:
            processor = priorvla.PriorVLAProcessor.for_backbone(request.getfixturevalue(backbone), robots, chunk_size=H)
        return trainer_class(
            model,
            arguments_class(output_dir=str(tmp_path / folder), **arguments),
            train_dataset=dataset,
            eval_dataset=dataset,
            processor=processor,
            callbacks=list(callbacks),
        )

    return make


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(ours, theirs) -> set[str]:
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def losses_logged(trainer) -> list[dict]:
    """The log without what the clock says."""
    timing = ("runtime", "per_second", "flos")
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{key: value for key, value in line.items() if not any(word in key for word in timing)} for line in lines]


class SaveAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step


# --- every cell of the ladder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("fusion", "start"), CELLS)
def test_every_cell_trains_and_samples_through_the_public_names(
    make_model, make_trainer, make_dataset, fusion, start, backbone
):
    model = make_model(fusion, start, backbone)
    before = weights_of(model)
    trainer = make_trainer(model, backbone=backbone, max_steps=2, warmup_steps=0)
    trainer.train()
    assert {name.split(".")[0] for name in differing(before, weights_of(model))} >= {"expert"}
    line = losses_logged(trainer)[-1]
    assert ("loss_align" in line) == (fusion == "latent" and start == "action prior")
    features = make_dataset(model, backbone).__getitems__([0, 14])
    seen = {key: value for key, value in features.items() if key.startswith(("vision", "language"))}
    chunk = model.eval().sample_actions(
        state=features["state"], embodiment_ids=features["embodiment_ids"], **as_features(seen, model.config.taps)
    )
    assert chunk.shape == (2, H, 7) and chunk.isfinite().all()


@pytest.mark.parametrize("start", STARTS[2:])
def test_the_latent_host_cannot_start_from_sight(make_model, start):
    with pytest.raises(
        StrictDataclassError, match="no layer of the expert sees: make a vision-action prior with cross"
    ):
        make_model("latent", start)


@pytest.mark.parametrize("fusion", HOSTS)
def test_training_lowers_the_loss_of_rung_2_and_then_of_rung_3(make_model, make_trainer, fusion):
    seeing = make_model(fusion, "action prior", language=False)
    for model in (seeing, None):
        model = model or priorvla.PriorVLAModel.from_vision_action_prior(seeing)
        trainer = make_trainer(model, max_steps=12)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < 0.97 * before, model.config.language


@pytest.mark.parametrize("language", [False, True], ids=["rung 2", "rung 3"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_an_interrupted_training_resumes_to_the_bit(make_model, make_trainer, fusion, language):
    def model():
        return make_model(fusion, "both") if language else make_model(fusion, "action prior", language=False)

    whole = make_trainer(model(), callbacks=[SaveAt(2)])
    whole.train()
    whole.save_model()
    resumed = make_trainer(model(), "resumed")
    with torch.no_grad():  # the weights that a new process starts with do not matter
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(whole.run_folder / "checkpoint-2"))
    resumed.save_model()
    assert losses_logged(resumed) == losses_logged(whole) and len(losses_logged(whole)) == 4
    assert not differing(weights_of(resumed.model), weights_of(whole.model))
    saved = [load_file(trainer.run_folder / "model.safetensors") for trainer in (whole, resumed)]
    assert not differing(*saved)


# --- what rung 2 is taught with, and what rung 3 begins as ------------------------------------------------------------


@pytest.mark.parametrize("fusion", HOSTS)
def test_words_in_the_batches_of_rung_2_change_no_bit_of_what_is_learned(make_model, make_trainer, fusion):
    deaf, told = (make_model(fusion, language=False) for _ in range(2))
    trainers = [make_trainer(model, language=language) for model, language in ((deaf, False), (told, True))]
    assert ["language_mask" in trainer.train_dataset[0] for trainer in trainers] == [False, True]
    for trainer in trainers:
        trainer.train()
    assert losses_logged(trainers[0]) == losses_logged(trainers[1])
    assert not differing(weights_of(deaf), weights_of(told))


@pytest.mark.parametrize("fusion", HOSTS)
def test_rung_3_begins_with_the_loss_that_rung_2_ended_with(make_model, make_trainer, fusion):
    below = make_trainer(make_model(fusion, "action prior", language=False))
    below.train()
    with below.average.applied():
        above = make_trainer(priorvla.PriorVLAModel.from_vision_action_prior(below.model))
    assert above.evaluate()["eval_loss"] == below.evaluate()["eval_loss"]


# --- what is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "kinds"),
    [
        ("cross", {"cross", "context_attn", "context_mlp"}),
        ("joint", {"memory", "context_attn", "context_mlp"}),
        ("gated", {"memory", "vision", "words", "stream", "context_attn", "context_mlp"}),
        ("latent", set()),
    ],
)
def test_how_far_gates_are_open_is_logged_by_kind_and_told_in_the_card_layer_by_layer(
    make_model, make_trainer, fusion, kinds
):
    trainer = make_trainer(make_model(fusion, "action prior"), whole=True)
    trainer.train()
    trainer.save_model()
    first, *_, last = losses_logged(trainer)
    assert {name.removeprefix("gate_") for name in first if name.startswith("gate_")} == kinds
    if kinds:  # a branch that the prior does not have was shut when training began
        shut = "gate_cross" if fusion == "cross" else "gate_memory"
        assert first[shut] < last[shut] < 0.5
        values = [value for name, value in trainer.model.gate_values().items() if name.endswith(f"{shut[5:]}_gate")]
        assert last[shut] == pytest.approx(sum(values) / len(values))
    card = (trainer.run_folder / "README.md").read_text()
    assert ("| layer |" in card) == bool(kinds)
    assert all(f"`{kind}`" in card for kind in kinds)


# --- what an error weighs ---------------------------------------------------------------------------------------------


def test_equal_weights_change_nothing_and_others_are_those_of_component_weights(make_model, make_trainer, robots):
    plain, equal = (
        make_trainer(make_model("cross"), whole=True, loss_weights=weights)
        for weights in (None, {"position": 7.0, "gripper": 7.0})
    )
    for trainer in (plain, equal):
        trainer.train()
    assert losses_logged(plain) == losses_logged(equal)
    weights = {"position": 30.0, "gripper": 10.0}
    weighted = make_trainer(make_model("cross"), whole=True, loss_weights=weights)
    given = []
    weighted.model.register_forward_pre_hook(
        lambda _, a, inputs: given.append(inputs["loss_weights"]), with_kwargs=True
    )
    weighted.train()
    assert all(torch.equal(table, priorvla.component_weights(robots, weights)) for table in given) and len(given) == 4
    assert losses_logged(weighted) != losses_logged(plain)


def test_a_component_that_weighs_nothing_is_not_learned(make_model, make_trainer):
    model = make_model("joint")
    own = model.expert.action_out_proj
    before = weights_of(own)
    weights = {"position": 1.0, "gripper": 0.0}
    make_trainer(model, whole=True, loss_weights=weights, ema_decay=0.0, warmup_steps=0, max_steps=2).train()
    matrix = next(name for name, value in before.items() if value.ndim == 2 and 4 in value.shape)
    changed = (before[matrix] != weights_of(own)[matrix]).any(dim=1 - before[matrix].shape.index(4))
    assert changed.tolist() == [True, True, True, False]


def test_weights_of_components_that_cannot_be_are_refused(make_model, make_trainer):
    with pytest.raises(ValueError, match="loss_weights are of the bodies' dims: pass processor="):
        make_trainer(make_model("cross"), loss_weights={"position": 1.0})
    with pytest.raises(ValueError, match="'small' has 1 gripper dims, and no weight of 'gripper' is given"):
        make_trainer(make_model("cross"), whole=True, loss_weights={"position": 1.0})


# --- distillation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "start", "fields", "steps"),
    [
        ("latent", "action prior", {}, 5000),
        ("latent", "random", {}, 0),
        ("cross", "action prior", {"use_latent": True}, 5000),
        ("cross", "action prior", {}, 0),
        ("gated", "random", {"use_latent": True}, 0),
        ("gated", "both", {}, 0),
    ],
)
def test_there_is_distillation_by_default_where_there_is_something_to_distil(
    make_model, make_trainer, fusion, start, fields, steps
):
    trainer = make_trainer(make_model(fusion, start, **fields), max_steps=1)
    assert trainer.args.distillation_steps == steps and trainer.distillation_weight == float(steps > 0)
    trainer.train()
    (line,) = losses_logged(trainer)
    assert ({"loss_align", "loss_recon", "distillation_weight"} <= line.keys()) == (steps > 0)


@pytest.mark.parametrize(
    ("start", "fields", "said"),
    [
        ("action prior", {}, "fusion='cross' has no z' to align with the prior's latent: build the model with use_lat"),
        ("random", {"use_latent": True}, "the model has no trajectory encoder: start from an action prior"),
    ],
)
def test_distillation_that_cannot_be_is_refused_with_the_remedy(make_model, make_trainer, start, fields, said):
    with pytest.raises(ValueError, match=said):
        make_trainer(make_model("cross", start, **fields), distillation_steps=3)
    with pytest.raises(ValueError, match="distillation_steps=-1 must not be negative"):
        make_trainer(make_model("cross", start, **fields), distillation_steps=-1)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_model_is_refused_by_the_trainer_of_another_rung(make_model, tmp_path):
    seeing, hearing = make_model("joint", language=False), make_model("joint")
    arguments = {"output_dir": str(tmp_path), "use_cpu": True}
    with pytest.raises(
        ValueError, match="reads instructions, a vision-action prior does not: build it with language=F"
    ):
        priorvla.VisionActionPriorTrainer(hearing, priorvla.VisionActionPriorTrainingArguments(**arguments))
    with pytest.raises(ValueError, match="is a vision-action prior and reads no instruction: insert layers"):
        priorvla.VLATrainer(seeing, priorvla.VLATrainingArguments(**arguments))


@pytest.mark.parametrize("training", ["lora", "full"])
def test_rung_2_leaves_its_backbone_alone(make_model, tmp_path, training):
    model = make_model("joint", language=False, backbone_training=training)
    arguments = priorvla.VisionActionPriorTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=rf"backbone_training='{training}': .* leave it 'frozen' on this rung"):
        priorvla.VisionActionPriorTrainer(model, arguments)


def test_a_frozen_decoder_is_refused_where_its_layers_are_all_that_sees(make_model, make_trainer):
    with pytest.raises(ValueError, match=r"decoder='frozen' with fusion='gated'.* would never learn to"):
        make_trainer(make_model("gated", "both"), decoder="frozen")


def test_a_learning_rate_that_is_not_positive_is_refused(tmp_path):
    for given in ({"backbone_learning_rate": 0.0}, {"expert_lr_scale": -1.0}, {"gate_lr_scale": 0.0}):
        with pytest.raises(ValueError, match=rf"{next(iter(given))}={next(iter(given.values()))} .*must be positive"):
            priorvla.VLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
