"""An evaluation that was killed goes on with the same command, to the result that it would have had."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'metaworld'", allow_module_level=True)
from priorvla.cli import main
from priorvla.deployment.environments.metaworld_env import MetaWorldEnv, metaworld_embodiment
from priorvla.hub_cards.card_evaluation import protocol, read_evaluation

BODY = metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))
KILLED = """
import os, signal, sys
from priorvla.cli import main
from priorvla.deployment.trial_records import TrialRecords

whole = TrialRecords.add

def add(records, *given):
    whole(records, *given)
    if len(records.finished) == 2:
        with open(records.folder / "trials.jsonl", "ab") as file:
            file.write(b'{"task": "re')
        os.kill(os.getpid(), signal.SIGKILL)

TrialRecords.add = add
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def command(save_policy, tiny_backbone, tmp_path):
    """The command line of a small evaluation, without its output folder."""
    checkpoint = save_policy(tmp_path / "policy", [BODY])
    options = ["--max-episode-steps", "6", "--backbone", str(tiny_backbone), "--workers", "2"]
    return ["evaluate", str(checkpoint), "--tasks", "reach", "drawer-close", "--trials", "3", *options]


def counted(folder):
    report = json.loads((folder / "report.json").read_text())
    for own in ("wall_time_s", "episode_time_s"):
        report.pop(own)
    return report


def trials(folder):
    lines = (folder / "trials.jsonl").read_text().splitlines()[1:]
    return sorted((line["task"], line["trial"], line["success"], line["steps"]) for line in map(json.loads, lines))


def test_an_evaluation_that_was_killed_goes_on_and_can_be_extended(command, tmp_path, capsys, monkeypatch):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = subprocess.run([sys.executable, "-c", KILLED, *command, "--output-dir", str(killed)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    before = (killed / "trials.jsonl").read_bytes()
    assert before.count(b"\n") == 3 and not (killed / "report.json").exists()

    assert main([*command, "--output-dir", str(killed)]) == 0
    assert main([*command, "--output-dir", str(straight)]) == 0
    assert (killed / "trials.jsonl").read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert len(trials(killed)) == 6 and trials(killed) == trials(straight)
    assert counted(killed) == counted(straight)
    films = [sorted(file.name for file in (folder / "films").rglob("*.mp4")) for folder in (killed, straight)]
    assert films[0] == films[1] and len(films[0]) == 2
    page = (killed / "report.html").read_text()
    assert page.count("<video") == 2 and page.count("no success in 6 steps") == 2

    more = [*command[:-1], "1", "--output-dir", str(killed)]
    more[more.index("3")] = "4"
    begun, reset = [], MetaWorldEnv.reset
    monkeypatch.setattr(MetaWorldEnv, "reset", lambda env, **own: begun.append((env.task, own)) or reset(env, **own))
    assert main(more) == 0
    assert begun == [("reach", {"seed": 3}), ("drawer-close", {"seed": 3})]  # and no finished trial again
    assert counted(killed)["overall"]["trials"] == 8
    assert trials(killed)[:3] == trials(straight)[:3]
    capsys.readouterr()
    limits = tmp_path / "limits.yaml"
    limits.write_text("high: 0.5")
    assert main([*more, "--action-limits", str(limits)]) == 2
    assert "another action limits (None there, {'high': [0.5, 0.5, 0.5, 0.5]} here)" in capsys.readouterr().err
    assert main([*more, "--seed", "1"]) == 2
    assert "another seed (0 there, 1 here)" in capsys.readouterr().err
    assert main([*more, "--execute-steps", "9"]) == 2
    assert "--execute-steps 9: a chunk of" in capsys.readouterr().err
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert main(more) == 2
    assert "another weights" in capsys.readouterr().err


def test_commands_are_kept_within_the_limits_of_a_file_and_the_report_tells_them(
    command, tmp_path, monkeypatch, capsys
):
    sent = []
    monkeypatch.setattr(
        MetaWorldEnv, "step", lambda env, action, own=MetaWorldEnv.step: sent.append(action) or own(env, action)
    )
    command[command.index("--workers") + 1] = "1"
    limits, folder = tmp_path / "limits.yaml", tmp_path / "limited"
    limits.write_text("metaworld_sawyer: {low: -0.01, high: [0.01, 0.02, null, 0.01]}\nother: {high: 1}\n")
    assert main([*command, "--action-limits", str(limits), "--output-dir", str(folder)]) == 0
    told = capsys.readouterr().out
    low, high = np.min(sent, axis=0), np.max(sent, axis=0)
    assert low.min() == pytest.approx(-0.01) and high[1] == pytest.approx(0.02) and high[2] > 0.05
    report = json.loads((folder / "report.json").read_text())
    robot = report["robots"]["metaworld_sawyer"]
    assert robot["action_limits"] == {"low": [-0.01] * 4, "high": [0.01, 0.02, None, 0.01]}
    counts = {"commands": 36, "clamped": 36, "by_range": 36, "by_rate": 0, "by_jerk": 0, "held": 0, "uncounted": 0}
    assert robot["commands"] == {"suites": {}, "overall": counts}
    assert "36 of 36 commands clamped (range 36, rate 0, jerk 0), 0 held" in told
    assert "36 (100.0%)" in (folder / "report.html").read_text()
    assert "high 0.01, 0.02, –, 0.01" in (folder / "report.html").read_text()
    told = read_evaluation(folder, [tmp_path / "policy"])
    assert protocol(told)["action limits high"] == "0.01, 0.02, –, 0.01"


def test_a_file_that_has_no_limits_of_the_robot_is_refused_before_anything_is_written(command, tmp_path, capsys):
    limits, folder = tmp_path / "limits.yaml", tmp_path / "limited"
    limits.write_text("other: {high: 1}")
    assert main([*command, "--action-limits", str(limits), "--output-dir", str(folder)]) == 2
    assert "limits of 'other' and none of 'metaworld_sawyer'" in capsys.readouterr().err
    assert not folder.exists()
