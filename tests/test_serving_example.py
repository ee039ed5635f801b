"""The example that serves a policy, run as it stands with a tiny one."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if not all(map(find_spec, ("msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs the extra 'serve'", allow_module_level=True)
from priorvla.deployment.policy import PriorVLAPolicy

EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_a_policy.py"


def test_a_served_policy_drives_a_made_up_robot_as_it_does_without_a_server(
    save_policy, bodies, tiny_backbone, tmp_path, monkeypatch, capsys
):
    checkpoint = save_policy(tmp_path / "policy", bodies)
    options = ["--backbone", tiny_backbone, "--embodiment", bodies[0].name, "--steps", 4]
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, [checkpoint, *options])])
    example = runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{bodies[0].name}: {', '.join(bodies[0].action_names)}"

    policy = PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, embodiment=bodies[0].name)
    random = np.random.default_rng(0)
    wanted = []
    for _ in range(4):
        seen = example["look"]({"cameras": bodies[0].cameras, "state_dim": bodies[0].state_dim}, "", random)
        wanted.append(policy.select_action({**seen, "instruction": "open the drawer"}))
    printed = [np.array(line.split(": ")[1].strip("[]").split(), dtype=float) for line in said[1:]]
    np.testing.assert_allclose(printed, wanted, atol=1e-3)
