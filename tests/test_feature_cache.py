"""Backbone features on disk: a frame is encoded once, and never taken for another backbone's or dataset's."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoTokenizer

from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.dual_encoder import DualEncoderBackbone
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.feature_cache import FeatureCache
from priorvla.training.data.feature_files import FeatureFile
from priorvla.training.data.instructions import Instructions
from priorvla.training.data.readers import load_trajectories

H = 4
LENGTHS = [5, 3, 4]
PATCHES, WIDTH = 16, 16
TAPS = (0, 2)


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
    """Features (n, T, cameras, P, d) of (trajectory, step) pairs in one batch, without a cache."""
    images = [
        {camera: source.trajectories[trajectory].frames.read(camera, [step])[0] for camera in cameras}
        for trajectory, step in steps
    ]
    inputs = processor(embodiment=source.embodiment.name, images=images)
    with torch.no_grad():
        features = backbone.encode_vision(inputs["pixel_values"], inputs["pixel_attention_mask"], TAPS)
    return features.hidden_states.view(len(steps), len(TAPS), -1, PATCHES, WIDTH)


def test_cached_features_are_the_backbones_to_the_bit(tmp_path, source, backbone, processor):
    cache = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    steps = [(0, 0), (0, 4), (1, 2), (2, 0)]
    entries = torch.tensor([cache.first_entry[trajectory] + step for trajectory, step in steps])
    cache.encode(entries)
    expected = encode_directly(source, backbone, processor, steps)
    assert torch.equal(cache.vision[entries], expected) and expected.std() > 0
    backwards = entries.flip(0)
    assert torch.equal(cache.vision[backwards], expected.flip(0))


def test_a_frame_is_encoded_once_and_a_second_run_encodes_none(tmp_path, source, backbone, processor):
    counts = count_images(backbone)
    first = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    first.encode(torch.tensor([3, 0, 3, 7]))
    first.encode(torch.tensor([0, 7, 8]))
    assert counts == [3, 1]
    again = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    again.encode(torch.tensor([0, 3, 7, 8]))
    assert counts == [3, 1] and len(again.missing(torch.arange(12))) == 8


@pytest.mark.parametrize("reads", [False, True])
def test_layers_that_another_host_has_encoded_are_found(
    tmp_path, source, backbone, processor, reader, reading_processor, reads
):
    encoder, prepares = (reader, reading_processor) if reads else (backbone, processor)
    every = torch.arange(12)

    def cache(root, *taps):
        instructions = Instructions.of_sources([source], prepares) if reads else None
        return FeatureCache(tmp_path / root, source, encoder, prepares, taps, instructions)

    cache("shared", 0, 2).encode(every)
    assert len(cache("shared", 2).missing(every)) == 0 and len(cache("shared", 0, 1, 2).missing(every)) == 12
    cache("shared", 0, 1, 2).encode(every)
    cache("alone", 1).encode(every)
    found, alone = cache("shared", 0, 1, 2), cache("alone", 1)
    for own, other in [(found.vision, alone.vision), (found.language, alone.language)][: 1 + reads]:
        assert torch.equal(own[every][:, 1:2], other[every])
        assert own[every].unbind(1)[0].ne(own[every].unbind(1)[2]).any()


def test_an_interrupted_encoding_goes_on_with_the_rest(tmp_path, source, backbone, processor):
    whole = FeatureCache(tmp_path / "whole", source, backbone, processor, TAPS)
    whole.encode(torch.arange(12), batch_size=4)
    calls = count_images(backbone)

    def interrupt(*_):
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = backbone.model.vision_model.register_forward_pre_hook(interrupt)
    cache = FeatureCache(tmp_path / "parts", source, backbone, processor, TAPS)
    with pytest.raises(KeyboardInterrupt):
        cache.encode(torch.arange(12), batch_size=4)
    hook.remove()
    calls.clear()
    resumed = FeatureCache(tmp_path / "parts", source, backbone, processor, TAPS)
    assert resumed.missing(torch.arange(12)).tolist() == list(range(4, 12))
    resumed.encode(torch.arange(12), batch_size=4)
    assert calls == [4, 4]
    assert torch.equal(resumed.vision[torch.arange(12)], whole.vision[torch.arange(12)])


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
    folders = [FeatureCache(tmp_path, *parts, TAPS).vision.folders[0] for parts in caches]
    folders.append(FeatureCache(tmp_path, source, backbone, processor, (1, 2)).vision.folders[0])
    assert len(set(folders)) == len(caches) + 1
    assert FeatureCache(tmp_path, source, backbone, processor, TAPS).vision.folders[0] == folders[0]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_config", "rms_norm_eps", 1e-3),
        ("text_config", "rope_parameters", {"rope_type": "default", "rope_theta": 100.0}),
        ("vision_config", "layer_norm_eps", 1e-3),
    ],
)
def test_the_same_weights_under_another_config_have_features_of_their_own(
    tmp_path, source, tiny_smolvlm, reader, reading_processor, part, field, value
):
    folder = shutil.copytree(tiny_smolvlm, tmp_path / "backbone")
    config = json.loads((folder / "config.json").read_text())
    config[part][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    other = load_backbone(None, folder)
    assert other.sha256 == reader.sha256
    caches = [FeatureCache(tmp_path, source, backbone, reading_processor, TAPS) for backbone in (reader, other)]
    for cache in caches:
        cache.encode(torch.tensor([0]))
    first, second = (cache.vision[torch.tensor([0])] for cache in caches)
    assert not torch.equal(first, second)


def test_the_same_weights_with_other_tokens_around_images_have_features_of_their_own(
    tmp_path, source, tiny_smolvlm, reader, reading_processor
):
    folder = shutil.copytree(tiny_smolvlm, tmp_path / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "open"
    tokenizer.save_pretrained(folder)
    other = load_backbone(None, folder)
    assert other.frame != reader.frame and other.sha256 == reader.sha256
    folders = [
        FeatureCache(tmp_path, source, backbone, reading_processor, TAPS).vision.folders[0]
        for backbone in (reader, other)
    ]
    assert folders[0] != folders[1]


def test_a_backbone_that_was_moved_or_saved_by_another_version_keeps_its_features(tmp_path, tiny_backbone, backbone):
    folder = shutil.copytree(tiny_backbone, tmp_path / "elsewhere")
    config = json.loads((folder / "config.json").read_text())
    for own in (config, config["vision_config"], config["text_config"]):
        own |= {"transformers_version": "5.0.0", "_name_or_path": "someone/else", "dtype": "float64"}
    (folder / "config.json").write_text(json.dumps(config))
    same = DualEncoderBackbone.from_pretrained(folder, dtype=torch.float32)
    assert same.fingerprint == backbone.fingerprint is not None
    assert DualEncoderBackbone(backbone.model).fingerprint is None


def test_a_dataset_that_has_moved_keeps_its_features(tmp_path, source, backbone, processor):
    moved = replace(source, root=tmp_path / "elsewhere")
    assert (
        FeatureCache(tmp_path, moved, backbone, processor, TAPS).vision.folders[0]
        == FeatureCache(tmp_path, source, backbone, processor, TAPS).vision.folders[0]
    )


def test_features_keep_the_backbones_dtype(tmp_path, source, tiny_backbone, processor):
    backbone = DualEncoderBackbone.from_pretrained(tiny_backbone, dtype=torch.bfloat16)
    cache = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    cache.encode(torch.tensor([0]))
    assert cache.vision[torch.tensor([0])].dtype == torch.bfloat16
    assert cache.bytes_per_step == len(TAPS) * PATCHES * WIDTH * 2


def test_cameras_stand_in_the_order_of_the_checkpoints_embodiment(
    tmp_path, bodies, write_demonstrations, tiny_backbone, backbone
):
    recorded = replace(bodies[0], cameras=["wrist", "front", "back"])
    source = load_trajectories(write_demonstrations(tmp_path / "three", recorded, [3]), frames=True)
    known = replace(bodies[0], cameras=["front", "wrist"])
    processor = PriorVLAProcessor.for_backbone(tiny_backbone, [known], chunk_size=H)
    cache = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    cache.encode(torch.tensor([1]))
    for slot, camera in enumerate(known.cameras):
        alone = PriorVLAProcessor.for_backbone(tiny_backbone, [replace(known, cameras=[camera])], chunk_size=H)
        expected = encode_directly(source, backbone, alone, [(0, 1)], [camera])
        torch.testing.assert_close(cache.vision[torch.tensor([1])][:, :, slot], expected[:, :, 0])


def test_a_dataset_without_frames_or_without_a_camera_is_refused_and_nothing_is_written(
    tmp_path, bodies, source, backbone, tiny_backbone, processor
):
    with pytest.raises(ValueError, match=r"demos was loaded without frames.*frames=True"):
        FeatureCache(tmp_path, load_trajectories(source.root), backbone, processor, TAPS)
    for cameras, message in ((["front", "wrist"], "episode 0 has no camera 'wrist'"), ([], "'small' has no cameras")):
        other = PriorVLAProcessor.for_backbone(tiny_backbone, [replace(bodies[0], cameras=cameras)], chunk_size=H)
        with pytest.raises(ValueError, match=message):
            FeatureCache(tmp_path, source, backbone, other, TAPS)
    assert not list(tmp_path.iterdir())


def test_a_backbone_built_in_memory_or_in_training_has_no_cache(tmp_path, source, backbone, processor):
    with pytest.raises(ValueError, match="built in memory"):
        FeatureCache(tmp_path, source, DualEncoderBackbone(backbone.model), processor, TAPS)
    next(backbone.model.vision_model.parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match=r"being trained .*LiveObservationDataset"):
        FeatureCache(tmp_path, source, backbone, processor, TAPS)


def test_layers_that_the_backbone_does_not_have_are_refused(tmp_path, source, backbone, processor):
    for taps in ((0, 3), (2, 1), ()):
        with pytest.raises(ValueError, match="ascend and lie within 0 to 2"):
            FeatureCache(tmp_path, source, backbone, processor, taps)


# --- folders that are not what their name promises --------------------------------------------------------------------


def edit_key(folder, **fields):
    key = json.loads((folder / "key.json").read_text())
    (folder / "key.json").write_text(json.dumps(key | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit_key(folder, tap=1), "tap=1, expected 0"),
        (lambda folder: edit_key(folder, format=1), "format=1, expected"),
        (lambda folder: edit_key(folder, backbone="0" * 64), "backbone="),
        (lambda folder: (folder / "key.json").write_text("{"), "Expecting"),
        (lambda folder: (folder / "key.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "key.json").unlink(), "No such file"),
        (lambda folder: os.truncate(folder / "features.bin", 64), "features.bin has 64 bytes, expected 12288"),
        (lambda folder: (folder / "done.bin").unlink(), "No such file"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_remedy_and_never_read(
    tmp_path, source, backbone, processor, damage, message
):
    cache = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    cache.encode(torch.arange(12))
    damage(cache.vision.folders[0])
    for read in (
        lambda: cache.vision[torch.tensor([0])],
        lambda: FeatureCache(tmp_path, source, backbone, processor, TAPS),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read()
        assert str(cache.vision.folders[0]) in str(error.value) and "Delete that folder" in str(error.value)
    shutil.rmtree(cache.vision.folders[0])
    FeatureCache(tmp_path, source, backbone, processor, TAPS).encode(torch.arange(12))


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, source, backbone, processor, monkeypatch):
    cache = FeatureCache(tmp_path, source, backbone, processor, TAPS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * cache.bytes_per_step))
    with pytest.raises(OSError, match=r"3 frames need .* GB, the disk has .*frame stride"):
        cache.encode(torch.tensor([1, 4, 7, 4]))
    assert not list(tmp_path.iterdir())
    cache.encode(torch.tensor([1, 4]))
    assert cache.missing(torch.arange(6)).tolist() == [0, 2, 3, 5]


def test_two_processes_may_make_a_folder_at_once(tmp_path, monkeypatch):
    first, second = (FeatureFile(tmp_path, "vision", {}, 2, (3,), torch.float32) for _ in range(2))
    make = tempfile.mkdtemp

    def overtaken(**options):
        monkeypatch.undo()
        second.create()
        second.write(torch.tensor([1]), torch.ones(1, 3))
        return make(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", overtaken)
    first.create()
    assert first.missing(torch.arange(2)).tolist() == [0] and first[torch.tensor([1])].eq(1).all()
    assert list(tmp_path.iterdir()) == [first.folder]


def test_features_take_disk_space_only_where_they_are_encoded(tmp_path):
    file = FeatureFile(tmp_path, "vision", {}, count=1000, entry_shape=(1, 1024), dtype=torch.float32)
    file.create()
    file.write(torch.tensor([7, 900]), torch.ones(2, 1, 1024))
    stored = (file.folder / "features.bin").stat()
    assert stored.st_size == 1000 * 4096 and stored.st_blocks * 512 <= 16 * 4096
    assert file[torch.tensor([900, 7])].eq(1).all()
    assert list(tmp_path.iterdir()) == [file.folder]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_entries_than_memory_could_hold_are_read(tmp_path, dtype):
    memory = Path("/proc/meminfo")
    if not memory.exists():
        pytest.skip("the size of the memory is not known here")
    sizes = dict(line.split(":") for line in memory.read_text().splitlines())
    needed = 2 * 1024 * sum(int(sizes[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    shape = (2, 3, 1 << 16)
    count = needed // (dtype.itemsize * 6 << 16)
    file = FeatureFile(tmp_path, "vision", {}, count, shape, dtype)
    try:
        file.create()
    except OSError as error:
        pytest.skip(f"the file system has no sparse files of that size: {error}")
    if (file.folder / "features.bin").stat().st_blocks * 512 > needed // 100:
        pytest.skip("the file system has no sparse files")
    last, values = torch.tensor([count - 1, 0]), torch.randn(2, *shape).to(dtype)
    file.write(last, values)
    assert torch.equal(file[last], values) and torch.equal(file[last.flip(0)], values.flip(0))


def test_what_is_read_cannot_be_changed_on_disk_by_accident(tmp_path):
    file = FeatureFile(tmp_path, "vision", {}, count=2, entry_shape=(3,), dtype=torch.float32)
    file.create()
    file.write(torch.tensor([0, 1]), torch.ones(2, 3))
    file.write(torch.tensor([1]), torch.zeros(1, 3))  # is there already
    file[torch.tensor([0, 1])].zero_()
    again = FeatureFile(tmp_path, "vision", {}, count=2, entry_shape=(3,), dtype=torch.float32)
    assert again[torch.tensor([0, 1])].eq(1).all()


# --- words that are read after the image ------------------------------------------------------------------------------
@pytest.fixture
def reader(tiny_smolvlm):
    """A backbone that reads words after the image."""
    return load_backbone(None, tiny_smolvlm)


@pytest.fixture
def reading_processor(tiny_smolvlm, bodies):
    return PriorVLAProcessor.for_backbone(tiny_smolvlm, bodies, chunk_size=H)


def reading_cache(root, source, reader, processor):
    return FeatureCache(root, source, reader, processor, TAPS, Instructions.of_sources([source], processor))


def test_words_that_are_read_after_the_image_are_kept_for_every_step(tmp_path, source, reader, reading_processor):
    cache = reading_cache(tmp_path, source, reader, reading_processor)
    assert cache.language.entry_shape == (len(TAPS), 5, 32)  # "press the red button now"
    cache.encode(torch.arange(12))
    for trajectory, step in [(0, 0), (0, 1), (1, 2), (2, 3)]:
        owner = source.trajectories[trajectory]
        image = {"front": owner.frames.read("front", [step])[0]}
        inputs = reading_processor(embodiment="small", images=[image], text=owner.task)
        with torch.no_grad():
            vision = reader.encode_vision(inputs["pixel_values"], inputs["pixel_attention_mask"], TAPS)
            words = reader.encode_language(vision, inputs["input_ids"], inputs["attention_mask"], TAPS)
        entry = cache.first_entry[trajectory][None] + step
        torch.testing.assert_close(cache.vision[entry].flatten(2, 3), vision.hidden_states)
        torch.testing.assert_close(cache.language[entry], words.hidden_states[:, :, :5])
    same_words = cache.language[torch.tensor([0, 1])]
    assert not torch.allclose(same_words[0, 1], same_words[1, 1])  # but another image


def test_words_join_a_cache_of_images_without_changing_it(tmp_path, source, reader, reading_processor):
    images = FeatureCache(tmp_path, source, reader, reading_processor, TAPS)
    images.encode(torch.arange(12), batch_size=5)
    before = images.vision[torch.arange(12)].clone()
    cache = reading_cache(tmp_path, source, reader, reading_processor)
    assert cache.vision.folders[0] == images.vision.folders[0] and len(cache.missing(torch.arange(12))) == 12
    words = sum(file.bytes_per_entry for file in cache.language.files)
    assert cache.bytes_per_step == images.bytes_per_step + words
    cache.encode(torch.arange(7), batch_size=2)
    assert cache.missing(torch.arange(12)).tolist() == list(range(7, 12))
    assert torch.equal(cache.vision[torch.arange(12)], before)


def test_other_words_are_another_cache_beside_the_same_images(tmp_path, source, reader, reading_processor):
    known = reading_cache(tmp_path, source, reader, reading_processor)
    for tasks in (["open the door"] * 3, ["open the drawer"] * 3):
        trajectories = [
            replace(trajectory, task=task) for trajectory, task in zip(source.trajectories, tasks, strict=True)
        ]
        other = reading_cache(tmp_path, replace(source, trajectories=trajectories), reader, reading_processor)
        assert (
            other.vision.folders[0] == known.vision.folders[0]
            and other.language.folders[0] != known.language.folders[0]
        )
    words = Instructions.of_sources([source], reading_processor)
    longer = Instructions(words.text_of, pad(words.input_ids, (0, 3)), pad(words.attention_mask, (0, 3)))
    padded = FeatureCache(tmp_path, source, reader, reading_processor, TAPS, longer)
    assert padded.language.folders[0] != known.language.folders[0]


def test_words_that_are_read_alone_are_not_cached(tmp_path, source, backbone, processor):
    assert reading_cache(tmp_path, source, backbone, processor).language is None
