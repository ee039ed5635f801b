"""An adapter is loaded as any checkpoint is: by AutoModel, by the policy, from a folder and from the Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor

import priorvla
from priorvla.cli import main
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla.adapters import adapters_in, add_adapter, load_adapter
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_policy, bodies) -> Path:
    """A published policy for the first of the two robots."""
    return save_policy(tmp_path_factory.mktemp("base"), bodies[:1], fusion="cross")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base, bodies, tiny_backbone) -> Path:
    """Of the second robot; it has learned something."""
    folder = tmp_path_factory.mktemp("adapter")
    model = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    torch.manual_seed(0)
    model.add_embodiment("large", 7, 5)
    add_adapter(model, lora_config(model, "all", ["large"], rank=2), base=str(base))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    PriorVLAProcessor.for_backbone(tiny_backbone, bodies, chunk_size=6).save_pretrained(folder)
    return folder


def observation(state_dim: int = 5) -> dict:
    random = np.random.default_rng(0)
    return {
        "state": random.normal(size=state_dim).astype(np.float32),
        "images": {"front": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)},
        "instruction": "open the drawer",
    }


def chunk(policy: PriorVLAPolicy) -> np.ndarray:
    policy.reset()
    return policy.predict_chunk(observation())


def test_a_model_with_an_adapter_saves_the_adapter_alone(adapter):
    assert not (adapter / "model.safetensors").exists()
    assert all("lora_" in name or "projections.1" in name or "tokens" in name for name in weights(adapter))


def test_info_says_what_an_adapter_is_of(adapter, base, capsys):
    assert main(["info", str(adapter)]) == 0
    said = capsys.readouterr().out
    assert "adapter (LoRA) on a policy" in said and str(base) in said and "M parameters" in said and "large" in said


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_auto_classes_and_the_policy_take_an_adapters_folder(adapter, base, tiny_backbone):
    policy = PriorVLAPolicy.from_pretrained(adapter, backbone=tiny_backbone, embodiment="large")
    auto = AutoModel.from_pretrained(adapter, backbone=tiny_backbone)
    assert isinstance(auto, priorvla.PriorVLAModel) and adapters_in(auto) is not None
    again = PriorVLAPolicy(auto, AutoProcessor.from_pretrained(adapter), embodiment="large")
    np.testing.assert_array_equal(chunk(again), chunk(policy))
    assert AutoConfig.from_pretrained(adapter).expert.embodiments == ["small", "large"]
    with adapters_in(auto).disable_adapter():
        assert not np.array_equal(chunk(again), chunk(policy))
    bare = PriorVLAModel.from_pretrained(base, backbone=tiny_backbone)
    load_adapter(bare, adapter)
    np.testing.assert_array_equal(chunk(PriorVLAPolicy(bare, policy.processor, embodiment="large")), chunk(policy))


PROGRAM = """
import json, sys
import numpy as np
import priorvla
from transformers import AutoModel, AutoProcessor
name, backbone, observation = json.loads(sys.argv[1])
model = AutoModel.from_pretrained(name, backbone=backbone)
policy = priorvla.PriorVLAPolicy(model, AutoProcessor.from_pretrained(name), embodiment="large")
observation["state"] = np.asarray(observation["state"], dtype=np.float32)
observation["images"] = {"front": np.asarray(observation["images"]["front"], dtype=np.uint8)}
print(json.dumps(policy.predict_chunk(observation).tolist()))
"""


def test_an_adapter_on_the_hub_brings_its_base_and_then_needs_no_network(
    adapter, base, tiny_backbone, loopback_hub, tmp_path
):
    for name, folder in (("somebody/base", base), ("me/adapter", adapter)):
        repository = shutil.copytree(folder, loopback_hub.repository("models", name), dirs_exist_ok=True)
    config = repository / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "somebody/base"}))
    seen = observation()
    seen = {**seen, "state": seen["state"].tolist(), "images": {"front": seen["images"]["front"].tolist()}}
    given = json.dumps(["me/adapter", str(tiny_backbone), seen])

    def act(**settings: str) -> np.ndarray:
        environment = {**os.environ, **loopback_hub.settings(tmp_path / "cache"), **settings}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, given], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return np.asarray(json.loads(run.stdout.splitlines()[-1]), dtype=np.float32)

    expected = chunk(PriorVLAPolicy.from_pretrained(adapter, backbone=tiny_backbone, embodiment="large"))
    np.testing.assert_array_equal(act(HF_HUB_OFFLINE="0"), expected)
    asked = len(loopback_hub.requests)
    np.testing.assert_array_equal(act(HF_HUB_OFFLINE="1"), expected)
    assert len(loopback_hub.requests) == asked
