"""Matrices of float32 rows in safetensors files: appended while their length is unknown, then read memory-mapped."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 256  # its own length included; a multiple of 64, so that rows lie aligned
REMEDY = "build the store again"


class RowWriter:
    """Writes rows (n, width) to `file`, which `close` makes a safetensors file of one tensor `name` (N, width).

    The header stands in front of the rows but knows their number, so its place is kept with zeros and filled, padded
    with spaces as the format allows, at the end. Until then the file is no valid safetensors file, which is meant.
    """

    def __init__(self, file: Path, name: str, width: int) -> None:
        self.rows = 0
        self._name, self._width = name, width
        self._stream = file.open("wb")
        self._stream.write(bytes(HEADER_BYTES))

    def append(self, rows: NDArray[np.float32]) -> None:
        self._stream.write(np.ascontiguousarray(rows, dtype="<f4").data)
        self.rows += len(rows)

    def close(self) -> None:
        if self._stream.closed:
            return
        entry = {"dtype": "F32", "shape": [self.rows, self._width], "data_offsets": [0, self.rows * self._width * 4]}
        header = json.dumps({self._name: entry}).encode().ljust(HEADER_BYTES - 8)
        self._stream.seek(0)
        self._stream.write(len(header).to_bytes(8, "little") + header)
        self._stream.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close() if kind else self.close()


class MappedRows:
    """The tensor `name` (N, width) of a safetensors file as `values`, read from disk when and where it is touched.

    Raises FileNotFoundError, or ValueError naming a file that is damaged, shorter or longer than its header says.
    """

    def __init__(self, file: Path, name: str) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {REMEDY}")
        offset, shape = _read_header(file, name)
        self._mapping: mmap.mmap | None = None
        if 0 in shape:  # an empty range cannot be mapped
            self.values: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
            return
        with file.open("rb") as stream:
            self._mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.values = np.frombuffer(self._mapping, "<f4", shape[0] * shape[1], offset).reshape(shape)

    def release(self) -> None:
        """Takes the pages that were touched out of the process's memory; they stay in the system's file cache."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _read_header(file: Path, name: str) -> tuple[int, tuple[int, int]]:
    """Where the rows of tensor `name` begin in `file`, and their shape."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(length, size))
    try:
        entry = json.loads(header)[name]
        dtype, (count, width), (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it has no safetensors header with {name!r}: {REMEDY}") from error
    if dtype != "F32" or begin != 0 or end != count * width * 4:
        raise ValueError(f"{file} is damaged: {name!r} is {dtype} {count} x {width} in {end - begin} bytes: {REMEDY}")
    if size != 8 + length + end:
        raise ValueError(f"{file} is damaged: it has {size} bytes, its header says {8 + length + end}: {REMEDY}")
    return 8 + length, (count, width)


__all__ = ["MappedRows", "RowWriter"]
