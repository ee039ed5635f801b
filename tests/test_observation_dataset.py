"""Windows with what was seen and said, from cached features, and shares of a dataset's episodes."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.embodiment_fitting import share_of_episodes
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.observation_features import as_features
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset

H = 4
TAPS = (1, 2)
BACKBONES = {"dual encoder": "tiny_backbone", "SmolVLM": "tiny_smolvlm"}
SIZES = {"dual encoder": (16, 16, 1, 7, 24), "SmolVLM": (4, 32, 2, 5, 32)}  # P, d_v, text's T, L, d_t


@pytest.fixture(scope="module")
def known(bodies):
    """The small body with one camera, the large one with two."""
    return [bodies[0], replace(bodies[1], cameras=["front", "wrist"])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, known, write_demonstrations):
    """Datasets of 12 and of 6 windows."""
    root = tmp_path_factory.mktemp("data")
    return [
        write_demonstrations(root / body.name, body, lengths, seed)
        for seed, (body, lengths) in enumerate(zip(known, ([5, 3, 4], [4, 2]), strict=True))
    ]


@pytest.fixture
def sources(folders):
    return [load_trajectories(folder, frames=True) for folder in folders]


@pytest.fixture(params=BACKBONES)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, request):
    return request.getfixturevalue(BACKBONES[kind])


@pytest.fixture
def backbone(folder):
    return load_backbone(None, folder)


@pytest.fixture
def processor(folder, known):
    return PriorVLAProcessor.for_backbone(folder, known, chunk_size=H)


def count_images(backbone) -> list[int]:
    """Grows by the number of images of every call of the vision encoder."""
    counts: list[int] = []
    backbone.model.vision_model.register_forward_pre_hook(
        lambda _, arguments, options: counts.append(len(options["pixel_values"])), with_kwargs=True
    )
    return counts


def test_a_batch_of_two_bodies_has_each_windows_own_frame_and_instruction(
    tmp_path, known, sources, backbone, processor, kind
):
    windows = TrajectoryDataset(sources, known, H)
    dataset = ObservationDataset(windows, sources, backbone, processor, tmp_path, taps=TAPS)
    assert len(dataset) == len(windows) == 18 and dataset.taps == TAPS
    chosen = [16, 0, 13, 7]  # the large body's second episode, the small one's first, and so on
    batch = dataset.__getitems__(chosen)
    tokens, width, layers, length, text_width = SIZES[kind]
    assert {key: tuple(batch[key].shape) for key in batch if key.startswith(("vision", "language"))} == {
        "vision_hidden_states": (4, 2, 2, tokens, width),
        "vision_mask": (4, 2, tokens),
        "language_hidden_states": (4, layers, length, text_width),
        "language_mask": (4, length),
    }
    assert batch["vision_mask"].all(-1).tolist() == [[True, True], [True, False], [True, True], [True, False]]
    assert batch["vision_hidden_states"][[1, 3], :, 1].eq(0).all()
    assert all(torch.equal(batch[key], value) for key, value in windows.__getitems__(chosen).items())
    frames = [(1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, 2)]
    for row, (source, trajectory, step) in enumerate(frames):
        owner = sources[source].trajectories[trajectory]
        cameras = known[source].cameras
        image = {camera: owner.frames.read(camera, [step])[0] for camera in cameras}
        inputs = processor(embodiment=known[source].name, images=[image], text=owner.task)
        with torch.no_grad():
            vision = backbone.encode_vision(inputs["pixel_values"], inputs["pixel_attention_mask"], TAPS)
            words = backbone.encode_language(vision, inputs["input_ids"], inputs["attention_mask"], TAPS)
        torch.testing.assert_close(
            batch["vision_hidden_states"][row].flatten(1, 2), vision.hidden_states[0], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            batch["language_hidden_states"][row], words.hidden_states[0, :, :length], atol=1e-5, rtol=1e-5
        )
        assert batch["language_mask"][row].tolist() == words.mask[0, :length].tolist()
    assert all(torch.equal(dataset[16][key], batch[key][0]) for key in batch)


def test_without_language_no_word_is_read_or_kept(tmp_path, known, sources, backbone, processor):
    windows = TrajectoryDataset(sources, known, H)
    listening = ObservationDataset(windows, sources, backbone, processor, tmp_path, taps=TAPS)
    for source in sources:
        for trajectory in source.trajectories:
            del trajectory.task
    processor.tokenizer = None
    dataset = ObservationDataset(windows, sources, backbone, processor, tmp_path / "blind", taps=TAPS, language=False)
    batch, expected = (part.__getitems__([3, 15]) for part in (dataset, listening))
    assert not [key for key in batch if key.startswith("language")]
    assert all(torch.equal(batch[key], expected[key]) for key in batch)
    assert all(path.name.startswith("vision-") for path in (tmp_path / "blind").iterdir())


def test_more_than_the_size_limit_is_refused_before_anything_is_written(
    tmp_path, known, sources, backbone, processor, kind, capsys
):
    counts = count_images(backbone)
    windows = TrajectoryDataset(sources, known, H)
    tokens, width, layers, length, text_width = SIZES[kind]
    needed = (12 + 2 * 6) * len(TAPS) * tokens * width * 4
    if backbone.language_reads_vision:
        needed += 18 * layers * length * text_width * 4
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"would take .* GB, more than --max-cache-gb .*--frame-stride"):
        ObservationDataset(windows, sources, backbone, processor, cache, needed * 0.999 / 1e9, taps=TAPS)
    assert not cache.exists() and not counts and "feature cache: " in capsys.readouterr().err
    ObservationDataset(windows, sources, backbone, processor, cache, needed * 1.001 / 1e9, taps=TAPS)
    assert sum(counts) == 12 + 2 * 6


def test_a_stride_encodes_only_the_frames_that_a_window_starts_at(tmp_path, known, sources, backbone, processor):
    counts = count_images(backbone)
    windows = TrajectoryDataset(sources[:1], known, H, stride=2)
    ObservationDataset(windows, sources[:1], backbone, processor, tmp_path, taps=TAPS)
    assert sum(counts) == len(windows) == 3 + 2 + 2


def test_a_batch_costs_neither_a_frame_nor_a_backbone_here_or_in_another_process(
    tmp_path, known, sources, backbone, processor, monkeypatch
):
    dataset = ObservationDataset(
        TrajectoryDataset(sources, known, H), sources, backbone, processor, tmp_path, taps=TAPS
    )
    for trajectory in (trajectory for source in sources for trajectory in source.trajectories):
        monkeypatch.setattr(trajectory.frames, "read", lambda *_: pytest.fail("a frame was read again"))
    monkeypatch.setattr(type(backbone), "encode_vision", lambda *_: pytest.fail("the backbone ran again"))
    monkeypatch.setattr(type(backbone), "encode_language", lambda *_: pytest.fail("the backbone ran again"))
    batch = dataset.__getitems__(np.arange(18).tolist())
    travelling = bytes(ForkingPickler.dumps(dataset))  # as to a DataLoader's worker
    assert len(travelling) < 50_000
    elsewhere = ForkingPickler.loads(travelling).__getitems__(np.arange(18).tolist())
    assert all(torch.equal(elsewhere[key], batch[key]) for key in batch)


def test_windows_of_other_trajectories_are_refused(tmp_path, known, sources, backbone, processor):
    windows = TrajectoryDataset(sources, known, H)
    for others in (sources[:1], sources[::-1]):
        with pytest.raises(ValueError, match=r"windows are over 5 trajectories.*in the same order"):
            ObservationDataset(windows, others, backbone, processor, tmp_path, taps=TAPS)


def test_features_of_other_layers_than_are_asked_for_are_refused(tmp_path, known, sources, backbone, processor):
    windows = TrajectoryDataset(sources, known, H)
    dataset = ObservationDataset(windows, sources, backbone, processor, tmp_path, taps=TAPS)
    batch = dataset.__getitems__([0, 13])
    made = as_features(batch, TAPS)
    assert torch.equal(made["vision_features"].tap(2), batch["vision_hidden_states"][:, 1].flatten(1, 2))
    assert made["actions"] is batch["actions"] and "vision_hidden_states" in batch
    with pytest.raises(ValueError, match=r"vision features .* hold 2 layers.* of the layers \(0, 1, 2\)"):
        as_features(batch, (0, 1, 2))
    words = {key: value for key, value in batch.items() if key.startswith("language")}
    if backbone.language_reads_vision:
        with pytest.raises(ValueError, match=r"language features .* hold 2 layers.* of the layers \(1,\)"):
            as_features(words, (1,))
    else:
        assert as_features(words, (1,))["language_features"].taps is None


# --- several processes ------------------------------------------------------------------------------------------------


def in_two_processes(folder, work: Callable[[int], Any]) -> list[Any]:
    """What `work(rank)` returns, or the error that it raises, in each of two processes that form a group.

    They are forks, as the workers of a DataLoader are: to import everything anew takes longer than all these tests.
    """
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def main(rank: int) -> None:
        torch.set_num_threads(1)
        place = f"file://{folder / 'meeting'}"
        dist.init_process_group("gloo", place, timedelta(seconds=60), world_size=2, rank=rank)
        try:
            answers.put((rank, work(rank)))
        except Exception as error:
            answers.put((rank, repr(error)))

    processes = [fork.Process(target=main, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(answers.get() for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [results[rank] for rank in range(2)]


@pytest.fixture
def build(known, sources, backbone, processor):
    """`(cache_dir)` builds the dataset and says how many images that took, and a batch as lists."""

    def build_in(cache_dir) -> tuple[int, dict[str, list]]:
        counts = count_images(backbone)
        windows = TrajectoryDataset(sources, known, H)
        dataset = ObservationDataset(windows, sources, backbone, processor, cache_dir, taps=TAPS)
        batch = dataset.__getitems__(range(18))
        return sum(counts), {key: batch[key].tolist() for key in batch if "hidden_states" in key}

    return build_in


forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot fork here")
one_kind = pytest.mark.parametrize("kind", ["SmolVLM"], indirect=True)


@forks
@one_kind
def test_two_processes_encode_every_frame_once_and_read_the_same(tmp_path, build, capfd):
    capfd.readouterr()
    (first, batch), (second, same) = in_two_processes(tmp_path, lambda rank: build(tmp_path / "cache"))
    assert first + second == 12 + 2 * 6 and min(first, second) >= 12 - 2
    assert batch == same
    printed = capfd.readouterr()
    assert printed.err.count("feature cache: ") == 1 and "feature cache: " not in printed.out
    images, alone = build(tmp_path / "alone")
    assert images == 12 + 2 * 6
    for key, values in alone.items():
        torch.testing.assert_close(torch.tensor(batch[key]), torch.tensor(values), atol=1e-5, rtol=1e-5)


@forks
@one_kind
def test_processes_with_disks_of_their_own_have_all_features_on_each(tmp_path, build):
    (first, batch), (second, same) = in_two_processes(tmp_path, lambda rank: build(tmp_path / f"disk{rank}"))
    assert first == second == 12 + 2 * 6
    for key, values in same.items():
        torch.testing.assert_close(torch.tensor(batch[key]), torch.tensor(values), atol=1e-5, rtol=1e-5)


@forks
@one_kind
def test_a_process_that_fails_ends_the_others_waiting_and_what_they_wrote_stays(tmp_path, build, backbone):
    def work(rank: int):
        if rank == 1:
            backbone.encode_vision = None
        return build(tmp_path / "cache")

    waiting, failed = in_two_processes(tmp_path, work)
    assert "not callable" in failed and "RuntimeError" in waiting
    assert build(tmp_path / "cache")[0] == 12 + 2 * 6 - 6, "the other one's half of the first dataset was there"


# --- shares of a dataset ----------------------------------------------------------------------------------------------


def test_a_smaller_share_of_episodes_is_part_of_a_larger_one(tmp_path, bodies, write_demonstrations):
    source = load_trajectories(write_demonstrations(tmp_path / "ten", bodies[0], [2] * 10, images=False))
    shares = (0.01, 0.2, 0.5, 1.0)
    parts = [share_of_episodes(source, share, seed=3) for share in shares]
    chosen = [[trajectory.episode_index for trajectory in part.trajectories] for part in parts]
    assert [len(part) for part in parts] == [1, 2, 5, 10]
    assert all(indices == sorted(indices) for indices in chosen)
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(chosen))
    again = share_of_episodes(source, 0.5, seed=3)
    assert [trajectory.episode_index for trajectory in again.trajectories] == chosen[2]
    others = [share_of_episodes(source, 0.5, seed=seed).trajectories for seed in range(5)]
    assert len({tuple(trajectory.episode_index for trajectory in other) for other in others}) > 1
    assert (parts[1].root, parts[1].fingerprint, parts[1].embodiment) == (
        source.root,
        source.fingerprint,
        source.embodiment,
    )
    for share in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            share_of_episodes(source, share)
