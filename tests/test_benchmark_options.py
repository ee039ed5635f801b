"""Benchmarks are called by `make bench-NAME`, all in one way."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = [file for file in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in file.read_text("utf-8")]


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_takes_the_folder_that_make_gives_it(file: Path) -> None:
    assert '"--output-dir"' in file.read_text("utf-8")


def test_make_knows_every_benchmark_and_nothing_else() -> None:
    command = ["make", "--no-print-directory", "help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set(told.rpartition("of: ")[2].split())
    assert names == {file.stem for file in BENCHMARKS if not file.stem.startswith("quickstart")}
