"""Publishing a checkpoint: weights, processor, embodiments and card, together or not at all."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration.embodiment import EMBODIMENTS_FILE, Embodiment, save_embodiments
from ..modeling_priorvla.attached_backbone import TRAINED
from .card import CARD_FILE, create_card, load_card, validate_card
from .checkpoints import is_hub_id, kind_of
from .privacy import require_public, scrub

METRICS_FILE = "metrics.json"


class SavedProcessor(Protocol):
    """What `publish` needs of a processor: transformers' way to save it."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any: ...


def publish(
    model: PreTrainedModel,
    processor: SavedProcessor,
    destination: str | Path,
    *,
    card: ModelCard | None = None,
    license: str | None = None,  # noqa: A002, the Hub's word for it
    embodiments: Sequence[Embodiment] | None = None,
    overwrite: bool = False,
    **card_values: Any,
) -> Path:
    """Writes a checkpoint that others can load: `config.json`, weights, processor, `embodiments.json`, `README.md`.

    With `metrics` among `card_values` it also has the `metrics.json` that `priorvla info` shows.

    The folder appears at once, complete, or not at all: it is made beside its place and moved there. A VLA's
    trajectory encoder, which only training needs, is left out unless its history needs it. Text files are searched for
    absolute paths and secrets before anything appears.

    Args:
        model: an `ActionPriorModel` or a `PriorVLAModel`.
        processor: the processor that belongs to it.
        destination: a local folder: a `Path`, or a string that cannot be a Hub id (`./runs/prior`, `/data/prior`).
        card: the card. Default: one made by `create_card` from the model's config and `card_values`.
        license: the Hub's identifier of the weights' licence; needed unless `card` names one, and replaces the card's.
        embodiments: in the order of the model's embodiment id. Default: the processor's.
        overwrite: replace a checkpoint that is already there.
        card_values: `training`, `metrics`, `evaluation`, `datasets`, `base_model`, `name` of `create_card`.

    Returns:
        The folder.

    Raises:
        ValueError: when `destination` is a Hub id (`owner/name`), the licence is missing, no embodiment is known, or a
            file would hold an absolute path or a secret.
        FileExistsError: when there is something at the destination and `overwrite` is False, or it is no checkpoint.
    """
    folder = _local_folder(destination)
    _require_free(folder, overwrite)
    embodiments = _embodiments_of(processor) if embodiments is None else list(embodiments)
    card = _complete_card(model, card, license, embodiments, card_values)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir()
    try:
        _save_model(model, staging)
        processor.save_pretrained(staging)
        if not (staging / EMBODIMENTS_FILE).exists():
            save_embodiments(embodiments, staging)
        card.save(staging / CARD_FILE)
        if metrics := card_values.get("metrics"):
            text = json.dumps(scrub(dict(metrics)), indent=2, default=float) + "\n"
            (staging / METRICS_FILE).write_text(text, encoding="utf-8")
        require_public(staging)
        _move_into_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _local_folder(destination: str | Path) -> Path:
    """A string `owner/name` is a Hub id, whatever lies on this disk: its meaning must not depend on that."""
    if isinstance(destination, str) and is_hub_id(destination):
        raise ValueError(
            f"destination {destination!r} is a Hub id, and uploading is not supported yet: publish to a folder "
            f"(pathlib.Path({destination!r}) or './{destination}'), look at it, then upload it with "
            f"huggingface_hub.upload_folder(repo_id={destination!r}, folder_path=...)"
        )
    return Path(destination).expanduser().absolute()


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists: choose another folder, or pass overwrite=True to replace it")
    if not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} exists and holds no config.json, so it is no checkpoint: it is not replaced")


def _embodiments_of(processor: Any) -> list[Embodiment]:
    """The processor's `embodiments`, a sequence or a mapping by name."""
    held = getattr(processor, "embodiments", None)
    if not held:
        raise ValueError(f"{type(processor).__name__} has no embodiments: pass embodiments= in the model's order")
    return list(held.values() if isinstance(held, Mapping) else held)


def _complete_card(
    model: PreTrainedModel,
    card: ModelCard | None,
    license: str | None,  # noqa: A002
    embodiments: Sequence[Embodiment],
    card_values: Mapping[str, Any],
) -> ModelCard:
    if card is not None:
        if card_values:
            raise ValueError(f"{next(iter(card_values))!r} goes into a new card, but card= is given: pass one of them")
        card = ModelCard(str(card))
        card.data["license"] = license or card.data.get("license")
        validate_card(card)
        return card
    if license is None:
        raise ValueError("license is missing: name the weights' licence, for example license='apache-2.0'")
    try:
        kind = kind_of(model.config)
    except ValueError as error:
        raise ValueError(f"{error}, so there is no card for it: pass card=") from None
    if kind != "action-prior":
        card_values = {"gates": model.gate_values(), **card_values}  # type: ignore[operator]  # a PriorVLAModel's
    return create_card(
        kind,
        config=model.config,
        embodiments=embodiments,
        license=license,
        parameters=_published_size(model),
        **card_values,
    )


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    """Weights and config, without the parts that only training needs."""
    weights = model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if _is_published(model.config, name)}
    if len(kept) == len(weights):
        model.save_pretrained(folder)
        return
    model.save_pretrained(folder, state_dict=kept)
    config: PreTrainedConfig = copy.deepcopy(model.config)
    config.encoder = None
    config.save_pretrained(folder)


def _published_size(model: PreTrainedModel) -> int:
    """Number of parameters in the checkpoint; of a backbone that adapters were trained on, theirs alone."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if _is_published(model.config, name) and (parameter.requires_grad or not name.startswith(TRAINED))
    )


def _is_published(config: PreTrainedConfig, name: str) -> bool:
    """Whether a tensor is. A VLA's trajectory encoder is a target of distillation; acting runs it on history alone.

    A vision-action prior keeps its own: whoever goes on from it may want either.
    """
    trained_only = kind_of(config) == "vla" and not getattr(config, "use_history", False)
    return not (trained_only and name.startswith("encoder."))


def _move_into_place(staging: Path, folder: Path) -> None:
    """`staging` becomes `folder`; what was there is put aside first, and put back when the move fails."""
    if not folder.exists():
        staging.rename(folder)
        return
    aside = staging.with_suffix(".replaced")
    folder.rename(aside)
    try:
        staging.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


__all__ = ["load_card", "publish"]
