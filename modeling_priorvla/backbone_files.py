"""A backbone's folder: where it is, what kind it is of, which images it wants, and the hash of its weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig

BACKBONE_FILES = ["*.json", "*.txt", "*.jinja", "*.model", "model*.safetensors"]


def backbone_folder(
    path_or_repo: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> Path:
    """`path_or_repo` when it is a folder here, else the local snapshot of that Hub repository. Raises OSError."""
    folder = Path(path_or_repo)
    return folder if folder.is_dir() else download_backbone(str(path_or_repo), revision, local_files_only)


def download_backbone(repo: str, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The local snapshot folder of a backbone's Hub repository. Raises OSError when it cannot be had."""
    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=BACKBONE_FILES, local_files_only=local_files_only)
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"backbone {repo!r} (revision {revision or 'main'}) is no folder here and cannot be had from the Hub: "
            f"{error}. Pass backbone=<folder> to load it from a local copy"
        ) from error


def backbone_model_type(folder: Path) -> str:
    """`model_type` in the folder's config.json. Raises FileNotFoundError when there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: a backbone folder needs a config.json")
    return str(json.loads(file.read_text(encoding="utf-8")).get("model_type"))


def read_backbone_config(folder: Path) -> Any:
    """The transformers config in `folder`, of a kind that transformers itself knows."""
    backbone_model_type(folder)
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def weights_sha256(folder: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) over the bytes of `model*.safetensors` in `folder`, shards in the order of their names.

    Raises FileNotFoundError when there is none.
    """
    shards = sorted(Path(folder).glob("model*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"{folder}: no model.safetensors there; save the backbone with save_pretrained first")
    digest = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


__all__ = [
    "backbone_folder",
    "backbone_model_type",
    "download_backbone",
    "read_backbone_config",
    "weights_sha256",
]
