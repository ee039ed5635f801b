"""Backbone features on disk: a frame is encoded once, and never taken for another backbone's or dataset's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from priorvla.modeling_priorvla.backbone import DualEncoderBackbone
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.feature_cache import FeatureCache
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset

H = 4
LENGTHS = [5, 3, 4]
PATCHES, WIDTH, TEXT_WIDTH = 16, 16, 24


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory, bodies, write_demonstrations):
    """Folder of three episodes of the small body."""
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos", bodies[0], LENGTHS)


@pytest.fixture
def source(demonstrations):
    return load_trajectories(demonstrations, frames=True)


@pytest.fixture
def backbone(tiny_backbone):
    return DualEncoderBackbone.from_pretrained(tiny_backbone)


@pytest.fixture
def processor(tiny_backbone, bodies):
    return PriorVLAProcessor.for_backbone(tiny_backbone, bodies, chunk_size=H)


def count_images(backbone) -> list[int]:
    """Grows by the number of images of every call of the vision encoder."""
    counts: list[int] = []
    backbone.model.vision_model.register_forward_pre_hook(
        lambda _, arguments, options: counts.append(len(options["pixel_values"])), with_kwargs=True
    )
    return counts


def encode_directly(source, backbone, processor, steps, cameras=("front",)):
    """Features of (trajectory, step) pairs in one batch, without a cache."""
    images = [
        {camera: source.trajectories[trajectory].frames.read(camera, [step])[0] for camera in cameras}
        for trajectory, step in steps
    ]
    inputs = processor(embodiment=source.embodiment.name, images=images)
    with torch.no_grad():
        features = backbone.encode_vision(inputs["pixel_values"], inputs["pixel_attention_mask"])
    return features.hidden_states.view(len(steps), -1, PATCHES, WIDTH)


def test_cached_features_are_the_backbones_to_the_bit(tmp_path, source, backbone, processor):
    cache = FeatureCache(tmp_path, source, backbone, processor)
    steps = [(0, 0), (0, 4), (1, 2), (2, 0)]
    entries = cache.entry(*torch.tensor(steps).T)
    cache.encode(entries)
    expected = encode_directly(source, backbone, processor, steps)
    assert torch.equal(cache[entries], expected) and expected.std() > 0
    backwards = entries.flip(0)
    assert torch.equal(cache[backwards], expected.flip(0))


def test_a_frame_is_encoded_once_and_a_second_run_encodes_none(tmp_path, source, backbone, processor):
    counts = count_images(backbone)
    first = FeatureCache(tmp_path, source, backbone, processor)
    first.encode(torch.tensor([3, 0, 3, 7]))
    first.encode(torch.tensor([0, 7, 8]))
    assert counts == [3, 1]
    again = FeatureCache(tmp_path, source, backbone, processor)
    again.encode(torch.tensor([0, 3, 7, 8]))
    assert counts == [3, 1] and len(again.missing(torch.arange(12))) == 8


def test_an_interrupted_encoding_goes_on_with_the_rest(tmp_path, source, backbone, processor):
    whole = FeatureCache(tmp_path / "whole", source, backbone, processor)
    whole.encode(torch.arange(12), batch_size=4)
    calls = count_images(backbone)

    def interrupt(*_):
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = backbone.model.vision_model.register_forward_pre_hook(interrupt)
    cache = FeatureCache(tmp_path / "parts", source, backbone, processor)
    with pytest.raises(KeyboardInterrupt):
        cache.encode(torch.arange(12), batch_size=4)
    hook.remove()
    calls.clear()
    resumed = FeatureCache(tmp_path / "parts", source, backbone, processor)
    assert resumed.missing(torch.arange(12)).tolist() == list(range(4, 12))
    resumed.encode(torch.arange(12), batch_size=4)
    assert calls == [4, 4]
    assert torch.equal(resumed[torch.arange(12)], whole[torch.arange(12)])


def test_whatever_changes_the_features_changes_the_folder(
    tmp_path, tiny_backbone, bodies, write_demonstrations, source, backbone, processor
):
    other_weights = DualEncoderBackbone.from_pretrained(tiny_backbone)
    other_weights.sha256 = "0" * 64
    other_preprocessing = PriorVLAProcessor.for_backbone(tiny_backbone, bodies, chunk_size=H)
    other_preprocessing.image_processor.image_mean = [0.1, 0.2, 0.3]
    other_data = load_trajectories(write_demonstrations(tmp_path / "b", bodies[0], LENGTHS, seed=1), frames=True)
    fewer = load_trajectories(source.root, episodes=[0, 1], frames=True)
    caches = [
        (source, backbone, processor),
        (source, other_weights, processor),
        (source, DualEncoderBackbone.from_pretrained(tiny_backbone, dtype=torch.bfloat16), processor),
        (source, backbone, other_preprocessing),
        (other_data, backbone, processor),
        (fewer, backbone, processor),
    ]
    folders = [FeatureCache(tmp_path, *parts).folder for parts in caches]
    assert len(set(folders)) == len(caches)
    assert FeatureCache(tmp_path, source, backbone, processor).folder == folders[0]


def test_a_dataset_that_has_moved_keeps_its_features(tmp_path, source, backbone, processor):
    moved = replace(source, root=tmp_path / "elsewhere")
    assert (
        FeatureCache(tmp_path, moved, backbone, processor).folder
        == FeatureCache(tmp_path, source, backbone, processor).folder
    )


def test_features_keep_the_backbones_dtype(tmp_path, source, tiny_backbone, processor):
    backbone = DualEncoderBackbone.from_pretrained(tiny_backbone, dtype=torch.bfloat16)
    cache = FeatureCache(tmp_path, source, backbone, processor)
    cache.encode(torch.tensor([0]))
    assert cache[torch.tensor([0])].dtype == torch.bfloat16
    assert cache.bytes_per_step == PATCHES * WIDTH * 2


def test_cameras_stand_in_the_order_of_the_checkpoints_embodiment(
    tmp_path, bodies, write_demonstrations, tiny_backbone, backbone
):
    recorded = replace(bodies[0], cameras=["wrist", "front", "back"])
    source = load_trajectories(write_demonstrations(tmp_path / "three", recorded, [3]), frames=True)
    known = replace(bodies[0], cameras=["front", "wrist"])
    processor = PriorVLAProcessor.for_backbone(tiny_backbone, [known], chunk_size=H)
    cache = FeatureCache(tmp_path, source, backbone, processor)
    cache.encode(torch.tensor([1]))
    for slot, camera in enumerate(known.cameras):
        alone = PriorVLAProcessor.for_backbone(tiny_backbone, [replace(known, cameras=[camera])], chunk_size=H)
        expected = encode_directly(source, backbone, alone, [(0, 1)], [camera])
        torch.testing.assert_close(cache[torch.tensor([1])][:, slot], expected[:, 0])


def test_a_dataset_without_frames_or_without_a_camera_is_refused_and_nothing_is_written(
    tmp_path, bodies, source, backbone, tiny_backbone, processor
):
    with pytest.raises(ValueError, match=r"demos was loaded without frames.*frames=True"):
        FeatureCache(tmp_path, load_trajectories(source.root), backbone, processor)
    for cameras, message in ((["front", "wrist"], "episode 0 has no camera 'wrist'"), ([], "'small' has no cameras")):
        other = PriorVLAProcessor.for_backbone(tiny_backbone, [replace(bodies[0], cameras=cameras)], chunk_size=H)
        with pytest.raises(ValueError, match=message):
            FeatureCache(tmp_path, source, backbone, other)
    assert not list(tmp_path.iterdir())


def test_a_backbone_built_in_memory_has_no_cache(tmp_path, source, backbone, processor):
    with pytest.raises(ValueError, match="built in memory"):
        FeatureCache(tmp_path, source, DualEncoderBackbone(backbone.model), processor)


# --- windows with what was seen and said ------------------------------------------------------------------------------


def test_more_than_the_size_limit_is_refused_before_anything_is_written(tmp_path, bodies, source, backbone, processor):
    counts = count_images(backbone)
    windows = TrajectoryDataset([source], bodies, H)
    needed = 12 * PATCHES * WIDTH * 4 / 1e9
    with pytest.raises(ValueError, match=r"would take .* GB, more than --max-cache-gb .*--frame-stride"):
        ObservationDataset(windows, [source], backbone, processor, tmp_path / "cache", max_cache_gb=needed * 0.99)
    assert not (tmp_path / "cache").exists() and not counts
    ObservationDataset(windows, [source], backbone, processor, tmp_path / "cache", max_cache_gb=needed * 1.01)
    assert sum(counts) == 12


def test_a_stride_encodes_only_the_frames_that_a_window_starts_at(tmp_path, bodies, source, backbone, processor):
    counts = count_images(backbone)
    windows = TrajectoryDataset([source], bodies, H, stride=2)
    ObservationDataset(windows, [source], backbone, processor, tmp_path)
    assert sum(counts) == len(windows) == 3 + 2 + 2


def test_a_batch_of_two_bodies_has_each_windows_own_frame_and_instruction(
    tmp_path, bodies, write_demonstrations, source, tiny_backbone, backbone
):
    two_eyes = replace(bodies[1], cameras=["front", "wrist"])
    known = [bodies[0], two_eyes]
    other = load_trajectories(write_demonstrations(tmp_path / "two", two_eyes, [4, 2], seed=1), frames=True)
    processor = PriorVLAProcessor.for_backbone(tiny_backbone, known, chunk_size=H)
    windows = TrajectoryDataset([source, other], known, H)
    dataset = ObservationDataset(windows, [source, other], backbone, processor, tmp_path / "cache")
    assert len(dataset) == len(windows) == 18
    chosen = [16, 0, 13, 7]  # the wide body's second episode, the small one's first, and so on
    batch = dataset.__getitems__(chosen)
    assert {key: tuple(batch[key].shape) for key in batch if key.startswith(("vision", "language"))} == {
        "vision_hidden_states": (4, 2, PATCHES, WIDTH),
        "vision_mask": (4, 2, PATCHES),
        "language_hidden_states": (4, 7, TEXT_WIDTH),
        "language_mask": (4, 7),
    }
    assert batch["vision_mask"].all(-1).tolist() == [[True, True], [True, False], [True, True], [True, False]]
    assert all(torch.equal(batch[key], value) for key, value in windows.__getitems__(chosen).items())
    frames = [(other, 1, 0), (source, 0, 0), (other, 0, 1), (source, 1, 2)]
    for row, (owner, trajectory, step) in enumerate(frames):
        cameras = known[int(batch["embodiment_ids"][row])].cameras
        expected = encode_directly(owner, backbone, processor, [(trajectory, step)], cameras)[0]
        torch.testing.assert_close(batch["vision_hidden_states"][row], expected)
        words = processor(embodiment="small", text=owner.trajectories[trajectory].task)
        with torch.no_grad():
            language = backbone.encode_language(None, words["input_ids"], words["attention_mask"])
        torch.testing.assert_close(batch["language_hidden_states"][row], language.hidden_states[0, :7])
        assert batch["language_mask"][row].tolist() == language.mask[0, :7].tolist()
    assert all(torch.equal(dataset[16][key], batch[key][0]) for key in batch)


def test_reading_features_never_reads_the_frames_again(tmp_path, bodies, source, backbone, processor, monkeypatch):
    dataset = ObservationDataset(TrajectoryDataset([source], bodies, H), [source], backbone, processor, tmp_path)
    for trajectory in source.trajectories:
        monkeypatch.setattr(trajectory.frames, "read", lambda *_: pytest.fail("a frame was read again"))
    counts = count_images(backbone)
    dataset.__getitems__(np.arange(12).tolist())
    assert not counts
