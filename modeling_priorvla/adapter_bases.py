"""Whether a model is the base that an adapter was trained on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..configuration.configuration_priorvla import PriorVLAConfig
from .adapter_places import weights_sha256

if TYPE_CHECKING:
    from .attached_backbone import BackbonePreTrainedModel


def base_sha256(model: BackbonePreTrainedModel, base: str | None) -> str | None:
    """Of the weights in the folder `base`, else of those that `model` was loaded from; None where neither is known."""
    encoder = model.config.use_history
    if base is not None and os.path.isdir(base):
        return weights_sha256(base, encoder=encoder)
    if model.loaded_from is None:
        return None
    place, hub = model.loaded_from
    return weights_sha256(place, encoder=encoder, **hub)


def require_same_base(theirs: PriorVLAConfig, found: str | None, place: str | os.PathLike[str]) -> None:
    """Adapters of earlier releases do not tell, and a model that was never saved has nothing to compare with."""
    told = getattr(theirs, "adapter_base_sha256", None)
    if told is not None and found is not None and told != found:
        raise ValueError(
            f"{place}: this adapter belongs to another base: it was trained on weights of SHA-256 {told[:12]}, these "
            f"are {found[:12]}. Load the base that it was trained on, or train it again on this one"
        )


def overrides(config: Any, place: str | os.PathLike[str], hub: dict[str, Any]) -> dict[str, Any]:
    """The fields that AutoModel was told to set, in the config that it made of the adapter's folder or the base."""
    if config is None:
        return {}
    source = config._name_or_path
    plain = PriorVLAConfig.from_pretrained(source, **(hub if source == str(place) else {**hub, "revision": None}))
    before = plain.to_dict()
    return {
        field: value
        for field, value in config.to_dict().items()
        if field in before and field not in ("dtype", "expert") and value != before[field]
    }


__all__ = ["base_sha256", "overrides", "require_same_base"]
