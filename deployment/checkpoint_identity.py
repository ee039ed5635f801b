"""Which weights a checkpoint's name means at this moment: what must not change under an evaluation that goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE
from ..modeling_priorvla.adapter_places import commit_of
from ..training.data.lerobot_fingerprint import file_digest

DECISIVE = ("*.safetensors", "config.json", "embodiments.json", "processor_config.json", ADAPTER_CONFIG_FILE)


def checkpoint_identity(source: str | Path) -> str:
    """The commit of a checkpoint on the Hub; of a folder the sha256 of the names and contents of what decides actions.

    Those are weights, config, processor and embodiments; an adapter's base counts too. A folder may move. About 1 s a
    GB. Raises OSError when the Hub has no such repository.
    """
    folder = Path(source)
    if not folder.is_dir():
        return str(commit_of(str(source)))
    digest = hashlib.sha256()
    for file in sorted({file for pattern in DECISIVE for file in folder.glob(pattern)}):
        digest.update(file.name.encode() + file_digest(file))
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        base = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and Path(base).is_dir():
            digest.update(checkpoint_identity(base).encode())
    return digest.hexdigest()


__all__ = ["checkpoint_identity"]
