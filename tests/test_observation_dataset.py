"""Windows with what was seen and said, from cached features, and shares of a dataset's episodes."""

from dataclasses import replace
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.embodiment_fitting import share_of_episodes
from priorvla.training.data.observation_dataset import ObservationDataset
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
    assert not cache.exists() and not counts and "feature cache: " in capsys.readouterr().out
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
