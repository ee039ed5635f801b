"""Tabletops of one process draw with one renderer: every one its own scene, as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'tabletop'", allow_module_level=True)
from priorvla.deployment.environments import tabletop_env
from priorvla.deployment.environments.tabletop_env import TabletopEnv

AWAY = np.array([0.2, 0.6, 0.2, 0.0], np.float32)


def pictures(seed: int) -> Iterator[np.ndarray]:
    """Of an episode's first moments, each drawn when it is asked for."""
    table = TabletopEnv("seen/put", image_size=64)
    yield table.reset(seed=seed)[0]["images"]["front"]
    for _ in range(3):
        yield table.step(AWAY)[0]["images"]["front"]
    table.close()


def test_each_of_two_tabletops_draws_its_own_scene_whatever_the_other_does() -> None:
    alone = [np.stack(list(pictures(seed))) for seed in (1, 2)]
    assert (alone[0] != alone[1]).any()
    beside = [np.stack(own) for own in zip(*zip(pictures(1), pictures(2), strict=True), strict=True)]
    for own, theirs in zip(beside, alone, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_the_renderer_is_closed_with_the_last_tabletop_and_not_before() -> None:
    one, two = TabletopEnv("seen/put", image_size=64), TabletopEnv("chained/put", image_size=64)
    one.reset(seed=1)[0]["images"]["front"]
    kept = two.reset(seed=2)[0]["images"]["front"]
    assert one._renderer is two._renderer and len(tabletop_env._renderers) == 1
    one.close()
    np.testing.assert_array_equal(two.render(), kept)
    two.close()
    assert not tabletop_env._renderers


def test_every_thread_and_every_size_has_a_renderer_of_its_own() -> None:
    tables = [TabletopEnv("seen/put", image_size=size) for size in (64, 64, 32)]
    with ThreadPoolExecutor(1) as other:
        drawn = other.submit(lambda: tables[0].reset(seed=1)[0]["images"]["front"]).result()
        np.testing.assert_array_equal(tables[1].reset(seed=1)[0]["images"]["front"], drawn)
        assert tables[2].reset(seed=1)[0]["images"]["front"].shape == (32, 32, 3)
        assert len({id(table._renderer) for table in tables}) == len(tabletop_env._renderers) == 3
        other.submit(tables[0].close).result()
    for table in tables[1:]:
        table.close()
    assert not tabletop_env._renderers
