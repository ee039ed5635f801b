"""The base of an adapter that is published: another repository on the Hub, which is there, at a commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE
from .checkpoints import is_hub_id
from .uploading import HTTP_ERROR


def published_base(known: str | None, base: str | None) -> str:
    """The Hub id of an adapter's base: `base`, or (None) what the adapter knows it by.

    Raises ValueError when that is a folder: nobody else has it.
    """
    named = str(base or known)
    if not is_hub_id(named) or (base is None and Path(named).exists()):
        raise ValueError(
            f"the adapter's base is {Path(named).name!r}, which nobody else has: publish the base, and name its "
            "Hub id (base_model=, --base-model)"
        )
    return named


def with_published_base(
    adapter: Mapping[str, Any], base: str | None, repo: str | None = None, token: str | None = None
) -> dict[str, Any]:
    """An adapter's config whose base is the Hub id `base` (None: the one that it names), at a commit.

    A base of another name than before is pinned to the commit that it is at now. Where the Hub cannot be asked, it is
    believed to be there and no commit is named.

    Args:
        adapter: what `adapter_config.json` holds. repo: where the adapter goes to on the Hub, if it does.

    Raises:
        ValueError: as `published_base`; or the Hub has no such base or commit, or it is the adapter's own repository.
    """
    known = adapter.get("base_model_name_or_path")
    named = published_base(known, base)
    if named == repo:
        raise ValueError(
            f"the adapter's base is {named}, the repository that it would be published to: name the repository of the "
            "policy that it was trained on (base_model=, --base-model)"
        )
    revision = adapter.get("revision") if named == known else None
    found = _commit(named, revision, token)
    return {**adapter, "base_model_name_or_path": named, "revision": revision or found}


def write_base(folder: Path, adapter: Mapping[str, Any]) -> None:
    """Names the base of the config `adapter` in the `adapter_config.json` of `folder`."""
    file = folder / ADAPTER_CONFIG_FILE
    told = {key: adapter.get(key) for key in ("base_model_name_or_path", "revision")}
    config = {**json.loads(file.read_text(encoding="utf-8")), **told}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _commit(base: str, revision: str | None, token: str | None) -> str | None:
    """The commit of `base`; None where the Hub cannot be asked. Raises ValueError when the Hub has none."""
    try:
        return HfApi(token=token).model_info(base, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"the adapter's base {base}{at} is not on the Hub, or not for you to see: publish the base first, and name "
            "its Hub id (base_model=, --base-model)"
        ) from None
    except (OSError, HTTP_ERROR):
        return None


__all__ = ["published_base", "with_published_base", "write_base"]
