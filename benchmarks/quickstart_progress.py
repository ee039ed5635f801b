"""What the quickstart keeps between its starts: times, memory, files that are whole or not there, unfinished runs."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from priorvla.training.run_options import RunOptions


class Progress:
    """Wall time of every step and the peak memory of all of them, kept in `file` over stops and new starts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.times_s: dict[str, float] = known.get("times_s", {})
        self.peak_memory_gb: float = known.get("peak_memory_gb", 0.0)

    @contextmanager
    def measuring(self, step: str) -> Iterator[None]:
        """Adds the block's time to that of `step`, whether or not the block comes to its end."""
        began = time.perf_counter()
        try:
            with PeakMemory() as memory:
                yield
        finally:
            self.times_s[step] = round(self.times_s.get(step, 0.0) + time.perf_counter() - began, 2)
            self.peak_memory_gb = max(self.peak_memory_gb, round(memory.peak_gb, 3))
            write_json(self._file, {"times_s": self.times_s, "peak_memory_gb": self.peak_memory_gb})


class PeakMemory:
    """Follows the resident memory of this process and all below it, once a second: `peak_gb` is the most at one time.

    What processes share, libraries above all, is counted in each of them.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self.peak_gb = 0.0
        self._interval, self._stopped = interval, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _follow(self) -> None:
        own = psutil.Process()
        while True:
            resident = 0
            with suppress(psutil.Error):
                for process in [own, *own.children(recursive=True)]:
                    with suppress(psutil.Error):  # it has just ended
                        resident += process.memory_info().rss
            self.peak_gb = max(self.peak_gb, resident / 1e9)
            if self._stopped.wait(self._interval):
                return


def can_resume(run: Path) -> bool:
    """Whether the training in folder `run` has a complete checkpoint; what one left that has none is removed."""
    if RunOptions(datasets=[], output_dir=run, max_steps=1).last_checkpoint() is not None:
        return True
    if run.exists():
        print(f"{run} was stopped before its first checkpoint: it starts again", flush=True)
        shutil.rmtree(run)
    return False


def write_json(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes `file` at once: it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.partial")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
