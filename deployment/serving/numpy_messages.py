"""Messages of openpi's websocket protocol: msgpack, with numpy arrays as maps of byte-string keys.

What comes in was written by a stranger. So nothing is executed, dtypes are taken from a list, sizes are compared before
anything is allocated, and whatever is wrong is one kind of error.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

MAX_ITEMS = 4096  # of a list or a map; msgpack allocates as many as a header promises, once a level of nesting
MAX_TOTAL = 65_536  # items of all lists and maps: a frame full of numbers in lists would take seconds to read
MAX_DIMENSIONS = 32

# Kinds as numpy writes them in `dtype.str`: bool, integers, floats, bytes, text, dates. Not V, O and c, as openpi. A
# pattern, because `np.dtype` reads much else: structures, subarrays, names.
_DTYPE = re.compile(r"[<>|=](?:[biufSU][1-9]\d{0,5}|[mM]8(?:\[\d{0,9}[A-Za-z]{1,2}\])?)")
_REFUSED_KINDS = "VOc"
# What a scalar of each kind holds: `np.bytes_(10**9)` would be a billion zeros.
_SCALARS: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": (float, int), "S": bytes, "U": str, "m": int, "M": int}


class MalformedMessageError(ValueError):
    """A frame that is no message of the protocol; says what is wrong with it."""


def encode(message: Any) -> bytes:
    """A message as one binary frame: maps, lists, text, bytes, numbers, None, and numpy arrays and scalars of them.

    Raises:
        ValueError: an array or scalar of a structured, object or complex dtype.
        TypeError: a value of any other type.
    """
    frame: bytes = msgpack.packb(message, default=_encode_numpy)
    return frame


def decode(frame: bytes) -> Any:
    """The message of a frame. Arrays share the frame's memory and cannot be written to.

    Raises MalformedMessageError on anything that `encode` cannot have written, and on lists or maps of more than
    `MAX_ITEMS` entries, or `MAX_TOTAL` together.
    """
    count = 0

    def counted(items: Any) -> Any:
        nonlocal count
        count += len(items)
        if count > MAX_TOTAL:
            raise MalformedMessageError(f"lists and maps of more than {MAX_TOTAL} items: send numpy arrays")
        return items

    try:
        return msgpack.unpackb(
            frame,
            object_hook=lambda entries: _decode_numpy(counted(entries)),
            list_hook=counted,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except MalformedMessageError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MalformedMessageError(f"the frame is not msgpack as the protocol has it: {reason[:200]}") from None


def _encode_numpy(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} cannot be sent: use numbers, text, lists, dicts or numpy arrays")
    if value.dtype.kind in _REFUSED_KINDS:
        raise ValueError(f"dtype {value.dtype} cannot be sent: use booleans, integers, floats or text")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decode_numpy(entries: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entries:
        return _decode_array(entries)
    if b"__npgeneric__" in entries:
        return _decode_scalar(entries)
    return entries


def _decode_array(entries: dict[Any, Any]) -> NDArray[Any]:
    dtype, shape, data = _dtype(entries), entries.get(b"shape"), entries.get(b"data")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise MalformedMessageError(f"an array needs a shape of at most {MAX_DIMENSIONS} dimensions")
    if any(type(size) is not int or size < 0 for size in shape):
        raise MalformedMessageError("an array's shape must be whole numbers from 0")
    if not isinstance(data, bytes):
        raise MalformedMessageError(f"an array's data must be bytes, not a {type(data).__name__}")
    if len(data) != math.prod(shape) * dtype.itemsize:  # Python's integers do not overflow
        raise MalformedMessageError(f"{len(data)} bytes are no array of {_shown(shape)} values of {dtype}")
    try:
        return np.ndarray(shape, dtype, buffer=data)
    except (ValueError, OverflowError) as error:  # an empty array of impossible dimensions
        raise MalformedMessageError(f"an array of {_shown(shape)} is impossible: {error}") from None


def _decode_scalar(entries: dict[Any, Any]) -> Any:
    dtype, data = _dtype(entries), entries.get(b"data")
    if not isinstance(data, _SCALARS[dtype.kind]):
        raise MalformedMessageError(f"a scalar of dtype {dtype} holds a {type(data).__name__}")
    try:
        return dtype.type(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedMessageError(f"a scalar does not fit its dtype {dtype}: {error}") from None


def _dtype(entries: dict[Any, Any]) -> np.dtype[Any]:
    text = entries.get(b"dtype")
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        shown = repr(text)[:40]
        raise MalformedMessageError(f"dtype {shown} is refused: send booleans, integers, floats or text")
    try:
        return np.dtype(text)
    except (ValueError, TypeError) as error:
        raise MalformedMessageError(f"dtype {text!r} is unknown: {error}") from None


def _shown(shape: list[int]) -> str:
    return str(tuple(shape))[:80]


__all__ = ["MAX_DIMENSIONS", "MAX_ITEMS", "MalformedMessageError", "decode", "encode"]
