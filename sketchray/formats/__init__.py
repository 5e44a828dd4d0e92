"""The formats in which Quick, Draw! is published: a module each, all read into the same Arrow table.

A reader takes a binary file and yields `Block`s: the drawings of a bounded stretch of it, and what in that stretch was
no drawing. It never stops at a bad record. No PyTorch, no Ray.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from sketchray.columns import POINTS, IntArray, from_column
from sketchray.errors import DataError

# `line` is the record's line (or number, in a binary file), from 1. `class` is null where the record does not name it,
# since it is then what the file's name says. `split` is the published one.
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("class", pa.string()),
        ("key_id", pa.uint64()),
        ("recognized", pa.bool_()),
        ("split", pa.string()),
        ("points", POINTS),
    ]
)


class Bad(NamedTuple):
    """A record that is not a drawing: its line (or number, in a binary file), from 1, and why. 0 is the whole file."""

    line: int
    reason: str


class Block(NamedTuple):
    """Drawings, by `SCHEMA`, and the records beside them that were none."""

    table: pa.Table
    bad: list[Bad]


class HostileError(DataError):
    """A file made to do harm. It ends a run, where a bad record would not."""


def make_table(
    points: pa.ListArray,
    line: Sequence[int] | IntArray,
    *,
    name: pa.Array | None = None,
    key_id: pa.Array | None = None,
    recognized: pa.Array | None = None,
    split: str | None = None,
) -> pa.Table:
    """Returns a table by `SCHEMA`; columns that the format lacks are null."""
    number = len(points)
    columns = [
        pa.array(line, pa.int64()),
        pa.nulls(number, pa.string()) if name is None else name,
        pa.nulls(number, pa.uint64()) if key_id is None else key_id,
        pa.nulls(number, pa.bool_()) if recognized is None else recognized,
        pa.nulls(number, pa.string()) if split is None else pa.array([split] * number, pa.string()),
        points,
    ]
    return pa.table(columns, schema=SCHEMA)


def check_points(column: pa.ListArray, max_points: int) -> list[tuple[int, str]]:
    """Returns the rows of a stroke-3 column that are not drawings, and why.

    A drawing has 1 to `max_points` points, and each point's `pen_up` is 0 or 1.
    """
    points, offsets = from_column(column)
    lengths = offsets[1:] - offsets[:-1]
    faulty = (lengths == 0) | (lengths > max_points)
    odd = (points[:, 2] != 0) & (points[:, 2] != 1)
    odd_rows: IntArray = offsets.searchsorted(odd.nonzero()[0], side="right") - 1
    faulty[odd_rows] = True
    bad = []
    for row in faulty.nonzero()[0].tolist():
        number = int(lengths[row])
        if number == 0:
            bad.append((row, "no points"))
        elif number > max_points:
            bad.append((row, too_many_points(number, max_points)))
        else:
            bad.append((row, "pen_up (the third number of a point) must be 0 or 1"))
    return bad


def too_many_points(number: int, max_points: int) -> str:
    """Returns the reason why so many points are no drawing."""
    return f"{number:,} points, at most {max_points:,} are accepted"
