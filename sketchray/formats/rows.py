"""What the formats made of columns share: keys that are texts, and a block of those rows that are drawings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sketchray.columns import IntArray
from sketchray.formats import Bad, Block, make_table
from sketchray.formats.records import Drawings

MAX_KEY = 2**64 - 1
Faults = dict[int, str]  # rows that are no drawings, each with its reason


def check_key(value: Any) -> str | None:
    """Returns why a `key_id` is none, or None if it is one: a whole number of 64 bits, its digits, or nothing."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else "-"
    # More digits than these are too many whatever they are, and slow to convert.
    if value is None or not text or (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= MAX_KEY):
        return None
    return f"key_id {value!r:.40} is not a whole number of 64 bits"


def parse_keys(texts: pa.StringArray) -> tuple[pa.UInt64Array, Faults]:
    """Returns the keys that texts of digits are, null for an empty text, and which texts are none."""
    plain = pc.fill_null(pc.match_substring_regex(texts, "^[0-9]{1,19}$"), False)
    keys = pc.if_else(plain, texts, None).cast(pa.uint64())
    others = np.flatnonzero(pc.invert(plain).to_numpy(zero_copy_only=False)).tolist()
    faults: Faults = {}
    rare: dict[int, int] = {}
    for row, text in zip(others, texts.take(pa.array(others, pa.int64())).to_pylist(), strict=True):
        if text and (reason := check_key(text)) is not None:
            faults[row] = reason
        elif text:
            rare[row] = int(text)
    if rare:
        mask = np.isin(np.arange(len(texts)), list(rare))
        keys = pc.replace_with_mask(keys, pa.array(mask), pa.array(list(rare.values()), pa.uint64()))
    return keys, faults


def to_block(
    numbers: Sequence[int] | IntArray,
    drawings: Drawings,
    faults: Faults,
    *,
    name: pa.Array | None = None,
    key_id: pa.Array | None = None,
    recognized: pa.Array | None = None,
    split: pa.Array | None = None,
) -> Block:
    """Returns the drawings among rows, without those that something else is wrong with.

    Args:
        numbers: the line or the number of each row.
        drawings: which rows have a drawing.
        faults: what else is wrong with a row.
        name, key_id, recognized, split: columns of all rows.
    """
    bad = sorted(Bad(int(numbers[row]), reason) for row, reason in (faults | dict(drawings.bad)).items())
    rows, points = drawings.rows, drawings.points
    if faults:
        good = pa.array(~np.isin(rows.to_numpy(), list(faults)))
        rows, points = rows.filter(good), points.filter(good)
    name, key_id, recognized, split = (
        column if column is None or len(rows) == len(column) else column.take(rows)
        for column in (name, key_id, recognized, split)
    )
    lines = np.asarray(numbers, np.int64)[rows.to_numpy()]
    table = make_table(points, lines, name=name, key_id=key_id, recognized=recognized)
    if split is not None:
        table = table.set_column(table.column_names.index("split"), table.schema.field("split"), split)
    return Block(table, bad)
