"""Both Trainers: what is minimised, what moves, what is saved, and that an interruption leaves no trace."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, set_seed

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.modeling_priorvla.backbone import DualEncoderBackbone
from priorvla.modeling_priorvla.layers import EmbodimentLinear
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

H = 4
EXPERT = {
    "chunk_size": H,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "latent_dim": 8,
    "expert_layers": ["motion"],
}
ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
FUSION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VLA = {"fusion_transformer": FUSION, "vision_hidden_size": 16, "text_hidden_size": 24, "backbone_layers": 2}
KINDS = ["prior", "vla"]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory, bodies, write_demonstrations):
    """Two datasets, of 12 windows of the small and 6 of the large body."""
    folder = tmp_path_factory.mktemp("data")
    paths = [
        write_demonstrations(folder / body.name, body, lengths, seed)
        for seed, (body, lengths) in enumerate(zip(bodies, ([7, 5], [6]), strict=True))
    ]
    return [load_trajectories(path, frames=True) for path in paths]


@pytest.fixture(scope="module")
def processor(tiny_backbone, bodies):
    return PriorVLAProcessor.for_backbone(tiny_backbone, bodies, chunk_size=H)


@pytest.fixture(scope="module")
def make_dataset(tmp_path_factory, sources, bodies, tiny_backbone, processor):
    """`(kind, weights=None)`: motion alone for a prior, with cached features for a VLA."""
    cache, backbone = tmp_path_factory.mktemp("features"), DualEncoderBackbone.from_pretrained(tiny_backbone)

    def make(kind, weights=None):
        windows = TrajectoryDataset(sources, bodies, H, weights=weights)
        if kind == "prior":
            return windows
        return ObservationDataset(windows, sources, backbone, processor, cache, taps=(2,))

    return make


@pytest.fixture
def make_trainer(tmp_path, bodies, make_dataset, processor):
    """Makes a Trainer, of six steps unless told; `whole`: with the processor that a finished folder needs."""

    def make(kind, folder="run", *, weights=None, model=None, callbacks=(), evaluated=False, whole=False, **arguments):
        arguments = {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "warmup_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        if model is None:
            model = make_prior(bodies) if kind == "prior" else make_vla(bodies)
        if kind == "vla":
            arguments.setdefault("distillation_steps", 4)
        trainer_class, arguments_class = {
            "prior": (ActionPriorTrainer, ActionPriorTrainingArguments),
            "vla": (VLATrainer, VLATrainingArguments),
        }[kind]
        return trainer_class(
            model,
            arguments_class(output_dir=str(tmp_path / folder), **arguments),
            train_dataset=make_dataset(kind, weights),
            eval_dataset=make_dataset(kind) if evaluated else None,
            processor=processor if whole else None,
            callbacks=list(callbacks),
        )

    return make


def make_prior(bodies) -> ActionPriorModel:
    set_seed(1)
    return ActionPriorModel(ActionPriorConfig(expert={**EXPERT, **expert_dims(bodies)}, encoder=ENCODER))


def make_vla(bodies, **fields) -> PriorVLAModel:
    prior = make_prior(bodies)
    return PriorVLAModel.from_action_prior(prior, **VLA, **fields)


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


class AtEveryStep(TrainerCallback):
    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.action(state.global_step, model)


class SaveAt(TrainerCallback):
    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


# --- what is minimised ------------------------------------------------------------------------------------------------


def test_distillation_falls_linearly_to_zero_and_the_encoder_is_not_run_afterwards(make_trainer):
    trainer = make_trainer("vla", distillation_steps=4)
    seen, encoded = [], []
    trainer.model.register_forward_pre_hook(
        lambda _, arguments, inputs: seen.append(inputs["distillation_weight"]), with_kwargs=True
    )
    trainer.model.encoder.register_forward_pre_hook(lambda *_: encoded.append(trainer.state.global_step))
    trainer.train()
    assert seen == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert encoded == [0, 1, 2, 3]


def test_every_loss_is_logged_apart_and_adds_up(make_trainer):
    trainer = make_trainer("vla", distillation_steps=4)
    trainer.train()
    lines = losses_logged(trainer)
    for step, line in enumerate(lines):
        weight = max(0.0, 1 - step / 4)
        distilled = line["loss_align"] + line["loss_recon"] if weight else 0.0
        assert line["loss"] == pytest.approx(line["loss_pred"] + weight * distilled, rel=1e-4)
        assert ("loss_align" in line) == ("loss_recon" in line) == (weight > 0)
    assert len(lines) == 6


def test_a_logged_part_is_the_mean_of_its_steps(make_trainer):
    every, third = make_trainer("vla"), make_trainer("vla", logging_steps=3)
    every.train(), third.train()
    for key in ("loss", "loss_pred"):
        steps = [line[key] for line in losses_logged(every)]
        assert [line[key] for line in losses_logged(third)] == pytest.approx(
            [sum(steps[:3]) / 3, sum(steps[3:]) / 3], rel=1e-4
        )


def test_an_evaluated_part_is_the_mean_of_its_windows_as_the_loss_is(make_trainer, bodies):
    trainer = make_trainer(
        "vla", model=make_vla(bodies), distillation_steps=0, evaluated=True, per_device_eval_batch_size=17
    )
    metrics = trainer.evaluate()  # of 18 windows: the last batch has one
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_pred"], rel=1e-5)


def test_training_lowers_the_loss_of_both_stages(make_trainer):
    for kind in KINDS:
        trainer = make_trainer(kind, max_steps=25, evaluated=True)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < 0.97 * before, kind


def test_distillation_without_an_encoder_is_refused(make_trainer, bodies):
    vla = make_vla(bodies)
    config = vla.config.from_dict({**vla.config.to_dict(), "encoder": None})
    with pytest.raises(ValueError, match=r"distillation_steps=4 but the model has no trajectory encoder"):
        make_trainer("vla", model=PriorVLAModel(config))
    make_trainer("vla", model=PriorVLAModel(config), distillation_steps=0, max_steps=1).train()


def test_the_action_prior_trainer_never_opens_an_image(make_trainer, sources, bodies, monkeypatch):
    for source in sources:
        for trajectory in source.trajectories:
            monkeypatch.setattr(trajectory.frames, "read", lambda *_: pytest.fail("an image was opened"))
    trainer = make_trainer("prior")
    trainer.train()
    assert len(losses_logged(trainer)) == 6


def test_every_epoch_shows_every_window_once_in_another_order(make_trainer, monkeypatch):
    drawn, gather = [], TrajectoryDataset.__getitems__
    monkeypatch.setattr(TrajectoryDataset, "__getitems__", lambda self, ids: drawn.extend(ids) or gather(self, ids))
    make_trainer("prior", max_steps=10).train()
    assert len(drawn) == 10 * 4
    first, second = drawn[:18], drawn[20:38]  # of 18 windows an epoch has five whole steps: its first two come again
    assert sorted(first) == sorted(second) == list(range(18)) and first != second
    assert drawn[18:20] == first[:2] and drawn[38:] == second[:2]


# --- what moves -------------------------------------------------------------------------------------------------------


def test_a_frozen_decoder_keeps_its_every_bit_while_the_rest_learns(make_trainer):
    trainer = make_trainer("vla", decoder="frozen")
    before = weights_of(trainer.model)
    trainer.train()
    trainer.save_model()
    after, saved = weights_of(trainer.model), load_file(trainer.run_folder / "model.safetensors")
    changed = differing(before, after)
    assert not {name for name in changed if name.startswith("expert.")}
    assert {name.split(".")[0] for name in changed} == {"fusion", "encoder"}
    assert all(torch.equal(saved[name], value) for name, value in before.items() if name.startswith("expert."))


def test_a_random_decoder_is_fresh_and_a_reused_one_the_priors_and_nothing_else_differs(make_trainer, bodies):
    reused = weights_of(make_trainer("vla", decoder="reused").model)
    random = weights_of(make_trainer("vla", decoder="random").model)
    fresh = differing(reused, random)
    assert fresh and all(name.startswith("expert.") for name in fresh)
    prior = weights_of(make_prior(bodies))
    assert not differing(prior, {name: reused[name] for name in prior})
    at_birth = {name for name in prior if "norm" in name or "modulation" in name or name.endswith(".bias")}
    assert {name for name in prior if name.startswith("expert.")} - fresh <= at_birth


def test_the_experts_learning_rate_is_scaled_and_the_fusions_is_not(make_trainer):
    trainer = make_trainer("vla", expert_lr_scale=0.25, warmup_steps=0)
    name_of = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    for group in groups:
        for parameter in group["params"]:
            scaled = name_of[id(parameter)].startswith(("expert.", "encoder."))
            assert group["lr"] == (2.5e-3 if scaled else 1e-2), name_of[id(parameter)]
    assert sorted(id(parameter) for group in groups for parameter in group["params"]) == sorted(name_of)


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_of_linear_maps_decay_and_none_that_belongs_to_one_embodiment(make_trainer, kind):
    trainer = make_trainer(kind, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    own = {id(p) for m in trainer.model.modules() if isinstance(m, EmbodimentLinear) for p in m.parameters()}
    maps = {id(module.weight) for module in trainer.model.modules() if isinstance(module, nn.Linear)}
    assert own & maps and decayed == maps - own


def test_weights_of_a_body_without_data_stay_where_they_are(make_trainer, sources, bodies):
    trainer = make_trainer("prior", weight_decay=0.5, ema_decay=0.0)
    trainer.train_dataset = TrajectoryDataset(sources[:1], bodies, H)
    own = trainer.model.expert.action_in_proj
    before = weights_of(own)
    trainer.train()
    changed = differing(before, weights_of(own))
    assert changed and not {name for name in changed if "1" in name.split(".")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused_with_the_remedy(make_trainer, bodies, dtype):
    with pytest.raises(ValueError, match=rf"is {dtype}: training needs float32.*bf16=True"):
        make_trainer("prior", model=make_prior(bodies).to(dtype))


def test_a_processor_of_other_bodies_than_the_models_is_refused(make_trainer, bodies):
    with pytest.raises(ValueError, match="small"):
        make_trainer("prior", whole=True, model=make_prior([replace(body, name=f"my_{body.name}") for body in bodies]))


# --- averaged weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_moving_average_and_a_checkpoint_has_the_raw_weights_beside_it(make_trainer, kind):
    raw = []
    record = AtEveryStep(lambda step, model: raw.append(weights_of(model)))
    trainer = make_trainer(kind, ema_decay=0.4, save_strategy="steps", save_steps=4, callbacks=[record])
    trainer.train()
    trainer.save_model()

    def average(steps):
        mean = raw[0]
        for step, weights in enumerate(raw[1:steps], start=1):
            decay = min(0.4, (1 + step) / (10 + step))
            mean = {name: decay * mean[name] + (1 - decay) * weights[name] for name in mean}
        return mean

    for folder, steps in ((trainer.run_folder / "checkpoint-4", 4), (trainer.run_folder, 6)):
        torch.testing.assert_close(load_file(folder / "model.safetensors"), average(steps))
    assert not differing(load_file(trainer.run_folder / "checkpoint-4" / "raw_weights.safetensors"), raw[3])
    assert not differing(weights_of(trainer.model), raw[-1])
    assert not (trainer.run_folder / "raw_weights.safetensors").exists()


def test_without_an_average_the_raw_weights_are_saved(make_trainer):
    trainer = make_trainer("prior", ema_decay=0.0)
    trainer.train()
    trainer.save_model()
    assert not differing(load_file(trainer.run_folder / "model.safetensors"), weights_of(trainer.model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_has_model_processor_and_card_and_no_pickle(make_trainer, kind):
    trainer = make_trainer(kind, whole=True)
    trainer.train()
    trainer.save_model()
    names = {file.name for file in trainer.run_folder.iterdir()}
    assert {"config.json", "model.safetensors", "embodiments.json", "processor_config.json", "README.md"} <= names
    assert not [name for name in names if any(name.endswith(suffix) for suffix in PICKLES)]
    loaded = {"prior": ActionPriorModel, "vla": PriorVLAModel}[kind].from_pretrained(trainer.run_folder)
    assert not differing(weights_of(loaded), load_file(trainer.run_folder / "model.safetensors"))


# --- evaluation and repetition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_does_not_change_training(make_trainer, kind):
    plain, evaluated = (
        make_trainer(kind, evaluated=True, **settings) for settings in ({}, {"eval_strategy": "steps", "eval_steps": 2})
    )
    plain.train(), evaluated.train()
    assert [line["step"] for line in evaluated.state.log_history if "eval_loss" in line] == [2, 4, 6]
    assert not differing(weights_of(plain.model), weights_of(evaluated.model))
    assert losses_logged(plain) == losses_logged(evaluated)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_of_the_averaged_weights_and_repeats(make_trainer, kind):
    trainer = make_trainer(kind, evaluated=True, ema_decay=0.9)
    trainer.train()
    trainer.save_model()
    once, twice = trainer.evaluate(), trainer.evaluate()
    assert once["eval_loss"] == twice["eval_loss"]
    raw = make_trainer(kind, "raw", evaluated=True, model=trainer.model, ema_decay=0.0)
    assert raw.evaluate()["eval_loss"] != once["eval_loss"]
    raw.model.load_state_dict(load_file(trainer.run_folder / "model.safetensors"))
    assert raw.evaluate()["eval_loss"] == once["eval_loss"]


def test_the_best_models_average_is_what_is_saved_and_evaluated_where_that_is_asked_for(make_trainer):
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer("prior", evaluated=True, ema_decay=0.9, **steps, **best)
    trainer.train()
    found = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    worst = max(found, key=found.get)  # the largest loss is called the best, so that it is not the last
    assert worst < 6 and trainer.state.best_model_checkpoint.endswith(f"checkpoint-{worst}")
    assert trainer.evaluate()["eval_loss"] == found[worst]
    trainer.save_model()
    kept, saved = (
        load_file(folder / "model.safetensors")
        for folder in (trainer.run_folder / f"checkpoint-{worst}", trainer.run_folder)
    )
    assert not differing(kept, saved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_determines_a_run_to_the_bit(make_trainer, kind):
    one, two, other = (make_trainer(kind, seed=seed) for seed in (0, 0, 5))
    for trainer in (one, two, other):
        trainer.train()
    assert losses_logged(one) == losses_logged(two) != losses_logged(other)
    assert not differing(weights_of(one.model), weights_of(two.model))
    assert differing(weights_of(one.model), weights_of(other.model))


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]], ids=["shuffled", "mixture"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_resumes_to_the_bit(make_trainer, kind, weights):
    settings = {"weights": weights, "max_steps": 7}
    uninterrupted = make_trainer(kind, callbacks=[SaveAt(3, 5, 6)], **settings)
    uninterrupted.train()
    uninterrupted.save_model()
    average = load_file(uninterrupted.run_folder / "model.safetensors")
    for step in (3, 5, 6):  # an epoch has five steps: amid the first, between the two, amid the second
        resumed = make_trainer(kind, "resumed", **settings)
        with torch.no_grad():  # the weights that a new process starts with do not matter
            for parameter in resumed.model.parameters():
                parameter.add_(1.0)
        resumed.train(resume_from_checkpoint=str(uninterrupted.run_folder / f"checkpoint-{step}"))
        assert not differing(weights_of(uninterrupted.model), weights_of(resumed.model)), step
        assert losses_logged(uninterrupted) == losses_logged(resumed) and len(losses_logged(resumed)) == 7
        resumed.save_model()
        assert not differing(average, load_file(resumed.run_folder / "model.safetensors")), step


def test_a_run_resumes_from_its_last_checkpoint_or_from_a_path(make_trainer):
    whole = make_trainer("prior", callbacks=[SaveAt(3)])
    whole.train()
    for asked in (True, whole.run_folder / "checkpoint-3"):
        resumed = make_trainer("prior")
        resumed.train(resume_from_checkpoint=asked)
        assert not differing(weights_of(whole.model), weights_of(resumed.model))
    done = make_trainer("prior", max_steps=3)
    assert done.train(resume_from_checkpoint=True).global_step == 3  # and not one more
    with pytest.raises(ValueError, match="elsewhere has no checkpoint to resume from"):
        make_trainer("prior", "elsewhere").train(resume_from_checkpoint=True)


def test_a_frozen_decoder_resumes_to_the_bit(make_trainer):
    uninterrupted = make_trainer("vla", decoder="frozen", callbacks=[SaveAt(3)])
    uninterrupted.train()
    resumed = make_trainer("vla", "resumed", decoder="frozen")
    resumed.train(resume_from_checkpoint=str(uninterrupted.run_folder / "checkpoint-3"))
    assert not differing(weights_of(uninterrupted.model), weights_of(resumed.model))


def test_resuming_a_checkpoint_without_its_raw_weights_or_of_other_settings_says_so(make_trainer):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    trainer = make_trainer("vla", **settings)
    trainer.train()
    checkpoint = trainer.run_folder / "checkpoint-3"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 3
    with pytest.raises(ValueError, match=r"raw_weights.safetensors: tensor 'expert.*resume with its settings"):
        make_trainer("vla", decoder="frozen", **settings).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "raw_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"raw_weights.safetensors is missing"):
        make_trainer("vla", **settings).train(resume_from_checkpoint=str(checkpoint))
