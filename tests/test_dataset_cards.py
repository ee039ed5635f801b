"""A dataset's card says what it holds and how it came about; its snippet reads it; the Hub's own checks pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from priorvla.configuration.embodiment import Embodiment
from priorvla.hub_cards.dataset_card import create_dataset_card
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.dataset_cards import write_dataset_card

ORIGIN = {
    "told": "Somebody drove it by hand.",
    "solved": {"drawer": 0.75},
    "seed": 3,
    "log": "/home/somebody/log.txt",
    "versions": {"simulator": "1.2"},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory, write_demonstrations, bodies) -> Path:
    """Three episodes with pictures, and a card."""
    folder = write_demonstrations(tmp_path_factory.mktemp("seen") / "dataset", bodies[0], [12, 20, 9])
    write_dataset_card(folder, license="cc-by-4.0", origin=ORIGIN, units="metres; 1 is closed")
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Motion alone, as from joint logs: a card without anything told."""
    folder = tmp_path_factory.mktemp("logs") / "dataset"
    arm = Embodiment("my_arm", ["a", "b"], ["a", "b"], control_rate=50)
    with LeRobotDatasetWriter(folder, arm) as writer:
        for speed in (0.02, 0.1):
            joints = np.sin(speed * np.arange(80)[:, None] + [[0.0, 1.0]])
            writer.add_episode(joints[:-1], joints[1:], task="Move the arm.")
    write_dataset_card(folder)
    return folder


def test_the_header_is_what_the_hub_looks_for_and_passes_its_checks(seen, logs, hub):
    card = DatasetCard.load(seen / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.task_categories == ["robotics"]
    assert card.data.size_categories == ["n<1K"]
    assert {"LeRobot", "priorvla", "small"} <= set(card.data["tags"])
    assert card.data["configs"] == [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    for folder in (seen, logs):
        DatasetCard.load(folder / "README.md").validate(repo_type="dataset")
    assert sum("validate-yaml" in line for line in hub.requests) == 2


def test_the_card_counts_what_is_in_the_dataset(seen):
    text = (seen / "README.md").read_text()
    assert "**It is** 3 episodes of 2 tasks, 41 frames, 0.1 minutes" in text
    assert "| `small` | 4 | absolute | 3 | 10 |" in text
    assert "| `front` | 28 | 28 | picture |" in text
    assert "| open the drawer | 2 |" in text and "| press the red button now | 1 |" in text
    assert "- Units: metres; 1 is closed." in text and "| action a0 | " in text


def test_the_card_says_how_it_was_made_without_the_paths_in_it(seen):
    section = (seen / "README.md").read_text().partition("## How it was made")[2].partition("## Limits")[0]
    assert "Somebody drove it by hand." in section and "| drawer | 75% |" in section
    assert "| seed | 3 |" in section and "Versions: simulator 1.2." in section
    assert "| log | log.txt |" in section and "somebody/" not in section


def test_what_is_not_known_is_said_to_be_missing(logs):
    text = (logs / "README.md").read_text()
    assert "license" not in DatasetCard.load(logs / "README.md").data.to_dict()
    assert "No licence is named, and without one nobody else may use the data" in text
    assert "That is not recorded in this card." in text and "Versions" not in text
    assert "There are no pictures" in text and "| camera |" not in text and "frames=True" not in text


def test_the_plot_of_its_motion_lies_beside_the_card(seen, logs):
    for folder in (seen, logs):
        text = (folder / "README.md").read_text()
        assert re.findall(r"!\[(.+)\]\((.+)\)", text)[0][1] == "motion.png"
        with Image.open(folder / "motion.png") as picture:
            assert picture.width > 600 and picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
        assert (folder / "motion.png").stat().st_size < 200_000


SNIPPET = """
import os, sys
os.chdir(sys.argv[1])
names = {}
exec(compile(open(sys.argv[2]).read(), "card", "exec"), names)
assert names["episode"].states.shape[1] == names["source"].embodiment.state_dim
assert len(names["table"]) == int(sys.argv[3]), len(names["table"])
assert ("picture" in names) == (sys.argv[4] == "seen")
if "picture" in names:
    assert names["picture"].shape == (28, 28, 3) and names["picture"].dtype == "uint8"
"""


@pytest.mark.parametrize(("which", "frames"), [("seen", 41), ("logs", 158)])
def test_the_snippet_runs_as_it_stands_in_a_fresh_process(which, frames, request, tmp_path):
    folder = request.getfixturevalue(which)
    program = "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL))
    (tmp_path / "card.py").write_text(program)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SNIPPET, str(folder), str(tmp_path / "card.py"), str(frames), which]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_card_that_is_there_is_replaced_only_when_told(logs, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_dataset_card(logs)
    before = (logs / "README.md").read_text()
    write_dataset_card(logs, overwrite=True, name="me/my-motion")
    text = (logs / "README.md").read_text()
    assert "# me/my-motion" in text and 'dataset = "me/my-motion"' in text and "--dataset me/my-motion" in text
    write_dataset_card(logs, overwrite=True)
    assert (logs / "README.md").read_text() == before
    with pytest.raises(FileNotFoundError, match="not a LeRobot dataset"):
        write_dataset_card(tmp_path)


def test_sizes_tasks_and_licences_are_checked(bodies):
    def made(**changes: Any) -> DatasetCard:
        return create_dataset_card(bodies[0], **{"tasks": {"move": 1}, "frames": 5, **changes})

    sizes = {frames: made(frames=frames).data.size_categories for frames in (999, 1000, 2_000_000)}
    assert sizes == {999: ["n<1K"], 1000: ["1K<n<10K"], 2_000_000: ["1M<n<10M"]}
    many = made(tasks={f"do {index}": 1 for index in range(70)}).text
    assert "It is** 70 episodes of 70 tasks" in many and "And 10 more." in many
    assert r"| a \| {{ b }} | 1 |" in made(tasks={"a | {{ b }}": 1}).text
    for changes, message in (
        ({"tasks": {}}, "0 tasks"),
        ({"frames": 0}, "0 frames"),
        ({"license": "My own"}, "name the"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**changes)
