"""A LeRobot dataset's fingerprint: changes when what was read of it changes, stays when its folder moves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

VIDEO_EDGE_BYTES = 1 << 20


def dataset_fingerprint(root: Path, data_files: Iterable[Path], videos: Iterable[Path] = ()) -> str:
    """Hexadecimal sha256 of the names, sizes and contents of all files in `meta/` and of the `data_files` of `root`.

    Only what is read counts, so that a dataset of which a few episodes were fetched from the Hub has the same
    fingerprint when the others are there, too. `videos` count by name, size, first and last megabyte, those that are
    missing not at all: an mp4 keeps the size of each of its frames at one of its ends, so that another encoding is
    another fingerprint without reading terabytes (our choice). About 1 s a GB of parquet.
    """
    digest = hashlib.sha256()
    metadata = sorted(file for file in (root / "meta").rglob("*") if file.is_file())
    for file in (*metadata, *sorted(set(data_files))):
        digest.update(_described(root, file) + file_digest(file))
    for file in sorted(set(videos)):
        if file.is_file():
            digest.update(_described(root, file) + _edges_digest(file))
    return digest.hexdigest()


def file_digest(file: Path) -> bytes:
    """The sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _described(root: Path, file: Path) -> bytes:
    return f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode()


def _edges_digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        head = stream.read(VIDEO_EDGE_BYTES)
        stream.seek(max(0, file.stat().st_size - VIDEO_EDGE_BYTES))
        return hashlib.sha256(head + stream.read()).digest()


__all__ = ["dataset_fingerprint", "file_digest"]
