"""From a reference in a checkpoint's config to the very backbone it was trained with, and back."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from ..configuration.backbone_reference import require_backbone_reference
from .backbone_features import Backbone, LanguageFeatures, VisionFeatures
from .backbone_files import (
    backbone_folder,
    backbone_model_type,
    download_backbone,
    read_backbone_config,
    weights_sha256,
)
from .backbone_quantization import quantize_backbone
from .dual_encoder import DualEncoderBackbone
from .generative_backbone import GenerativeBackbone
from .idefics3_backbone import Idefics3Backbone
from .image_processors import made_image_size
from .internvl_backbone import InternVLBackbone
from .llava_backbone import LlavaBackbone
from .packaged_backbones import packaged_backbone_folder
from .paligemma_backbone import Gemma3Backbone, PaliGemmaBackbone
from .prompt_format import PromptFormat
from .qwen_vl_backbone import QwenVLBackbone

ADAPTERS: tuple[type[Backbone], ...] = (
    DualEncoderBackbone,
    Idefics3Backbone,
    PaliGemmaBackbone,
    Gemma3Backbone,
    QwenVLBackbone,
    InternVLBackbone,
    LlavaBackbone,
)

logger = logging.get_logger(__name__)

PROMPT_FIRST = "cannot encode images without a text: {}, so that a vision-action prior would depend on the instruction"
RUNNING_STATE = (
    "keeps in most layers of its language model one running state instead of keys: an absent camera or padding moves "
    "that state on, and cannot be masked out of it afterwards"
)
# Kinds that there will be no adapter for, and why.
REFUSED = {
    "instructblip": PROMPT_FIRST.format("its Q-Former reads the prompt while it looks"),
    "instructblipvideo": PROMPT_FIRST.format("its Q-Former reads the prompt while it looks"),
    "vilt": PROMPT_FIRST.format("image patches and words go through one encoder together"),
    "qwen3_5": RUNNING_STATE,
    "qwen3_5_moe": RUNNING_STATE,
    "lfm2_vl": "reads in its convolution layers the positions right before a token whatever the mask says: behind an "
    "absent camera or padding those are zeros instead of tokens",
}


def load_backbone(
    reference: dict[str, Any] | None, override: str | os.PathLike[str] | nn.Module | None = None
) -> Backbone:
    """The backbone that a checkpoint's `config.backbone` refers to, checked to be the one it was trained with.

    Args:
        reference: `source` (`hub` or `package`), `name`, and optionally the other keys of `describe_backbone`. None
            only together with `override`.
        override: a folder, a Hub repository or a module to take it from instead. The check stays, except for a module
            that was built in memory and so has no file to compare.

    Raises:
        ValueError: when neither is given, the reference is malformed, the weights are not those of the reference, or
            the kind of backbone is unknown or cannot see without reading.
        TypeError: when a module is given that no adapter takes.
        OSError: when the backbone cannot be found or downloaded.
        ImportError: when a packaged backbone's distribution is not installed.
    """
    if isinstance(override, Backbone):
        backbone = override
    elif isinstance(override, nn.Module):
        backbone = _adapt(override, reference or {})
    elif override is None and reference is None:
        raise ValueError("the config names no backbone: pass backbone=<folder, Hub repository or module>")
    else:
        revision = reference.get("revision") if reference and override is None else None
        folder = backbone_folder(override if override is not None else _resolve(reference or {}), revision)
        adapter = adapter_of(backbone_model_type(folder), str(folder))
        backbone = adapter.from_folder(folder, **_settings(reference or {}, adapter))
        quantize_backbone(backbone, (reference or {}).get("quantization"))
    if reference is not None:
        _require_same_weights(reference, backbone.sha256, override)
        _require_same_use(reference, backbone)
    return backbone


def describe_backbone(
    path: str | os.PathLike[str],
    *,
    source: str,
    name: str,
    revision: str | None = None,
    dtype: str | None = None,
    image_size: tuple[int, int] | None = None,
    tokens_per_image: int | None = None,
    prompt: str | None = None,
    quantization: str | None = None,
) -> dict[str, Any]:
    """The reference (JSON) under which the backbone in folder `path` goes into `config.backbone`.

    Args:
        image_size: (height, width) in pixels; None: that of the image processor in the folder, else the config's.
        tokens_per_image: at most so many, see `pooled_grid`; None: as many as the backbone makes.
        prompt: `chat` or `raw`, of generative backbones; see `GenerativeBackbone.prompt_format`.
        quantization: `int8`, `nf4`, or None for the weights as they are; see `quantize_backbone`.

    Returns:
        The reference with what these came to, and the sizes a model must be built for, those of `BackboneShape`.

    Raises:
        ValueError: `name` is a path, `source` unknown, the kind of backbone refused, or a setting not one of its own.
    """
    require_backbone_reference({"source": source, "name": name, "quantization": quantization})
    folder = Path(path)
    adapter = adapter_of(backbone_model_type(folder), str(folder))
    config = read_backbone_config(folder)
    prompted = adapter.prompt_format(folder, prompt)
    around = None if prompted is None else [prompted.start, prompted.before, prompted.after]
    shape = adapter.shape_of(config, image_size or made_image_size(str(folder)), tokens_per_image)
    return {
        "source": source,
        "name": name,
        "revision": revision,
        "sha256": weights_sha256(folder),
        "dtype": dtype,
        "prompt": None if prompted is None else prompted.name,
        "around_images": around,
        "quantization": quantization,
        **asdict(shape),
        "image_size": list(shape.image_size),
        "image_grid": list(shape.image_grid),
        "tokens_per_image": shape.tokens_per_image,
    }


def adapter_of(model_type: str, place: str) -> type[Backbone]:
    """The adapter that serves a kind of model.

    Raises ValueError with the reason when that kind cannot see without reading, with the known ones when it is unknown.
    """
    if reason := REFUSED.get(model_type):
        raise ValueError(
            f"{place}: a backbone of model_type {model_type!r} {reason}. Use one that sees first, reads then and keeps "
            "the keys of every token"
        )
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(kind for adapter in ADAPTERS for kind in adapter.model_types)
    raise ValueError(
        f"{place}: model_type {model_type!r} is unknown, there are adapters for: {known}. A vision and a text encoder "
        "are joined with VisionTextDualEncoderModel.from_vision_text_pretrained(...); save that"
    )


def used_before(reference: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Arguments with which `describe_backbone` has the backbone in `folder` used as `reference`, or {}, says."""
    settings = _settings(reference, adapter_of(backbone_model_type(folder), str(folder)))
    prompt = settings["prompt"]
    prompt = prompt.name if isinstance(prompt, PromptFormat) else prompt
    return {**settings, "prompt": prompt, "quantization": reference.get("quantization")}


def _settings(reference: dict[str, Any], adapter: type[Backbone]) -> dict[str, Any]:
    """What of a reference an adapter is made with."""
    size, around, prompt = reference.get("image_size"), reference.get("around_images"), reference.get("prompt")
    if around is not None:
        prompt = PromptFormat(around[0], around[1], around[2], name=prompt or "raw")
    elif reference and "prompt" not in reference and issubclass(adapter, GenerativeBackbone):
        prompt = "raw"  # as checkpoints had it that do not say
    return {
        "dtype": reference.get("dtype"),
        "image_size": None if size is None else (int(size[0]), int(size[1])),
        "tokens_per_image": reference.get("tokens_per_image"),
        "prompt": prompt,
    }


def _require_same_use(reference: dict[str, Any], backbone: Backbone) -> None:
    """Raises ValueError when a backbone is used otherwise than the reference says: by a module that was given."""
    found = {
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "image_size": list(backbone.image_size),
        "tokens_per_image": backbone.tokens_per_image,
        "around_images": None if backbone.prompt is None else list(backbone.prompt[:3]),
    }
    if (kind := reference.get("quantization")) != backbone.quantization:
        raise ValueError(
            f"the backbone has quantization={backbone.quantization}, the model was built for {kind}: pass its folder, "
            "or load with backbone_quantization="
        )
    for name, value in found.items():
        expected = reference.get(name)
        if expected is not None and value is not None and expected != value:
            raise ValueError(
                f"the backbone has {name}={value}, the model was built for {expected}: pass its folder, or "
                "load_backbone(model.config.backbone, folder)"
            )


def _adapt(model: nn.Module, reference: dict[str, Any]) -> Backbone:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise TypeError(f"backbone is a {type(model).__name__}, pass a model of transformers or a folder")
    adapter = adapter_of(str(model_type), type(model).__name__)
    settings = _settings(reference, adapter)
    backbone = adapter(model, settings["image_size"], tokens_per_image=settings["tokens_per_image"])
    if backbone.language_reads_vision:
        logger.warning_once(
            f"a {type(model).__name__} in memory brings no tokenizer, so that its images stand without the tokens that "
            "its family puts around them: pass its folder as backbone= where a checkpoint was trained with them"
        )
    return backbone


def _resolve(reference: dict[str, Any]) -> str | Path:
    require_backbone_reference(reference)
    name: str = reference["name"]
    return packaged_backbone_folder(name) if reference["source"] == "package" else name


def _require_same_weights(reference: dict[str, Any], found: str | None, override: object) -> None:
    expected = reference.get("sha256")
    if expected is None or found is None or found == expected:
        return
    place = "the one passed as backbone=" if override is not None else "the one found there now"
    raise ValueError(
        f"backbone {reference.get('name')!r} has changed: the checkpoint was trained with weights of sha256 "
        f"{expected}, {place} has {found}. Pass backbone=<folder with the original weights>, pin its "
        "revision, or train anew"
    )


__all__ = [
    "Backbone",
    "DualEncoderBackbone",
    "LanguageFeatures",
    "VisionFeatures",
    "adapter_of",
    "describe_backbone",
    "download_backbone",
    "load_backbone",
    "used_before",
    "weights_sha256",
]
