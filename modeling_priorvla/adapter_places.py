"""Where an adapter and its base lie: their folder or Hub id, the commit that is meant, and the weights found there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, find_adapter_config_file
from transformers.utils.hub import cached_file, extract_commit_hash, get_checkpoint_shard_files

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
ENCODER = "encoder."  # of a policy without history only training needs it: `publish` leaves it out


def commit_of(place: str | os.PathLike[str] | None, **hub: Any) -> str | None:
    """The commit on the Hub that `from_pretrained(place, **hub)` means; None of a folder, or where none is known.

    Raises OSError when there is no such repository or revision; not with `local_files_only`.
    """
    if place is None or os.path.isdir(place):
        return None
    absent = {"_raise_exceptions_for_missing_entries": False} if hub.get("local_files_only") else {}
    return extract_commit_hash(cached_file(str(place), CONFIG_NAME, **absent, **hub), None)


def adapter_place(place: str | os.PathLike[str] | None, arguments: dict[str, Any]) -> str | None:
    """The folder or Hub id of an adapter, where `from_pretrained(place, **arguments)` was called with one.

    AutoModel has already gone on to the base when it calls a model's `from_pretrained`, and says so in
    `adapter_kwargs`, which is taken out of `arguments`.
    """
    own = arguments.pop("adapter_kwargs", None) or {}
    if (told := own.get("_adapter_model_path")) is not None:
        arguments["revision"] = own.get("revision")  # the other is the base's by now
        return str(told)
    if place is None:
        return None
    hub = {key: value for key, value in arguments.items() if key in HUB_ARGUMENTS}
    return str(place) if find_adapter_config_file(str(place), **hub) else None


def lasting_place(place: str | os.PathLike[str] | None) -> str | None:
    """A folder by its absolute path: `runs/policy` has the form of a Hub id, and would be one in another folder."""
    if place is None:
        return None
    return os.path.abspath(place) if os.path.isdir(place) else str(place)


def weights_sha256(place: str | os.PathLike[str], *, encoder: bool, **hub: Any) -> str | None:
    """SHA-256 of the tensors that a checkpoint has: names, dtypes, shapes and bytes, by name. None without safetensors.

    It is of the files and not of a model: that may hold them in another dtype. Nothing is downloaded.

    Args:
        encoder: the trajectory encoder's too; without, a policy keeps its hash when it is published.
    """
    files = weight_files(str(place), **{**hub, "local_files_only": True, "force_download": False})
    where: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            where |= dict.fromkeys(tensors.keys(), file)
    if not where:
        return None
    digest, opened = hashlib.sha256(), {file: safe_open(file, framework="pt") for file in files}
    for name in sorted(where):
        if name.startswith(ENCODER) and not encoder:
            continue
        tensor = opened[where[name]].get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def weight_files(place: str, **hub: Any) -> list[str]:
    """The checkpoint's safetensors files, in a folder or from the Hub; none where it has no such files."""
    absent = {"_raise_exceptions_for_missing_entries": False}
    whole = cached_file(place, SAFE_WEIGHTS_NAME, **absent, **hub)
    if whole is not None:
        return [whole]
    index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME, **absent, **hub)
    if index is None:
        return []
    files, _ = get_checkpoint_shard_files(place, index, **hub)
    return [str(Path(file)) for file in files]


__all__ = [
    "HUB_ARGUMENTS",
    "adapter_place",
    "commit_of",
    "lasting_place",
    "weight_files",
    "weights_sha256",
]
