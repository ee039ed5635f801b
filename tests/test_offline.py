"""What was downloaded once acts without the Hub: offline, with every socket forbidden. Against a loopback Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from priorvla.hub_cards.publishing import publish
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

REPO, BACKBONE = "me/policy", "me/tiny-backbone"

PROGRAM = """
import hashlib, json, sys
repo, embodiment, sockets = json.loads(sys.argv[1])
if not sockets:
    def forbid(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            raise AssertionError(f"{event} {arguments}")
    sys.addaudithook(forbid)
import numpy as np
import torch
import priorvla
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(repo).eval()
processor = AutoProcessor.from_pretrained(repo)
image, state = np.full((32, 32, 3), 90, dtype=np.uint8), np.zeros(3, dtype=np.float32)
inputs = processor(images={"front": image}, text="open the drawer", state=state, embodiment=embodiment)
chunk = model.sample_actions(**inputs, generator=torch.Generator().manual_seed(0))
actions = np.asarray(processor.decode_actions(chunk, embodiment=embodiment))
assert np.isfinite(actions).all() and model.backbone is not None
print(hashlib.sha256(actions.tobytes()).hexdigest())
"""


def act(hub: Any, cache: Path, sockets: bool = True, **settings: str) -> str:
    """A policy's actions, loaded and run in a process of its own: the Hub's settings are read at import."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([REPO, "small", sockets])]
    settings = environment | hub.settings(cache) | settings
    result = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=cache.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def published(loopback_hub, save_policy, tiny_backbone, bodies, tmp_path) -> Any:
    """The Hub, with a private policy and the backbone that it names."""
    shutil.copytree(tiny_backbone, loopback_hub.repository("models", BACKBONE))
    source = save_policy(tmp_path / "run", bodies, fusion="joint")
    model = PriorVLAModel.from_pretrained(source, backbone=None)
    model.config.backbone = {**model.config.backbone, "name": BACKBONE}
    repository = publish(model, PriorVLAProcessor.from_pretrained(source), tmp_path / "policy", license="mit")
    shutil.copytree(repository, loopback_hub.repository("models", REPO))
    loopback_hub.opened("models", REPO).private = True
    return loopback_hub


def test_a_downloaded_policy_its_processor_and_its_backbone_act_without_the_network(published, tmp_path):
    cache = tmp_path / "cache"
    online = act(published, cache, HF_TOKEN=published.token)
    assert f"GET /{BACKBONE}/resolve" in "\n".join(published.requests)
    published.requests.clear()
    offline = act(published, cache, sockets=False, HF_HUB_OFFLINE="1")
    assert offline == online, "to the bit"
    assert published.requests == []


def test_a_download_that_is_cut_off_or_slow_is_taken_up_again(published, tmp_path):
    commit = published.opened("models", REPO).head().id
    files = ("config.json", "model.safetensors", "embodiments.json")
    published.faults += [published.Fault(f"GET /{REPO}/resolve/{commit}/{file}", drop="middle") for file in files]
    published.faults.append(published.Fault(f"GET /{BACKBONE}/resolve", delay=0.3))
    act(published, tmp_path / "cache", HF_TOKEN=published.token)
    assert all(fault.times == 0 for fault in published.faults), published.requests
