"""Which kind every expert layer is and which backbone layer it reads, on every rung; stored in configs, computed once.

Backbone layers are numbered as hidden states are: 0 is the embeddings, n the last layer's output after its final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

EMBEDDINGS = ("embeddings", "embed_tokens")  # what transformers calls what comes before the first layer

Insertion = Literal["before", "after", "token"]
INSERTIONS: tuple[Insertion, ...] = ("before", "after", "token")


def tap_of(layer: int | str) -> int:
    """The number of a backbone layer that is named as transformers names its module: `layers.11` is 12.

    `embeddings` and `embed_tokens` are 0. Raises ValueError on another name, also on one with more before it: taps are
    of one stack of layers, and a name in another one would be taken for it.
    """
    if isinstance(layer, int):
        return layer
    stack, _, last = layer.rpartition(".")
    if layer in EMBEDDINGS:
        return 0
    if stack.isidentifier() and last.isdecimal():
        return int(last) + 1
    raise ValueError(
        f"tap_layers has {layer!r}: give a layer's number, or its name like 'layers.11' (12) or 'embed_tokens' (0)"
    )


def taps_given(fields: Mapping[str, Any]) -> list[int | str]:
    """`expert.tap_layers` among the fields of a `PriorVLAConfig`, if they are there and could be taps."""
    expert = fields.get("expert")
    taps = expert.get("tap_layers") if isinstance(expert, Mapping) else None
    return [tap for tap in taps if isinstance(tap, int | str)] if isinstance(taps, list | tuple) else []


def layers_read(policy_layers: int, fusion: str, taps: Iterable[int | str] = ()) -> int:
    """How many of a backbone's first layers are used: its `policy_layers`, and as many more as `taps` ask for.

    In `cross`, where every layer reads the last that is used, `taps` alone decide. Raises ValueError as `tap_of`.
    """
    asked = [tap_of(tap) for tap in taps]
    return max(asked) if asked and fusion == "cross" else max([policy_layers, *asked])


def even_taps(fusion: str, count: int, backbone_layers: int) -> list[int]:
    """The backbone layers that `count` expert layers read: evenly spaced up to the last (paper B), in `cross` the last.

    More expert layers than backbone layers share some.
    """
    if fusion == "cross":
        return [backbone_layers] * count
    return [max(1, round((index + 1) * backbone_layers / count)) for index in range(count)]


def seeing_layout(fusion: str, language: bool, count: int, backbone_layers: int) -> dict[str, list[Any]]:
    """`expert_layers` and `tap_layers` of `count` layers that all see, and with `language` all read the instruction."""
    kind = "vision_language" if language else "vision"
    return {"expert_layers": [kind] * count, "tap_layers": even_taps(fusion, count, backbone_layers)}


def inserted_layout(
    fusion: str, taps: list[int], backbone_layers: int, insertion: Insertion
) -> tuple[dict[str, list[Any]], list[int]]:
    """Rung 3 out of rung 2: a new language-aware layer `before` or `after` each inherited one, whose taps stay.

    A new layer reads halfway between its inherited neighbours (our choice; paper B spaces all taps evenly, which would
    move those of the inherited). With `token` there is no new layer: the inherited ones read the instruction
    themselves, paper B's ablation.

    Returns:
        The layout, and the position in it of every inherited layer.
    """
    if insertion not in INSERTIONS:
        raise ValueError(f"insertion={insertion!r} is unknown, use {', '.join(INSERTIONS)}")
    if insertion == "token":
        return {"expert_layers": ["vision_language"] * len(taps), "tap_layers": list(taps)}, list(range(len(taps)))
    edges = [0, *taps] if insertion == "before" else [*taps, backbone_layers]
    new = [backbone_layers if fusion == "cross" else (low + high + 1) // 2 for low, high in pairwise(edges)]
    pairs = [("vision_language", tap) for tap in new], [("vision", tap) for tap in taps]
    first, second = pairs if insertion == "before" else pairs[::-1]
    layers = [layer for both in zip(first, second, strict=True) for layer in both]
    layout: dict[str, list[Any]] = {
        "expert_layers": [kind for kind, _ in layers],
        "tap_layers": [tap for _, tap in layers],
    }
    return layout, [index for index, (kind, _) in enumerate(layers) if kind == "vision"]


__all__ = [
    "INSERTIONS",
    "Insertion",
    "even_taps",
    "inserted_layout",
    "layers_read",
    "seeing_layout",
    "tap_of",
    "taps_given",
]
