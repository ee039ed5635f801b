"""`priorvla info` and the card show what was measured of every body, and load no weights for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from priorvla.hub_cards.card import create_card
from priorvla.hub_cards.info import checkpoint_folder, describe_checkpoint
from priorvla.hub_cards.prior_metrics import metrics_by_body

METRICS = {
    "held_out_windows": 300,
    "velocity_loss": 0.41,
    "velocity_loss/arm": 0.4,
    "velocity_loss/hand": 0.44,
    "coverage/arm": 0.83,
    "reconstruction_error/arm": 0.0317,
    "reconstruction_error/hand": 1.25,
    "success/drawer": 0.5,
}


@pytest.fixture(scope="module")
def checkpoint(tiny_priors: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained prior of one body with metrics, as a folder."""
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, seed=0)])
    folder = tiny_priors.save_prior(model, bodies, tmp_path_factory.mktemp("info") / "prior")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def test_measures_of_bodies_become_a_table_and_the_rest_stays():
    others, (headings, rows) = metrics_by_body(METRICS)
    assert others == {"held_out_windows": 300, "velocity_loss": 0.41, "success/drawer": 0.5}
    assert headings == ["body", "velocity loss", "chunk error", "coverage"]
    assert rows == [["arm", "0.4", "0.0317", "83%"], ["hand", "0.44", "1.25", "–"]]
    assert metrics_by_body({}) == ({}, (["body"], []))


def test_info_prints_a_row_a_body_under_aligned_headings(checkpoint):
    lines = describe_checkpoint(checkpoint).splitlines()
    head = next(line for line in lines if "on held-out motion" in line)
    arm, hand = lines[lines.index(head) + 1 : lines.index(head) + 3]
    for heading, values in (("velocity loss", ("0.4", "0.44")), ("coverage", ("83%", "–"))):
        column = head.index(heading)
        assert (arm[column:].split()[0], hand[column:].split()[0]) == values
    assert any("held_out_windows" in line and line.endswith("300") for line in lines)
    assert not any("report.html" in line for line in lines)
    (checkpoint / "report.html").write_text("")
    assert f"{checkpoint / 'report.html'}" in describe_checkpoint(checkpoint)


def test_info_loads_no_deep_learning(checkpoint):
    code = (
        "import sys; from priorvla.hub_cards.info import describe_checkpoint;"
        f"print(describe_checkpoint({str(checkpoint)!r}));"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "action prior (rung 1: motion)" in done.stdout


def test_a_folder_is_itself_and_what_is_neither_folder_nor_hub_id_is_named(checkpoint, tmp_path):
    assert checkpoint_folder(str(checkpoint)) == checkpoint
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: pass a checkpoint's folder or its Hub id"):
        checkpoint_folder(tmp_path / "nowhere")


def test_the_card_has_the_table_and_says_what_the_numbers_mean(tiny_priors):
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, seed=0)])
    arguments: dict[str, Any] = {"config": model.config, "embodiments": bodies, "license": "apache-2.0"}
    text = create_card("action-prior", metrics=METRICS, **arguments).text
    lines = text.splitlines()
    head = lines.index("| body | velocity loss | chunk error | coverage |")
    assert lines[head + 1 : head + 4] == [
        "|---|--:|--:|--:|",
        "| arm | 0.4 | 0.0317 | 83% |",
        "| hand | 0.44 | 1.25 | – |",
    ]
    assert "| held out windows | 300 |" in lines and "velocity loss/arm" not in text
    assert "Coverage: the share of held-out chunks near which a sample lies." in text
    plain = create_card("action-prior", metrics={"eval_loss": 0.3}, **arguments).text
    assert "| eval loss | 0.3 |" in plain and "On held-out motion of each body" not in plain
    assert "## Metrics" not in create_card("action-prior", **arguments).text
