"""Nested lists of many records at once: against `from_record`, one by one."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import real_records
from hypothesis import given
from hypothesis import strategies as st

from sketchray.columns import from_column
from sketchray.errors import StrokeError
from sketchray.formats.records import from_nested
from sketchray.strokes import from_record

NESTED = pa.list_(pa.list_(pa.list_(pa.float64())))
GOOD = [[[0, 9], [3, 4]], [[1], [2]]]


def check(drawings: list[Any], max_points: int = 20) -> None:
    """Asserts that all drawings together are read as each alone."""
    found = from_nested(pa.array(drawings, NESTED), max_points)
    points, offsets = from_column(found.points)
    expected, bad = {}, []
    for row, drawing in enumerate(drawings):
        try:
            expected[row] = from_record(drawing, max_points=max_points).tolist()
        except StrokeError as error:
            bad.append((row, str(error)))
    assert found.bad == bad
    assert found.rows.to_pylist() == list(expected)
    assert [part.tolist() for part in np.split(points, offsets[1:-1])[: len(expected)]] == list(expected.values())


def test_real_records_and_raw_ones_beside_them() -> None:
    drawings = [record["drawing"] for record in real_records(60, classes=3)]
    raw = [[[[1.5 * x for x in axis] for axis in stroke] for stroke in drawing] for drawing in drawings[::7]]
    timed = [[[*stroke, list(range(len(stroke[0])))] for stroke in drawing] for drawing in drawings[::5]]
    check(raw + drawings + timed, max_points=10_000)


@pytest.mark.parametrize(
    "drawing",
    [
        None,
        [],
        [None],
        [[]],
        [GOOD[0], None],
        [[[1], [2]], [[], []]],
        [[[1], None]],
        [[[1], [None]]],
        [[[1, 2], [2]]],
        [[[1]]],
        [[[1], [2], [3], [4]]],
        [[[1], [2], [float("nan")]]],
        [[[float("inf")], [2]]],
        [[[32_768], [2]]],
        [[list(range(21)), list(range(21))]],
    ],
)
def test_a_row_that_is_no_drawing_leaves_its_neighbours_alone(drawing: Any) -> None:
    check([GOOD, drawing, GOOD, [[[-5], [2], [7e20]]], drawing])
    check([drawing])


def test_no_rows_at_all() -> None:
    check([])


numbers = st.one_of(st.integers(-300, 300), st.sampled_from([0.5, 40_000, 1e30, None, float("nan")]))
axes = st.one_of(st.none(), st.lists(numbers, max_size=3))
strokes = st.one_of(st.none(), st.lists(st.just([1, 2]), min_size=2, max_size=3), st.lists(axes, max_size=4))


@given(st.lists(st.one_of(st.none(), st.lists(strokes, max_size=3)), max_size=5))
def test_whatever_the_lists_hold(drawings: list[Any]) -> None:
    check(drawings, max_points=5)
