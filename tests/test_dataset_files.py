"""Files that somebody adds to a dataset while it is written."""

from pathlib import Path

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.readers import load_trajectories


def test_a_file_of_ones_own_appears_with_the_dataset_and_counts_in_its_fingerprint(
    tmp_path: Path, bodies: list[Embodiment]
) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        with LeRobotDatasetWriter(tmp_path / name, bodies[0]) as writer:
            writer.add_file("meta/origin.txt", text)
            writer.add_episode(np.zeros((4, 3)), np.zeros((4, 4)), "Open the drawer.")
            assert not (tmp_path / name).exists()
        assert (tmp_path / name / "meta/origin.txt").read_text() == text
    a, b, c = (load_trajectories(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_a_file_of_ones_own_takes_no_other_files_place(tmp_path: Path, bodies: list[Embodiment]) -> None:
    writer = LeRobotDatasetWriter(tmp_path / "set", bodies[0])
    writer.add_file("meta/origin.txt", "one")
    for name in ("meta/info.json", "meta/origin.txt", "./meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"):
        with pytest.raises(ValueError, match="already"):
            writer.add_file(name, "two")
    for name in ("../origin.txt", str(tmp_path / "origin.txt")):
        with pytest.raises(ValueError, match="outside of the dataset"):
            writer.add_file(name, "two")
    writer.abort()
    with pytest.raises(ValueError, match="closed"):
        writer.add_file("meta/more.txt", "three")
    assert list(tmp_path.iterdir()) == []
