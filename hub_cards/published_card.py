"""The card that a checkpoint is published with: a new one or a trained one's, with what a search finds it by."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig

from ..configuration.embodiment import Embodiment
from .card import KIND_TAGS, LIBRARY, create_card, validate_card
from .card_evaluation import model_index, protocol, task_rows
from .card_pictures import SUCCESS
from .card_places import linked, with_base, with_checkpoint, with_evaluation, with_license, with_title
from .card_text import render_section
from .checkpoints import MODEL_TYPES, is_hub_id, kind_of
from .privacy import scrub

ADDED = ("metrics", "base_model", "name", "evaluation")  # what a card that is given can still be told


def published_card(
    config: PreTrainedConfig,
    card: ModelCard | None,
    license: str | None,  # noqa: A002, the Hub's word for it
    embodiments: Sequence[Embodiment],
    parameters: int,
    repo: str | None,
    values: Mapping[str, Any],
    adapter: bool = False,
) -> ModelCard:
    """The card of a checkpoint at `repo` (None: in a folder): `card` with `values` added, or one made from them.

    Its header gets a block `priorvla` with kind, embodiments and metrics, which `list_priors` reads, and the tag `lora`
    when adapters were trained on the backbone or the checkpoint is an `adapter`; its snippet loads from `repo`. What
    somebody has written into a given card stays: see `card_places`.

    Raises:
        ValueError: there is no licence, `values` hold something that only a new card can say, there is no card for the
            model's kind, or the card is refused by `validate_card`.
    """
    if card is None:
        card = _new_card(config, license, embodiments, parameters, values)
    else:
        card = _amended(card, license, values, adapter)
    if getattr(config, "model_type", None) in MODEL_TYPES:
        metrics = values.get("metrics") or (card.data.get(LIBRARY) or {}).get("metrics") or {}
        names = [entry.name for entry in embodiments]
        kind = "adapter" if adapter else kind_of(config)
        card.data[LIBRARY] = {"kind": kind, "embodiments": names, "metrics": _numbers(metrics)}
    lora = getattr(config, "backbone_training", None) == "lora"
    tags = card.data.get("tags") or []
    wanted = KIND_TAGS["adapter"] if adapter else ("lora",) if lora else ()
    card.data["tags"] = [*tags, *(tag for tag in wanted if tag not in tags)]
    if adapter and card.data.get("base_model"):
        card.data["base_model_relation"] = "adapter"
    if repo is not None:
        card.text = with_checkpoint(card.text, repo)
    validate_card(card)
    return card


def _new_card(
    config: PreTrainedConfig,
    license: str | None,  # noqa: A002
    embodiments: Sequence[Embodiment],
    parameters: int,
    values: Mapping[str, Any],
) -> ModelCard:
    if license is None:
        raise ValueError("license is missing: name the weights' licence, for example license='apache-2.0'")
    try:
        kind = kind_of(config)
    except ValueError as error:
        raise ValueError(f"{error}, so there is no card for it: pass card=") from None
    return create_card(
        kind,
        config=config,
        embodiments=embodiments,
        license=license,
        parameters=parameters,
        plots=[SUCCESS] if values.get("evaluation") else [],
        **values,
    )


def _amended(
    card: ModelCard,
    license: str | None,  # noqa: A002
    values: Mapping[str, Any],
    adapter: bool,
) -> ModelCard:
    if new := [name for name in values if name not in ADDED]:
        raise ValueError(f"{new[0]!r} goes into a new card, but card= is given: pass one of them")
    card = ModelCard(str(card))
    if license is not None:
        card.data["license"] = license
        card.text = with_license(card.text, license)
    if name := values.get("name"):
        title = scrub(str(name))
        card.text = with_title(card.text, title)
        if card.data.get("model_name"):
            card.data["model_name"] = title
    if base := values.get("base_model"):
        _add_base(card, str(base), adapter)
    if evaluation := values.get("evaluation"):
        _add_evaluation(card, evaluation)
    return card


def _add_base(card: ModelCard, base: str, adapter: bool) -> None:
    if not is_hub_id(base):
        raise ValueError(f"base_model={base!r} is no Hub id (owner/name): publish it first, and name it here")
    named = card.data.get("base_model") or []
    named = [named] if isinstance(named, str) else list(named)
    known = next((entry for entry in named if linked(entry) in card.text), None)
    others = [entry for entry in named if entry not in (base, known)]  # its backbone
    card.data["base_model"] = [base, *others] if others and not adapter else base  # the Hub has one relation for all
    card.text = with_base(card.text, base, known)


def _add_evaluation(card: ModelCard, evaluation: Mapping[str, Any]) -> None:
    rows = task_rows(evaluation)
    arguments = (rows, scrub(evaluation.get("environment")), protocol(evaluation), [SUCCESS])
    card.text = with_evaluation(card.text, render_section("evaluation_section", *arguments))
    heading = re.search(r"(?m)^# (.+)$", card.text)
    card.data["model_name"] = card.data.get("model_name") or (heading[1] if heading else LIBRARY)
    card.data["eval_results"] = model_index(evaluation, rows)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among `metrics`, to six digits: what YAML and JSON both can say."""
    found = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found[scrub(str(name))] = float(f"{number:.6g}")
    return found


__all__ = ["published_card"]
