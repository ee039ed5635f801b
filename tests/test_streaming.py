"""Streams of parquet files: the same windows as a dataset gives, each once, dealt out, and resumed exactly."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from priorvla.configuration.embodiment import Embodiment, NormalizationMode, save_embodiments
from priorvla.training.data.parquet_streams import StreamedSource
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.streaming import START, StreamingLoader, StreamingTrajectoryDataset, fit_streaming
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, fit_embodiments

H, BATCH = 4, 8
LENGTHS = [[5, 9, 3], [7], [4, 4], [11, 2], [6], [8, 1]]  # of the episodes in each file
STEPS = sum(sum(lengths) for lengths in LENGTHS)


def arm(name="arm", states=2) -> Embodiment:
    plain = NormalizationMode.IDENTITY
    names = ["lift", "turn", "grip"]
    return Embodiment(name, names, names[:states], 10.0, action_normalization=plain, state_normalization=plain)


def write_files(folder, body, lengths=LENGTHS) -> StreamedSource:
    """One file an entry of `lengths`; the first action dim numbers the steps of the whole dataset."""
    folder.mkdir()
    random, step, episode = np.random.default_rng(0), 0, 0
    for number, episodes in enumerate(lengths):
        count = sum(episodes)
        actions = random.normal(size=(count, 3)).astype(np.float32)
        actions[:, 0] = np.arange(step, step + count)
        index = np.repeat(np.arange(episode, episode + len(episodes)), episodes)
        columns = {"action": actions.tolist(), "episode_index": index, "ignored": ["x"] * count}
        if body.state_dim:
            columns["observation.state"] = random.normal(size=(count, body.state_dim)).astype(np.float32).tolist()
        pq.write_table(pa.table(columns), folder / f"file-{number:03d}.parquet", row_group_size=4)
        step, episode = step + count, episode + len(episodes)
    return StreamedSource(folder.name, [str(file) for file in sorted(folder.iterdir())], body)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data") / "demos", arm())


def stream(source, **settings) -> StreamingTrajectoryDataset:
    settings = {"epochs": 1, "pool_windows": 12, "open_files": 2, **settings}
    return StreamingTrajectoryDataset([source], [source.embodiment], H, BATCH, **settings)


def steps_of(batches) -> list[int]:
    """The steps at which the windows of all batches start, in their order."""
    return [step for batch in batches for step in batch["actions"][:, 0, 0].int().tolist()]


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(ours, theirs, strict=True)
    )


# --- what comes -------------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_windows_that_a_dataset_gives(tmp_path, bodies, write_demonstrations):
    folder = write_demonstrations(tmp_path / "demos", bodies[0], [5, 9, 3], images=False)
    expected = TrajectoryDataset([load_trajectories(folder, embodiment=bodies[0])], bodies, H).__getitems__(range(17))
    streamed = StreamedSource.from_lerobot(folder, bodies[0])
    batches = list(StreamingLoader(StreamingTrajectoryDataset([streamed], bodies, H, BATCH, epochs=1)))
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in expected}
    ours, theirs = (values["actions"][:, 0, 0].argsort() for values in (joined, expected))
    assert all(torch.equal(joined[key][ours], value[theirs]) for key, value in expected.items())


def test_an_epoch_shows_every_step_once_in_whole_batches_and_another_order_than_the_next(source):
    first, again, other = (steps_of(StreamingLoader(stream(source, seed=seed))) for seed in (0, 0, 1))
    assert first == again != other and sorted(first) == list(range(STEPS))
    two = list(StreamingLoader(stream(source, epochs=2)))
    assert {len(batch["actions"]) for batch in two} == {BATCH}
    assert steps_of(two)[:STEPS] == first != steps_of(two)[STEPS:]
    assert sorted(steps_of(two)[STEPS:]) == list(range(STEPS))


def test_a_stream_without_end_goes_on(source):
    batches = iter(StreamingLoader(stream(source, epochs=None)))
    assert {len(next(batches)["actions"]) for _ in range(30)} == {BATCH}


def test_a_pool_mixes_episodes_of_several_open_files_and_holds_no_more_than_it_may(source):
    pools = [windows for _, windows in stream(source, pool_windows=12, open_files=3)._pools(0, 1, START)]
    assert all(len(pool) < 12 + 11 for pool in pools)
    assert max(len(pool.store.sources) for pool in pools) == 3


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_ranks_and_workers_share_the_files_and_show_every_step_once(source, world_size, workers):
    ranks = [
        steps_of(StreamingLoader(stream(source, rank=rank, world_size=world_size), workers))
        for rank in range(world_size)
    ]
    assert sorted(step for rank in ranks for step in rank) == list(range(STEPS))
    assert all(ranks)


def test_fewer_files_than_readers_are_refused(source):
    with pytest.raises(ValueError, match=r"6 files cannot be shared by 7 ranks x 1 workers: .* into at least 7 files"):
        stream(source, rank=0, world_size=7)
    with pytest.raises(ValueError, match="6 files cannot be shared by 2 ranks x 4 workers"):
        StreamingLoader(stream(source, rank=0, world_size=2), num_workers=4)


def test_two_bodies_come_in_one_stream_each_with_its_own_dims(tmp_path):
    sources = [write_files(tmp_path / "a", arm()), write_files(tmp_path / "b", arm("blind", states=0))]
    bodies = [arm(), arm("blind", states=0)]
    dataset = StreamingTrajectoryDataset(sources, bodies, H, BATCH, epochs=1, pool_windows=40)
    batches = list(StreamingLoader(dataset))
    ids = torch.cat([batch["embodiment_ids"] for batch in batches])
    assert torch.bincount(ids).tolist() == [STEPS, STEPS]
    assert {tuple(batch["states"].shape[1:]) for batch in batches} == {(H, 2)}
    assert max(len(set(batch["embodiment_ids"].tolist())) for batch in batches) == 2


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 2)])
def test_an_interrupted_stream_goes_on_with_the_very_next_batch(source, tmp_path, world_size, workers):
    for rank in range(world_size):
        settings = {"epochs": 2, "rank": rank, "world_size": world_size}
        whole = list(StreamingLoader(stream(source, **settings), workers))
        for stop in (1, 3, len(whole) - 2) if workers else range(len(whole)):
            loader = StreamingLoader(stream(source, **settings), workers)
            begun = [batch for _, batch in zip(range(stop), loader, strict=False)]
            loader.save(tmp_path)
            resumed = StreamingLoader(stream(source, **settings), workers)
            resumed.resume(tmp_path)
            assert same([*begun, *resumed], whole), stop


def test_a_position_counts_what_was_given_out_and_not_what_workers_have_read_ahead(source):
    loader = StreamingLoader(stream(source), 2, prefetch_factor=4)
    batches = iter(loader)
    first = loader.state_dict()
    next(batches)
    drawn = [position["drawn"] for position in loader.state_dict()["positions"]]
    assert first["next_worker"] == 0 and loader.state_dict()["next_worker"] == 1
    assert sum(drawn) <= BATCH and loader.state_dict()["positions"][1] == first["positions"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "had seed=0 when its position was saved and has seed=1 now"),
        ({"pool_windows": 20}, "had pool_windows=12 .* has pool_windows=20"),
        ({"rank": 1, "world_size": 2}, "had rank=0 .* has rank=1"),
    ],
)
def test_a_position_in_another_order_is_refused(source, change, message):
    state = StreamingLoader(stream(source)).state_dict()
    with pytest.raises(ValueError, match=message):
        StreamingLoader(stream(source, **change)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"had workers=1 .* has workers=2"):
        StreamingLoader(stream(source), 2).load_state_dict(state)
    other = replace(source, root="some/toy@0")
    message = r"had datasets=\['demos'\] .* has datasets=\['some/toy@0'\] .*owner/name@revision"
    with pytest.raises(ValueError, match=message):
        StreamingLoader(stream(other)).load_state_dict(state)
    other = replace(source, files=[*source.files[:-1], "hf://datasets/a/b@0/data/x.parquet"])
    with pytest.raises(ValueError, match="had files="):
        StreamingLoader(stream(other)).load_state_dict(state)


def test_a_checkpoint_that_was_not_trained_on_a_stream_cannot_be_resumed_on_one(source, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"stream-0\.json is missing: .* not trained on a stream"):
        StreamingLoader(stream(source)).resume(tmp_path)


# --- statistics and damage --------------------------------------------------------------------------------------------


def test_statistics_of_a_stream_are_those_of_its_files(tmp_path, bodies, write_demonstrations):
    paths = [write_demonstrations(tmp_path / str(n), bodies[0], [5, 9], seed=n, images=False) for n in range(2)]
    expected = fit_embodiments([load_trajectories(path, embodiment=bodies[0]) for path in paths])
    sources = [StreamedSource.from_lerobot(path, bodies[0]) for path in paths]
    assert fit_streaming(sources) == expected
    assert fit_streaming(sources[:1])[0].action_statistics.count == 14


def test_statistics_read_no_more_files_than_they_may(source):
    plain = replace(source, embodiment=replace(source.embodiment, action_normalization="quantile"))
    counts = {sum(lengths) for lengths in LENGTHS}
    assert fit_streaming([plain], max_files=1)[0].action_statistics.count in counts
    assert fit_streaming([plain], max_files=6)[0].action_statistics.count == STEPS


def test_a_body_that_the_checkpoint_does_not_know_is_refused(source):
    with pytest.raises(ValueError, match="demos: embodiment 'arm' is not among the checkpoint's legs"):
        StreamingTrajectoryDataset([source], [arm("legs")], H, BATCH)


def test_a_file_without_a_column_and_a_damaged_one_are_named(tmp_path):
    source = write_files(tmp_path / "demos", arm(), [[5], [6]])
    with pytest.raises(ValueError, match=r"file-00\d\.parquet: cannot be streamed with the columns .*motor"):
        list(StreamingLoader(stream(replace(source, action="motor"))))
    (tmp_path / "demos" / "file-001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"file-001\.parquet: cannot be streamed"):
        list(StreamingLoader(stream(source)))


def test_values_of_other_dims_and_episodes_in_pieces_are_refused_by_file(tmp_path):
    source = write_files(tmp_path / "demos", arm(), [[5]])
    four = replace(arm(), action_names=["a", "b", "c", "d"], reference_dims=[None] * 4)
    with pytest.raises(ValueError, match=r"file-000\.parquet: column 'action' has 3 dims in row 0, .* 4"):
        list(StreamingLoader(stream(StreamedSource("demos", source.files, four))))
    rows = {"action": [[0.0] * 3] * 3, "observation.state": [[0.0] * 2] * 3, "episode_index": [0, 1, 0]}
    pq.write_table(pa.table(rows), tmp_path / "demos" / "file-000.parquet")
    with pytest.raises(ValueError, match=r"file-000\.parquet: column 'episode_index': episode 0 starts again"):
        list(StreamingLoader(stream(source)))


def test_a_dataset_without_data_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no data/\*\*/\*\.parquet"):
        StreamedSource.from_lerobot(tmp_path, arm())
    with pytest.raises(FileNotFoundError, match="no/such/place is neither a folder here nor a dataset on the Hub"):
        StreamedSource.from_lerobot("no/such/place", arm())


PROGRAM = """
import sys
from priorvla.configuration.embodiment import load_embodiments
from priorvla.training.data.parquet_streams import StreamedSource
from priorvla.training.data.streaming import StreamingLoader, StreamingTrajectoryDataset
bodies = load_embodiments(sys.argv[1])
source = StreamedSource.from_lerobot("some/toy", bodies[0])
assert source == StreamedSource.from_lerobot(source.root, bodies[0]), "its root names the commit"
stream = StreamingTrajectoryDataset([source], bodies, 4, 8, epochs=1)
for workers in (0, 2):
    print(sum(len(batch["actions"]) for batch in StreamingLoader(stream, workers)))
"""


def test_a_dataset_on_the_hub_is_streamed_from_one_commit_and_nothing_but_its_parquet_files_is_read(
    tmp_path, bodies, loopback_hub, write_demonstrations
):
    folder = loopback_hub.repository("datasets", "some/toy")
    folder.parent.mkdir(parents=True)
    write_demonstrations(folder, bodies[0], [5, 9, 3], images=False)
    (folder / "data/chunk-000/file-001.parquet").write_bytes((folder / "data/chunk-000/file-000.parquet").read_bytes())
    (folder / "videos").mkdir()
    (folder / "videos/big.mp4").write_bytes(b"a video")
    save_embodiments(bodies[:1], tmp_path)
    environment = os.environ | loopback_hub.settings(tmp_path / "cache")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.split() == ["34", "34"]
    read = {line.rpartition("/resolve/")[2] for line in loopback_hub.requests if "/resolve/" in line}
    assert {place.partition("/")[2] for place in read} == {f"data/chunk-000/file-00{n}.parquet" for n in (0, 1)}
    assert {len(place.partition("/")[0]) for place in read} == {40}  # a commit, not a branch that moves
