"""`pretrain` on many bodies: bodies that join a prior, what is learned of their actions, and where their steps lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.trajectory_store import TrajectoryStore
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


def iter_sources(datasets: list[str]):
    from priorvla.training.data.readers import load_trajectories

    return (load_trajectories(dataset) for dataset in datasets)


def test_a_prior_is_trained_on_streamed_files_and_measured_on_files_held_out(bodies, write_demonstrations, tmp_path):
    for seed in range(3):
        folder = write_demonstrations(tmp_path / f"part-{seed}", bodies[0], [9, 6, 8], seed, images=False)
        file = next((folder / "data").rglob("*.parquet"))
        (tmp_path / "motion" / "data").mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "motion" / "data" / f"{seed}.parquet")
        if seed == 0:
            (folder / "meta").rename(tmp_path / "motion" / "meta")
    run = options([str(tmp_path / "motion")], tmp_path / "run", stream=True)
    trainer = pretrain_action_prior(run)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["held_out_windows"] == 9 + 6 + 8
    assert sum(len(source.files) for source in trainer.train_dataset.sources) == 2
    assert (tmp_path / "run" / "report.html").is_file() and not (tmp_path / "run" / "steps").exists()
