"""Which weights a checkpoint's name means at this moment: what must not change under an evaluation that goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE
from ..modeling_priorvla.adapter_places import commit_of
from ..training.data.lerobot_fingerprint import file_digest

DECISIVE = (
    *("*.safetensors", "config.json", "embodiments.json", ADAPTER_CONFIG_FILE),
    *("*processor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "spiece.model", "chat_template*"),
)


def checkpoint_commit(source: str | Path) -> str | None:
    """The commit that a Hub id means now; None of a folder.

    Raises OSError when the Hub has no such repository, ValueError when no commit of it is known.
    """
    if Path(source).is_dir():
        return None
    commit = commit_of(str(source))
    if commit is None:
        raise ValueError(f"{source}: the commit that is meant is not known: download it, and name its folder")
    return commit


def at_revision(commit: str | None) -> dict[str, Any]:
    """What `from_pretrained` is to be told of a `checkpoint_commit`; nothing of a folder."""
    return {} if commit is None else {"revision": commit}


def checkpoint_identity(source: str | Path) -> str:
    """`checkpoint_commit`; of a folder the sha256 of the names and contents of what decides actions.

    Those are weights, config, processor, tokenizer and embodiments; an adapter's base counts too. A folder may move.
    About 1 s a GB. Raises as `checkpoint_commit`.
    """
    if commit := checkpoint_commit(source):
        return commit
    folder = Path(source)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in DECISIVE for file in folder.glob(pattern) if file.is_file()}):
        digest.update(file.name.encode() + file_digest(file))
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        base = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and Path(base).is_dir():
            digest.update(checkpoint_identity(base).encode())
    return digest.hexdigest()


__all__ = ["at_revision", "checkpoint_commit", "checkpoint_identity"]
