"""`priorvla publish`: a checkpoint's folder, as training left it, to a folder for others or to the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers import AutoConfig, PreTrainedModel

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .card import CARD_FILE, load_card
from .card_evaluation import read_evaluation
from .checkpoints import kind_of
from .info import checkpoint_folder
from .published_card import published_card
from .publishing import CONFIG_FILE, METRICS_FILE, REPORT_FILE, copy_model, hub_destination, publish, publish_files


def publish_checkpoint(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    license: str,  # noqa: A002
    evaluation: str | Path | None = None,
    **options: Any,
) -> Path | CommitInfo:
    """Publishes what is in `checkpoint` (folder or Hub id): its card, metrics and report go along when it has them.

    So do the pictures that its card shows.

    Args:
        evaluation: the `report.json` of `priorvla evaluate`, or the folder that it is in, for the card.
        options: of `publish`, but for `metrics`, `report` and `pictures`; None is as if it were not given.

    Raises:
        FileNotFoundError: when `checkpoint` is no checkpoint, or lacks weights.
        ValueError: when it is its own destination.
        What `publish` and `read_evaluation` raise.
    """
    folder = checkpoint_folder(checkpoint)
    if hub_destination(destination) is None and Path(destination).expanduser().resolve() == folder.resolve():
        raise ValueError(f"{folder} is what would be published, and its own destination: choose another folder")
    values = {name: value for name, value in options.items() if value is not None}
    if (folder / CARD_FILE).is_file():
        values |= {"card": load_card(folder), "pictures": folder}
    if (folder / METRICS_FILE).is_file():
        values["metrics"] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    if (folder / REPORT_FILE).is_file():
        values["report"] = folder / REPORT_FILE
    processor = PriorVLAProcessor.from_pretrained(folder)
    if evaluation is not None:
        bodies = [body.name for body in processor.embodiments]
        values["evaluation"] = read_evaluation(evaluation, (folder.resolve(), checkpoint, destination), bodies)
    if "card" in values:
        return _publish_as_it_is(folder, processor, destination, license, **values)
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder / CARD_FILE} is missing: train the adapter with `priorvla finetune`")
    return publish(_load(folder), processor, destination, license=license, **values)


def _publish_as_it_is(
    folder: Path,
    processor: PriorVLAProcessor,
    destination: str | Path,
    license: str,  # noqa: A002
    card: ModelCard,
    metrics: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    name: str | None = None,
    base_model: str | None = None,
    token: str | None = None,
    **options: Any,
) -> Path | CommitInfo:
    """Its files as they are: no model is loaded, nor the base or the backbone of one, which may not be here."""
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder / CONFIG_FILE} is missing: {folder} holds no checkpoint")
    config = AutoConfig.from_pretrained(folder)
    added = {"metrics": metrics, "evaluation": evaluation, "name": name, "base_model": base_model}
    adapter = (folder / ADAPTER_CONFIG_FILE).is_file()
    return publish_files(
        lambda staging: copy_model(
            folder,
            staging,
            config,
            adapted=adapter,
            base=base_model,
            repo=hub_destination(destination),
            token=token,
        ),
        processor,
        destination,
        card=lambda repo: published_card(config, card, license, processor.embodiments, 0, repo, added, adapter),
        embodiments=processor.embodiments,
        metrics=metrics,
        evaluation=evaluation,
        token=token,
        **options,
    )


def _load(folder: Path) -> PreTrainedModel:
    """The model as it was saved; with its backbone only when something of that was trained."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {folder} holds no checkpoint")
    config = json.loads(file.read_text(encoding="utf-8"))
    if kind_of(config) == "action-prior":
        prior: PreTrainedModel = ActionPriorModel.from_pretrained(folder)
        return prior
    frozen = config.get("backbone_training", "frozen") == "frozen"
    policy: PreTrainedModel = PriorVLAModel.from_pretrained(folder, backbone=None if frozen else "auto")
    return policy


__all__ = ["publish_checkpoint"]
