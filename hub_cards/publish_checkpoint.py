"""`priorvla publish`: a checkpoint's folder, as training left it, to a folder for others or to the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers import PreTrainedModel

from ..configuration.configuration_priorvla import PriorVLAConfig
from ..modeling_priorvla.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .card import CARD_FILE, load_card
from .card_evaluation import read_evaluation
from .checkpoints import kind_of
from .info import checkpoint_folder
from .published_card import published_card
from .publishing import METRICS_FILE, REPORT_FILE, name_base, publish, publish_files

CONFIG_FILE = "config.json"


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
        FileNotFoundError: when `checkpoint` is no checkpoint.
        What `publish` and `read_evaluation` raise.
    """
    folder = checkpoint_folder(checkpoint)
    values = {name: value for name, value in options.items() if value is not None}
    if (folder / CARD_FILE).is_file():
        values |= {"card": load_card(folder), "pictures": folder}
    if evaluation is not None:
        values["evaluation"] = read_evaluation(evaluation)
    if (folder / METRICS_FILE).is_file():
        values["metrics"] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    if (folder / REPORT_FILE).is_file():
        values["report"] = folder / REPORT_FILE
    processor = PriorVLAProcessor.from_pretrained(folder)
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return _publish_adapter(folder, processor, destination, license, **values)
    return publish(_load(folder), processor, destination, license=license, **values)


def _publish_adapter(
    folder: Path,
    processor: PriorVLAProcessor,
    destination: str | Path,
    license: str,  # noqa: A002
    card: ModelCard | None = None,
    metrics: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    name: str | None = None,
    base_model: str | None = None,
    **options: Any,
) -> Path | CommitInfo:
    """Its files as they are: nothing of the base, which may be large, is loaded."""
    if card is None:
        raise FileNotFoundError(f"{folder / CARD_FILE} is missing: train the adapter with `priorvla finetune`")
    config = PriorVLAConfig.from_pretrained(folder)
    added = {"metrics": metrics, "evaluation": evaluation, "name": name, "base_model": base_model}

    def save(staging: Path) -> None:
        for file in (CONFIG_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE):
            shutil.copyfile(folder / file, staging / file)
        name_base(staging, base_model)

    return publish_files(
        save,
        processor,
        destination,
        card=lambda repo: published_card(config, card, license, processor.embodiments, 0, repo, added, adapter=True),
        embodiments=processor.embodiments,
        metrics=metrics,
        evaluation=evaluation,
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
