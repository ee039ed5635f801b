"""Which of our checkpoints is what, and whether something is one. Loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

CardKind = Literal["action-prior", "vla"]

# A config's `model_type` -> what its checkpoint is.
KIND_OF_MODEL_TYPE: dict[str, CardKind] = {"priorvla_action_prior": "action-prior", "priorvla": "vla"}


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


__all__ = ["KIND_OF_MODEL_TYPE", "CardKind", "is_hub_id", "require_checkpoint", "split_revision"]
