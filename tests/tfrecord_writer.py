"""A writer of the tutorial's TFRecord files (checksums by table, protobuf by hand), and what is read of them."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sketchray.formats import SCHEMA, Bad, tfrecord
from sketchray.strokes import to_record

MAX_POINTS = 1_000
CLASSES = ["cat", "dog", "The Eiffel Tower"]
Drawing = list[list[list[int]]]


def crc_table() -> Iterator[int]:
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        yield value


TABLE = list(crc_table())


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def frame(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def floats(values: Any, *, packed: bool = True) -> bytes:
    items = [struct.pack("<f", value) for value in values]
    return field(2, field(1, b"".join(items)) if packed else b"".join(b"\x0d" + item for item in items))


def integers(values: Any, *, packed: bool = True) -> bytes:
    items = [varint(int(value)) for value in values]
    return field(3, field(1, b"".join(items)) if packed else b"".join(b"\x08" + item for item in items))


def texts(values: list[bytes]) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def example(features: dict[str, bytes]) -> bytes:
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, data)) for name, data in features.items()))


def to_ink(drawing: Drawing) -> np.ndarray:
    """The tutorial's own steps: each axis to 0..1, differences, the first point dropped."""
    ink = np.concatenate([np.column_stack([*stroke, np.zeros(len(stroke[0]))]) for stroke in drawing])
    ink = ink.astype(np.float32)
    ink[np.cumsum([len(stroke[0]) for stroke in drawing]) - 1, 2] = 1
    low, high = ink[:, :2].min(axis=0), ink[:, :2].max(axis=0)
    ink[:, :2] = (ink[:, :2] - low) / np.where(high > low, high - low, np.float32(1))
    return np.column_stack([np.diff(ink[:, :2], axis=0), ink[1:, 2]])


def to_example(ink: np.ndarray, label: int | None = 0, *, packed: bool = True) -> bytes:
    features = {"ink": floats(ink.ravel(), packed=packed), "shape": integers(ink.shape, packed=packed)}
    if label is not None:
        features["class_index"] = integers([label], packed=packed)
    return example(features)


class Outcome(NamedTuple):
    rows: list[dict[str, Any]]
    bad: list[Bad]

    @property
    def drawings(self) -> list[Drawing]:
        return [to_record(np.array(row["points"], np.int16)) for row in self.rows]


def outcome(data: bytes, classes: list[str] | None = CLASSES, max_points: int = MAX_POINTS) -> Outcome:
    blocks = list(tfrecord.read(io.BytesIO(data), max_points=max_points, classes=classes, split="valid"))
    assert all(block.table.schema == SCHEMA for block in blocks)
    return Outcome(
        [row for block in blocks for row in block.table.to_pylist()], [bad for block in blocks for bad in block.bad]
    )


A: Drawing = [[[0, 255, 30], [255, 0, 9]], [[7, 0], [8, 255]]]
B: Drawing = [[[255, 0], [0, 255]]]
RECORD_A, RECORD_B = frame(to_example(to_ink(A), 0)), frame(to_example(to_ink(B), 1))
COMPRESSIONS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, zlib.compress]
