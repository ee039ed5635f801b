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
    processed_image_size,
    read_backbone_config,
    weights_sha256,
)
from .dual_encoder import DualEncoderBackbone
from .generative_backbone import Idefics3Backbone
from .packaged_backbones import packaged_backbone_folder

ADAPTERS: tuple[type[Backbone], ...] = (DualEncoderBackbone, Idefics3Backbone)

logger = logging.get_logger(__name__)

# Kinds whose image features are made with the prompt at hand, and where it comes in.
READS_PROMPT_FIRST = {
    "instructblip": "its Q-Former reads the prompt while it looks",
    "instructblipvideo": "its Q-Former reads the prompt while it looks",
    "vilt": "image patches and words go through one encoder together",
}


def load_backbone(
    reference: dict[str, Any] | None, override: str | os.PathLike[str] | nn.Module | None = None
) -> Backbone:
    """The backbone that a checkpoint's `config.backbone` refers to, checked to be the one it was trained with.

    Args:
        reference: `source` (`hub` or `package`), `name`, and optionally `revision`, `sha256`, `dtype`; see
            `describe_backbone`. None only together with `override`.
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
        backbone = _adapt(override)
    elif override is None and reference is None:
        raise ValueError("the config names no backbone: pass backbone=<folder, Hub repository or module>")
    else:
        revision = reference.get("revision") if reference and override is None else None
        folder = backbone_folder(override if override is not None else _resolve(reference or {}), revision)
        adapter = adapter_of(backbone_model_type(folder), str(folder))
        backbone = adapter.from_pretrained(folder, dtype=reference.get("dtype") if reference else None)
    if reference is not None:
        _require_same_weights(reference, backbone.sha256, override)
    return backbone


def describe_backbone(
    path: str | os.PathLike[str], *, source: str, name: str, revision: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """The reference (JSON) under which the backbone in folder `path` goes into `config.backbone`.

    Besides what `load_backbone` reads it tells the sizes a model must be built for, those of `BackboneShape`. Raises
    ValueError when `name` is a path, `source` unknown, or the kind of backbone refused.
    """
    require_backbone_reference({"source": source, "name": name})
    folder = Path(path)
    adapter = adapter_of(backbone_model_type(folder), str(folder))
    shape = adapter.shape_of(read_backbone_config(folder), processed_image_size(folder))
    return {
        "source": source,
        "name": name,
        "revision": revision,
        "sha256": weights_sha256(folder),
        "dtype": dtype,
        **asdict(shape),
        "image_size": list(shape.image_size),
    }


def adapter_of(model_type: str, place: str) -> type[Backbone]:
    """The adapter that serves a kind of model.

    Raises ValueError with the reason when that kind cannot see without reading, with the known ones when it is unknown.
    """
    if reason := READS_PROMPT_FIRST.get(model_type):
        raise ValueError(
            f"{place}: a backbone of model_type {model_type!r} cannot encode images without a text: {reason}, so that "
            "a vision-action prior would depend on the instruction. Use one that sees first and reads then"
        )
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(kind for adapter in ADAPTERS for kind in adapter.model_types)
    raise ValueError(
        f"{place}: model_type {model_type!r} is unknown, there are adapters for: {known}. A vision and a text encoder "
        "are joined with VisionTextDualEncoderModel.from_vision_text_pretrained(...); save that"
    )


def _adapt(model: nn.Module) -> Backbone:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise TypeError(f"backbone is a {type(model).__name__}, pass a model of transformers or a folder")
    backbone = adapter_of(str(model_type), type(model).__name__)(model)
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
    "weights_sha256",
]
