"""An adapter's card says what it is, for which robot, of which base; its snippet runs; a search finds it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")
from huggingface_hub import ModelCard

from priorvla.cli import main
from priorvla.configuration.embodiment import Embodiment
from priorvla.hub_cards.card import create_card, load_card
from priorvla.hub_cards.card_pictures import shown_pictures
from priorvla.hub_cards.checkpoints import kind_of
from priorvla.hub_cards.info import describe_checkpoint
from priorvla.hub_cards.searching import list_priors
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

BASE = "me/base"


def into_hub_cache(folder: Path, cache: Path, repository: str) -> None:
    """Lays a folder where huggingface_hub puts what it downloads."""
    home = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)


@pytest.fixture(scope="module")
def newcomer(bodies) -> Embodiment:
    return Embodiment("so101", ["j1", "j2", "grip"], ["j1", "j2", "grip"], 30.0, gripper_dims=[2], cameras=["front"])


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_policy, bodies, newcomer, tiny_backbone, write_demonstrations) -> Path:
    """What `priorvla finetune` leaves for a robot that its base, a folder, does not know."""
    folder = tmp_path_factory.mktemp("finetuned")
    base = save_policy(folder / "base", bodies, fusion="joint")
    dataset = write_demonstrations(folder / "mine", newcomer, [8, 9, 8])
    asked = {"--base": base, "--dataset": dataset, "--output-dir": folder / "run", "--backbone": tiny_backbone}
    asked |= {
        "--rank": 2,
        "--max-steps": 2,
        "--holdout": 0.0,
        "--device": "cpu",
        "--preset": "expert",
        "--listening": 0,
    }
    assert main(["finetune", *(str(word) for option in asked.items() for word in option)]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def card(run) -> ModelCard:
    return load_card(run)


def test_the_new_robot_comes_first_and_keeps_its_id(card):
    assert card.text.startswith("\n# Adapter for so101\n")
    rows = re.findall(r"(?m)^\| (\d) \| `(\w+)` \| (\d) \|", card.text)
    assert rows == [("2", "so101", "3"), ("0", "small", "4"), ("1", "large", "7")]
    assert 'embodiment="so101"' in card.text and "First the one that it was trained for" in card.text


def test_the_header_says_that_it_is_an_adapter_of_a_policy(card):
    assert card.data.tags[:5] == ["robotics", "priorvla", "adapter", "lora", "vla"]
    assert set(card.data.tags) >= {"so101", "small", "large"}
    assert card.data.library_name == "priorvla"
    assert "base_model_relation" not in card.data, "its base is a folder of mine"


def test_the_card_says_what_was_trained_how_large_it_is_and_of_which_base(card, run):
    size = (run / "adapter_model.safetensors").stat().st_size
    told = dict(re.findall(r"(?m)^\| ([\w ]+) \| (.+) \|$", card.text.partition("## Use")[0]))
    assert told["preset"] == "expert: low-rank maps beside the expert's layers"
    assert told["trained in full"] == "so101's soft tokens and projections"
    assert (told["rank"], told["alpha"]) == ("2", "4")
    millions, megabytes = re.fullmatch(r"([\d.]+) M in ([\d.]+) MB", told["parameters"]).groups()
    assert float(megabytes) == pytest.approx(4 * float(millions), rel=0.01)
    assert float(megabytes) * 1e6 < size < float(megabytes) * 1e6 + 40_000, "the file's header comes on top"
    assert "Its base is <!-- base -->`base`<!-- /base -->." in card.text and str(run.parent) not in str(card)
    assert r"(expert|fusion)\.layers" in card.text, "the layers, to the letter"
    assert shown_pictures(card.text) == ["loss.png"] and "`mine` (local)" in card.text


def test_published_it_names_its_base_and_itself_and_info_and_search_know_it(run, hub, capsys):
    shutil.copytree(run.parent / "base", hub.repository("models", BASE))
    assert main(["publish", str(run), "me/so101", "--license", "mit", "--base-model", BASE]) == 0
    folder = hub.repository("models", "me/so101")
    published = load_card(folder)
    assert published.data["priorvla"]["kind"] == "adapter"
    assert published.data["priorvla"]["embodiments"] == ["small", "large", "so101"], "in the order of their ids"
    assert published.data.base_model == BASE and published.data["base_model_relation"] == "adapter"
    assert f"Its base is [`{BASE}`](https://huggingface.co/{BASE})." in published.text
    assert f'base = "{BASE}"' in published.text and f"--base {BASE} --dataset" in published.text
    assert 'checkpoint = "me/so101"' in published.text and (folder / "loss.png").is_file()
    assert [found.name for found in list_priors("so101", kind="adapter")] == ["me/so101"]
    assert list_priors("so101", kind="vla") == [] == list_priors("so101"), "it is no policy and no prior by itself"
    assert describe_checkpoint(folder).startswith(f"{folder}: adapter (LoRA) on a policy")


RUN = """
import os, sys
os.chdir(sys.argv[1])
names = {}
exec(compile(open(sys.argv[2]).read(), "card", "exec"), names)
assert names["actions"].shape == (1, 6, 3), names["actions"].shape
import torch
names["model"].eval(), names["policy"].eval()
again = names["policy"].sample_actions(**names["inputs"], generator=torch.Generator().manual_seed(0))
torch.testing.assert_close(again, names["chunk"], atol=1e-4, rtol=0)
assert names["policy"].config.expert.embodiments == ["small", "large", "so101"]
"""


def test_the_snippet_runs_as_it_stands_in_a_fresh_process(run, tiny_backbone, tmp_path):
    """From the adapter's folder, offline: base and backbone were downloaded before. Merged, it acts as adapted."""
    cache, backbone = tmp_path / "hub", "owner/tiny-backbone"
    base = PriorVLAModel.from_pretrained(run.parent / "base", backbone=None)
    base.config.backbone["name"] = backbone
    base.save_pretrained(tmp_path / "base")
    into_hub_cache(tmp_path / "base", cache, BASE)
    into_hub_cache(tiny_backbone, cache, backbone)
    shared = tmp_path / "shared"
    assert main(["publish", str(run), str(shared), "--license", "mit", "--base-model", BASE]) == 0
    program = "\n".join(re.findall(r"```python\n(.*?)```", load_card(shared).text, re.DOTALL))
    (tmp_path / "card.py").write_text(program)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, str(shared), str(tmp_path / "card.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def made(run: Path, **adapter: Any) -> str:
    config = PriorVLAModel.config_class.from_pretrained(run)
    bodies = PriorVLAProcessor.from_pretrained(run).embodiments
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "expert", **adapter}
    return create_card("adapter", config=config, embodiments=bodies, license="mit", adapter=settings).text


def test_what_peft_can_vary_is_said(run):
    assert "| rank | 8 (DoRA) |" in made(run, use_dora=True) and "| dropout | 0.1 |" in made(run, lora_dropout=0.1)
    both = made(run, target_modules=r"(expert|fusion)\.layers|trained_backbone\.model\.x")
    assert "all: low-rank maps beside the expert's layers and the backbone's attention" in both
    pinned = made(run, base_model_name_or_path="me/base", revision="v2")
    assert "[`me/base`](https://huggingface.co/me/base). At revision `v2`." in pinned
    assert 'AutoModel.from_pretrained(base, revision="v2")' in pinned
    assert "AutoModel.from_pretrained(base)" in made(run, base_model_name_or_path="me/base")
    assert "Its base is not named." in made(run)


def test_a_base_in_a_folder_that_looks_like_a_hub_id_is_not_linked(run, tmp_path, monkeypatch):
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "Its base is <!-- base -->`base`<!-- /base -->." in made(run, base_model_name_or_path="runs/base")


def test_an_adapter_of_shared_layers_alone_is_for_nobody_in_particular(run):
    text = made(run)
    assert "# Adapter for small, large, so101" in text and "trained in full" not in text
    assert "First the one" not in text and 'embodiment="small"' in text


def test_a_card_of_kind_adapter_needs_the_adapters_config(run):
    config = PriorVLAModel.config_class.from_pretrained(run)
    bodies = PriorVLAProcessor.from_pretrained(run).embodiments
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        create_card("adapter", config=config, embodiments=bodies, license="mit")
    assert kind_of(config) == "vla", "of its config alone nobody can tell"
