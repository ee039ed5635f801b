"""How a checkpoint names its frozen backbone: by where everybody finds it, never by a path of one machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .expert_layout import layers_read

BACKBONE_KEYS = (
    "source",
    "name",
    "revision",
    "sha256",
    "dtype",
    "image_size",
    "tokens_per_image",
    "prompt",
    "around_images",
    "quantization",
)
BACKBONE_SOURCES = ("hub", "package")
QUANTIZATIONS = ("int8", "nf4")

_PATH = re.compile(r"[/.~]|[A-Za-z]:|.*\\")


def require_backbone_reference(reference: Mapping[str, Any]) -> None:
    """Raises ValueError with the remedy when `source` is not one of BACKBONE_SOURCES, `name` is missing or a path, or
    `quantization` not one of QUANTIZATIONS."""
    if missing := [key for key in ("source", "name") if reference.get(key) is None]:
        raise ValueError(f"backbone has no {missing[0]!r}: it needs source ({', '.join(BACKBONE_SOURCES)}) and name")
    source, name = reference["source"], reference["name"]
    if source not in BACKBONE_SOURCES:
        raise ValueError(f"backbone source={source!r} is unknown, use {' or '.join(BACKBONE_SOURCES)}")
    if not isinstance(name, str) or not name or _PATH.match(name):
        raise ValueError(
            f"backbone name={name!r} must be a Hub id or a packaged backbone's name, never a path of one machine: pass "
            "a folder as backbone=... when loading"
        )
    require_quantization(reference.get("quantization"))


def fields_for_backbone(
    reference: Mapping[str, Any], fusion: str = "latent", taps: Iterable[int | str] = ()
) -> dict[str, Any]:
    """Fields of a new `PriorVLAConfig` for the backbone that `reference`, from `describe_backbone`, is about.

    Which backbone, how many of its first layers are used (see `layers_read`), its sizes, and that its tokens are told
    where they lie and brought to one scale. `fusion`, `taps`: the host, and `tap_layers` that are asked for.
    Raises ValueError when one of these is no layer's number or name.
    """
    return {"backbone": {key: reference[key] for key in BACKBONE_KEYS}, **reading_fields(reference, fusion, taps)}


def reading_fields(shape: Mapping[str, Any], fusion: str, taps: Iterable[int | str]) -> dict[str, Any]:
    """As `fields_for_backbone` of a backbone's `shape` alone, without its reference."""
    return {
        "backbone_layers": layers_read(shape["policy_layers"], fusion, taps),
        "vision_hidden_size": shape["vision_hidden_size"],
        "text_hidden_size": shape["text_hidden_size"],
        "image_grid": list(shape["image_grid"]),
        "normalize_features": True,
    }


def require_quantization(kind: Any) -> None:
    """Raises ValueError unless `kind` is None or one of QUANTIZATIONS, see `quantize_backbone`.

    torchao's int4 is none of them, our choice: its maps run on a GPU alone, and peft trains no adapters beside them.
    """
    if kind is not None and kind not in QUANTIZATIONS:
        raise ValueError(f"backbone quantization={kind!r} is unknown, use {', '.join(QUANTIZATIONS)} or None")


__all__ = [
    "BACKBONE_KEYS",
    "BACKBONE_SOURCES",
    "QUANTIZATIONS",
    "fields_for_backbone",
    "reading_fields",
    "require_backbone_reference",
    "require_quantization",
]
