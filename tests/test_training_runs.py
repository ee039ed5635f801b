"""`pretrain` and `train` from options to a finished folder: checks, files, the control, Ctrl-C and going on."""

import csv
import json
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from priorvla.configuration.embodiment import load_embodiments
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.readers import load_trajectories
from priorvla.training.pretrain import pretrain_action_prior
from priorvla.training.prior_quality import measure_prior
from priorvla.training.run_options import PriorOptions, RunOptions, VLAOptions, split_weight
from priorvla.training.train import train_vla

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
MOTION = {
    "expert": {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "chunk_size": 4, "expert_layers": ["motion"]},
    "encoder": {**SMALL, "head_dim": 8, "num_hidden_layers": 1},
}
SIGHT = {"fusion_transformer": {**SMALL, "num_hidden_layers": 1}}
TRAINING = {"per_device_train_batch_size": 8, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def motion(folder, bodies, write_demonstrations) -> list[str]:
    """Motion of both bodies, without images."""
    return [
        str(write_demonstrations(folder / f"motion_{body.name}", body, [9, 6, 8], seed, images=False))
        for seed, body in enumerate(bodies)
    ]


@pytest.fixture(scope="module")
def demonstrations(folder, bodies, write_demonstrations) -> str:
    return str(write_demonstrations(folder / "demonstrations", bodies[0], [5, 6, 4], seed=7))


@pytest.fixture(scope="module")
def prior(folder, motion):
    """A pretrained action prior's folder."""
    pretrain_action_prior(prior_options(motion, folder / "prior"))
    return folder / "prior"


@pytest.fixture(scope="module")
def make_vla(folder, demonstrations, tiny_backbone):
    """Trains a VLA in `folder / name`; all share one feature cache."""

    def make(name, model=SIGHT, training=None, **options):
        return train_vla(
            VLAOptions(
                **{
                    "datasets": [demonstrations],
                    "output_dir": folder / name,
                    "max_steps": 4,
                    "device": "cpu",
                    "holdout": 0.34,
                    "backbone": str(tiny_backbone),
                    "cache_dir": folder / "features",
                    **options,
                },
                model=model,
                training={**TRAINING, **(training or {})},
            )
        )

    return make


def prior_options(datasets, output_dir, **options) -> PriorOptions:
    options = {"max_steps": 4, "device": "cpu", "holdout": 0.34, "model": MOTION, "training": TRAINING, **options}
    return PriorOptions(datasets=datasets, output_dir=output_dir, **options)


def weights_in(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def training_log(run: Path) -> list[dict[str, str]]:
    """The lines of log.csv about training; those about evaluation tell the time."""
    with (run / "log.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["loss"]]
    return [{key: value for key, value in line.items() if not key.startswith("eval_")} for line in lines]


def require_complete(run: Path) -> None:
    """A finished run's folder: everything that a person or a program looks for, and no pickle."""
    names = {file.name for file in run.iterdir() if file.is_file()}
    assert {"model.safetensors", "config.json", "embodiments.json", "processor_config.json", "README.md"} <= names
    assert {"metrics.json", "log.csv", "loss.png"} <= names
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".csv", ".png", ".md", ".html"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_policy_has_the_camera_slots_that_it_is_given_and_never_fewer_than_its_data(make_vla):
    for asked, slots in ((3, 3), (1, 1)):
        assert (
            make_vla(f"slots-{asked}", model={**SIGHT, "num_cameras": asked}, max_steps=1).model.config.num_cameras
            == slots
        )


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "--max-steps 0 must be at least 1"),
        ({"holdout": 1.0}, r"--holdout 1.0 must be in \[0, 1\)"),
        ({"holdout": -0.1}, "--holdout -0.1 must be in"),
        ({"device": "abacus"}, "--device abacus is unknown, use auto, cpu, cuda"),
        ({"datasets": []}, "--dataset is missing"),
        ({"resume": True}, "--resume: .*run has no complete checkpoint"),
        ({"control": True}, "--control repeats a run .* --prior"),
        ({"frame_stride": 0}, "--frame-stride 0 must be at least 1"),
        ({"max_cache_gb": 0.0}, "--max-cache-gb 0.0 must be positive"),
        ({"datasets": ["owner/name:0"]}, "--dataset owner/name:0: the weight '0' after ':' must be positive"),
    ],
)
def test_an_impossible_option_is_refused_by_name_and_value(tmp_path, options, message):
    base = {"datasets": ["owner/name"], "output_dir": tmp_path / "run", "max_steps": 1, "device": "cpu"}
    given = {**base, **options}
    common = {field.name for field in fields(RunOptions)}
    classes = [VLAOptions, RunOptions] if given.keys() <= common else [VLAOptions]
    for options_class in classes:
        with pytest.raises(ValueError, match=message):
            options_class(**given).check()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--device cuda: no CUDA device"):
        RunOptions(datasets=["owner/name"], output_dir=tmp_path / "run", max_steps=1, device="cuda").check()


def test_a_dataset_or_a_prior_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--dataset nowhere does not exist: give .* Hub id"):
        RunOptions(["owner/name", "nowhere:2"], tmp_path / "run", 1).check()
    with pytest.raises(FileNotFoundError, match=r"--prior .*config\.json is missing"):
        VLAOptions(["owner/name"], tmp_path / "run", 1, prior=str(tmp_path)).check()


def test_a_folder_in_use_and_a_file_are_no_place_for_a_new_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place, message in ((tmp_path, "is not empty: choose another"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(ValueError, match=f"--output-dir {place} {message}"):
            prior_options(["owner/name"], place).check()
    prior_options(["owner/name"], tmp_path / "new").check()


def test_an_unknown_field_of_model_or_training_names_the_nearest(tmp_path):
    for options, message in (
        (
            {"model": {"expert": {"hiden_size": 8}}},
            r"model.expert: 'hiden_size' is unknown, did you mean 'hidden_size'",
        ),
        ({"training": {"learning_rat": 1}}, "training: 'learning_rat' is unknown, did you mean 'learning_rate'"),
        ({"training": {"max_steps": 1}}, "training.max_steps is an option of the command itself"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain_action_prior(prior_options(["owner/name"], tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_dataset_may_carry_a_weight_and_a_path_may_have_a_colon(tmp_path):
    assert split_weight("data/a") == ("data/a", None)
    assert split_weight("owner/name:2.5") == ("owner/name", 2.5)
    (tmp_path / "a:3").mkdir()
    assert split_weight(str(tmp_path / "a:3")) == (str(tmp_path / "a:3"), None)
    for weight, message in (("heavy", "'heavy' after ':' is not a number"), ("0", "'0'.*positive"), ("inf", "finite")):
        with pytest.raises(ValueError, match=rf"--dataset data:{weight}: .*{message}"):
            split_weight(f"data:{weight}")


def test_an_unfinished_checkpoint_is_not_the_last(tmp_path):
    for name, file in (("9", "trainer_state.json"), ("10", "trainer_state.json"), ("11", "model.safetensors")):
        (tmp_path / f"checkpoint-{name}").mkdir()
        (tmp_path / f"checkpoint-{name}" / file).write_text("{}")
    options = prior_options(["owner/name"], tmp_path)
    assert options.last_checkpoint() == str(tmp_path / "checkpoint-10")


def test_a_stopped_run_is_told_to_go_on_only_where_it_can(tmp_path):
    options = prior_options(["owner/name"], tmp_path / "run")
    assert "the same command starts again" in options.after_stop()
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    assert f"another --output-dir, or remove {tmp_path / 'run'}" in options.after_stop()
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert "goes on with the same command and --resume" in options.after_stop()
    replace(options, resume=True, datasets=["owner/name"]).check()


# --- rung 1 -----------------------------------------------------------------------------------------------------------


def test_a_prior_is_pretrained_from_motion_alone_and_leaves_a_whole_folder(prior):
    require_complete(prior)
    metrics = json.loads((prior / "metrics.json").read_text())
    assert metrics["held_out_windows"] > 0
    for body in ("small", "large"):
        assert metrics[f"reconstruction_error/{body}"] > 0 and metrics[f"mean_chunk_error/{body}"] > 0
    lines = training_log(prior)
    assert [line["step"] for line in lines] == ["1", "2", "3", "4"] and all(float(line["loss"]) > 0 for line in lines)
    model, processor = ActionPriorModel.from_pretrained(prior), PriorVLAProcessor.from_pretrained(prior)
    assert model.config.expert.embodiments == [body.name for body in processor.embodiments] == ["small", "large"]
    assert model.sample_actions(embodiment_ids=torch.tensor([0, 1])).shape == (2, 4, 7)


def test_a_mixture_and_no_held_out_episode_work_through_the_options(motion, tmp_path):
    datasets = [f"{motion[0]}:3", motion[1]]
    trainer = pretrain_action_prior(prior_options(datasets, tmp_path / "run", holdout=0.0, max_steps=1))
    assert trainer.train_dataset.source_weights == [3.0, 1.0]
    require_complete(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {}


def test_the_held_out_episodes_are_in_no_statistic(motion, prior):
    counts = [body.action_statistics.count for body in load_embodiments(prior)]
    written = [load_trajectories(dataset).embodiment.action_statistics.count for dataset in motion]
    assert all(ours < whole for ours, whole in zip(counts, written, strict=True))


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


class PressControlC(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)


def test_control_c_leaves_a_run_that_goes_on_as_if_nothing_had_been(motion, prior, tmp_path, monkeypatch, request):
    options = prior_options(motion, tmp_path / "run", training={**TRAINING, "save_steps": 2})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with monkeypatch.context() as patch:
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*DEFAULT_CALLBACKS, PressControlC])
        with pytest.raises(KeyboardInterrupt):
            pretrain_action_prior(options)
    assert options.last_checkpoint() == str(tmp_path / "run" / "checkpoint-2")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="continue it with --resume"):
        pretrain_action_prior(options)
    pretrain_action_prior(replace(options, resume=True))
    require_complete(tmp_path / "run")
    uninterrupted, resumed = weights_in(prior), weights_in(tmp_path / "run")
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    assert (tmp_path / "run" / "metrics.json").read_text() == (prior / "metrics.json").read_text()
    assert training_log(tmp_path / "run") == training_log(prior)


def test_a_training_that_had_all_its_steps_is_resumed_without_another(motion, tmp_path):
    run = tmp_path / "prior"
    settings = {"max_steps": 3, "training": {**TRAINING, "save_steps": 3}}
    pretrain_action_prior(prior_options(motion, run, **settings))
    whole = weights_in(run)
    for name in ("metrics.json", "model.safetensors"):  # stopped between the last checkpoint and the end
        (run / name).unlink()
    trainer = pretrain_action_prior(prior_options(motion, run, **settings, resume=True))
    assert trainer.state.global_step == 3
    assert all(torch.equal(value, whole[name]) for name, value in weights_in(run).items())
    assert (run / "metrics.json").is_file()


def test_the_metrics_of_a_prior_are_those_of_the_weights_that_were_saved(motion, tmp_path):
    trainer = pretrain_action_prior(prior_options(motion[:1], tmp_path / "prior"))
    metrics = json.loads((tmp_path / "prior" / "metrics.json").read_text())
    saved = ActionPriorModel.from_pretrained(tmp_path / "prior")
    again = measure_prior(saved, trainer.eval_dataset, trainer.train_dataset, prior_options(motion, tmp_path).seed)
    assert again.metrics() == pytest.approx({name: value for name, value in metrics.items() if "/" in name})


def test_a_vla_resumes_through_its_options_to_the_bit(make_vla, prior, folder):
    settings = {"prior": str(prior), "training": {"save_steps": 2, "distillation_steps": 3}}
    make_vla("whole", **settings)
    (folder / "stopped").mkdir()
    shutil.copytree(folder / "whole" / "checkpoint-2", folder / "stopped" / "checkpoint-2")
    make_vla("stopped", resume=True, **settings)
    require_complete(folder / "stopped")
    whole, stopped = weights_in(folder / "whole"), weights_in(folder / "stopped")
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())
    assert training_log(folder / "stopped") == training_log(folder / "whole")


# --- rung 3 -----------------------------------------------------------------------------------------------------------


def test_a_vla_from_a_prior_is_trained_and_acts(make_vla, prior, folder, tiny_backbone):
    make_vla("policy", prior=str(prior))
    require_complete(folder / "policy")
    metrics = json.loads((folder / "policy" / "metrics.json").read_text())
    assert {name.partition("/")[0] for name in metrics} == {"loss", "loss_pred", "language_sensitivity"}
    assert metrics["loss"] == pytest.approx(metrics["loss_pred"])
    parts = {"step", "loss", "loss_pred", "loss_align", "loss_recon", "distillation_weight"}
    assert all(parts <= line.keys() and all(line[part] for part in parts) for line in training_log(folder / "policy"))
    model = PriorVLAModel.from_pretrained(folder / "policy", backbone=tiny_backbone)
    processor = PriorVLAProcessor.from_pretrained(folder / "policy")
    image = torch.zeros(28, 28, 3, dtype=torch.uint8).numpy()
    inputs = processor(embodiment="small", state=[0.0] * 3, images={"front": image}, text="open the drawer")
    inputs.pop("action_mask")
    chunk = model.sample_actions(**inputs, generator=torch.Generator().manual_seed(0))
    assert processor.decode_actions(chunk[0], "small").shape == (4, 4)


def test_a_vla_keeps_the_statistics_that_its_prior_was_trained_with(make_vla, prior, folder, demonstrations):
    make_vla("inherits", prior=str(prior), max_steps=1)
    kept = load_embodiments(folder / "inherits")
    assert kept == load_embodiments(prior) and [body.name for body in kept] == ["small", "large"]
    assert kept[0].action_statistics != load_trajectories(demonstrations).embodiment.action_statistics


def test_a_control_shares_everything_with_its_prior_arm_but_the_priors_weights(make_vla, prior, folder):
    # the learning rate of a single step is still 0: what is saved is what each run started with
    arm = make_vla("arm", prior=str(prior), max_steps=1)
    control = make_vla("control", prior=str(prior), control=True, max_steps=1)
    assert control.model.config.to_dict() == arm.model.config.to_dict()
    for file in ("config.json", "embodiments.json", "processor_config.json", "tokenizer.json"):
        assert (folder / "control" / file).read_text() == (folder / "arm" / file).read_text(), file
    ours, theirs, inherited = weights_in(folder / "control"), weights_in(folder / "arm"), weights_in(prior)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if name.startswith("fusion."))
    assert all(torch.equal(theirs[name], value) for name, value in inherited.items())
    drawn = [name for name, value in inherited.items() if value.ndim == 2 and value.any() and value.std() > 0]
    assert drawn and not any(torch.equal(ours[name], inherited[name]) for name in drawn)
    settings = [trainer.args.to_dict() for trainer in (arm, control)]
    told_apart = {key for key, value in settings[0].items() if settings[1][key] != value}
    assert told_apart <= {"output_dir", "logging_dir", "distillation_steps", "run_name"}
    assert control.distillation_weight == 0


def test_a_vla_without_any_prior_fits_its_own_statistics(make_vla, folder):
    trainer = make_vla("alone", model={**MOTION, **SIGHT}, max_steps=1)
    require_complete(folder / "alone")
    assert [body.name for body in load_embodiments(folder / "alone")] == ["small"]
    assert trainer.args.distillation_steps == 0


def test_a_vla_with_history_is_given_its_past_windows(make_vla, prior, folder):
    trainer = make_vla("history", {**SIGHT, "use_history": True, "history_size": 3}, prior=str(prior))
    require_complete(folder / "history")
    assert trainer.train_dataset[0]["history_actions"].shape == (3, 7)
    assert not trainer.train_dataset[0]["history_mask"].any() and trainer.train_dataset[2]["history_mask"].any()


def test_too_large_a_cache_is_refused_and_the_backbone_is_not_named_by_a_path(make_vla, folder, prior):
    with pytest.raises(ValueError, match="--max-cache-gb 1e-09"):
        make_vla("too_large", prior=str(prior), cache_dir=folder / "other", max_cache_gb=1e-9)
    assert not (folder / "other").exists() and not (folder / "too_large" / "model.safetensors").exists()
    make_vla("named", prior=str(prior), max_steps=1)
    saved = (folder / "named" / "config.json").read_text() + (folder / "named" / "README.md").read_text()
    assert str(folder) not in saved


def test_a_shape_that_the_prior_decides_cannot_be_given_beside_it(tmp_path, prior):
    options = VLAOptions(["owner/name"], tmp_path / "run", 4, prior=str(prior), model={"expert": {"hidden_size": 8}})
    with pytest.raises(ValueError, match=r"model\.expert cannot be set with --prior"):
        options.check()


def test_a_run_that_was_stopped_while_it_encoded_can_be_started_again(tmp_path):
    (tmp_path / "run" / "features").mkdir(parents=True)
    VLAOptions(["owner/name"], tmp_path / "run", 4).check()
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(ValueError, match="is not empty"):
        VLAOptions(["owner/name"], tmp_path / "run", 4).check()


def test_a_prior_of_motion_without_cameras_takes_those_of_the_demonstrations(
    folder, bodies, write_demonstrations, make_vla, tmp_path
):
    blind = replace(bodies[0], cameras=[])
    data = write_demonstrations(tmp_path / "motion", blind, [9, 6], images=False)
    pretrain_action_prior(prior_options([str(data)], tmp_path / "prior", max_steps=1))
    make_vla("seeing", prior=str(tmp_path / "prior"), max_steps=1)
    assert load_embodiments(folder / "seeing")[0].cameras == bodies[0].cameras


def test_demonstrations_of_one_body_with_different_cameras_are_refused(
    bodies, write_demonstrations, demonstrations, make_vla, prior, tmp_path
):
    other = write_demonstrations(tmp_path / "other", replace(bodies[0], cameras=["wrist"]), [5, 6, 4])
    for start in (prior, None):
        with pytest.raises(
            ValueError, match=r"other: .*'small' has cameras=\['wrist'\], another source has \['front'\]"
        ):
            make_vla("two_views", prior=start and str(start), datasets=[demonstrations, str(other)])


def test_a_recipe_that_distils_says_so_when_there_is_nothing_to_distil_from(make_vla, capsys):
    trainer = make_vla("undistilled", {**MOTION, **SIGHT}, training={"distillation_steps": 3}, max_steps=1)
    assert trainer.distillation_weight == 0
    assert "distillation_steps=3 is not used" in capsys.readouterr().err
