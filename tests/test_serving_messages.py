"""The wire format of openpi's protocol, byte by byte, and what happens to bytes that are none of it."""

from __future__ import annotations

import struct
import tracemalloc
from datetime import date
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgpack", reason="needs the extra 'serve'")
import msgpack

from priorvla.deployment.serving.numpy_messages import MalformedMessageError, decode, encode

# Written out by hand from the msgpack specification: 8x a map, 9x a list, Ax text, C4 bytes, C3 true, CB a float64.
KEY = {name: b"\xc4" + bytes([len(name)]) + name for name in (b"data", b"dtype", b"shape")}
ARRAY = b"\x84\xc4\x0b__ndarray__\xc3"  # a map of four entries, of which this is the first
SCALAR = b"\x83\xc4\x0d__npgeneric__\xc3"
BYTES_OF = {
    "an image": (
        np.array([[[1, 2, 3], [4, 5, 255]]], dtype=np.uint8),
        ARRAY + KEY[b"data"] + b"\xc4\x06\x01\x02\x03\x04\x05\xff" + KEY[b"dtype"] + b"\xa3|u1" + KEY[b"shape"]
        + b"\x93\x01\x02\x03",
    ),
    "floats": (
        np.array([1.0, -2.0], dtype=np.float32),
        ARRAY + KEY[b"data"] + b"\xc4\x08\x00\x00\x80\x3f\x00\x00\x00\xc0" + KEY[b"dtype"] + b"\xa3<f4" + KEY[b"shape"]
        + b"\x91\x02",
    ),
    "an array without dimensions": (
        np.array(7, dtype=np.int16),
        ARRAY + KEY[b"data"] + b"\xc4\x02\x07\x00" + KEY[b"dtype"] + b"\xa3<i2" + KEY[b"shape"] + b"\x90",
    ),
    "an empty array": (
        np.zeros((0, 4), dtype=bool),
        ARRAY + KEY[b"data"] + b"\xc4\x00" + KEY[b"dtype"] + b"\xa3|b1" + KEY[b"shape"] + b"\x92\x00\x04",
    ),
    "a numpy scalar": (
        np.float32(1.5),
        SCALAR + KEY[b"data"] + b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00" + KEY[b"dtype"] + b"\xa3<f4",
    ),
    "a numpy truth value": (np.bool_(True), SCALAR + KEY[b"data"] + b"\xc3" + KEY[b"dtype"] + b"\xa3|b1"),
    "an observation": (
        {"prompt": "go", "state": [1, None, -1, 2.0]},
        b"\x82\xa6prompt\xa2go\xa5state\x94\x01\xc0\xff\xcb\x40\x00\x00\x00\x00\x00\x00\x00",
    ),
}  # fmt: skip


def array_frame(data: bytes = b"\xc4\x00", dtype: bytes = b"\xa3|u1", shape: bytes = b"\x91\x00") -> bytes:
    """The frame of an array whose parts are msgpack already."""
    return ARRAY + KEY[b"data"] + data + KEY[b"dtype"] + dtype + KEY[b"shape"] + shape


def scalar_frame(data: bytes, dtype: bytes) -> bytes:
    return SCALAR + KEY[b"data"] + data + KEY[b"dtype"] + dtype


@pytest.mark.parametrize("name", BYTES_OF)
def test_a_message_has_exactly_these_bytes_and_comes_back_from_them(name):
    value, frame = BYTES_OF[name]
    assert encode(value) == frame
    read = decode(frame)
    assert type(read) is type(value)
    np.testing.assert_array_equal(read, value)
    if isinstance(value, np.ndarray | np.generic):
        assert read.dtype == value.dtype and read.shape == value.shape


@pytest.mark.parametrize("dtype", ["|b1", "|i1", "<i8", ">i4", "<u2", "<f2", "<f8", "|S3", "<U5", "<M8[ns]", "<m8[s]"])
def test_arrays_of_every_admitted_kind_come_back_with_their_dtype(dtype):
    array = np.arange(6).astype("<i8").astype(dtype).reshape(2, 3)
    read = decode(encode({"nested": [array[:, ::2]]}))["nested"][0]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array[:, ::2])


@pytest.mark.parametrize(
    "value",
    [np.array([1j]), np.complex64(1), np.array([None]), np.zeros(2, dtype=[("a", "f4")]), np.zeros(1, dtype="V4")],
)
def test_complex_object_and_structured_values_are_not_sent(value):
    with pytest.raises(ValueError, match=r"dtype .* cannot be sent"):
        encode({"value": value})


def test_other_things_are_not_sent():
    with pytest.raises(TypeError, match="date cannot be sent"):
        encode({"when": date(2026, 11, 22)})


MALFORMED = {
    "nothing": b"",
    "half a map": b"\x82\xa1a",
    "two messages": b"\xc0\xc0",
    "an unknown byte": b"\xc1",
    "text that is no UTF-8": b"\xa1\xff",
    "a list as a key": b"\x81\x90\xc0",
    "a number as a key": b"\x81\x01\xc0",
    "an extension": b"\xd4\x01a",
    "a time": b"\xd6\xff\x00\x00\x00\x00",
    "a list of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "bytes of four billion": b"\xc6\xff\xff\xff\xff",
    "lists in lists in lists": b"\x91" * 100_000 + b"\xc0",
    "maps in maps in maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "an object array": array_frame(dtype=b"\xa2|O"),
    "a complex array": array_frame(dtype=b"\xa3<c8"),
    "a void array": array_frame(dtype=b"\xa3|V1"),
    "a structured array": array_frame(dtype=b"\xa5f4,f4"),
    "a subarray": array_frame(dtype=b"\xa7(2,)<f4"),
    "a dtype by its name": array_frame(dtype=b"\xa5uint8"),
    "a dtype in bytes": array_frame(dtype=b"\xc4\x03|u1"),
    "a dtype that does not exist": array_frame(dtype=b"\xa3<f3"),
    "a unit that does not exist": array_frame(dtype=b"\xa7<M8[zz]"),
    "text of no length": array_frame(dtype=b"\xa3|S0"),
    "more shape than data": array_frame(data=b"\xc4\x02ab", shape=b"\x91\x03"),
    "more data than shape": array_frame(data=b"\xc4\x02ab", shape=b"\x91\x01"),
    "a shape beyond memory": array_frame(shape=b"\x91\xcf" + struct.pack(">Q", 2**63)),
    "a shape that overflows to nothing": array_frame(shape=b"\x92" + 2 * (b"\xcf" + struct.pack(">Q", 2**32))),
    "an empty shape beyond memory": array_frame(shape=b"\x93\x00" + 2 * (b"\xcf" + struct.pack(">Q", 2**62))),
    "a negative shape": array_frame(shape=b"\x91\xff"),
    "a shape of truth values": array_frame(data=b"\xc4\x01a", shape=b"\x91\xc3"),
    "a shape of floats": array_frame(data=b"\xc4\x01a", shape=b"\x91\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"),
    "a shape that is a number": array_frame(shape=b"\x00"),
    "too many dimensions": array_frame(shape=b"\xdc\x00\x21" + b"\x00" * 33),
    "data that is text": array_frame(data=b"\xa1a", shape=b"\x91\x01"),
    "an array without data": b"\x81\xc4\x0b__ndarray__\xc3",
    "a scalar of another type": scalar_frame(b"\xa1a", b"\xa3<f4"),
    "a scalar that does not fit": scalar_frame(b"\xcd\x01\x00", b"\xa3|u1"),
    "a billion bytes for four": scalar_frame(b"\xce\x3b\x9a\xca\x00", b"\xa3|S4"),
    "a scalar without data": b"\x81\xc4\x0d__npgeneric__\xc3",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_is_one_clear_error_and_allocates_nothing_to_speak_of(name):
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessageError) as refused:
            decode(MALFORMED[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 10 < len(str(refused.value)) < 300 and "\n" not in str(refused.value)
    assert peak < 50_000_000


def test_many_lists_that_promise_much_allocate_little():
    promises = b"\xdc\x10\x00" * 900 + b"\xc0" * 1_000_000  # 900 lists in each other, of 4096 entries each
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessageError):
            decode(promises)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_many_numbers_in_lists_are_refused_before_most_of_them_are_read(monkeypatch):
    row = b"\xdc\x0f\xff" + b"\x01" * 4095
    assert len(decode(b"\x9f" + row * 15)) == 15
    read: list[int] = []
    unpackb = msgpack.unpackb

    def count(frame: bytes, **hooks: Any) -> Any:
        return unpackb(frame, **{**hooks, "list_hook": lambda items: read.append(1) or hooks["list_hook"](items)})

    monkeypatch.setattr("msgpack.unpackb", count)
    for items in (row, b"\xde\x0f\xff" + b"".join(b"\xa4%04d\x01" % index for index in range(4095))):
        read.clear()
        with pytest.raises(MalformedMessageError, match="more than 65536 items: send numpy arrays"):
            decode(b"\xdc\x0f\x00" + items * 3840)
        assert len(read) <= 17


def test_every_truncation_and_every_changed_byte_is_read_or_refused():
    frame = encode({"state": np.arange(3.0), "images": {"front": np.zeros((2, 2, 3), np.uint8)}, "seed": np.int64(1)})
    for length in range(len(frame)):
        with pytest.raises(MalformedMessageError):
            decode(frame[:length])
    random = np.random.default_rng(0)
    for position in range(len(frame)):
        for value in random.integers(0, 256, 8):
            changed = frame[:position] + bytes([value]) + frame[position + 1 :]
            try:
                decode(changed)
            except MalformedMessageError:
                continue


def test_random_bytes_are_read_or_refused():
    random = np.random.default_rng(1)
    for _ in range(3000):
        try:
            decode(random.bytes(int(random.integers(0, 200))))
        except MalformedMessageError:
            continue
