"""Quick, Draw!'s binary files (`.bin`): simplified drawings end to end, little endian, without a header or a checksum.

A record is `key_id` (8 bytes), `countrycode` (2), `recognized` (1), `timestamp` (4), the number of strokes (2), and for
each stroke the number of its points (2), then a byte for each x and one for each y. The file does not name the class.
Source: examples/binary_file_parser.py and README of googlecreativelab/quickdraw-dataset.

Shapes: B drawings, S strokes of all drawings, N points of all drawings.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sketchray.columns import to_column
from sketchray.errors import DataError
from sketchray.formats import Bad, Block, make_table, too_many_points
from sketchray.strokes import IntArray, deltas

READ_BYTES = 4 << 20
HEAD_BYTES = 17  # of a record, before its strokes
COUNT_BYTES = 2  # of a stroke, before its points
RECOGNIZED, NUM_STROKES = 10, 15  # where in a record they stand


def read(file: BinaryIO, *, max_points: int) -> Iterator[Block]:
    """Yields the drawings of a binary file, and which records are none.

    `recognized` is 0 or 1 in a record; anything else shows that the record is damaged, or the counts before it, which
    say where it starts.

    Raises:
        DataError: the file starts with no such record, and none follows.
    """
    # A record of more bytes has too many points, or a stroke without any.
    longest = HEAD_BYTES + (COUNT_BYTES + 2) * max_points
    rest, number = b"", 1
    while True:
        chunk = _read(file)
        data = rest + chunk
        if not data:
            return
        records = _walk(data)
        block = _to_block(data, records, number, max_points)
        if number == 1 and not len(block.table) and len(data) > RECOGNIZED and data[RECOGNIZED] > 1:
            raise DataError(f"not a Quick, Draw! binary file: its first record has {data[RECOGNIZED]} for `recognized`")
        number += len(records.starts)
        rest = data[records.end :]
        if rest and (not chunk or len(rest) > longest):
            reason, rest = _skip(file, rest, max_points)
            block.bad.append(Bad(number, reason))
            number += 1
        yield block


def _read(file: BinaryIO) -> bytes:
    """Returns the next `READ_BYTES`, fewer only at the end: what is read does not depend on how fast a source is."""
    parts: list[bytes] = []
    missing = READ_BYTES
    while missing and (part := file.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class _Records(NamedTuple):
    """Where the whole records of some bytes stand: indices into the bytes, and into the strokes."""

    starts: list[int]  # (B,)
    first_stroke: list[int]  # (B,)
    strokes: list[int]  # (S,)
    end: int


def _walk(data: bytes) -> _Records:
    """Returns the whole records that bytes start with. The only loop over strokes: each says where the next starts."""
    starts: list[int] = []
    first_stroke: list[int] = []
    strokes: list[int] = []
    add = strokes.append
    start, size = 0, len(data)
    while size - start >= HEAD_BYTES:
        known = len(strokes)
        position = start + HEAD_BYTES
        try:
            for _ in range(data[start + NUM_STROKES] | data[start + NUM_STROKES + 1] << 8):
                add(position)
                position += COUNT_BYTES + 2 * (data[position] | data[position + 1] << 8)
        except IndexError:
            position = size + 1
        if position > size:
            del strokes[known:]
            break
        starts.append(start)
        first_stroke.append(known)
        start = position
    return _Records(starts, first_stroke, strokes, start)


def _to_block(data: bytes, records: _Records, first: int, max_points: int) -> Block:
    """Returns the drawings among records, of which the first is number `first` of the file."""
    content = np.frombuffer(data, np.uint8)
    starts = np.array(records.starts, np.int64)
    strokes = np.array(records.strokes, np.int64)
    first_stroke = np.array([*records.first_stroke, len(strokes)], np.int64)
    num_strokes = first_stroke[1:] - first_stroke[:-1]
    counts = content[strokes] | content[strokes + 1].astype(np.int64) << 8  # (S,)
    row = np.repeat(np.arange(len(starts)), num_strokes)
    num_points = np.bincount(row, counts, len(starts)).astype(np.int64)
    num_empty = np.bincount(row, counts == 0, len(starts))
    recognized = content[starts + RECOGNIZED]
    good = (recognized <= 1) & (num_strokes > 0) & (num_empty == 0) & (num_points <= max_points)
    bad = []
    for faulty in np.flatnonzero(~good).tolist():
        reason = _reason(int(recognized[faulty]), int(num_points[faulty]), max_points)
        bad.append(Bad(first + faulty, reason))

    starts, num_points = starts[good], num_points[good]
    strokes, counts = strokes[good[row]], counts[good[row]]
    stroke_ends: IntArray = np.cumsum(counts)
    x_at = np.arange(num_points.sum()) + np.repeat(strokes + COUNT_BYTES - (stroke_ends - counts), counts)
    x, y = content[x_at].astype(np.int64), content[x_at + np.repeat(counts, counts)].astype(np.int64)
    drawing_ends: IntArray = np.cumsum(num_points)
    points = deltas(x, y, stroke_ends, drawing_ends)
    table = make_table(
        to_column(points, np.concatenate([[0], drawing_ends])),
        first + np.flatnonzero(good),
        key_id=pa.array(_keys(content, starts)),
        recognized=pa.array(recognized[good] == 1),
    )
    return Block(table, bad)


def _keys(content: npt.NDArray[np.uint8], starts: IntArray) -> npt.NDArray[np.uint64]:
    keys: npt.NDArray[np.uint64] = content[starts[:, None] + np.arange(8)].view("<u8").reshape(-1)
    return keys


def _reason(recognized: int, num_points: int, max_points: int) -> str:
    """Returns why a record is no drawing, where one is known to be none."""
    if recognized > 1:
        return f"recognized is {recognized}, not 0 or 1: the record is damaged, or one before it"
    if not num_points:
        return "no points"
    return too_many_points(num_points, max_points) if num_points > max_points else "a stroke has no points"


def _skip(file: BinaryIO, data: bytes, max_points: int) -> tuple[str, bytes]:
    """Passes over a record that is torn or too long; returns why it is no drawing and the bytes after it.

    The record is not held: with a damaged count, it may be gigabytes.
    """
    if len(data) < HEAD_BYTES:
        return f"torn record: {len(data)} of at least {HEAD_BYTES} bytes", b""
    seen, position = len(data), HEAD_BYTES
    strokes_left = data[NUM_STROKES] | data[NUM_STROKES + 1] << 8
    recognized, num_points = data[RECOGNIZED], 0
    while strokes_left or position > len(data):
        if strokes_left and position + COUNT_BYTES <= len(data):
            count = data[position] | data[position + 1] << 8
            num_points += count
            position += COUNT_BYTES + 2 * count
            strokes_left -= 1
            continue
        chunk = _read(file)
        if not chunk:
            missing = position + COUNT_BYTES * strokes_left - len(data)
            return f"torn record: {seen:,} of at least {seen + missing:,} bytes", b""
        seen += len(chunk)
        data, position = data[position:] + chunk, max(0, position - len(data))
    return _reason(recognized, num_points, max_points), data[position:]
