"""`priorvla finetune`: a robot that a policy has never seen, or one that it knows, from a few demonstrations."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from priorvla.cli import main
from priorvla.configuration.embodiment import load_embodiments
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.hub_cards.card import load_card
from priorvla.modeling_priorvla.adapters import adapters_in, load_adapted
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

TRAINING = {"per_device_train_batch_size": 8, "disable_tqdm": True, "learning_rate": 1e-2}


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
        whole = {"expert-only", "full"} & set(arguments)
        adapter = {} if whole else {"rank": 2}
        recipe = {"max-steps": 2, "holdout": 0.25, "device": "cpu", "seed": 3, "listening": 0, **adapter, **recipe}
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
    command, folder, base, tiny_backbone, bodies, preset, cached, capsys
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
    program, *next_command = shlex.split(capsys.readouterr().err.rpartition("Next: ")[2].splitlines()[0])
    assert program == "priorvla" and "--embodiment mine" in " ".join(next_command)
    assert main(next_command) == 0


def test_a_known_robot_goes_on_with_the_statistics_that_it_has(
    command, folder, base, bodies, write_demonstrations, tiny_backbone
):
    data = write_demonstrations(folder / "known", bodies[0], [6, 5], seed=5)
    assert command("known_run", "--preset", "expert", dataset=data, holdout=0) == 0
    run = folder / "known_run"
    assert [body.to_dict() for body in load_embodiments(run)] == [body.to_dict() for body in load_embodiments(base)]
    assert command("like_known", "--preset", "expert", "--like", "large", dataset=data, holdout=0) == 2
    assert not (folder / "like_known").exists()
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


@pytest.mark.parametrize("preset", ["all", "full"])
def test_a_backbone_in_fewer_bits_is_trained_in_float32_or_stays_as_it_is(
    command, folder, base, tiny_backbone, preset, capsys
):
    small = shutil.copytree(base, folder / f"bfloat16_{preset}")
    config = config_of(small)
    config["backbone"]["dtype"] = "bfloat16"
    (small / "config.json").write_text(json.dumps(config))
    run = folder / f"from_bfloat16_{preset}"
    assert command(run.name, "--embodiment", "mine", "--preset", preset, source=small) == 0
    told = f"trained and saved in float32, {small} has it in bfloat16" in capsys.readouterr().err
    model = PriorVLAModel.from_pretrained(run, backbone=tiny_backbone)
    learned = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("trained_backbone.")}
    if preset == "full":
        assert told and model.backbone.dtype == torch.float32 and config_of(run)["backbone"]["dtype"] == "float32"
        assert all(tensor.dtype == torch.float32 for name, tensor in learned.items() if tensor.is_floating_point())
    else:
        assert not told and config_of(run)["backbone"]["dtype"] == "bfloat16"
        maps = {name.rpartition(".lora_")[2]: tensor.dtype for name, tensor in learned.items() if ".lora_" in name}
        assert set(maps.values()) == {torch.float32}


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


def test_a_run_does_not_go_on_with_another_base_or_other_settings(command, folder, base, capsys):
    recipe = {"max-steps": 2, "training": {"save_steps": 1}}
    arguments = ("--embodiment", "mine", "--preset", "expert")
    assert command("began", *arguments, **recipe) == 0
    shutil.rmtree(folder / "began" / "checkpoint-2")
    before = (folder / "began" / "adapter_config.json").read_text()
    other = shutil.copytree(base, folder / "other_weights")
    move_on(other)
    capsys.readouterr()
    assert command("began", *arguments, "--resume", source=other, **recipe) == 2
    assert "belongs to another base" in capsys.readouterr().err
    assert command("began", *arguments, "--resume", alpha=1, **recipe) == 2
    assert "lora_alpha=4, which is 1 here" in capsys.readouterr().err
    assert (folder / "began" / "adapter_config.json").read_text() == before
    elsewhere = shutil.copytree(base, folder / "elsewhere")  # the same base
    assert command("began", *arguments, "--resume", source=elsewhere, **recipe) == 0


def test_whether_it_listens_is_measured_where_there_is_more_than_one_instruction(
    command, folder, mine, bodies, write_demonstrations, tiny_backbone, capsys
):
    assert command("listening", "--embodiment", "mine", "--preset", "expert", listening=2) == 0
    assert "Does it listen?" in capsys.readouterr().err
    metrics = json.loads((folder / "listening" / "metrics.json").read_text())
    assert {"loss", "language_sensitivity/swap", "language_sensitivity/paraphrase"} <= set(metrics)
    assert "Does it listen?" in load_card(folder / "listening").text
    one_task = write_demonstrations(folder / "one_task", bodies[0], [6])
    assert command("one_task_run", "--preset", "expert", dataset=one_task, holdout=0, listening=2) == 0
    said = capsys.readouterr().err
    assert "is not measured: there is no instruction but 'open the drawer'" in said and "Does it listen?" not in said
    assert json.loads((folder / "one_task_run" / "metrics.json").read_text()) == {}


def test_what_cannot_be_is_refused_before_anything_is_trained(command, folder, base, mine, capsys, tmp_path):
    def said(*arguments, **recipe) -> str:
        capsys.readouterr()
        assert command("refused", *arguments, **recipe) == 2
        assert not (folder / "refused").exists()
        return capsys.readouterr().err

    assert "lora.r is an option of the command itself: give --rank" in said(lora={"r": 4})
    assert "--preset full trains whole weights" in said("--preset", "full", lora={"use_dora": True})
    assert "--rank is of adapters, and --preset expert-only" in said("--preset", "expert-only", rank=64)
    assert "--alpha is of adapters, and --preset full" in said("--preset", "full", alpha=3)
    assert "lora.bias='all' would train the base's own weights" in said(lora={"bias": "all"})
    assert "--rank 0 must be at least 1" in said("--rank", "0")
    assert "--listening 1 must be 0 or at least 2" in said("--listening", "1", listening=32)
    assert "does not exist" in said(source=tmp_path / "nowhere")
    assert "'nobody' is not in this checkpoint" in said("--like", "nobody")
    assert "'small'" in said("--embodiment", "small")
    pushed = {"push_to_hub": True, "license": "mit", "hub_model_id": "me/x"}
    assert "nobody else has" in said("--embodiment", "mine", training=pushed, dataset=tmp_path)  # no dataset was read
    adapter = folder / "new_expert"
    assert f"--base {adapter} is an adapter: name its base" in said(source=adapter)


# --- with a base on the Hub -------------------------------------------------------------------------------------------

OTHER = "somebody/policy"


@pytest.fixture
def base_on_hub(hub, base) -> Path:
    """The folder of the branch main of `OTHER`, which is public and holds the base."""
    return Path(shutil.copytree(base, hub.repository("models", OTHER)))


def move_on(repository: Path) -> None:
    """A second commit, with other weights."""
    weights = weights_in(repository)
    save_file(
        {name: tensor + 0.5 for name, tensor in weights.items()}, repository / "model.safetensors", {"format": "pt"}
    )


def acts(place: str | Path, backbone: Path, **options) -> np.ndarray:
    policy = PriorVLAPolicy.from_pretrained(place, backbone=backbone, embodiment="mine", **options)
    seen = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    observation = {"state": np.ones(2, np.float32), "images": {"front": seen}, "instruction": "open the drawer"}
    return policy.predict_chunk(observation)


def test_an_adapter_means_the_same_when_its_base_moves_on(command, folder, hub, base_on_hub, tiny_backbone):
    first = hub.opened("models", OTHER).head().id
    pushed = {"push_to_hub": True, "hub_model_id": "mine", "license": "mit"}
    assert command("unpinned", "--embodiment", "mine", "--preset", "expert", source=OTHER, training=pushed) == 0
    settings = json.loads((folder / "unpinned" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (OTHER, first)
    before = acts(folder / "unpinned", tiny_backbone)
    move_on(base_on_hub)
    assert hub.opened("models", OTHER).head().id != first
    np.testing.assert_array_equal(acts(folder / "unpinned", tiny_backbone), before)
    np.testing.assert_array_equal(acts("me/mine", tiny_backbone), before)
    with torch.random.fork_rng():
        auto = AutoModel.from_pretrained("me/mine", backbone=tiny_backbone)
    ours = load_adapted(PriorVLAModel, folder / "unpinned", backbone=tiny_backbone).state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in auto.state_dict().items())
    with pytest.raises(ValueError, match=r"belongs to another base"):
        load_adapted(PriorVLAModel, "me/mine", base=OTHER, backbone=tiny_backbone)  # as it is now
    # pushed once, when the metrics were there
    assert [commit.title for commit in hub.opened("models", "me/mine").commits.values()][1:] == ["End of training"]
    metrics = json.loads((folder / "unpinned" / "metrics.json").read_text())
    assert json.loads((hub.repository("models", "me/mine") / "metrics.json").read_text()) == metrics != {}


def test_a_base_is_taken_at_the_revision_that_is_named(command, folder, hub, base_on_hub, tiny_backbone):
    first = hub.opened("models", OTHER).head().id
    hub.opened("models", OTHER).tags["v1"] = first
    move_on(base_on_hub)
    second = hub.opened("models", OTHER).head().id
    recipe = {"max-steps": 2, "training": {"save_steps": 1}}
    for name, source in (("tagged", f"{OTHER}@v1"), ("newest", OTHER)):
        assert command(name, "--embodiment", "mine", "--preset", "expert", source=source, **recipe) == 0
        settings = json.loads((folder / name / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == OTHER
        assert settings["revision"] == {"tagged": first, "newest": second}[name]
    known = weights_in(folder / "base")["expert.final_norm.weight"]
    tagged, newest = (
        load_adapted(PriorVLAModel, folder / name, backbone=tiny_backbone) for name in ("tagged", "newest")
    )
    assert torch.equal(tagged.state_dict()["expert.final_norm.weight"], known)
    assert torch.equal(newest.state_dict()["expert.final_norm.weight"], known + 0.5)
    # a run goes on with the base that it began with
    learned = load_file(folder / "tagged" / "adapter_model.safetensors")
    shutil.rmtree(folder / "tagged" / "checkpoint-2")
    assert command("tagged", "--embodiment", "mine", "--preset", "expert", "--resume", source=OTHER, **recipe) == 0
    again = load_file(folder / "tagged" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, learned[name]) for name, tensor in again.items())
    assert json.loads((folder / "tagged" / "adapter_config.json").read_text())["revision"] == first


def test_a_revision_that_there_is_not_is_refused(command, hub, base_on_hub, capsys):
    assert command("refused", source=f"{OTHER}@v9") != 0
    assert "v9" in capsys.readouterr().err
