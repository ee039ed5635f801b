"""Which of our checkpoints is what, and whether something is one. Loads neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

CardKind = Literal["action-prior", "vision-action-prior", "vla", "adapter"]

MODEL_TYPES = ("priorvla_action_prior", "priorvla")


def kind_of(config: Any) -> CardKind:
    """What a checkpoint is, from its config or from the mapping that its config.json holds.

    A `PriorVLAModel` that reads no language is a vision-action prior; of an adapter's folder it is what its base is.
    Raises ValueError on a model type that is none of `MODEL_TYPES`.
    """
    fields = config_fields(config)
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}")
    if model_type == "priorvla_action_prior":
        return "action-prior"
    return "vla" if fields.get("language", True) else "vision-action-prior"


def config_fields(config: Any) -> Mapping[str, Any]:
    """A transformers config as the mapping that its config.json holds, which is returned as it is."""
    return config if isinstance(config, Mapping) else config.to_dict()


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `owner/name` of a repository."""
    if text.count("/") != 1 or text.startswith((".", "~", "/")):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def split_revision(dataset: str) -> tuple[str, str | None]:
    """`owner/name@revision` -> (`owner/name`, `revision`); anything else as it is, without one.

    A revision is a branch, a tag or a commit; names on the Hub have no `@`.
    """
    name, separator, revision = dataset.partition("@")
    return (name, revision) if separator and revision and is_hub_id(name) else (dataset, None)


def require_checkpoint(source: str | Path, what: str) -> None:
    """Raises FileNotFoundError naming `what` when `source` is neither a checkpoint folder nor like a Hub id."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{what} {folder / 'config.json'} is missing: this folder holds no checkpoint")
    if not folder.is_dir() and not is_hub_id(str(source)):
        raise FileNotFoundError(f"{what} {source} does not exist: give a checkpoint's folder or a Hub id (owner/name)")


__all__ = ["MODEL_TYPES", "CardKind", "config_fields", "is_hub_id", "kind_of", "require_checkpoint", "split_revision"]
