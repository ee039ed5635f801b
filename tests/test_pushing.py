"""A run pushes what it trained as `publish` would: at its end or at every save, and never loses the training by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file

from priorvla.cli import main
from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.hub_cards.card import load_card
from priorvla.hub_cards.publishing import publish
from priorvla.modeling_priorvla.backbone import DualEncoderBackbone
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.action_prior_arguments import ActionPriorTrainingArguments
from priorvla.training.action_prior_trainer import ActionPriorTrainer
from priorvla.training.adapter_presets import lora_config
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims
from priorvla.training.runs import finish_run
from priorvla.training.vision_action_prior_trainer import (
    VisionActionPriorTrainer,
    VisionActionPriorTrainingArguments,
)
from priorvla.training.vla_arguments import VLATrainingArguments
from priorvla.training.vla_trainer import VLATrainer

pytestmark = pytest.mark.usefixtures("imports_are_not_garbage")

CHUNK = 6
REPO = "me/arm"
TRAINERS: dict[str, Any] = {
    "prior": (ActionPriorTrainer, ActionPriorTrainingArguments),
    "vision": (VisionActionPriorTrainer, VisionActionPriorTrainingArguments),
    "vla": (VLATrainer, VLATrainingArguments),
}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


@pytest.fixture(scope="module")
def motion(tmp_path_factory, bodies, write_demonstrations) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "motion", bodies[0], [9, 8, 8])


@pytest.fixture(scope="module")
def policies(tmp_path_factory, save_policy, bodies) -> dict[str, Path]:
    """Untrained checkpoints of the rungs that see, for the first robot."""
    folder = tmp_path_factory.mktemp("policies")
    return {
        "vision": save_policy(folder / "vision", bodies[:1], fusion="gated", language=False, use_latent=False),
        "vla": save_policy(folder / "vla", bodies[:1], fusion="latent"),
        "joint": save_policy(folder / "joint", bodies[:1], fusion="joint"),
    }


@pytest.fixture
def make_trainer(tmp_path, tmp_path_factory, bodies, motion, policies, tiny_backbone, tiny_fields):
    """`(kind, folder, **arguments)`: a Trainer of two steps that pushes to `REPO`, unless told otherwise."""
    sources = [load_trajectories(motion, frames=True)]
    whole = PriorVLAProcessor.for_backbone(tiny_backbone, bodies[:1], chunk_size=CHUNK)

    def make(kind: str = "prior", folder: str = "run", checkpoint: str | None = None, **arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in ("peft_config", "base_model", "datasets") if name in arguments}
        processor = arguments.pop("processor", whole)
        windows: Any = TrajectoryDataset(sources, bodies[:1], CHUNK)
        torch.manual_seed(0)
        if kind == "prior":
            expert = {**tiny_fields["expert"], **expert_dims(bodies[:1])}
            model: Any = ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"]))
        else:
            model = PriorVLAModel.from_pretrained(policies[checkpoint or kind], backbone=tiny_backbone)
            backbone = DualEncoderBackbone.from_pretrained(tiny_backbone)
            options = {"taps": model.config.taps, "language": model.config.language}
            cache = tmp_path_factory.mktemp("features")
            windows = ObservationDataset(windows, sources, backbone, processor, cache, **options)
        trainer_class, arguments_class = TRAINERS[kind]
        settings = {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "ema_decay": 0.5,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "license": "mit",
            "push_to_hub": True,
            "hub_model_id": REPO,
            **arguments,
        }
        args = arguments_class(output_dir=str(tmp_path / folder), **settings)
        if kind == "vla" and "peft_config" in given:
            given["peft_config"] = lora_config(model, given["peft_config"], rank=2)
        return trainer_class(model, args, train_dataset=windows, processor=processor, **given)

    return make


def commits(hub: Any, repo: str = REPO) -> list[str]:
    """Titles of a repository's commits but the first, which the Hub makes."""
    return [commit.title for commit in hub.opened("models", repo).commits.values()][1:]


def writes(hub: Any) -> list[str]:
    return [line for line in hub.requests if not line.startswith(("GET", "HEAD"))]


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_training_of_any_stage_pushes_what_publish_would_in_one_private_commit(kind, hub, make_trainer, tmp_path):
    trainer = make_trainer(kind)
    assert writes(hub) == [], "nothing is made before there is something to push"
    trainer.train()
    repository = hub.opened("models", REPO)
    assert commits(hub) == ["End of training"] and repository.private
    with trainer.average.applied():
        expected = publish(trainer.model, trainer.processor, tmp_path / "expected", card=load_card(tmp_path / "run"))
    there = {file.name for file in repository.folder.iterdir()} - {".gitattributes"}
    assert there == {file.name for file in expected.iterdir()}
    for file in expected.iterdir():
        if file.name != "README.md":
            assert (repository.folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert not [file for file in repository.folder.rglob("*") if file.suffix in PICKLES]
    card = load_card(repository.folder)
    assert card.data.license == "mit" and "| steps | 2 |" in card.text and f'checkpoint = "{REPO}"' in card.text


def test_the_averaged_weights_are_pushed_and_training_keeps_its_own(hub, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    pushed = load_file(hub.repository("models", REPO) / "model.safetensors")
    saved, raw = load_file(tmp_path / "run" / "model.safetensors"), trainer.model.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in pushed.items())
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in pushed.items())


def test_every_save_is_a_commit_and_none_has_the_optimizer(hub, make_trainer, tmp_path):
    trainer = make_trainer(
        hub_strategy="every_save", hub_always_push=True, save_strategy="steps", save_steps=2, max_steps=5
    )
    trainer.train()
    saves = [f"Training in progress, step {step}" for step in (2, 4, 5)]
    assert commits(hub) == saves, "the last save is what the end would push"
    repository = hub.opened("models", REPO)
    for commit, step in zip(list(repository.commits.values())[1:], (2, 4, 5), strict=True):
        assert set(commit.files) == {".gitattributes", "README.md", "config.json", "embodiments.json"} | {
            "model.safetensors",
            *(name for name in commit.files if "processor" in name or "token" in name or name == "vocab.txt"),
        }
        blob = hub.root / "blobs" / commit.files["model.safetensors"]
        saved = tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors"
        assert blob.read_bytes() == saved.read_bytes()


def test_push_to_hub_takes_what_the_card_is_to_say_and_waits_or_does_not(hub, make_trainer):
    trainer = make_trainer(push_to_hub=False, hub_model_id=None, license="unknown", hub_private_repo=False)
    trainer.train()
    assert hub.requests == []
    with pytest.raises(ValueError, match="license is missing"):
        trainer.push_to_hub()
    with pytest.raises(ValueError, match=r"no argument 'tags'.*license, metrics, name, base_model"):
        trainer.push_to_hub(tags=["mine"], license="mit")
    assert hub.requests == []
    told = {"license": "mit", "metrics": {"loss": 0.25}, "name": "My arm", "base_model": "me/older"}
    future = trainer.push_to_hub("First", blocking=False, **told)
    commit = future.result(60)
    repository = hub.opened("models", "me/run")
    assert repository.head().id == commit.oid and not repository.private, "named by its folder, in my account"
    assert commits(hub, "me/run") == ["First"]
    card = load_card(repository.folder)
    assert card.text.startswith("\n# My arm\n") and card.data.base_model == "me/older"
    assert json.loads((repository.folder / "metrics.json").read_text()) == {"loss": 0.25}
    assert trainer.push_to_hub("Again", license="mit", metrics={"loss": 0.5}).oid == repository.head().id
    assert commits(hub, "me/run") == ["First", "Again"]


def test_another_runs_checkpoint_is_not_replaced_unless_told(hub, make_trainer, tmp_path):
    make_trainer().train()
    make_trainer().train()  # the same folder: the same run, started again
    with pytest.raises(FileExistsError, match=f"{REPO} exists and holds a checkpoint.*another hub_model_id"):
        make_trainer(folder="other")
    other = make_trainer(folder="other", push_to_hub=False, max_steps=1)
    other.train()
    with pytest.raises(FileExistsError, match=r"overwrite=True.*priorvla publish .*other me/arm"):
        other.push_to_hub()
    other.push_to_hub("Better", overwrite=True)
    assert commits(hub)[-1] == "Better"


def publish_of_a_colleague(trainer: Any, **options: Any) -> None:
    publish(trainer.model, trainer.processor, REPO, license="mit", name="A colleague's", **options)


def test_what_somebody_has_put_there_in_between_is_not_replaced(hub, make_trainer):
    trainer = make_trainer()
    trainer.train()
    publish_of_a_colleague(trainer, overwrite=True, commit_message="Better")
    with pytest.raises(FileExistsError, match="holds a checkpoint"):
        trainer.push_to_hub("Again")
    with pytest.raises(FileExistsError, match="another hub_model_id"):
        make_trainer()
    assert commits(hub) == ["End of training", "Better"]


def test_what_was_pushed_to_a_branch_is_no_leave_to_replace_another(hub, make_trainer):
    trainer = make_trainer(push_to_hub=False)
    trainer.train()
    publish_of_a_colleague(trainer)
    HfApi().create_branch(REPO, branch="dev")
    trainer.push_to_hub("To dev", revision="dev", overwrite=True)
    with pytest.raises(FileExistsError, match="holds a checkpoint") as raised:
        trainer.push_to_hub("To main")
    assert "--overwrite" not in str(raised.value).rpartition("later: ")[2]
    trainer.push_to_hub("To dev again", revision="dev", metrics={"loss": 0.5})
    assert hub.opened("models", REPO).head().title == "Publish a checkpoint"
    assert hub.opened("models", REPO).head("dev").title == "To dev again"


def test_a_push_that_the_hub_refused_is_no_claim(hub, make_trainer):
    hub.faults.append(hub.Fault("/commit/", status=403))
    trainer = make_trainer(push_to_hub=False)
    trainer.train()
    with pytest.raises(PermissionError):
        trainer.push_to_hub()
    publish_of_a_colleague(trainer)
    with pytest.raises(FileExistsError, match="holds a checkpoint"):
        trainer.push_to_hub()
    assert commits(hub) == ["Publish a checkpoint"]


def test_a_failed_save_is_published_later_from_the_runs_folder(hub, make_trainer, caplog, tmp_path):
    hub.faults.append(hub.Fault("/commit/", drop="request"))
    saves = {"hub_strategy": "every_save", "hub_always_push": True, "save_strategy": "steps", "save_steps": 1}
    make_trainer(**saves, save_total_limit=1).train()
    assert f"priorvla publish {tmp_path / 'run'} {REPO} --license mit" in caplog.text, "checkpoint-1 may be gone"


def test_what_cannot_be_pushed_is_refused_before_training(hub, make_trainer, monkeypatch):
    with pytest.raises(ValueError, match=r"license='my-boss-said-ok'"):
        make_trainer(license="my-boss-said-ok", push_to_hub=False)
    with pytest.raises(ValueError, match=r"push_to_hub=True needs license=.*apache-2.0"):
        make_trainer(license="unknown")
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' uploads the optimizer's state.*every_save"):
            make_trainer(hub_strategy=strategy)
    with pytest.raises(ValueError, match="pass processor="):
        make_trainer(processor=None)
    with pytest.raises(ValueError, match=r"'a/b/c' is no name of a repository"):
        make_trainer(hub_model_id="a/b/c")
    folder = hub.repository("models", REPO)
    folder.mkdir(parents=True)
    (folder / "cats.bin").write_bytes(b"cats")
    with pytest.raises(FileExistsError, match=r"holds no checkpoint \(cats.bin\)"):
        make_trainer()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(PermissionError, match="needs a token of the Hub, and there is none"):
        make_trainer()
    assert make_trainer(hub_model_id="free", hub_token=hub.token).hub_model_id == "me/free"
    assert writes(hub) == []


def test_a_connection_that_dies_costs_a_push_and_not_the_training(hub, make_trainer, caplog, tmp_path):
    hub.faults.append(hub.Fault("/commit/", drop="request"))
    trainer = make_trainer(
        hub_strategy="every_save", hub_always_push=True, save_strategy="steps", save_steps=2, max_steps=5
    )
    trainer.train()
    assert commits(hub) == [f"Training in progress, step {step}" for step in (4, 5)]
    assert "the training goes on without this push: the connection to the Hub failed" in caplog.text


@pytest.mark.parametrize("drop", ["request", "answer"])
def test_a_connection_that_dies_at_the_end_leaves_a_folder_and_a_command(drop, hub, make_trainer, capsys, tmp_path):
    hub.faults.append(hub.Fault("/commit/", drop=drop))
    with pytest.raises(ConnectionError, match="to publish it later: priorvla publish") as raised:
        make_trainer().train()
    command = str(raised.value).rpartition("later: ")[2].split()
    assert command[:4] == ["priorvla", "publish", str(tmp_path / "run"), REPO]
    assert main(command[1:]) == (0 if drop == "request" else 2), "it was there already, and is looked at first"
    assert load_card(hub.repository("models", REPO)).data.license == "mit"
    assert hub.opened("models", REPO).private
    make_trainer(max_steps=1).train()  # the run knows what it has tried to push
    assert len(commits(hub)) == 2 and commits(hub)[-1] == "End of training"


def test_of_a_model_with_an_adapter_the_adapter_alone_is_pushed(hub, make_trainer, policies):
    with pytest.raises(ValueError, match=r"base is 'joint', which nobody else has"):
        make_trainer("vla", checkpoint="joint", peft_config="expert")
    assert hub.requests == []
    asked = {"checkpoint": "joint", "peft_config": "expert", "base_model": "somebody/policy"}
    with pytest.raises(ValueError, match=r"base somebody/policy is not on the Hub"):
        make_trainer("vla", **asked)
    shutil.copytree(policies["joint"], hub.repository("models", "somebody/policy"))
    trainer = make_trainer("vla", **asked)
    trainer.train()
    folder = hub.repository("models", REPO)
    there = {file.name for file in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "embodiments.json"} <= there
    assert not any(name.startswith("model") for name in there)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/policy"
    assert "lora" in load_card(folder).data.tags


def test_the_runs_metrics_and_report_go_along(hub, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train(push=False)
    assert writes(hub) == []
    (tmp_path / "run" / "report.json").write_text(json.dumps({"dataset": str(tmp_path / "drawers"), "rate": 0.5}))
    finish_run(trainer, {"coverage/small": 0.8})
    assert commits(hub) == ["End of training"]
    folder = hub.repository("models", REPO)
    assert json.loads((folder / "metrics.json").read_text()) == {"coverage/small": 0.8}
    assert load_card(folder).data["priorvla"]["metrics"] == {"coverage/small": 0.8}
    assert json.loads((folder / "report.json").read_text()) == {"dataset": "drawers", "rate": 0.5}
    assert (folder / "loss.png").is_file() == ("loss.png" in load_card(folder).text)
