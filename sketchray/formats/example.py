"""`tf.train.Example` as serialised: a protobuf message of named lists, read without protobuf and TensorFlow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Feature = npt.NDArray[Any] | list[bytes]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # Wire types. Source: protobuf.dev, Encoding.
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3  # Fields of a Feature. Source: tensorflow, core/example/feature.proto.
UNPACKED = {BYTES_LIST: BYTES, FLOAT_LIST: FIXED32, INT64_LIST: VARINT}
MAX_VARINT_BYTES = 10
MAX_UINT64 = 2**64 - 1
FEW_BYTES = 32  # of numbers that a loop reads faster than array arithmetic


def parse_example(payload: bytes) -> dict[str, Feature]:
    """Returns the features of a serialised `tf.train.Example`: float32 or int64 arrays `(N,)`, or lists of bytes.

    A feature without a list is left out. Source: tensorflow, core/example/example.proto; protobuf.dev, Encoding.

    Raises:
        ValueError: the bytes are not an Example; the message says why.
    """
    features: dict[str, Feature] = {}
    for field, wire, start, stop in _fields(payload, 0, len(payload)):
        if (field, wire) != (1, BYTES):
            continue
        for entry_field, entry_wire, entry_start, entry_stop in _fields(payload, start, stop):
            if (entry_field, entry_wire) != (1, BYTES):
                continue
            name, feature = "", None
            for part, part_wire, part_start, part_stop in _fields(payload, entry_start, entry_stop):
                if (part, part_wire) == (1, BYTES):
                    name = payload[part_start:part_stop].decode("utf-8", "replace")
                elif (part, part_wire) == (2, BYTES):
                    feature = _parse_feature(payload, part_start, part_stop)
            if feature is not None:
                features[name] = feature
    return features


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields the number, the wire type and the extent of the value of each field of a protobuf message.

    Raises:
        ValueError: it is not one.
    """
    while start < stop:
        key = data[start]  # Nearly every number here is one byte.
        start += 1
        if key > 127:
            key, start = _varint(data, start - 1, stop)
        wire = key & 7
        if wire == BYTES:
            size = data[start] if start < stop else 128
            start += 1
            if size > 127:
                size, start = _varint(data, start - 1, stop)
            end = start + size
        elif wire == VARINT:
            end = _varint(data, start, stop)[1]
        elif wire in (FIXED32, FIXED64):
            end = start + (4 if wire == FIXED32 else 8)
        else:
            raise ValueError(f"not an Example: wire type {wire} at byte {start}")
        if end > stop:
            raise ValueError(f"not an Example: the field at byte {start} is longer than its message")
        yield key >> 3, wire, start, end
        start = end


def _varint(data: bytes | bytearray, start: int, stop: int) -> tuple[int, int]:
    """Returns a number of variable length, and where it ends."""
    value = shift = 0
    for position in range(start, min(stop, start + MAX_VARINT_BYTES)):
        byte = data[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position + 1
        shift += 7
    raise ValueError(f"not an Example: the number at byte {start} has no end")


def _parse_feature(data: bytes, start: int, stop: int) -> Feature | None:
    """Returns the list that a feature holds; where it holds several kinds, the last, as protobuf has it."""
    kind, numbers, texts = 0, bytearray(), list[bytes]()
    for field, wire, list_start, list_stop in _fields(data, start, stop):
        if wire != BYTES or field not in UNPACKED:
            continue
        if field != kind:
            kind, numbers, texts = field, bytearray(), []
        for inner, inner_wire, value_start, value_stop in _fields(data, list_start, list_stop):
            value = data[value_start:value_stop]
            if inner != 1 or inner_wire not in (BYTES, UNPACKED[kind]):
                continue
            if kind == BYTES_LIST:
                texts.append(value)
                continue
            if len(value) % 4 if kind == FLOAT_LIST else value[-1:] > b"\x7f":
                raise ValueError(f"not an Example: the list at byte {value_start} ends within a number")
            numbers += value
    if kind == BYTES_LIST:
        return texts
    if kind == FLOAT_LIST:
        return np.frombuffer(numbers, "<f4")
    return _integers(numbers) if kind else None


def _integers(data: bytearray) -> npt.NDArray[np.int64]:
    """Returns numbers of variable length, the last of them whole, as int64."""
    if len(data) <= FEW_BYTES:
        values, start = [], 0
        while start < len(data):
            value, start = _varint(data, start, len(data))
            values.append(value & MAX_UINT64)
        return np.array(values, np.uint64).view(np.int64)
    groups = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(groups < 128) + 1
    starts = np.append(0, ends[:-1])
    lengths = ends - starts
    if lengths.max() > MAX_VARINT_BYTES:
        raise ValueError("not an Example: a number of more than 64 bits")
    shifts = 7 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    parts = (groups & 127).astype(np.uint64) << shifts.astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)
