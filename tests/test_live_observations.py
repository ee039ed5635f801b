"""Windows with pixels and words, for a backbone that is trained: the same as its cache would have been made from."""

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from priorvla.modeling_priorvla.adapters import add_adapter
from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.adapter_presets import lora_config
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import MixtureSampler, TrajectoryDataset, whole_batch
from priorvla.training.observed_windows import observed_windows

H = 4
TAPS = (0, 1, 2)


@pytest.fixture(scope="module")
def known(bodies):
    """The small body with two cameras, the large one with another; a third that nobody has data of."""
    small, large = bodies
    three_eyes = replace(small, name="absent", cameras=["left", "right", "top"])
    return [replace(small, cameras=["front", "wrist"]), replace(large, cameras=["top"]), three_eyes]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, known, write_demonstrations):
    """12 windows of the small body, whose cameras were recorded in another order beside a third, 6 of the large."""
    root = tmp_path_factory.mktemp("data")
    recorded = replace(known[0], cameras=["wrist", "back", "front"])
    paths = [
        write_demonstrations(root / "small", recorded, [5, 3, 4]),
        write_demonstrations(root / "large", known[1], [4, 2], seed=1),
    ]
    return [load_trajectories(path, frames=True) for path in paths]


@pytest.fixture
def windows(sources, known):
    return TrajectoryDataset(sources, known, H)


def make_processor(folder, known):
    return PriorVLAProcessor.for_backbone(folder, known, chunk_size=H)


@pytest.mark.parametrize("folder", ["tiny_backbone", "tiny_smolvlm"])
def test_encoding_a_live_batch_gives_the_cached_one(tmp_path, known, sources, windows, folder, request):
    folder = request.getfixturevalue(folder)
    backbone, processor = load_backbone(None, folder), make_processor(folder, known)
    cached = ObservationDataset(windows, sources, backbone, processor, tmp_path, taps=TAPS).__getitems__(range(18))
    live = LiveObservationDataset(windows, sources, processor).__getitems__(range(18))
    assert live["pixel_values"].shape == (18, 2, 3, 28, 28)  # two cameras at most among those that have data
    with torch.no_grad():
        vision = backbone.encode_vision(live["pixel_values"], live["pixel_attention_mask"], TAPS)
        words = backbone.encode_language(vision, live["input_ids"], live["attention_mask"], TAPS)
    for features, name in ((vision, "vision"), (words, "language")):
        expected = cached[f"{name}_hidden_states"].reshape(features.hidden_states.shape)
        assert expected.std() > 0.1
        assert (features.hidden_states - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(vision.mask, cached["vision_mask"].flatten(1, 2)) and not vision.mask.all()
    assert torch.equal(words.mask, cached["language_mask"])
    assert all(torch.equal(live[key], cached[key]) for key in ("actions", "state", "embodiment_ids"))


def test_features_of_a_backbone_with_an_adapter_are_not_kept_as_those_of_its_file(
    tmp_path, known, sources, windows, save_policy, tiny_backbone
):
    pytest.importorskip("peft")
    model = PriorVLAModel.from_pretrained(save_policy(tmp_path / "base", known[:1]), backbone=tiny_backbone)
    add_adapter(model, lora_config(model, "backbone", [known[0].name], rank=2), base=str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    model = PriorVLAModel.from_pretrained(tmp_path / "adapter", backbone=tiny_backbone)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    processor = make_processor(tiny_backbone, known)
    shown = observed_windows(model, processor, sources[:1], tmp_path / "features", max_cache_gb=1)
    assert isinstance(shown, LiveObservationDataset)
    with pytest.raises(ValueError, match="holds an adapter, they are not those of its file"):
        ObservationDataset(windows, sources, model.backbone, processor, tmp_path / "features", taps=TAPS)
    frozen = PriorVLAModel.from_pretrained(tmp_path / "base", backbone=tiny_backbone)
    kept = observed_windows(frozen, processor, sources[:1], tmp_path / "features", max_cache_gb=1)
    assert isinstance(kept, ObservationDataset)


def test_frames_of_one_trajectory_are_read_together(tiny_backbone, known, sources, windows, monkeypatch):
    dataset = LiveObservationDataset(windows, sources, make_processor(tiny_backbone, known))
    expected = [dataset[index]["pixel_values"] for index in (4, 12, 0, 13, 4)]
    calls = []
    for trajectory in (trajectory for source in sources for trajectory in source.trajectories):
        read = trajectory.frames.read

        def counted(camera, indices, read=read):
            calls.append((camera, list(indices)))
            return read(camera, indices)

        monkeypatch.setattr(trajectory.frames, "read", counted)
    batch = dataset.__getitems__([4, 12, 0, 13, 4])
    assert calls == [("front", [4, 0, 4]), ("wrist", [4, 0, 4]), ("top", [0, 1])]
    assert torch.equal(batch["pixel_values"], torch.stack(expected))


def test_without_language_no_word_is_read(tiny_backbone, known, sources, windows):
    processor = make_processor(tiny_backbone, known)
    expected = LiveObservationDataset(windows, sources, processor).__getitems__([2, 14])
    silent = [
        replace(source, trajectories=[replace(trajectory) for trajectory in source.trajectories]) for source in sources
    ]
    for trajectory in (trajectory for source in silent for trajectory in source.trajectories):
        del trajectory.task
    processor.tokenizer = None
    batch = LiveObservationDataset(windows, silent, processor, language=False).__getitems__([2, 14])
    assert set(expected) - set(batch) == {"input_ids", "attention_mask"}
    assert all(torch.equal(batch[key], expected[key]) for key in batch)


def test_a_dataset_without_frames_is_refused(tiny_backbone, known, sources, windows):
    blind = [load_trajectories(source.root) for source in sources]
    with pytest.raises(ValueError, match=r"without frames.*frames=True"):
        LiveObservationDataset(windows, blind, make_processor(tiny_backbone, known))


@pytest.fixture(scope="module")
def kinds_of_frames(tmp_path_factory, known, sources):
    """Windows of the large body from LeRobot images, a LeRobot video and an HDF5 file."""
    h5py = pytest.importorskip("h5py")
    root, random = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    body = known[1]
    steps = {"states": random.normal(size=(4, body.state_dim)), "actions": random.normal(size=(4, body.action_dim))}
    frames = random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with LeRobotDatasetWriter(root / "video", body, {"top": (32, 32)}, video=True) as writer:
        writer.add_episode(steps["states"], steps["actions"], "open the door", {"top": frames})
    with h5py.File(root / "demo.hdf5", "w") as file:
        for name, values in {**steps, "top": frames}.items():
            file[name] = values
    columns = {"action": "actions", "state": "states", "images": {"top": "top"}}
    mapping = {**columns, "task": "close the door", "rate": body.control_rate}
    return [
        sources[1],
        load_trajectories(root / "video", frames=True),
        load_trajectories(root / "demo.hdf5", frames=True, mapping=mapping, embodiment=body),
    ]


def test_workers_read_the_same_batches_in_the_mixtures_order(tiny_backbone, known, kinds_of_frames):
    windows = TrajectoryDataset(kinds_of_frames, known, H, weights=[1.0, 2.0, 1.0])
    dataset = LiveObservationDataset(windows, kinds_of_frames, make_processor(tiny_backbone, known))
    travelled = ForkingPickler.loads(bytes(ForkingPickler.dumps(dataset)))  # as to a worker that is not forked
    options = {"batch_size": 6, "sampler": MixtureSampler(dataset.windows, seed=5), "collate_fn": whole_batch}
    here = list(DataLoader(dataset, **options))
    there = list(DataLoader(travelled, num_workers=2, **options))
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)
