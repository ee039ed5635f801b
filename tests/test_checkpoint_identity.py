"""What must not change under an evaluation: every file that decides, and the commit that a name on the Hub means."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from priorvla.deployment import checkpoint_identity as subject
from priorvla.deployment.checkpoint_identity import checkpoint_commit, checkpoint_identity

COMMIT = "0" * 40
MOVED = """
import sys
from pathlib import Path
from priorvla.cli import main
from priorvla.deployment.trial_records import TrialRecords

opened = TrialRecords.__init__

def open_later(records, *given):
    Path(sys.argv[1]).write_text("1" * 40)  # somebody pushes
    opened(records, *given)

TrialRecords.__init__ = open_later
sys.exit(main(sys.argv[2:]))
"""


def test_every_file_that_decides_actions_counts_and_no_other(save_policy, bodies, tmp_path):
    folder = save_policy(tmp_path / "policy", bodies)
    before = checkpoint_identity(folder)
    (folder / "README.md").write_text("of no account")
    assert checkpoint_identity(shutil.copytree(folder, tmp_path / "moved")) == before
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json", "embodiments.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert checkpoint_identity(folder) != before, name
        (folder / name).write_bytes(content)
    assert checkpoint_identity(folder) == before


def test_a_name_without_a_commit_has_no_identity(monkeypatch):
    monkeypatch.setattr(subject, "commit_of", lambda place: None)
    with pytest.raises(ValueError, match="me/policy: the commit that is meant is not known: download it"):
        checkpoint_commit("me/policy")


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra 'metaworld'")
def test_all_of_an_evaluation_is_of_the_commit_that_it_began_with(save_policy, tiny_backbone, tmp_path):
    from priorvla.deployment.environments.metaworld_env import metaworld_embodiment

    body = metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))
    home = tmp_path / "cache" / "models--me--policy"
    shutil.copytree(save_policy(tmp_path / "policy", [body]), home / "snapshots" / COMMIT)
    main = home / "refs" / "main"
    main.parent.mkdir()
    main.write_text(COMMIT)
    command = ["evaluate", "me/policy", "--tasks", "reach", "--trials", "1", "--films", "0", "--max-episode-steps", "2"]
    command += ["--backbone", str(tiny_backbone), "--output-dir", str(tmp_path / "evaluation"), "--workers", "1"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", MOVED, str(main), *command], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert main.read_text() != COMMIT
    first, _ = (tmp_path / "evaluation" / "trials.jsonl").read_text().splitlines()
    assert json.loads(first)["settings"]["weights"] == COMMIT
