"""File names for tasks: those of an environment of one's own can be any text."""

from __future__ import annotations

import hashlib
import re

_SAFE = re.compile(r"\w[\w.-]{0,149}(/\w[\w.-]{0,149})?", re.ASCII)  # a task, or a suite's: suite/task


def task_file_name(task: str) -> str:
    """The beginning of the names of a task's files: itself where that is a file's name, or a suite's folder and one.

    Of another text what is left in a file's name, at most 80 characters, and 8 that differ with the text, so that no
    two tasks share a file and none lies elsewhere (our choice).
    """
    if _SAFE.fullmatch(task):
        return task
    digest = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    left = re.sub(r"[^A-Za-z0-9]+", "_", task).strip("_")[:80]
    return f"{left}-{digest}".lstrip("-")


__all__ = ["task_file_name"]
