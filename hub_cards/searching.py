"""Finding priors that others published: by their tags, with the metrics that their cards tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from .card import KIND_TEMPLATES, LIBRARY
from .checkpoints import CardKind

PRIORS = ("action-prior", "vision-action-prior")


@dataclass(frozen=True)
class PublishedPrior:
    """A checkpoint on the Hub, in the words of its card.

    Attributes:
        name: its Hub id, for `AutoModel.from_pretrained` and `priorvla train --prior`.
        kind: `action-prior`, `vision-action-prior`, `vla` or `adapter`.
        embodiments: in the order of the model's embodiment id; of a card without that, none.
        license: of the weights; None when the card names none.
        metrics: names (`velocity_loss/arm`) to numbers, as `metrics.json` has them.
        base_models: Hub ids of what it started from, and of its backbone.
        downloads: in the last 30 days, as the Hub counts.
        private: whether only you and your organisation see it.
    """

    name: str
    kind: CardKind
    embodiments: tuple[str, ...] = ()
    license: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    base_models: tuple[str, ...] = ()
    downloads: int = 0
    private: bool = False


def list_priors(
    embodiment: str | None = None,
    kind: CardKind | None = None,
    *,
    author: str | None = None,
    search: str | None = None,
    token: str | None = None,
) -> list[PublishedPrior]:
    """Published priors, the most downloaded first. One listing of the Hub; no file is downloaded.

    Args:
        embodiment: only those that know this body, by its name.
        kind: only `action-prior` or only `vision-action-prior`; `vla` finds policies and `adapter` what lies beside
            them. Default: both kinds of prior.
        author: only those of this user or organisation.
        search: only those with this in their name.
        token: default: that of HF_TOKEN or of `hf auth login`; with one, your private ones are found too.

    Raises:
        ValueError: on an unknown kind.
        OSError: when the Hub cannot be asked.
    """
    if kind is not None and kind not in KIND_TEMPLATES:
        raise ValueError(f"kind {kind!r} is unknown, use one of {', '.join(KIND_TEMPLATES)}")
    tags = [LIBRARY, *(tag for tag in (kind, embodiment) if tag is not None)]
    models = HfApi(token=token).list_models(filter=tags, author=author, search=search, cardData=True)
    kinds = (kind,) if kind else PRIORS
    found = [prior for model in models if (prior := _read(model)) and prior.kind in kinds and _knows(prior, embodiment)]
    return sorted(found, key=lambda prior: (-prior.downloads, prior.name))


def _knows(prior: PublishedPrior, embodiment: str | None) -> bool:
    """A body's tag may mean something else, too: where the card tells the bodies, they count."""
    return embodiment is None or not prior.embodiments or embodiment in prior.embodiments


def _read(model: ModelInfo) -> PublishedPrior | None:
    """What a card says, malformed things left out: it is somebody else's. None when it is of none of our kinds."""
    card: dict[str, Any] = model.card_data.to_dict() if model.card_data else {}
    told = card.get(LIBRARY)
    told = told if isinstance(told, Mapping) else {}
    said = [told["kind"]] if "kind" in told else model.tags or []
    kinds: Iterable[CardKind] = KIND_TEMPLATES  # type: ignore[assignment]  # its keys
    named = [name for name in kinds if name in said]
    kind = named[-1] if named else None  # an adapter is tagged as the policy, too, that it makes of its base
    if kind is None:
        return None
    metrics = told.get("metrics")
    license_ = card.get("license")
    return PublishedPrior(
        name=model.id,
        kind=kind,
        embodiments=_names(told.get("embodiments")),
        license=license_ if isinstance(license_, str) else None,
        metrics={
            str(name): float(value)
            for name, value in (metrics if isinstance(metrics, Mapping) else {}).items()
            if isinstance(value, (int, float))
        },
        base_models=_names(card.get("base_model")),
        downloads=model.downloads or 0,
        private=bool(model.private),
    )


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


__all__ = ["PublishedPrior", "list_priors"]
