"""`pretrain` on many bodies: bodies that join a prior, what is learned of their actions, and where their steps lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training import motion_sources
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.trajectory_store import TrajectoryStore
from priorvla.training.motion_sources import StreamedMotion
from priorvla.training.pretrain import pretrain_action_prior
from priorvla.training.run_options import PriorOptions

NETWORK = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
MODEL = {
    "expert": {**NETWORK, "num_key_value_heads": 1, "chunk_size": 4, "expert_layers": ["motion"]},
    "encoder": {**NETWORK, "num_hidden_layers": 1},
}


def options(datasets: list[str], output_dir: Path, **given: Any) -> PriorOptions:
    training = {"per_device_train_batch_size": 8, "disable_tqdm": True, **given.pop("training", {})}
    defaults = {"max_steps": 3, "device": "cpu", "holdout": 0.34, "model": MODEL, "training": training}
    return PriorOptions(datasets=datasets, output_dir=output_dir, **{**defaults, **given})


@pytest.fixture(scope="module")
def motion(tmp_path_factory, bodies, write_demonstrations) -> list[str]:
    folder = tmp_path_factory.mktemp("motion")
    return [
        str(write_demonstrations(folder / body.name, body, [9, 6, 8], seed, images=False))
        for seed, body in enumerate(bodies)
    ]


@pytest.fixture(scope="module")
def prior(tmp_path_factory, motion) -> Path:
    """A prior of the first body alone."""
    folder = tmp_path_factory.mktemp("prior") / "small"
    pretrain_action_prior(options(motion[:1], folder))
    return folder


def test_a_body_that_joins_a_prior_moves_nothing_of_what_was_there(prior, motion, tmp_path, capsys):
    pretrain_action_prior(options(motion[1:], tmp_path / "both", prior=str(prior), model=None))
    assert "new in" in capsys.readouterr().err
    before, after = (load_file(folder / "model.safetensors") for folder in (prior, tmp_path / "both"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert set(after) - set(before)
    old, both = (PriorVLAProcessor.from_pretrained(folder).embodiments for folder in (prior, tmp_path / "both"))
    assert [body.name for body in both] == ["small", "large"] and both[0] == old[0]
    assert any(name.endswith("/large") for name in json.loads((tmp_path / "both" / "metrics.json").read_text()))


def test_a_body_that_joins_may_start_from_one_that_is_known(prior, motion, tmp_path):
    standing = {"max_steps": 1, "training": {"learning_rate": 1e-12}}
    pretrain_action_prior(
        options(motion[1:], tmp_path / "both", prior=str(prior), model=None, like="small", **standing)
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (prior, tmp_path / "both"))
    soft = [name for name in before if "soft_tokens" in name]
    assert soft
    for name in soft:
        torch.testing.assert_close(after[name.removesuffix("0") + "1"], before[name])


def test_what_new_bodies_start_from_must_be_known_and_there_must_be_new_ones(prior, motion, tmp_path):
    for datasets, like, message in (
        (motion[1:], "nobody", "'nobody'"),
        (motion[:1], "small", "--like small is for new bodies, and .* knows small"),
    ):
        given = options(datasets, tmp_path / "none", prior=str(prior), model=None, like=like)
        with pytest.raises(ValueError, match=message):
            pretrain_action_prior(given)
    assert not (tmp_path / "none" / "model.safetensors").exists()


def test_all_weights_train_where_that_is_asked_for_or_a_known_body_is_among_the_data(prior, motion, tmp_path):
    before = load_file(prior / "model.safetensors")
    for name, given in (
        ("asked", {"datasets": motion[1:], "train_all": True}),
        ("known", {"datasets": motion}),
    ):
        datasets = given.pop("datasets")
        pretrain_action_prior(options(datasets, tmp_path / name, prior=str(prior), model=None, **given))
        after = load_file(tmp_path / name / "model.safetensors")
        layer = "expert.layers.0.mlp.up_proj.weight"
        assert not torch.equal(before[layer], after[layer])


def test_the_statistics_of_a_known_body_stay_the_priors_own(prior, motion, tmp_path):
    pretrain_action_prior(options(motion, tmp_path / "both", prior=str(prior), model=None, holdout=0.0))
    old, both = (PriorVLAProcessor.from_pretrained(folder).embodiments for folder in (prior, tmp_path / "both"))
    assert both[0].action_statistics == old[0].action_statistics


def test_a_run_says_what_is_learned_of_a_bodys_actions(motion, tmp_path, bodies):
    kinds = ["relative"] * bodies[0].action_dim
    change = {"small": {"learned_kinds": kinds, "reference_dims": [0] * bodies[0].action_dim}}
    pretrain_action_prior(options(motion[:1], tmp_path / "relative", embodiments=change))
    body = PriorVLAProcessor.from_pretrained(tmp_path / "relative").embodiments[0]
    assert body.learned_kinds == kinds and body.needs_reference


def test_a_change_to_a_body_that_no_dataset_is_of_is_an_error_that_leaves_nothing(motion, tmp_path):
    run = options(motion[:1], tmp_path / "run", embodiments={"smal": {"control_rate": 5.0}})
    with pytest.raises(ValueError, match=r"embodiments.smal: no dataset is of this body, they are of small"):
        pretrain_action_prior(run)
    assert not (tmp_path / "run").exists()


def test_datasets_of_robots_that_are_called_alike_are_told_apart(motion, tmp_path, bodies, write_demonstrations):
    faster = write_demonstrations(tmp_path / "faster", replace(bodies[0], control_rate=20.0), [9, 6, 8], images=False)
    datasets = [motion[0], str(faster)]
    with pytest.raises(ValueError, match=r"faster: embodiment 'small' has control_rate=20.0, another source has 10.0"):
        pretrain_action_prior(options(datasets, tmp_path / "refused"))
    pretrain_action_prior(options(datasets, tmp_path / "run", embodiments={str(faster): {"name": "fast"}}))
    both = PriorVLAProcessor.from_pretrained(tmp_path / "run").embodiments
    assert [(body.name, body.control_rate) for body in both] == [("small", 10.0), ("fast", 20.0)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_dataset_can_be_said_to_be_of_a_body_of_the_registry(stream, tmp_path, write_demonstrations):
    puck = Embodiment("puck", ["u", "v"], ["u", "v"], 10.0)
    folder = write_demonstrations(tmp_path / "puck", puck, [9, 6, 8], images=False)
    run = options([str(folder)], tmp_path / "run", embodiments={"puck": "pusht"}, stream=stream)
    pretrain_action_prior(run)
    (body,) = PriorVLAProcessor.from_pretrained(tmp_path / "run").embodiments
    assert (body.name, body.action_names, body.minimum_range) == ("pusht", ["x", "y"], 1.0)
    wrong = options([str(folder)], tmp_path / "wrong", embodiments={"puck": "so101"}, stream=stream)
    with pytest.raises(ValueError, match=r"embodiments.puck: so101 has action_dim=6, the data have 2"):
        pretrain_action_prior(wrong)
    with pytest.raises(FileNotFoundError, match="did you mean 'so101'"):
        options([str(folder)], tmp_path / "wrong", embodiments={"puck": "so1001"}).check()


def test_a_field_that_makes_no_sense_is_an_error_that_names_it(motion, tmp_path):
    for field, message in (
        ({"control_rate": "fast"}, "embodiments.small: "),
        ({"learned_kinds": "absurd"}, "embodiments.small: .*learned kind 'absurd' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain_action_prior(options(motion[:1], tmp_path / "run", embodiments={"small": field}))


def test_a_prior_goes_on_with_what_it_learned_of_a_known_body_or_says_that_it_cannot(prior, motion, tmp_path):
    change = {"small": {"minimum_range": 3.0}}
    run = options(motion, tmp_path / "run", prior=str(prior), model=None, embodiments=change)
    with pytest.raises(ValueError, match=r"small: it would have minimum_range=3.0, .* was trained with 0.01"):
        pretrain_action_prior(run)


def test_motion_beyond_what_a_prior_was_trained_on_is_reported_when_it_goes_on(prior, tmp_path, bodies, capsys):
    wide = tmp_path / "wide"
    with LeRobotDatasetWriter(wide, bodies[0]) as writer:
        for seed in range(3):
            values = np.random.default_rng(seed).normal(size=(8, 7)) * 57.3
            writer.add_episode(values[:, :3], values[:, 3:], "reach far")
    pretrain_action_prior(options([str(wide)], tmp_path / "run", prior=str(prior), model=None))
    assert "are the data in degrees, the checkpoint in radians?" in capsys.readouterr().err


def test_a_body_too_short_to_be_held_out_is_named(motion, tmp_path, bodies, write_demonstrations, capsys):
    short = write_demonstrations(tmp_path / "short", bodies[1], [9], images=False)
    pretrain_action_prior(options([motion[0], str(short)], tmp_path / "run"))
    assert "no episode of large is held out" in capsys.readouterr().err


def test_arrays_of_joint_logs_and_a_lerobot_dataset_make_one_prior(motion, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for episode in range(3):
        swing = np.sin(np.arange(12)[:, None] * 0.3 + np.arange(2) + episode).astype(np.float32)
        np.savez(logs / f"{episode}.npz", states=swing, actions=np.roll(swing, -1, 0))
    (logs / "priorvla.yaml").write_text("action: actions\nstate: states\nrate: 20\nembodiment: {name: pendulum}\n")
    pretrain_action_prior(options([motion[0], str(logs)], tmp_path / "run"))
    names = [body.name for body in PriorVLAProcessor.from_pretrained(tmp_path / "run").embodiments]
    assert names == ["small", "pendulum"]


def test_the_steps_are_mapped_while_a_run_lasts_and_gone_when_it_is_done(motion, tmp_path):
    trainer = pretrain_action_prior(options(motion[:1], tmp_path / "run"))
    assert trainer.train_dataset.store.folder == tmp_path / "run" / "steps"
    assert not (tmp_path / "run" / "steps").exists()


def test_a_resumed_run_goes_on_with_the_steps_that_it_began_with(motion, tmp_path):
    run, training = tmp_path / "run", {"save_steps": 2, "max_grad_norm": 1.0}
    pretrain_action_prior(options(motion, run, max_steps=4, training=training))
    whole = load_file(run / "model.safetensors")
    for name in ("metrics.json", "model.safetensors"):
        (run / name).unlink()
    for folder in run.glob("checkpoint-4"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    resumed = options(motion, run, max_steps=4, training=training, resume=True)
    TrajectoryStore.build(iter_sources(motion), run / "steps")
    pretrain_action_prior(resumed)
    assert all(torch.equal(value, whole[name]) for name, value in load_file(run / "model.safetensors").items())


def test_a_resumed_run_is_told_when_it_has_other_datasets(motion, tmp_path):
    run = tmp_path / "run"
    pretrain_action_prior(options(motion, run, training={"save_steps": 2}))
    TrajectoryStore.build(iter_sources(motion), run / "steps")
    with pytest.raises(ValueError, match="was started with 2 datasets, now there are 1"):
        pretrain_action_prior(options(motion[:1], run, training={"save_steps": 2}, resume=True))
    with pytest.raises(ValueError, match=r"then small, large; now large, small.: resume it with the same"):
        pretrain_action_prior(options(motion[::-1], run, training={"save_steps": 2}, resume=True))


def iter_sources(datasets: list[str]):
    from priorvla.training.data.readers import load_trajectories

    return (load_trajectories(dataset) for dataset in datasets)


@pytest.fixture
def parts(bodies, write_demonstrations, tmp_path) -> str:
    """A dataset of one body in three files."""
    for seed in range(3):
        folder = write_demonstrations(tmp_path / f"part-{seed}", bodies[0], [9, 6, 8], seed, images=False)
        file = next((folder / "data").rglob("*.parquet"))
        (tmp_path / "motion" / "data").mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "motion" / "data" / f"{seed}.parquet")
        if seed == 0:
            (folder / "meta").rename(tmp_path / "motion" / "meta")
    return str(tmp_path / "motion")


def test_a_prior_is_trained_on_streamed_files_and_measured_on_files_held_out(parts, tmp_path):
    run = options([parts], tmp_path / "run", stream=True)
    trainer = pretrain_action_prior(run)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["held_out_windows"] == 9 + 6 + 8
    assert sum(len(source.files) for source in trainer.train_dataset.sources) == 2
    assert (tmp_path / "run" / "report.html").is_file() and not (tmp_path / "run" / "steps").exists()


def test_a_stream_that_is_resumed_keeps_the_statistics_that_it_began_with(parts, tmp_path, monkeypatch):
    """They are what its weights were trained with, and another pass over a thousand files is saved."""
    monkeypatch.setattr(StreamedMotion, "close", lambda self: None)  # as if the run had been stopped
    run, training = tmp_path / "run", {"save_steps": 2}
    first = pretrain_action_prior(options([parts], run, stream=True, training=training))
    monkeypatch.setattr(motion_sources, "fit_streaming", lambda *_, **__: pytest.fail("fitted again"))
    resumed = pretrain_action_prior(options([parts], run, stream=True, training=training, max_steps=5, resume=True))
    assert resumed.state.global_step == 5
    assert resumed.processor.embodiments == first.processor.embodiments
