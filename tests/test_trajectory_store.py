"""Stores: the same windows from disk as from memory, plain files that anybody reads, and damage that is named."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.data.trajectory_dataset import (
    MixtureSampler,
    TrajectoryDataset,
    fit_embodiments,
    split_episodes,
)
from priorvla.training.data.trajectory_store import TrajectoryStore

H = 4


def make_source(body, lengths, name="demos", seed=0) -> TrajectorySource:
    random = np.random.default_rng(seed)
    trajectories = [
        Trajectory(
            states=random.normal(size=(length, body.state_dim)),
            actions=random.normal(size=(length, body.action_dim)),
            task=("open the drawer", "press the button")[index % 2],
            episode_index=2 * index,
            timestamps=np.arange(length) / body.control_rate,
            frames=None,
            source=f"{name}/data.parquet",
        )
        for index, length in enumerate(lengths)
    ]
    return TrajectorySource(Path(name), name.encode().hex(), body, trajectories)


@pytest.fixture
def sources(bodies):
    """Two bodies in three datasets, the first body's apart from each other."""
    return [
        make_source(bodies[0], [5, 9]),
        make_source(bodies[1], [7, 3], "other", seed=1),
        make_source(bodies[0], [4], "more", seed=2),
    ]


def every_batch(dataset) -> dict[str, torch.Tensor]:
    return dataset.__getitems__(range(len(dataset)))


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_store_on_disk_gives_the_windows_and_statistics_of_its_sources_to_the_bit(tmp_path, bodies, sources):
    store = TrajectoryStore.build(iter(sources), tmp_path / "store")
    assert (len(store), store.num_steps, store.bodies) == (5, 28, ["small", "large"])
    memory = TrajectoryDataset(sources, bodies, H, history_size=2, weights=[1, 2, 3])
    for opened in (store, TrajectoryStore.open(tmp_path / "store")):
        mapped = TrajectoryDataset(opened, bodies, H, history_size=2, weights=[1, 2, 3])
        assert same(every_batch(mapped), every_batch(memory))
        assert list(MixtureSampler(mapped, 0)) == list(MixtureSampler(memory, 0))
        opened.release()  # a page that is let go of is read again
        assert same(every_batch(mapped), every_batch(memory))
        assert fit_embodiments(opened) == fit_embodiments(sources)


def test_a_store_knows_its_datasets_episodes_and_instructions(tmp_path, sources):
    store = TrajectoryStore.build(sources, tmp_path / "store")
    assert [(str(source.root), source.fingerprint, source.episodes) for source in store.sources] == [
        (str(source.root), source.fingerprint, len(source)) for source in sources
    ]
    assert [source.embodiment for source in store.sources] == [source.embodiment for source in sources]
    assert store.episodes.episode_index.tolist() == [0, 2, 0, 2, 0]
    assert store.episodes.start.tolist() == [0, 5, 0, 7, 14]
    assert [store.tasks[task] for task in store.episodes.task] == [
        trajectory.task for source in sources for trajectory in source.trajectories
    ]


def test_every_file_of_a_store_is_safetensors_parquet_or_json_and_read_by_their_libraries(tmp_path, sources):
    TrajectoryStore.build(sources, tmp_path / "store")
    files = {file.name for file in (tmp_path / "store").iterdir()}
    rows = {f"body-{body:03d}-{label}.safetensors" for body in (0, 1) for label in ("states", "actions")}
    assert files == {"store.json", "episodes.parquet", *rows}
    for body, own in enumerate(([sources[0], sources[2]], [sources[1]])):
        for label in ("states", "actions"):
            expected = np.concatenate([getattr(t, label) for source in own for t in source.trajectories])
            with safe_open(tmp_path / "store" / f"body-{body:03d}-{label}.safetensors", "numpy") as file:
                assert list(file.keys()) == [label]
                assert np.array_equal(file.get_tensor(label), expected)
    assert pq.read_table(tmp_path / "store" / "episodes.parquet").num_rows == 5
    assert json.loads((tmp_path / "store" / "store.json").read_text())["version"] == 1


def test_a_body_without_states_is_stored_too(tmp_path, bodies):
    blind = replace(bodies[0], state_names=[], reference_dims=[None] * 4, state_statistics=None)
    store = TrajectoryStore.build([make_source(blind, [5])], tmp_path / "store")
    assert every_batch(TrajectoryDataset(store, [blind], H))["states"].shape == (5, H, 0)


def test_building_holds_one_source_at_a_time_and_leaves_nothing_when_it_fails(tmp_path, sources):
    alive: list[int] = []

    def reading():
        for source in sources:
            alive.append(sum(1 for file in tmp_path.iterdir() if not file.name.startswith(".")))
            yield source
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrajectoryStore.build(reading(), tmp_path / "store")
    assert alive == [0, 0, 0]  # the folder is not there until it is whole
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_not_built_over_another(tmp_path, sources):
    TrajectoryStore.build(sources[:1], tmp_path / "store")
    with pytest.raises(FileExistsError, match=r"store exists: open it with TrajectoryStore\.open, or remove it"):
        TrajectoryStore.build(sources, tmp_path / "store")
    assert len(TrajectoryStore.open(tmp_path / "store")) == 2


def test_a_source_that_changed_since_is_noticed(tmp_path, sources):
    TrajectoryStore.build(sources, tmp_path / "store")
    now = {str(source.root): source.fingerprint for source in sources}
    TrajectoryStore.open(tmp_path / "store", now)
    with pytest.raises(ValueError, match=r"store\.json: more has changed .* now abc\): remove .* and build it again"):
        TrajectoryStore.open(tmp_path / "store", {**now, "more": "abc"})


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("body-001-actions.safetensors", lambda data: data[:-4], "body-001-actions.safetensors is damaged: it has"),
        ("body-000-states.safetensors", lambda data: data[:100], "body-000-states.safetensors is damaged"),
        ("body-000-states.safetensors", lambda data: b"", "body-000-states.safetensors is damaged"),
        (
            "body-000-actions.safetensors",
            lambda data: data.replace(b"[18, 4]", b"[18, 5]"),
            "body-000-actions.safetensors is damaged: 'actions' is F32 18 x 5 in 288 bytes",
        ),
        ("episodes.parquet", lambda data: data[:-10], "episodes.parquet is not a readable parquet file"),
        ("store.json", lambda data: data[:-10], "store.json: not a valid index"),
        (
            "store.json",
            lambda data: data.replace(b'"steps": 28', b'"steps": 27'),
            "says 5 of 27: the two do not belong",
        ),
        ("store.json", lambda data: data.replace(b'"version": 1', b'"version": 9'), "version 9 is not 1"),
    ],
)
def test_a_damaged_store_names_the_file(tmp_path, sources, file, damage, message):
    TrajectoryStore.build(sources, tmp_path / "store")
    path = tmp_path / "store" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        TrajectoryStore.open(tmp_path / "store")


def test_a_store_without_one_of_its_files_and_a_folder_that_is_none_say_so(tmp_path, sources):
    with pytest.raises(FileNotFoundError, match=r"is not a trajectory store: store\.json is missing"):
        TrajectoryStore.open(tmp_path)
    TrajectoryStore.build(sources, tmp_path / "store")
    (tmp_path / "store" / "body-001-states.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"body-001-states\.safetensors is missing: build the store again"):
        TrajectoryStore.open(tmp_path / "store")


def test_rows_that_another_store_wrote_are_noticed(tmp_path, bodies):
    for name, lengths in (("long", [9]), ("short", [5])):
        TrajectoryStore.build([make_source(bodies[0], lengths)], tmp_path / name)
    for label in ("states", "actions"):
        file = f"body-000-{label}.safetensors"
        os.replace(tmp_path / "short" / file, tmp_path / "long" / file)
    with pytest.raises(ValueError, match=r"body-000-states\.safetensors has 5 rows, episodes\.parquet speaks of 9"):
        TrajectoryStore.open(tmp_path / "long")


def test_sources_and_trajectories_of_other_dims_are_refused(bodies):
    wide = replace(bodies[1], name="small")
    with pytest.raises(ValueError, match=r"other: embodiment 'small' has 5 state and 7 action dims, .* has 3 and 4"):
        TrajectoryStore.from_sources([make_source(bodies[0], [5]), make_source(wide, [5], "other")])
    source = make_source(bodies[0], [5])
    source.embodiment = bodies[1]
    with pytest.raises(ValueError, match=r"data\.parquet: episode 0 has 3 state dims, embodiment 'large' has 5"):
        TrajectoryStore.from_sources([source])


def test_a_store_is_split_into_the_episodes_that_its_sources_would_be(tmp_path, bodies):
    sources = [make_source(body, [5] * 10, body.name, seed) for seed, body in enumerate(bodies)]
    store = TrajectoryStore.build(sources, tmp_path / "store")
    parts = zip(*(split_episodes(source, 0.3, seed=1) for source in sources), strict=True)
    for stored, expected in zip(store.split(0.3, seed=1), parts, strict=True):
        assert [source.episodes for source in stored.sources] == [len(source) for source in expected]
        ours, theirs = TrajectoryDataset(stored, bodies, H), TrajectoryDataset(expected, bodies, H)
        assert same(every_batch(ours), every_batch(theirs))
        assert fit_embodiments(stored) == fit_embodiments(expected)


def test_another_process_gets_a_mapped_stores_place_and_not_its_steps(tmp_path, bodies, sources):
    dataset = TrajectoryDataset(TrajectoryStore.build(sources, tmp_path / "store"), bodies, H)
    state = dataset.store.__reduce_ex__(4)[2]
    assert state["states"] == state["actions"] == state["_mapped"] == []
    copied = TrajectoryDataset(copy.deepcopy(dataset.store), bodies, H)
    assert same(every_batch(copied), every_batch(dataset))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_mapped_store_is_in_memory_only_where_it_is_touched_and_can_be_let_go_of(tmp_path, bodies):
    store = TrajectoryStore.build((make_source(bodies[1], [50_000], str(n)) for n in range(16)), tmp_path / "store")
    size = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    process = psutil.Process()
    store.release()
    before = process.memory_info().rss
    assert store.actions[0].sum() != 0 and store.states[0].sum() != 0
    assert process.memory_info().rss - before > 0.8 * size > 3e7
    store.release()
    assert process.memory_info().rss - before < 0.2 * size
