"""Cards say what a checkpoint is, are read back by huggingface_hub, and give nothing private away."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.numpy import load_file as numpy_file
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.embodiment import Embodiment, load_embodiments
from priorvla.configuration.embodiment_registry import load_embodiment
from priorvla.hub_cards.card import create_card, load_card, validate_card
from priorvla.hub_cards.checkpoints import kind_of
from priorvla.hub_cards.info import describe_checkpoint
from priorvla.hub_cards.publishing import publish
from priorvla.modeling_priorvla.backbone import describe_backbone
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

SECRET = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"
EVALUATION = {
    "environment": "Meta-World",
    "episode_steps": 200,
    "tasks": {"drawer-open": {"successes": 8, "trials": 10}, "door-open": {"successes": 0, "trials": 10}},
}
KINDS = ["action-prior", "vision-action-prior", "vla"]


@pytest.fixture(scope="module")
def embodiments() -> list[Embodiment]:
    values = np.random.default_rng(0).normal(size=(12, 4))
    sawyer = Embodiment(
        "sawyer",
        ["dx", "dy", "dz", "gripper"],
        ["x", "y", "z", "opening"],
        control_rate=80,
        gripper_dims=[3],
        cameras=["corner"],
    )
    arm = Embodiment("arm", ["j1", "j2"], ["j1", "j2"], control_rate=12.5, action_kinds=["delta", "absolute"])
    return [sawyer.with_statistics(values, values), arm.with_statistics(values[:, :2], values[:, :2])]


EXPERT = {
    "embodiments": ["sawyer", "arm"],
    "action_dims": [4, 2],
    "state_dims": [4, 2],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "expert_layers": ["motion"],
    "chunk_size": 6,
    "latent_dim": 8,
}
ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 1,
}


@pytest.fixture(scope="module")
def prior_config() -> ActionPriorConfig:
    return ActionPriorConfig(expert=dict(EXPERT), encoder=dict(ENCODER))


@pytest.fixture(scope="module")
def vla_config() -> PriorVLAConfig:
    backbone = {"source": "hub", "name": "owner/backbone", "revision": "v1", "sha256": "ab" * 32}
    return PriorVLAConfig(expert=dict(EXPERT), backbone=backbone)


@pytest.fixture(scope="module")
def sight_config(vla_config) -> PriorVLAConfig:
    """Of a vision-action prior of two layers."""
    expert = {**EXPERT, "expert_layers": ["motion"] * 2}
    return PriorVLAConfig(expert=expert, backbone=vla_config.backbone, fusion="gated", language=False)


@pytest.fixture(scope="module")
def configs(prior_config, sight_config, vla_config) -> dict[str, Any]:
    return {kind_of(config): config for config in (prior_config, sight_config, vla_config)}


@pytest.fixture(scope="module")
def prior(prior_config) -> ActionPriorModel:
    return ActionPriorModel(prior_config)


@pytest.fixture
def processor() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"open": 0, "[UNK]": 1}, "[UNK]")))


def program(card: ModelCard) -> str:
    """The card's Python, block after block: what somebody runs who reads it from top to bottom."""
    return "\n".join(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL))


def test_a_prior_card_has_the_headers_that_the_hub_searches(prior_config, embodiments):
    data = create_card("action-prior", config=prior_config, embodiments=embodiments, license="apache-2.0").data
    assert data.library_name == "priorvla"
    assert data.pipeline_tag == "robotics"
    assert {"robotics", "priorvla", "action-prior", "sawyer", "arm"} <= set(data.tags)
    assert data.license == "apache-2.0"
    assert data.eval_results is None


def test_a_card_states_every_embodiments_dims_rate_kinds_and_normalisation(prior_config, embodiments):
    text = create_card("action-prior", config=prior_config, embodiments=embodiments, license="mit").text
    assert "| 0 | `sawyer` | 4 | absolute | 4 | 80 | quantile / quantile |" in text
    assert "| 1 | `arm` | 2 | delta, absolute | 2 | 12.5 | quantile / quantile |" in text
    assert "delta: `j1`; absolute: `j2`" in text


def test_a_checkpoint_is_what_its_config_says(configs):
    assert list(configs) == KINDS
    for kind, config in configs.items():
        assert kind_of(json.loads(config.to_json_string(use_diff=False))) == kind
    assert kind_of({"model_type": "priorvla"}) == "vla"  # of before there were vision-action priors
    with pytest.raises(ValueError, match="model_type 'bert' is not one of priorvla_action_prior, priorvla"):
        kind_of({"model_type": "bert"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_states_what_is_learned_instead_and_its_snippet_passes_the_state(kind, configs):
    body = load_embodiment("franka_eef")
    config = configs[kind]
    text = create_card(kind, config=config, embodiments=[body], license="mit").text
    assert "`x`, `y`, `z`, `qx`, `qy`, `qz`, `qw` relative to the state at the chunk's first step" in text
    assert "(quaternion_xyzw) as 6-D rotation; 10 action and 10 state dims in the model" in text
    snippet = program(create_card(kind, config=config, embodiments=[body], license="mit"))
    ast.parse(snippet)
    assert 'embodiment="franka_eef", state=state)' in snippet and "import numpy as np" in snippet
    state = np.array(ast.literal_eval(re.search(r"state = np\.array\((\[.*\]), dtype", snippet)[1]))
    body.learned_states(state)


def test_an_evaluated_card_is_read_back_with_trials_and_intervals(vla_config, embodiments, tmp_path):
    create_card(
        "vla", config=vla_config, embodiments=embodiments, license="mit", evaluation=EVALUATION, name="six-tasks"
    ).save(tmp_path / "README.md")
    card = load_card(tmp_path)
    results = {result.dataset_config: result for result in card.data.eval_results}
    assert card.data.model_name == "six-tasks"
    assert results["drawer-open"].metric_value == 80.0
    assert results["drawer-open"].metric_args["trials"] == 10
    assert results["drawer-open"].metric_args["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert results["all tasks"].metric_args["successes"] == 8
    assert "| door-open | 0 / 10 | 0 % | 0 – 28 % |" in card.text


def test_a_policy_that_an_adapter_was_merged_into_names_what_was_adapted(vla_config, embodiments):
    config = PriorVLAConfig(**vla_config.to_dict() | {"base_model": "owner/base", "base_model_revision": None})
    card = create_card("vla", config=config, embodiments=embodiments, license="mit")
    assert "owner/base" in card.data.base_model
    assert (
        "owner/other"
        in create_card(
            "vla", config=config, embodiments=embodiments, license="mit", base_model="owner/other"
        ).data.base_model
    )


def test_a_card_without_evaluation_says_so(vla_config, embodiments):
    card = create_card("vla", config=vla_config, embodiments=embodiments, license="mit")
    assert "Not evaluated in closed loop" in card.text


def test_hub_sources_are_linked_and_local_ones_are_named_without_their_path(vla_config, embodiments, tmp_path):
    local = tmp_path / "demonstrations"
    local.mkdir()
    card = create_card(
        "vla",
        config=vla_config,
        embodiments=embodiments,
        license="mit",
        datasets=["owner/robot-data@v2", str(local)],
        base_model="owner/prior",
    )
    assert card.data.datasets == ["owner/robot-data"]
    assert card.data.base_model == ["owner/prior", "owner/backbone"]
    assert "`demonstrations` (local)" in card.text
    assert str(tmp_path) not in str(card)


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_is_python_with_the_configs_shapes(kind, configs, embodiments):
    snippet = program(create_card(kind, config=configs[kind], embodiments=embodiments, license="mit"))
    ast.parse(snippet)
    assert "(1, 6, 4)" in snippet
    assert 'checkpoint = "."' in snippet
    assert 'embodiment="sawyer"' in snippet


RUN_SNIPPETS = """
import os, sys
for folder, file, shape in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    os.chdir(folder)
    names = {}
    exec(compile(open(file).read(), file, "exec"), names)
    assert str(names["actions"].shape) == shape, names["actions"].shape
"""


def test_the_snippets_run_as_they_stand_in_a_fresh_process(prior, embodiments, tiny_backbone, tmp_path):
    """From the checkpoint's folder, offline, with a backbone that was downloaded before."""
    backbone = into_hub_cache(tiny_backbone, tmp_path / "hub", "owner/tiny-backbone")
    sight = PriorVLAModel(PriorVLAConfig(expert=dict(EXPERT), fusion="gated", language=False, **backbone))
    policies = {
        "vla": PriorVLAModel.from_action_prior(prior, **backbone),
        "sight": sight,
        "listening": PriorVLAModel.from_vision_action_prior(sight),
    }
    cases: list[str] = []
    for name, model in {"prior": prior, **policies}.items():
        processor = (
            PriorVLAProcessor.for_backbone(tiny_backbone, embodiments, chunk_size=6)
            if name in policies
            else PriorVLAProcessor(embodiments=embodiments, chunk_size=6)
        )
        folder = publish(model, processor, tmp_path / name, license="mit")
        (tmp_path / f"{name}.py").write_text(program(load_card(folder)))
        cases += [str(folder), str(tmp_path / f"{name}.py"), "(1, 6, 4)"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUN_SNIPPETS, *cases], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def into_hub_cache(backbone: Path, cache: Path, repository: str) -> dict[str, Any]:
    """Lays a backbone's folder where huggingface_hub puts what it downloads; fields of a config that refers to it."""
    commit = "0" * 40
    home = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(backbone, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    described = describe_backbone(backbone, source="hub", name=repository)
    return {
        "backbone": {key: described[key] for key in BACKBONE_KEYS},
        "backbone_layers": described["num_layers"],
        "vision_hidden_size": described["vision_hidden_size"],
        "text_hidden_size": described["text_hidden_size"],
    }


def test_the_snippet_names_the_repository_when_the_card_knows_it(prior_config, embodiments):
    snippet = program(
        create_card("action-prior", config=prior_config, embodiments=embodiments, license="mit", name="me/prior")
    )
    assert 'checkpoint = "me/prior"' in snippet


def test_both_papers_are_cited_by_a_vla_and_one_by_a_prior(prior_config, vla_config, embodiments):
    prior = create_card("action-prior", config=prior_config, embodiments=embodiments, license="mit").text
    vla = create_card("vla", config=vla_config, embodiments=embodiments, license="mit").text
    assert "2606.26095" in prior
    assert "2606.12366" not in prior
    assert "2606.26095" in vla
    assert "2606.12366" in vla


def test_paths_and_secrets_in_a_recipe_do_not_reach_the_card(prior_config, embodiments):
    training = {
        "steps": 1400,
        "output_dir": "/home/somebody/runs/prior",
        "hub_token": "letmein",
        "notes": f"pushed with {SECRET}",
        "optimizer": {"config": Path("/data/secret-project/adamw.yaml")},
    }
    text = str(
        create_card("action-prior", config=prior_config, embodiments=embodiments, license="mit", training=training)
    )
    for private in ("somebody", "letmein", SECRET, "secret-project"):
        assert private not in text
    assert "| output dir | prior |" in text
    assert "| steps | 1400 |" in text


def test_text_in_values_stays_text(prior_config, embodiments):
    training = {"note": "a | b {{ 7 * 7 }} <script>"}
    text = create_card(
        "action-prior", config=prior_config, embodiments=embodiments, license="mit", training=training
    ).text
    assert r"| note | a \| b {{ 7 * 7 }} &lt;script> |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "dataset"}, "card kind 'dataset' is unknown"),
        ({"license": ""}, "license=''"),
        ({"license": "Apache License 2.0"}, "identifier"),
        ({"embodiments": []}, "at least one embodiment"),
        ({"evaluation": {"tasks": {"a": {"successes": 3, "trials": 2}}}}, "got 3"),
    ],
)
def test_a_card_that_would_be_wrong_is_refused(changes, message, prior_config, embodiments):
    arguments = {"kind": "action-prior", "embodiments": embodiments, "license": "mit", **changes}
    with pytest.raises(ValueError, match=message):
        create_card(arguments.pop("kind"), config=prior_config, **arguments)


def test_a_card_edited_into_something_private_is_refused(prior_config, embodiments):
    card = create_card("action-prior", config=prior_config, embodiments=embodiments, license="mit")
    card.text += "\nSee /home/somebody/notes.txt\n"
    with pytest.raises(ValueError, match=r"/home/somebody/notes\.txt"):
        validate_card(card)


def test_publish_writes_a_whole_checkpoint(prior, processor, embodiments, tmp_path):
    folder = publish(prior, processor, tmp_path / "prior", license="apache-2.0", embodiments=embodiments)
    assert folder == tmp_path / "prior"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "embodiments.json", "README.md"} <= names
    assert load_embodiments(folder) == embodiments
    assert load_card(folder).data.license == "apache-2.0"
    again = ActionPriorModel.from_pretrained(folder)
    for name, tensor in prior.state_dict().items():
        assert tensor.equal(again.state_dict()[name])
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_what_was_measured_is_published_and_info_shows_it(prior, processor, embodiments, tmp_path):
    body = embodiments[0].name
    measured = {"metrics": {f"coverage/{body}": np.float32(0.83), "eval_loss": 0.5}}
    folder = publish(prior, processor, tmp_path / "prior", license="mit", embodiments=embodiments, **measured)
    assert "83%" in describe_checkpoint(folder) and "eval_loss" in describe_checkpoint(folder)


def test_a_checkpoint_loaded_from_a_folder_publishes_without_that_folders_name(prior, processor, embodiments, tmp_path):
    prior.save_pretrained(tmp_path / "private_place")
    loaded = ActionPriorModel.from_pretrained(tmp_path / "private_place")
    folder = publish(loaded, processor, tmp_path / "out", license="mit", embodiments=embodiments)
    for path in folder.glob("*"):
        assert b"private_place" not in path.read_bytes(), path.name


def test_a_string_that_cannot_be_a_hub_id_is_a_folder(prior, processor, embodiments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = publish(prior, processor, "./runs/prior", license="mit", embodiments=embodiments)
    assert folder == tmp_path / "runs" / "prior"
    assert (folder / "config.json").is_file()


def test_publish_without_a_licence_or_embodiments_writes_nothing(prior, processor, embodiments, tmp_path):
    with pytest.raises(ValueError, match="license is missing"):
        publish(prior, processor, tmp_path / "out", embodiments=embodiments)
    with pytest.raises(ValueError, match="has no embodiments"):
        publish(prior, processor, tmp_path / "out", license="mit")
    assert not list(tmp_path.iterdir())


def test_something_private_in_a_file_stops_publishing_and_leaves_nothing(prior, processor, embodiments, tmp_path):
    processor.init_kwargs["vocabulary_source"] = "/home/somebody/vocab.txt"
    with pytest.raises(ValueError, match=r"tokenizer_config\.json.*/home/somebody/vocab.txt.*vocabulary_source"):
        publish(prior, processor, tmp_path / "out", license="mit", embodiments=embodiments)
    assert not list(tmp_path.iterdir())


def test_publish_replaces_a_checkpoint_only_when_told_and_anything_else_never(prior, processor, embodiments, tmp_path):
    arguments = {"license": "mit", "embodiments": embodiments}
    publish(prior, processor, tmp_path / "prior", **arguments)
    (tmp_path / "prior" / "report.json").touch()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        publish(prior, processor, tmp_path / "prior", **arguments)
    publish(prior, processor, tmp_path / "prior", overwrite=True, **arguments)
    assert not (tmp_path / "prior" / "report.json").exists(), "of the checkpoint that is gone"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(FileExistsError, match="no checkpoint"):
        publish(prior, processor, tmp_path / "photos", overwrite=True, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "prior"]


def test_a_failing_processor_leaves_the_old_checkpoint_as_it_was(prior, processor, embodiments, tmp_path):
    class FullDisk(type(processor)):
        def save_pretrained(self, *args, **kwargs):
            raise OSError("no space left on device")

    publish(prior, processor, tmp_path / "prior", license="mit", embodiments=embodiments)
    before = (tmp_path / "prior" / "README.md").read_bytes()
    with pytest.raises(OSError, match="no space left"):
        publish(
            prior,
            FullDisk(tokenizer_object=processor.backend_tokenizer),
            tmp_path / "prior",
            license="mit",
            embodiments=embodiments,
            overwrite=True,
        )
    assert (tmp_path / "prior" / "README.md").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_a_given_card_is_published_with_the_given_licence(prior, prior_config, processor, embodiments, tmp_path):
    card = create_card("action-prior", config=prior_config, embodiments=embodiments, license="mit", name="mine")
    folder = publish(prior, processor, tmp_path / "p", card=card, license="apache-2.0", embodiments=embodiments)
    assert load_card(folder).data.license == "apache-2.0"
    assert load_card(folder).text.startswith("\n# mine")
    with pytest.raises(ValueError, match="'training' goes into a new card"):
        publish(prior, processor, tmp_path / "q", card=card, embodiments=embodiments, training={})


@pytest.mark.parametrize("use_history", [False, True])
def test_a_vla_is_published_with_its_trajectory_encoder_only_when_history_needs_it(
    use_history, prior, processor, embodiments, tmp_path
):
    vla = PriorVLAModel.from_action_prior(prior, use_history=use_history)
    folder = publish(vla, processor, tmp_path / "vla", license="mit", embodiments=embodiments)
    saved = load_file(folder / "model.safetensors")
    assert any(name.startswith("encoder.") for name in saved) is use_history
    assert (json.loads((folder / "config.json").read_text())["encoder"] is not None) is use_history
    again, loading = PriorVLAModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert vla.encoder is not None
    assert vla.config.encoder is not None
    assert again.config.use_history is use_history


@pytest.mark.parametrize("training", ["lora", "full"])
def test_a_tuned_backbone_is_published_as_far_as_it_was_trained(training, save_policy, tiny_backbone, bodies, tmp_path):
    source = save_policy(tmp_path / "run", bodies, fusion="joint")
    model = PriorVLAModel.from_pretrained(source, backbone=None)
    model.config.backbone_training = training
    model.attach_backbone(tiny_backbone)
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor += 1
    processor = PriorVLAProcessor.from_pretrained(source)
    folder = publish(model, processor, tmp_path / "out", license="mit")
    size = sum(tensor.size for tensor in numpy_file(folder / "model.safetensors").values())
    assert f"| parameters saved | {size / 1e6:.2f} M |" in load_card(folder).text
    assert "trained adapters (LoRA) are here" in describe_checkpoint(folder) or training == "full"
    again = PriorVLAModel.from_pretrained(folder, backbone=tiny_backbone).trained_tensors()
    assert again and all(tensor.equal(again[name]) for name, tensor in model.trained_tensors().items())


def test_a_vision_action_prior_is_published_whole_and_its_card_has_the_models_gates(
    prior, processor, embodiments, tmp_path
):
    sight = PriorVLAModel.from_action_prior(prior, fusion="joint", language=False)
    folder = publish(sight, processor, tmp_path / "sight", license="mit", embodiments=embodiments)
    assert set(load_file(folder / "model.safetensors")) == set(sight.state_dict())
    card = load_card(folder)
    assert "vision-action-prior" in card.data.tags and card.text.startswith("\n# Vision-action prior for sawyer, arm")
    assert sum(name.endswith("memory_gate") for name in sight.gate_values()) == 1
    assert "| layer | `memory` |" in card.text and "| 0 | 0 |" in card.text


def test_a_folder_without_a_card_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        load_card(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model card"):
        load_card(tmp_path / "nowhere")
