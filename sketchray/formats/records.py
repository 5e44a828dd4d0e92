"""Nested lists `[[x...], [y...]]` of many records at once, as Arrow parsed them, to points: array arithmetic.

Shapes: B records, S strokes of all records, N points of all records.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sketchray.columns import to_column
from sketchray.errors import StrokeError
from sketchray.strokes import BOX, LIMIT, FloatArray, IntArray, deltas, from_record, simplify


class Drawings(NamedTuple):
    """The drawings among B records: their rows (increasing), their points, and the other rows, each with its reason."""

    rows: pa.Array
    points: pa.ListArray
    bad: list[tuple[int, str]]


def from_nested(drawing: pa.ListArray, max_points: int) -> Drawings:
    """Returns the drawings among `B` records' nested lists of numbers, simplified where they are raw.

    A drawing with times, fractions or coordinates outside 0..255 is taken for raw, as in `strokes.from_record`.
    """
    number = len(drawing)
    strokes = drawing.flatten()
    axes = strokes.flatten()
    stroke_row = pc.list_parent_indices(drawing).to_numpy()  # (S,)
    num_axes = _lengths(strokes)
    first_axis = np.cumsum(num_axes) - num_axes
    axis_stroke = np.repeat(np.arange(len(strokes)), num_axes)
    axis_kind = np.arange(len(axes)) - first_axis[axis_stroke]  # 0 for x, 1 for y, 2 for t
    axis_lengths = _lengths(axes)
    value_axis = np.repeat(np.arange(len(axes)), axis_lengths)
    values = pc.cast(axes.flatten(), pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN

    stroke_points = np.zeros(len(strokes), np.int64)
    shaped = (num_axes == 2) | (num_axes == 3)
    stroke_points[shaped] = axis_lengths[first_axis[shaped]]
    faulty_stroke = ~shaped | (stroke_points == 0)
    faulty_stroke[axis_stroke[axis_lengths != stroke_points[axis_stroke]]] = True
    is_time = axis_kind[value_axis] == 2
    with np.errstate(invalid="ignore"):
        inside = np.abs(values) <= LIMIT  # false for NaN
    faulty_stroke[axis_stroke[value_axis[~inside & ~(is_time & np.isfinite(values))]]] = True

    faulty = _lengths(drawing) == 0
    faulty[stroke_row[faulty_stroke]] = True
    row_points = np.bincount(stroke_row, stroke_points, minlength=number).astype(np.int64)
    faulty |= row_points > max_points
    bad = [(row, _reason(drawing[row], max_points)) for row in faulty.nonzero()[0].tolist()]

    good_stroke = ~faulty[stroke_row]
    value_stroke = axis_stroke[value_axis]
    used = good_stroke[value_stroke]
    x, y = (values[used & (axis_kind[value_axis] == kind)] for kind in (0, 1))
    lengths, stroke_row = stroke_points[good_stroke], stroke_row[good_stroke]
    point_row = np.repeat(stroke_row, lengths)
    raw = np.zeros(number, bool)
    raw[stroke_row[num_axes[good_stroke] == 3]] = True
    for axis in (x, y):
        raw[point_row[(axis != np.rint(axis)) | (axis < 0) | (axis > BOX)]] = True

    rows = [group.nonzero()[0] for group in (~faulty & ~raw, raw)]
    parts = []
    for group, is_raw in zip(rows, (False, True), strict=True):
        chosen, chosen_strokes = raw[point_row] == is_raw, raw[stroke_row] == is_raw
        counts = np.bincount(stroke_row[chosen_strokes], minlength=number)[group]
        parts.append(_to_points(x[chosen], y[chosen], lengths[chosen_strokes], counts, is_raw=is_raw))
    order = np.argsort(np.concatenate(rows), kind="stable")
    points = parts[0] if not len(rows[1]) else pa.concat_arrays(parts).take(pa.array(order))
    return Drawings(pa.array(np.sort(np.concatenate(rows))), points, bad)


def _lengths(lists: pa.ListArray) -> IntArray:
    lengths: IntArray = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _to_points(x: FloatArray, y: FloatArray, lengths: IntArray, counts: IntArray, *, is_raw: bool) -> pa.ListArray:
    """Returns the column of drawings given by their points, points a stroke and strokes a drawing."""
    stroke_ends, drawing_strokes = np.cumsum(lengths), np.cumsum(counts)
    if is_raw:
        x, y, stroke_ends = simplify(x, y, stroke_ends, drawing_strokes)
    drawing_ends = stroke_ends[drawing_strokes - 1]
    points = deltas(x.astype(np.int64), y.astype(np.int64), stroke_ends, drawing_ends)
    return to_column(points, np.concatenate([[0], drawing_ends]))


def _reason(drawing: pa.Scalar, max_points: int) -> str:
    value = drawing.as_py()
    try:
        points = from_record(value, max_points=max_points)
    except StrokeError as error:
        return str(error)
    raise AssertionError(f"{len(points)} points were taken for no drawing: {value!r}")
