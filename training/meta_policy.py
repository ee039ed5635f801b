"""The model, the backbone and a batch of a training recipe on the meta device: as they will be, without contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from ..configuration.backbone_reference import reading_fields
from ..configuration.configuration_priorvla import PriorVLAConfig
from ..configuration.expert_layout import Insertion, taps_given
from ..configuration.published_backbones import list_published_backbones, published_backbone
from ..hub_cards.checkpoints import kind_of
from ..modeling_priorvla.backbone import Backbone, LanguageFeatures, VisionFeatures, adapter_of
from ..modeling_priorvla.flow_draws import FlowDraws
from ..modeling_priorvla.image_processors import made_image_size
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES

META = torch.device("meta")


@dataclass(frozen=True)
class KnownBackbone:
    """A backbone's transformers config, the image size of its processor if it says one, and where both are from."""

    config: Any
    image_size: tuple[int, int] | None
    origin: str


def known_backbone(name: str) -> KnownBackbone:
    """What is known of a backbone without its weights: a folder's own config, the Hub cache's, or a published shape.

    Raises ValueError naming the published ones when it is none of these.
    """
    published = published_backbone(name)
    if name in PACKAGED_BACKBONES:  # to make its folder out of packages takes a while
        assert published is not None
        return KnownBackbone(AutoConfig.for_model(**published.config), published.image_size, "out of packages")
    is_folder = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        if is_folder:
            raise
        if published is None:
            raise ValueError(
                f"backbone {name!r} is no folder, not in the Hub cache, and its published shape is not known here; "
                f"known are {', '.join(list_published_backbones())}. Fetch its config: hf download {name} "
                "--include '*.json'"
            ) from None
        return KnownBackbone(AutoConfig.for_model(**published.config), published.image_size, "published shape")
    return KnownBackbone(
        config, made_image_size(name), "its own config" if is_folder else "its config in the Hub cache"
    )


def meta_backbone(
    known: KnownBackbone,
    dtype: str | None = None,
    image_size: tuple[int, int] | None = None,
    tokens_per_image: int | None = None,
) -> Backbone:
    """The adapter around the model of `known.config`; None is its own dtype, image size and number of tokens.

    Raises ValueError when no adapter serves it.
    """
    adapter = adapter_of(known.config.model_type, known.origin)
    with META:
        model = AutoModel.from_config(known.config, dtype=dtype or known.config.dtype or "float32")
    return adapter(model, image_size or known.image_size, tokens_per_image=tokens_per_image)


def meta_policy(
    fields: Mapping[str, Any], backbone: Backbone, prior: str | None = None, insertion: str | None = None
) -> PriorVLAModel:
    """The model of `fields`, or what comes of a `prior` (folder or Hub id) with them, with its backbone attached."""
    shape = reading_fields(vars(backbone), fields.get("fusion", "latent"), taps_given(fields))
    with META:
        start = None if prior is None else AutoConfig.from_pretrained(prior)
        if start is None:
            model = PriorVLAModel(PriorVLAConfig(**{**shape, **fields}))
        elif kind_of(start) == "action-prior":
            model = PriorVLAModel.from_action_prior(ActionPriorModel(start), **{**shape, **fields})
        else:
            kept = {name: value for name, value in fields.items() if name not in ("language", "fusion", "num_cameras")}
            model = PriorVLAModel.from_vision_action_prior(
                PriorVLAModel(start), insertion=cast(Insertion, insertion or "after"), **kept
            )
        backbone.truncate(model.config.taps[-1])
        return model.attach_backbone(backbone).train()


def meta_batch(model: PriorVLAModel, windows: int, words: int, *, cached: bool) -> dict[str, Any]:
    """Arguments of `model.forward`: `windows` windows, each with an instruction of its own of `words` tokens.

    `cached`: backbone features, as they come out of a feature cache; otherwise images and words.
    """
    config, backbone = model.config, model.backbone
    assert backbone is not None
    expert = config.expert
    steps, dims = expert.chunk_size, expert.action_dim
    numbers = {
        "actions": (windows, steps, dims),
        "state": (windows, expert.state_dim),
        "states": (windows, steps, expert.state_dim),
    }
    if config.use_history:
        past = config.history_size
        numbers |= {"history_actions": (windows, past, dims), "history_states": (windows, past, expert.state_dim)}
    batch: dict[str, Any] = {name: torch.empty(shape, device=META) for name, shape in numbers.items()}
    batch["embodiment_ids"] = torch.arange(windows) % len(expert.embodiments)
    batch["action_mask"] = torch.ones(windows, steps, dims, dtype=torch.bool)
    if config.use_history:
        batch["history_mask"] = torch.ones(windows, config.history_size, dims, dtype=torch.bool)
    seen = _features if cached else _observations
    return batch | seen(model, backbone, windows, words)


def meta_draws(model: PriorVLAModel, windows: int) -> FlowDraws:
    """What chance decides in a step, see `FlowDraws`."""
    expert = model.config.expert
    shapes = ((windows, expert.chunk_size, expert.action_dim), (windows,), (windows,), (windows, expert.latent_dim))
    return FlowDraws(*(torch.empty(shape, device=META) for shape in (*shapes, (windows,))))


def _observations(model: PriorVLAModel, backbone: Backbone, windows: int, words: int) -> dict[str, Tensor]:
    cameras = model.config.num_cameras
    seen = {
        "pixel_values": torch.empty(windows, cameras, 3, *backbone.image_size, device=META),
        "pixel_attention_mask": torch.ones(windows, cameras, dtype=torch.bool),
    }
    if model.config.language:
        seen["input_ids"] = torch.arange(windows)[:, None].repeat(1, words)
        seen["attention_mask"] = torch.ones(windows, words, dtype=torch.long)
    return seen


def _features(model: PriorVLAModel, backbone: Backbone, windows: int, words: int) -> dict[str, Any]:
    taps, cameras = model.config.taps, model.config.num_cameras
    tokens = cameras * backbone.tokens_per_image

    def states(layers: int, count: int, width: int) -> tuple[Tensor, Tensor]:
        shape = (windows, layers, count, width)
        return torch.empty(shape, dtype=backbone.dtype, device=META), torch.ones(windows, count, dtype=torch.bool)

    seen: dict[str, Any] = {
        "vision_features": VisionFeatures(
            *states(len(taps), tokens, backbone.vision_hidden_size), num_cameras=cameras, taps=taps
        )
    }
    if model.config.language:
        layers = len(taps) if backbone.language_reads_vision else 1
        own = taps if layers > 1 else None
        seen["language_features"] = LanguageFeatures(*states(layers, words, backbone.text_hidden_size), taps=own)
    return seen


__all__ = ["KnownBackbone", "known_backbone", "meta_backbone", "meta_batch", "meta_draws", "meta_policy"]
