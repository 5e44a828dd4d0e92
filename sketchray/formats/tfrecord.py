"""The files of TensorFlow's drawing tutorial: TFRecords of `tf.train.Example`, read without TensorFlow.

An example holds `ink` (`(N, 3)` floats, flat: steps `dx, dy` in a unit box, and 1 at the end of a stroke), `shape`
(`[N, 3]`) and `class_index`, a line of the `.classes` file beside the records. The tutorial scaled each axis to 0..1 on
its own, so that every drawing is as wide as high: that is kept as it is. It also dropped the first point, which is
restored so that the drawing touches the box. Source: tensorflow/models, tutorials/rnn/quickdraw/create_dataset.py.

Shapes: B drawings, N points of all drawings.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sketchray.columns import to_column
from sketchray.errors import DataError
from sketchray.formats import Bad, Block, make_table, too_many_points
from sketchray.formats.example import Feature, parse_example
from sketchray.strokes import BOX, FIXED, IntArray, deltas

__all__ = ["framed", "parse_example", "read"]

BLOCK_BYTES = 4 << 20  # of records a block
MAX_RECORD_BYTES = 4 << 20  # A longer record is no drawing: this is some 350,000 points.
READ_BYTES = 64 << 10
INFLATED_BYTES = 1 << 20  # decompressed at a time
GZIP_OR_ZLIB = 47  # zlib.decompressobj: whichever the header names
HEADER = struct.Struct("<QI")  # A record's length and that number's checksum; its bytes and their checksum follow.
CRC = struct.Struct("<I")
FRAME_BYTES = HEADER.size + CRC.size


def framed(file: BinaryIO) -> Iterator[tuple[int, bytes] | Bad]:
    """Yields the number, from 1, and the bytes of each record of a TFRecord file; a `Bad` for one that is damaged.

    The file may be compressed (GZIP or ZLIB); that is seen from its first bytes. It is read forward only, and no more
    than one record is held. Where a length is damaged, one `Bad` stands for all that follows.
    Source: tensorflow, core/lib/io/record_writer.h.

    Raises:
        DataError: the first length is not one, so that this is no TFRecord file.
    """
    stream = _Stream(file)
    number = 0
    while True:
        number += 1
        header = stream.take(HEADER.size)
        if len(header) < HEADER.size:
            if header or stream.damage:
                yield Bad(number, _torn(len(header), f"at least {FRAME_BYTES}", stream.damage))
            return
        length, crc = HEADER.unpack(header)
        if _masked_crc(header[:8]) != crc:
            if number == 1:
                raise DataError("not a TFRecord file, or damaged at its start: the first length's checksum is wrong")
            lost = HEADER.size + stream.skip(None)
            yield Bad(
                number, f"the checksum of the length is wrong: no record can be told from here on, {lost:,} bytes"
            )
            return
        if length > MAX_RECORD_BYTES:
            found = stream.skip(length + CRC.size)
            payload = checksum = b""
        else:
            payload, checksum = stream.take(length), stream.take(CRC.size)
            found = len(payload) + len(checksum)
        if found < length + CRC.size:
            yield Bad(number, _torn(HEADER.size + found, f"{FRAME_BYTES + length:,}", stream.damage))
            return
        if length > MAX_RECORD_BYTES:
            yield Bad(number, f"a record of {length:,} bytes, at most {MAX_RECORD_BYTES:,} are accepted")
        elif _masked_crc(payload) != CRC.unpack(checksum)[0]:
            yield Bad(number, "the checksum of the record is wrong: damaged since it was written")
        else:
            yield number, payload


def read(
    file: BinaryIO, *, max_points: int, classes: Sequence[str] | None, split: str | None = None
) -> Iterator[Block]:
    """Yields the drawings of a file of the tutorial, and which records are none.

    Args:
        classes: names in the order of the `.classes` file, None if there is none.
        split: which of the published ones these drawings belong to.

    Raises:
        DataError: not a TFRecord file, or its records name classes by number and `classes` is None.
    """
    inks: list[_Ink] = []
    bad: list[Bad] = []
    size = 0
    for record in framed(file):
        size += FRAME_BYTES
        if isinstance(record, Bad):
            bad.append(record)
        else:
            number, payload = record
            size += len(payload)
            try:
                inks.append(_parse_ink(number, parse_example(payload), max_points, classes))
            except ValueError as error:
                bad.append(Bad(number, str(error)))
        if size >= BLOCK_BYTES:
            yield _to_block(inks, bad, classes, split)
            inks, bad, size = [], [], 0
    if inks or bad:
        yield _to_block(inks, bad, classes, split)


class _Ink(NamedTuple):
    number: int
    steps: npt.NDArray[np.float32]  # (N, 3)
    label: int | None


def _parse_ink(number: int, example: dict[str, Feature], max_points: int, classes: Sequence[str] | None) -> _Ink:
    """Returns what an example holds of a drawing, its numbers not yet looked at.

    Raises:
        ValueError: it is none of the tutorial's examples; the message says why.
        DataError: it needs `classes`.
    """
    ink, shape, label = (example.get(name) for name in ("ink", "shape", "class_index"))
    if not isinstance(ink, np.ndarray) or ink.dtype != np.float32:
        raise ValueError("ink: expected a list of floats")
    if not isinstance(shape, np.ndarray) or shape.dtype != np.int64:
        raise ValueError("shape: expected a list of integers [points, 3]")
    if len(ink) % 3 or shape.tolist() != [len(ink) // 3, 3]:
        raise ValueError(f"shape: expected [points, 3] of {len(ink):,} numbers of ink, not {shape[:4].tolist()}")
    if len(ink) // 3 + 1 > max_points:
        raise ValueError(too_many_points(len(ink) // 3 + 1, max_points))
    if label is None:
        return _Ink(number, ink.reshape(-1, 3), None)
    if not isinstance(label, np.ndarray) or label.dtype != np.int64 or len(label) != 1:
        raise ValueError("class_index: expected one integer")
    if classes is None:
        raise DataError("its records name classes by number: put the .classes file of the same data set beside it")
    if not 0 <= label[0] < len(classes):
        raise ValueError(f"class_index {label[0]} is none of the {len(classes)} lines of the .classes file")
    return _Ink(number, ink.reshape(-1, 3), int(label[0]))


def _to_block(inks: list[_Ink], bad: list[Bad], classes: Sequence[str] | None, split: str | None) -> Block:
    """Returns the drawings of some examples, each with its first point restored."""
    steps = np.concatenate([np.zeros((0, 3), np.float32), *(ink.steps for ink in inks)])
    counts = np.array([len(ink.steps) for ink in inks], np.int64)
    ends = np.cumsum(counts + 1)
    row = np.repeat(np.arange(len(inks)), counts + 1)  # (N,) drawing of each point
    is_first = np.zeros(len(row), bool)
    is_first[ends - counts - 1] = True
    reasons: dict[int, str] = {}
    with np.errstate(invalid="ignore"):
        faults = {
            "ink: numbers must be finite": ~np.isfinite(steps).all(axis=1),
            "ink: a step leads out of the unit box": (np.abs(steps[:, :2]) > 1).any(axis=1),
            "ink: the third number of a point must be 0 or 1": (steps[:, 2] != 0) & (steps[:, 2] != 1),
        }
    for reason, is_faulty in faults.items():
        steps[is_faulty] = 0
        for faulty in np.unique(row[~is_first][is_faulty]).tolist():
            reasons.setdefault(faulty, reason)

    axes = [_restore(steps[:, axis], row, is_first) for axis in (0, 1)]
    for faulty in np.unique(row[(axes[0] > BOX) | (axes[1] > BOX)]).tolist():
        reasons.setdefault(faulty, "ink: the steps lead out of the unit box")
    pen_up = np.zeros(len(row), bool)
    pen_up[~is_first] = steps[:, 2] == 1
    pen_up[ends - 1] = True

    good = np.ones(len(inks), bool)
    good[list(reasons)] = False
    kept = good[row]
    x, y = (axis[kept] for axis in axes)
    drawing_ends: IntArray = np.cumsum(counts[good] + 1)
    points = deltas(x, y, np.flatnonzero(pen_up[kept]) + 1, drawing_ends)
    column = to_column(points, np.concatenate([[0], drawing_ends]))
    labels = pa.array([ink.label for row, ink in enumerate(inks) if row not in reasons], pa.int64())
    bad = sorted(bad + [Bad(inks[row].number, reason) for row, reason in reasons.items()])
    lines = [ink.number for row, ink in enumerate(inks) if row not in reasons]
    return Block(make_table(column, lines, name=pa.array(classes or [], pa.string()).take(labels), split=split), bad)


def _restore(step: npt.NDArray[np.float32], row: IntArray, is_first: npt.NDArray[np.bool_]) -> IntArray:
    """Returns the `(N,)` positions, from 0, to which steps of at most 1 lead, in pixels, with each first point."""
    steps = np.zeros(len(row), np.int64)
    # Sums in fixed point are exact: what stands before a drawing does not change how its points are rounded.
    steps[~is_first] = np.rint(step * FIXED)
    reached = np.cumsum(steps)
    if len(reached):
        reached -= np.minimum.reduceat(reached, np.flatnonzero(is_first))[row]
    positions: IntArray = np.rint(reached * (BOX / FIXED)).astype(np.int64)
    return positions


class _Stream:
    """The bytes of a file, decompressed; `damage` says why they ended before their time."""

    def __init__(self, file: BinaryIO) -> None:
        head = b""
        while len(head) < HEADER.size and (data := file.read(HEADER.size - len(head))):
            head += data
        is_plain = len(head) == HEADER.size and _masked_crc(head[:8]) == HEADER.unpack(head)[1]
        is_zlib = head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0  # Source: RFC 1950.
        compressed = not is_plain and (is_zlib or head[:2] == b"\x1f\x8b")
        self._chunks = self._inflate(file, head) if compressed else self._copy(file, head)
        self._data = b""
        self._position = 0
        self.damage = ""

    def take(self, size: int) -> bytes:
        """Returns the next bytes; fewer only at the end."""
        while len(self._data) - self._position < size and (chunk := next(self._chunks, b"")):
            self._data = self._data[self._position :] + chunk
            self._position = 0
        taken = self._data[self._position : self._position + size]
        self._position += len(taken)
        return taken

    def skip(self, size: int | None) -> int:
        """Passes over the next bytes, None for all, and returns how many there were."""
        skipped = 0
        while size is None or skipped < size:
            taken = self.take(READ_BYTES if size is None else min(READ_BYTES, size - skipped))
            if not taken:
                break
            skipped += len(taken)
        return skipped

    @staticmethod
    def _copy(file: BinaryIO, head: bytes) -> Iterator[bytes]:
        data = head
        while data:
            yield data
            data = file.read(READ_BYTES)

    def _inflate(self, file: BinaryIO, head: bytes) -> Iterator[bytes]:
        """Yields the decompressed bytes of one or more GZIP or ZLIB streams, a bounded number at a time."""
        inflater = zlib.decompressobj(wbits=GZIP_OR_ZLIB)
        is_open, data, inflated = False, head, b""
        # A full answer may leave more behind even where all that went in was used.
        while data or len(inflated) == INFLATED_BYTES or (data := file.read(READ_BYTES)):
            if not is_open:
                data = data.lstrip(b"\0")  # Files may be padded with zeros.
                is_open = bool(data)
            try:
                inflated = inflater.decompress(data, INFLATED_BYTES)
            except zlib.error as error:
                self.damage = f"the compressed data are damaged ({error})"
                return
            data = inflater.unconsumed_tail
            if inflated:
                yield inflated
            if inflater.eof:
                is_open, data, inflated = False, inflater.unused_data, b""
                inflater = zlib.decompressobj(wbits=GZIP_OR_ZLIB)
        if is_open:
            self.damage = "the compressed data end too early"


def _masked_crc(data: bytes) -> int:
    """Returns a CRC32C, rotated and shifted. Source: tensorflow, core/lib/hash/crc32c.h."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _torn(found: int, expected: str, damage: str) -> str:
    return f"torn record: {found:,} of {expected} bytes" + (f"; {damage}" if damage else "")
