"""What is published is all of a checkpoint and nothing of something else, and what it replaces is only a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from priorvla.configuration.embodiment import load_embodiments
from priorvla.hub_cards.card import create_card, load_card
from priorvla.hub_cards.publish_checkpoint import publish_checkpoint
from priorvla.hub_cards.publishing import copy_model, publish
from priorvla.modeling_priorvla.adapters import add_adapter
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config


@pytest.fixture(scope="module")
def prior(tiny_priors) -> tuple[ActionPriorModel, PriorVLAProcessor]:
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 3), "waves", 3, 0)])
    return model, PriorVLAProcessor(embodiments=bodies, chunk_size=tiny_priors.CHUNK)


@pytest.fixture
def shared(prior, tmp_path) -> Path:
    return publish(*prior, tmp_path / "shared", license="mit")


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_checkpoint_without_its_weights_is_not_published(hub, prior, shared, tmp_path):
    (shared / "model.safetensors").unlink()
    for destination in (tmp_path / "out", "me/prior"):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
            publish_checkpoint(shared, destination, license="mit")
    assert not (tmp_path / "out").exists() and hub.requests == []
    parts = tmp_path / "parts"
    shutil.copytree(shared, parts)
    prior[0].save_pretrained(parts, max_shard_size="20KB")
    whole = publish_checkpoint(parts, tmp_path / "whole", license="mit")
    part = next(iter(sorted(parts.glob("model-*.safetensors"))))
    assert part.name in names(whole), "all parts are there, and the index that says where what is"
    part.unlink()
    with pytest.raises(FileNotFoundError, match=part.name):
        publish_checkpoint(parts, tmp_path / "half", license="mit")


def test_an_adapter_is_copied_when_one_is_meant_and_from_a_folder_of_one_only(
    save_policy, tiny_backbone, bodies, tmp_path
):
    pytest.importorskip("peft")
    source = save_policy(tmp_path / "base", bodies, fusion="joint")
    model = PriorVLAModel.from_pretrained(source, backbone=tiny_backbone)
    add_adapter(model, lora_config(model, "expert", rank=2))
    model.save_pretrained(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=r"holds adapter_model\.safetensors, but a whole model is to be published"):
        copy_model(tmp_path / "run", out, model.config, adapted=False)
    with pytest.raises(ValueError, match=r"holds model\.safetensors, but an adapter is to be published"):
        copy_model(source, out, model.config, adapted=True, base="me/base")
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing"):
        copy_model(tmp_path / "run", out, model.config, adapted=True, base="me/base")
    assert names(out) == set()


def test_replacing_a_checkpoint_keeps_what_publishing_does_not_write(prior, tmp_path):
    folder = publish(*prior, tmp_path / "shared", license="mit", metrics={"loss": 1.0}, code=True)
    (folder / "films").mkdir()
    for mine in ("notes.txt", "films/demo.mp4"):
        (folder / mine).write_text("mine")
    (folder / "model-00001-of-00002.safetensors").write_text("of a model before")
    publish(*prior, folder, license="apache-2.0", overwrite=True)
    assert {"notes.txt", "films/demo.mp4", "config.json", "model.safetensors"} <= names(folder)
    assert not {"metrics.json", "model-00001-of-00002.safetensors", "layers.py"} & names(folder), "of the old one"
    assert load_card(folder).data.license == "apache-2.0"
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_run_and_somebodys_project_are_never_replaced(prior, shared, tmp_path):
    with pytest.raises(ValueError, match="its own destination"):
        publish_checkpoint(shared, shared, license="mit", overwrite=True)
    (shared / "checkpoint-100").mkdir()
    (shared / "checkpoint-100" / "optimizer.pt").touch()
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text('{"name": "a web app"}')
    for folder, said in ((shared, r"folder of a run \(checkpoint-100"), (project, "no checkpoint")):
        before = names(folder)
        with pytest.raises(FileExistsError, match=said):
            publish(*prior, folder, license="mit", overwrite=True)
        assert names(folder) == before


def test_a_licence_is_one_that_the_hub_lists_and_is_decided(hub, prior, shared, tmp_path):
    undecided = create_card(
        "action-prior", config=prior[0].config, embodiments=load_embodiments(shared), license="unknown"
    )
    for destination in (tmp_path / "out", "me/prior"):
        with pytest.raises(ValueError, match="license is missing"):
            publish(*prior, destination, card=undecided)
        with pytest.raises(ValueError, match="license is missing"):
            publish(*prior, destination, license="unknown")
        with pytest.raises(ValueError, match=r"license='my-boss-said-ok'.*'other'"):
            publish(*prior, destination, license="my-boss-said-ok")
    assert hub.requests == []
    publish(*prior, tmp_path / "out", card=undecided, license="openrail++")


def test_published_without_code_a_checkpoint_names_no_modules(prior, tmp_path):
    coded = publish(*prior, tmp_path / "coded", license="mit", code=True)
    theirs = "somebody/other--module.Class"
    configs = [file for file in sorted(coded.glob("*config.json")) if "auto_map" in json.loads(file.read_text())]
    assert [file.name for file in configs] == ["config.json", "processor_config.json"]
    plain = publish_checkpoint(coded, tmp_path / "plain", license="mit")
    assert not list(plain.glob("*.py"))
    for file in configs:
        assert "auto_map" not in json.loads((plain / file.name).read_text()), file.name
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": theirs}}))
    again = publish_checkpoint(plain, tmp_path / "again", license="mit")
    assert json.loads((again / "config.json").read_text())["auto_map"] == {"AutoModel": theirs}


def test_an_evaluation_is_of_the_checkpoint_that_is_published_and_of_a_body_that_it_has(save_policy, bodies, tmp_path):
    source = save_policy(tmp_path / "policy", bodies, fusion="joint")
    report: dict[str, Any] = {"kind": "evaluation", "tasks": {"open": {"successes": 7, "trials": 8}}}
    for told, said in (
        ({"checkpoint": "runs/another"}, "an evaluation of another, not of policy"),
        ({"checkpoint": "policy", "embodiment": "no_such_robot"}, "of no_such_robot, a body that is not among"),
    ):
        (tmp_path / "report.json").write_text(json.dumps({**report, **told}))
        with pytest.raises(ValueError, match=said):
            publish_checkpoint(source, tmp_path / "out", license="mit", evaluation=tmp_path)
        assert not (tmp_path / "out").exists()
    for told in ({"checkpoint": "runs/policy", "embodiment": bodies[0].name}, {"checkpoint": "me/out"}):
        own = {**report, "embodiment": "metaworld's own", **told}
        (tmp_path / "report.json").write_text(json.dumps(own))
        folder = publish_checkpoint(source, tmp_path / "out", license="mit", evaluation=tmp_path, overwrite=True)
        assert "| open | 7 / 8 |" in load_card(folder).text
