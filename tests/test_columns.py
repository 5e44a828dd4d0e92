"""Drawings as an Arrow column: views, not copies; types as the shards' schema has them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sketchray.columns import POINTS, from_column, to_column

DRAWINGS = np.arange(30, dtype=np.int16).reshape(-1, 3)
OFFSETS = np.array([0, 3, 4, 10])


def test_the_column_holds_one_list_of_points_a_drawing() -> None:
    column = to_column(DRAWINGS, OFFSETS)
    assert column.type.equals(POINTS)
    assert column.to_pylist() == [DRAWINGS[:3].tolist(), DRAWINGS[3:4].tolist(), DRAWINGS[4:].tolist()]


def test_columns_are_views_of_the_points_and_back() -> None:
    column = to_column(DRAWINGS, OFFSETS)
    assert np.shares_memory(from_column(column)[0], DRAWINGS)
    part, offsets = from_column(column[1:])
    assert np.shares_memory(part, DRAWINGS)
    assert part.tolist() == DRAWINGS[3:].tolist()
    assert offsets.tolist() == [0, 1, 7]


def test_points_that_do_not_lie_end_to_end_in_memory_are_read_in_their_order() -> None:
    apart = np.asfortranarray(DRAWINGS)[::-1]
    points, offsets = from_column(to_column(apart, OFFSETS))
    assert points.tolist() == DRAWINGS[::-1].tolist()
    assert offsets.tolist() == OFFSETS.tolist()


def test_slices_of_chunks_join_in_order() -> None:
    column = to_column(DRAWINGS, OFFSETS)
    table = pa.table({"points": pa.chunked_array([column[2:], column[:1], column[1:2]])})
    points, offsets = from_column(table.slice(1)["points"])
    assert points.tolist() == DRAWINGS[:4].tolist()
    assert offsets.tolist() == [0, 3, 4]


def test_no_drawing_is_a_column_too() -> None:
    column = to_column(DRAWINGS, OFFSETS)
    for nothing in (pa.chunked_array([], POINTS), column[3:], to_column(DRAWINGS[:0], np.array([0]))):
        points, offsets = from_column(nothing)
        assert points.shape == (0, 3)
        assert points.dtype == np.int16
        assert offsets.tolist() == [0]


def test_parquet_keeps_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"points": to_column(DRAWINGS, OFFSETS)}), tmp_path / "shard.parquet")
    column = pq.read_table(tmp_path / "shard.parquet")["points"]
    assert column.type.equals(POINTS)
    points, offsets = from_column(column)
    assert points.tolist() == DRAWINGS.tolist()
    assert offsets.tolist() == OFFSETS.tolist()
