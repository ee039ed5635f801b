"""`priorvla finetune`: a robot that a policy has never seen, or one that it knows, from a few demonstrations."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from priorvla.cli import main
from priorvla.configuration.embodiment import load_embodiments
from priorvla.hub_cards.card import load_card
from priorvla.modeling_priorvla.adapters import adapters_in, load_adapted
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel

TRAINING = {"per_device_train_batch_size": 8, "disable_tqdm": True, "learning_rate": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _imports_out_of_the_garbage_collector():
    """A Trainer collects garbage whenever it starts: a third of a second, if it has to look at all imported modules."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def base(folder, save_policy, bodies) -> Path:
    return save_policy(folder / "base", bodies, fusion="cross")


@pytest.fixture(scope="module")
def mine(folder, bodies, write_demonstrations) -> Path:
    """Demonstrations of a robot that calls itself `arm`, in other units than those of the base."""
    arm = replace(
        bodies[0],
        name="arm",
        action_names=["x", "y", "grip"],
        state_names=["x", "y"],
        action_statistics=None,
        state_statistics=None,
    )
    return write_demonstrations(folder / "mine", arm, [6, 5, 5, 4], seed=1)


@pytest.fixture(scope="module")
def command(folder, base, mine, tiny_backbone):
    """`(name, *arguments, training, **recipe)`: the exit status of `finetune`, run in `folder / name`."""

    def run(name, *arguments, training=None, dataset=mine, source=base, **recipe):
        recipe = {"max-steps": 2, "holdout": 0.25, "device": "cpu", "rank": 2, "seed": 3, **recipe}
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**recipe, "training": {**TRAINING, **(training or {})}}))
        arguments = ["finetune", *arguments, "--config", file, "--base", source, "--dataset", dataset]
        arguments += ["--output-dir", folder / name, "--backbone", tiny_backbone]
        return main([str(argument) for argument in arguments])

    return run


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def weights_in(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "model.safetensors")


@pytest.mark.parametrize(("preset", "cached"), [("expert", True), ("backbone", False), ("all", False)])
def test_a_new_robot_becomes_an_adapter_with_its_own_statistics(
    command, folder, base, tiny_backbone, bodies, preset, cached
):
    run = folder / f"new_{preset}"
    assert command(run.name, "--embodiment", "mine", "--preset", preset, lora={"use_rslora": True}) == 0
    assert not (run / "model.safetensors").exists() and (run / "adapter_model.safetensors").exists()
    assert (run / "features").is_dir() == cached
    settings = json.loads((run / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base) and settings["use_rslora"] and settings["r"] == 2
    theirs = load_embodiments(run)
    assert [body.name for body in theirs] == config_of(run)["expert"]["embodiments"] == ["small", "large", "mine"]
    for ours, before in zip(theirs, load_embodiments(base), strict=False):
        assert ours.to_dict() == before.to_dict()
    assert theirs[2].action_dim == 3 and abs(np.asarray(theirs[2].action_statistics.mean)).max() < 0.6
    assert json.loads((run / "metrics.json").read_text())["loss"] > 0
    assert "lora" in load_card(run).data.tags
    model = load_adapted(PriorVLAModel, run, backbone=tiny_backbone)
    known, own = weights_in(base), {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("expert.action_in_proj.projections.0.weight", "memory.state_proj.projections.1.weight"):
        assert torch.equal(own[name], known[name])


def test_a_known_robot_goes_on_with_the_statistics_that_it_has(
    command, folder, base, bodies, write_demonstrations, tiny_backbone
):
    data = write_demonstrations(folder / "known", bodies[0], [6, 5], seed=5)
    assert command("known_run", "--preset", "expert", dataset=data, holdout=0) == 0
    run = folder / "known_run"
    assert [body.to_dict() for body in load_embodiments(run)] == [body.to_dict() for body in load_embodiments(base)]
    model = load_adapted(PriorVLAModel, run, backbone=tiny_backbone)
    part = model.expert.action_in_proj.projections
    assert type(part[0]).__name__ == "ModulesToSaveWrapper" and type(part[1]).__name__ == "Linear"
    assert not torch.equal(part[0].weight, part[0].original_module.weight)


@pytest.mark.parametrize("preset", ["expert-only", "full"])
def test_whole_weights_make_a_checkpoint_of_their_own(command, folder, base, tiny_backbone, preset):
    run = folder / preset
    assert command(run.name, "--embodiment", "mine", "--preset", preset) == 0
    model = PriorVLAModel.from_pretrained(run, backbone=tiny_backbone)
    assert adapters_in(model) is None and model.config.expert.embodiments[2] == "mine"
    assert model.config.backbone_training == ("full" if preset == "full" else "frozen")
    before, after = weights_in(base), weights_in(run)
    assert not torch.equal(before["expert.final_norm.weight"], after["expert.final_norm.weight"])
    assert any(name.startswith("trained_backbone.") for name in after) == (preset == "full")
    assert (run / "features").is_dir() == (preset == "expert-only")


def test_an_interrupted_run_goes_on_to_the_bit(command, folder):
    name = "resumed"
    recipe = {"max-steps": 4, "training": {"save_steps": 2}}
    assert command("whole", "--preset", "all", **recipe) == 0
    assert command(name, "--preset", "all", **recipe) == 0
    (folder / name / "adapter_model.safetensors").unlink()
    for file in (folder / name / "checkpoint-4").iterdir():
        file.unlink()
    (folder / name / "checkpoint-4").rmdir()
    assert command(name, "--preset", "all", "--resume", **recipe) == 0
    one, other = (load_file(folder / run / "adapter_model.safetensors") for run in ("whole", name))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_what_cannot_be_is_refused_before_anything_is_trained(command, folder, base, mine, capsys, tmp_path):
    def said(*arguments, **recipe) -> str:
        capsys.readouterr()
        assert command("refused", *arguments, **recipe) == 2
        assert not (folder / "refused").exists()
        return capsys.readouterr().err

    assert "lora.r is an option of the command itself: give --rank" in said(lora={"r": 4})
    assert "--preset full trains whole weights" in said("--preset", "full", lora={"use_dora": True})
    assert "--rank 0 must be at least 1" in said("--rank", "0")
    assert "does not exist" in said(source=tmp_path / "nowhere")
    assert "'nobody' is not in this checkpoint" in said("--like", "nobody")
    assert "'small'" in said("--embodiment", "small")
    adapter = folder / "new_expert"
    assert f"--base {adapter} is an adapter: name its base" in said(source=adapter)
