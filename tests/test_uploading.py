"""Publishing to the Hub: one commit or nothing, private unless asked, nothing private in it. Against a loopback Hub."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

from priorvla.cli import main
from priorvla.configuration.embodiment import load_embodiments
from priorvla.hub_cards.card import load_card
from priorvla.hub_cards.publishing import publish
from priorvla.modeling_priorvla.adapters import add_adapter
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config

REPO = "me/swinging-prior"


@pytest.fixture(scope="module")
def prior(tiny_priors) -> tuple[ActionPriorModel, PriorVLAProcessor]:
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 3), "waves", 3, 0)])
    return model, PriorVLAProcessor(embodiments=bodies, chunk_size=tiny_priors.CHUNK)


def commits(hub: Any, repo: str = REPO) -> list[str]:
    """Titles of a repository's commits but the first, which the Hub makes."""
    return [commit.title for commit in hub.opened("models", repo).commits.values()][1:]


def writes(hub: Any) -> list[str]:
    return [line for line in hub.requests if not line.startswith(("GET", "HEAD"))]


def test_a_repository_gets_what_a_folder_would_get_in_one_commit(hub, prior, tmp_path):
    facts = {"license": "apache-2.0", "metrics": {"velocity_loss/arm": 0.25}}
    folder = publish(*prior, tmp_path / "prior", **facts)
    commit = publish(*prior, REPO, **facts)
    uploaded = hub.repository("models", REPO)
    assert commits(hub) == ["Publish a checkpoint"]
    assert str(commit) == f"{hub.url}/{REPO}/commit/{commit.oid}"
    there = {file.name for file in uploaded.iterdir()}
    assert there - {".gitattributes"} == {file.name for file in folder.iterdir()}
    assert "metrics.json" in there
    for file in folder.iterdir():
        if file.name != "README.md":
            assert (uploaded / file.name).read_bytes() == file.read_bytes(), file.name
    again = ActionPriorModel.from_pretrained(REPO, revision=commit.oid)
    assert all(tensor.equal(prior[0].state_dict()[name]) for name, tensor in again.state_dict().items())
    assert load_embodiments(uploaded)[0].name == "arm"


def test_the_card_on_the_hub_is_found_by_tags_and_its_snippet_loads_the_repository(hub, prior):
    publish(*prior, REPO, license="mit", base_model="me/older", metrics={"velocity_loss/arm": 1 / 3, "seen": "often"})
    card = load_card(hub.repository("models", REPO))
    assert {"robotics", "priorvla", "action-prior", "arm"} <= set(card.data.tags)
    assert "lora" not in card.data.tags
    assert card.data.base_model == "me/older"
    told = {"kind": "action-prior", "embodiments": ["arm"], "metrics": {"velocity_loss/arm": 0.333333}}
    assert card.data["priorvla"] == told
    assert f'checkpoint = "{REPO}"' in card.text
    assert f"--prior {REPO} " in card.text


def test_adapters_on_the_backbone_are_a_tag(hub, save_policy, tiny_backbone, bodies, tmp_path):
    source = save_policy(tmp_path / "run", bodies, fusion="joint")
    model = PriorVLAModel.from_pretrained(source, backbone=None)
    model.config.backbone_training = "lora"
    model.attach_backbone(tiny_backbone)
    publish(model, PriorVLAProcessor.from_pretrained(source), "me/policy", license="mit", base_model=REPO)
    card = load_card(hub.repository("models", "me/policy"))
    assert {"vla", "lora"} <= set(card.data.tags)
    assert card.data.base_model[0] == REPO, "the prior, before the backbone"


def test_a_repository_is_private_unless_public_is_asked_for(hub, prior):
    publish(*prior, REPO, license="mit")
    assert hub.opened("models", REPO).private
    with pytest.raises(OSError, match=f"{REPO}"):
        HfApi(token=False).model_info(REPO)
    publish(*prior, "me/open", license="mit", private=False)
    assert not hub.opened("models", "me/open").private
    with pytest.raises(ValueError, match=r"me/open is public.*--public"):
        publish(*prior, "me/open", license="mit", overwrite=True)
    publish(*prior, REPO, license="mit", private=False, overwrite=True)
    assert not hub.opened("models", REPO).private, "looked at in private, then shown"


@pytest.mark.parametrize("drop", ["request", "answer"])
def test_a_connection_that_dies_in_the_commit_leaves_all_or_nothing(drop, hub, prior):
    hub.faults.append(hub.Fault("/commit/", drop=drop))
    with pytest.raises(ConnectionError, match=f"on the way to {REPO}.*Try again"):
        publish(*prior, REPO, license="mit")
    there = {file.name for file in hub.repository("models", REPO).iterdir()}
    if drop == "request":
        assert there == {".gitattributes"}, "the weights were uploaded by then, and no commit has them"
        publish(*prior, REPO, license="mit")
    else:
        assert {"config.json", "model.safetensors", "README.md", "embodiments.json"} <= there
        with pytest.raises(FileExistsError, match="holds a checkpoint"):
            publish(*prior, REPO, license="mit")
    assert commits(hub) == ["Publish a checkpoint"]


def test_a_dying_update_leaves_the_old_checkpoint_whole(hub, prior):
    publish(*prior, REPO, license="mit")
    before = hub.opened("models", REPO).head()
    hub.faults.append(hub.Fault("/commit/", drop="request"))
    with pytest.raises(ConnectionError):
        publish(*prior, REPO, license="apache-2.0", overwrite=True)
    assert hub.opened("models", REPO).head() == before


def test_an_upload_that_is_cut_off_or_slow_is_taken_up_again(hub, prior):
    fault = hub.Fault
    hub.faults += [fault("PUT /lfs/", drop="request"), fault("/preupload/", delay=0.3)]
    publish(*prior, REPO, license="mit")
    assert sum(line.startswith("PUT /lfs/") for line in hub.requests) == 2
    assert (hub.repository("models", REPO) / "model.safetensors").is_file()


def test_an_upload_that_never_gets_through_publishes_nothing(hub, prior, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's attempts
    hub.faults.append(hub.Fault("PUT /lfs/", drop="request", times=100))
    with pytest.raises(ConnectionError, match=f"on the way to {REPO}"):
        publish(*prior, REPO, license="mit")
    assert commits(hub) == []


def test_an_upload_that_the_hub_refuses_publishes_nothing(hub, prior):
    hub.faults.append(hub.Fault("PUT /lfs/", status=507))
    with pytest.raises(OSError, match=f"refused the upload to {REPO} and nothing was published"):
        publish(*prior, REPO, license="mit")
    assert commits(hub) == []


def test_a_checkpoint_is_replaced_only_when_told_and_the_old_one_stays_readable(hub, prior):
    first = publish(*prior, REPO, license="mit", metrics={"loss": 1.0})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        publish(*prior, REPO, license="mit")
    model = ActionPriorModel.from_pretrained(REPO)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    second = publish(model, prior[1], REPO, license="mit", overwrite=True, commit_message="Trained longer")
    assert commits(hub) == ["Publish a checkpoint", "Trained longer"]
    assert not (hub.repository("models", REPO) / "metrics.json").exists(), "it spoke of the old weights"
    old, new = (ActionPriorModel.from_pretrained(REPO, revision=commit.oid) for commit in (first, second))
    assert next(old.parameters()).equal(next(prior[0].parameters()))
    assert next(new.parameters()).equal(next(model.parameters()))


def test_something_else_in_a_repository_is_never_replaced(hub, prior):
    folder = hub.repository("models", REPO)
    folder.mkdir(parents=True)
    (folder / "cats.bin").write_bytes(b"cats")
    with pytest.raises(FileExistsError, match=r"no checkpoint \(cats\.bin\).*another name"):
        publish(*prior, REPO, license="mit", private=False, overwrite=True)
    assert writes(hub) == []


def test_replacing_a_checkpoint_leaves_other_files_of_the_repository(hub, prior):
    publish(*prior, REPO, license="mit", metrics={"loss": 1.0})
    for place in ("demo.mp4", "LICENSE", "films/loss.png"):
        HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=place, repo_id=REPO)
    publish(*prior, REPO, license="mit", overwrite=True)
    files = hub.opened("models", REPO).head().files
    assert {"demo.mp4", "LICENSE", "films/loss.png", "model.safetensors"} <= set(files)
    assert "metrics.json" not in files, "it spoke of the old weights"


def test_a_branch_of_a_private_repository_does_not_make_it_public(hub, prior):
    publish(*prior, REPO, license="mit")
    HfApi().create_branch(REPO, branch="open")
    with pytest.raises(ValueError, match=r"is private, and a branch of it cannot be public alone.*--public"):
        publish(*prior, REPO, license="mit", private=False, revision="open", overwrite=True)
    assert hub.opened("models", REPO).private and commits(hub) == ["Publish a checkpoint"]
    publish(*prior, REPO, license="mit", private=False, revision="main", overwrite=True)
    assert not hub.opened("models", REPO).private


def test_settings_that_the_hub_does_not_change_are_told_apart_from_the_commit(hub, prior):
    publish(*prior, REPO, license="mit")
    hub.faults.append(hub.Fault("/settings", status=403, times=9))
    with pytest.raises(OSError, match=rf"the checkpoint is at http.*/commit/.*, but {REPO} is still private"):
        publish(*prior, REPO, license="apache-2.0", overwrite=True, private=False)
    assert commits(hub) == ["Publish a checkpoint", "Replace the checkpoint"]


def test_the_hub_refuses_a_licence_that_it_does_not_list(hub):
    HfApi().create_repo(REPO)
    card = b"---\nlicense: my-own\n---\n"
    with pytest.raises(ValueError, match="license"):
        HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO)


def test_a_branch_is_committed_to_when_there_is_one(hub, prior):
    with pytest.raises(ValueError, match=r"no branch 'tuned'.*create_branch"):
        publish(*prior, REPO, license="mit", revision="tuned")
    publish(*prior, REPO, license="mit")
    main = hub.opened("models", REPO).head()
    HfApi().create_branch(REPO, branch="tuned")
    HfApi().create_tag(REPO, tag="v1")
    commit = publish(*prior, REPO, license="apache-2.0", revision="tuned", overwrite=True)
    repository = hub.opened("models", REPO)
    assert repository.head() == main
    assert repository.at("tuned").id == commit.oid
    assert repository.at("v1") == main
    assert next(iter(HfApi().list_repo_commits(REPO, revision="tuned"))).title == "Replace the checkpoint"


def test_nothing_private_leaves_this_machine(hub, prior, tmp_path):
    model, processor = prior
    card = load_card(publish(model, processor, tmp_path / "prior", license="mit"))
    for secret in ("/home/somebody/data", "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"):
        told = type(card)(f"{card}\nTrained from {secret}.\n")
        with pytest.raises(ValueError, match="something private"):
            publish(model, processor, REPO, card=told, license="mit")
    model.config.trained_at = "/home/somebody/runs"
    try:
        with pytest.raises(ValueError, match=r"config\.json holds something private.*/home/somebody/runs"):
            publish(model, processor, REPO, license="mit")
    finally:
        del model.config.trained_at
    assert hub.requests == [], "not even a question"


def test_a_report_goes_along_without_the_paths_in_it(hub, prior, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"dataset": "/home/somebody/drawers", "rate": 0.5}))
    publish(*prior, REPO, license="mit", report=tmp_path / "report.json")
    told = json.loads((hub.repository("models", REPO) / "report.json").read_text())
    assert told == {"dataset": "drawers", "rate": 0.5}


def test_without_a_token_or_a_right_or_a_network_it_is_said_what_to_do(hub, prior, monkeypatch):
    with pytest.raises(ValueError, match="license is missing"):
        publish(*prior, REPO)
    with pytest.raises(PermissionError, match=r"may not write to somebody/prior.*under your own name.*'somebody'"):
        publish(*prior, "somebody/prior", license="mit")
    with pytest.raises(PermissionError, match=r"does not know the token.*hf auth login"):
        publish(*prior, REPO, license="mit", token="hf_of_nobody")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    hub.requests.clear()
    with pytest.raises(PermissionError, match=r"needs a token of the Hub, and there is none: log in with `hf auth"):
        publish(*prior, REPO, license="mit")
    assert hub.requests == []
    hub.stop()
    with pytest.raises(ConnectionError, match=f"connection to the Hub failed on the way to {REPO}"):
        publish(*prior, REPO, license="mit", token=hub.token)


def test_somebody_elses_commit_in_between_is_not_lost(hub, prior):
    publish(*prior, REPO, license="mit")
    hub.requests.clear()
    hub.faults.append(hub.Fault("/preupload/", delay=0.5))

    def change() -> None:
        while not any("/preupload/" in line for line in hub.requests):
            time.sleep(0.01)
        (hub.repository("models", REPO) / "notes.md").write_text("mine")

    somebody = threading.Thread(target=change)
    somebody.start()
    with pytest.raises(FileExistsError, match="another commit in the meantime"):
        publish(*prior, REPO, license="apache-2.0", overwrite=True)
    somebody.join()
    assert (hub.repository("models", REPO) / "notes.md").read_text() == "mine"
    assert load_card(hub.repository("models", REPO)).data.license == "mit"


def test_code_goes_along_when_asked_for(hub, prior):
    publish(*prior, REPO, license="mit", code=True)
    folder = hub.repository("models", REPO)
    assert "AutoModel" in json.loads((folder / "config.json").read_text())["auto_map"]
    assert (folder / "modeling_action_prior.py").is_file()


def test_the_command_publishes_a_run_with_its_card_metrics_and_report(hub, prior, tmp_path, capsys):
    facts = {"training": {"steps": 77}, "metrics": {"coverage/arm": 0.8}, "base_model": "./runs/older"}
    run = publish(*prior, tmp_path / "run", license="other", **facts)
    (run / "report.json").write_text(json.dumps({"dataset": str(tmp_path / "drawers")}))
    (run / "optimizer.pt").write_bytes(b"of the training, and large")
    told = ["--license", "apache-2.0", "--name", "Prior of an arm", "--base-model", "me/older", "--message", "First"]
    assert main(["publish", str(run), REPO, *told]) == 0
    printed = capsys.readouterr().out
    repository = hub.opened("models", REPO)
    assert f"{hub.url}/{REPO}/commit/{repository.head().id}, for you alone" in printed
    assert f"priorvla info {REPO}" in printed
    assert repository.private
    assert commits(hub) == ["First"]
    card = load_card(repository.folder)
    assert card.text.startswith("\n# Prior of an arm\n")
    assert "| steps | 77 |" in card.text, "what the run wrote of itself"
    assert f'checkpoint = "{REPO}"' in card.text
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "me/older")
    assert "Started from [`me/older`](https://huggingface.co/me/older)." in card.text, "no longer a folder of mine"
    assert card.data["priorvla"]["metrics"] == {"coverage/arm": 0.8}
    assert json.loads((repository.folder / "report.json").read_text()) == {"dataset": "drawers"}
    assert not (repository.folder / "optimizer.pt").exists()


def test_the_command_says_what_is_wrong_before_anything_leaves(hub, prior, tmp_path, capsys):
    run = str(publish(*prior, tmp_path / "run", license="mit"))
    for arguments, said in (
        ([run, REPO], "--license is missing"),
        ([str(tmp_path), REPO, "--license", "mit"], "holds no checkpoint"),
        ([run, REPO, "--license", "my own"], "name the licence by the Hub's identifier"),
        ([run, REPO, "--license", "mit", "--base-model", "./runs/prior"], "is no Hub id (owner/name)"),
    ):
        assert main(["publish", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err
    assert hub.requests == []


def test_the_command_makes_a_folder_for_others(prior, tmp_path, capsys):
    run = publish(*prior, tmp_path / "run", license="other")
    assert main(["publish", str(run), str(tmp_path / "shared"), "--license", "mit"]) == 0
    assert load_card(tmp_path / "shared").data.license == "mit"
    assert str(tmp_path / "shared") in capsys.readouterr().out


def test_of_a_model_with_an_adapter_the_adapter_alone_is_published_beside_its_base(
    hub, save_policy, tiny_backbone, bodies, tmp_path, capsys
):
    pytest.importorskip("peft")
    source = save_policy(tmp_path / "base", bodies, fusion="joint")
    model = PriorVLAModel.from_pretrained(source, backbone=tiny_backbone)
    processor = PriorVLAProcessor.from_pretrained(source)
    add_adapter(model, lora_config(model, "expert", rank=2))
    with pytest.raises(ValueError, match=r"base is 'base', which nobody else has.*--base-model"):
        publish(model, processor, "me/adapter", license="mit")
    assert hub.requests == []
    with pytest.raises(ValueError, match=r"base me/base is not on the Hub"):
        publish(model, processor, "me/adapter", license="mit", base_model="me/base")
    with pytest.raises(ValueError, match=r"base is me/adapter, the repository that it would be published to"):
        publish(model, processor, "me/adapter", license="mit", base_model="me/adapter")
    assert writes(hub) == []
    base = publish(PriorVLAModel.from_pretrained(source, backbone=None), processor, "me/base", license="mit")
    run = publish(model, processor, tmp_path / "run", license="other", base_model="me/base", metrics={"eval_loss": 1})
    publish(model, processor, "me/adapter", license="mit", base_model="me/base")
    assert main(["publish", str(run), "me/again", "--license", "mit"]) == 0
    for repo in ("me/adapter", "me/again"):
        folder = hub.repository("models", repo)
        there = {file.name for file in folder.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "embodiments.json"} <= there
        assert "model.safetensors" not in there
        told = json.loads((folder / "adapter_config.json").read_text())
        assert (told["base_model_name_or_path"], told["revision"]) == ("me/base", base.oid), "as it is now"
        card = load_card(folder)
        assert {"vla", "lora"} <= set(card.data.tags)
        assert (card.data.base_model, card.data["base_model_relation"]) == ("me/base", "adapter"), "no backbone beside"
