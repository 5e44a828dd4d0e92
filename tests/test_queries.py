"""A record as what the model takes: the quick way for published drawings beside `from_record`."""

import re

import numpy as np
import pytest
from conftest import real_records
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from sketchray.errors import StrokeError
from sketchray.service.records import RecordError, parse, to_query
from sketchray.service.settings import Settings
from sketchray.strokes import from_record

SETTINGS = Settings(checkpoint="none", max_points=20)
numbers = st.one_of(st.integers(0, 255), st.sampled_from([-1, 256, 0.5, -0.0, 32_768]))
axes = st.lists(numbers, max_size=3)
strokes = st.one_of(
    st.just([[1, 2], [3, 4]]), st.tuples(numbers, numbers).map(lambda point: [[point[0]], [point[1]]]), st.lists(axes)
)


def check(drawing: object) -> None:
    """Asserts that a query is what `from_record` makes of the drawing."""
    record = parse(to_json({"drawing": drawing}), SETTINGS)
    fault = None
    try:
        expected = from_record(record.drawing, max_points=SETTINGS.max_points)
    except StrokeError as error:
        fault = str(error)
    if fault is not None:
        with pytest.raises(RecordError, match=f"^{re.escape(fault)}$"):
            to_query(record, SETTINGS)
        return
    found = to_query(record, SETTINGS).points
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@given(st.lists(strokes, max_size=12))
def test_whatever_the_lists_hold(drawing: object) -> None:
    check(drawing)


def test_real_records() -> None:
    for record in real_records(50, classes=2):
        check(record["drawing"])
