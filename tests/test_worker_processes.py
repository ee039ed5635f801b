"""Processes that run simulations side by side, and what is said when one of them is gone."""

from __future__ import annotations

import os

import pytest

from priorvla.deployment.worker_processes import worker_pool


def test_a_worker_that_was_killed_is_told_with_its_likely_cause_and_the_remedy() -> None:
    with (
        pytest.raises(RuntimeError, match=r"worker process was killed.*memory.*--workers"),
        worker_pool(1, os.getpid) as pool,
    ):
        pool.submit(os._exit, 9).result()
