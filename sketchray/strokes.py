"""What a drawing is: an int16 `(N, 3)` array of points `(dx, dy, pen_up)`, as the SketchRNN files have it (stroke-3).

`dx, dy` lead from the point before (the first point: from the origin), in pixels; `pen_up` is 1 on the last point of
each stroke. Quick, Draw! publishes the same thing as nested lists `[[x...], [y...]]`, one pair a stroke.

Shapes: B drawings, N points of all drawings, S strokes of all drawings.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sketchray.errors import StrokeError

Int16Array = npt.NDArray[np.int16]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

BOX = 255  # Side of the square, in pixels, that a simplified drawing fills. Source: quickdraw-dataset README.
EPSILON = 2.0  # Ramer-Douglas-Peucker tolerance in pixels. Source: quickdraw-dataset README.


def deltas(x: IntArray, y: IntArray, stroke_ends: IntArray, drawing_ends: IntArray) -> Int16Array:
    """Returns `(N, 3)` points of many drawings from their absolute coordinates.

    Args:
        x, y: `(N,)` coordinates in pixels, all drawings end to end.
        stroke_ends: `(S,)` index past the last point of each stroke, increasing.
        drawing_ends: `(B,)` index past the last point of each drawing, increasing.

    Raises:
        StrokeError: a step does not fit int16.
    """
    points = np.zeros((len(x), 3), np.int64)
    for axis, coordinate in enumerate((x, y)):
        points[0:1, axis] = coordinate[0:1]
        points[1:, axis] = np.diff(coordinate)
        starts = drawing_ends[:-1]
        points[starts, axis] = coordinate[starts]
    if points.size and max(points.max(), -points.min()) > np.iinfo(np.int16).max:
        raise StrokeError("a step between two points does not fit int16 (-32767..32767 pixels)")
    points[stroke_ends - 1, 2] = 1
    return points.astype(np.int16)


def to_strokes(points: Int16Array) -> list[IntArray]:
    """Returns the strokes of a drawing as `(n, 2)` arrays of absolute x, y in pixels: the inverse of `deltas`."""
    positions = np.cumsum(points[:, :2].astype(np.int64), axis=0)
    ends = np.flatnonzero(points[:, 2]) + 1
    return [stroke for stroke in np.split(positions, ends) if len(stroke)]


def to_record(points: Int16Array) -> list[list[list[int]]]:
    """Returns a drawing as the nested lists of a Quick, Draw! record."""
    return [[stroke[:, 0].tolist(), stroke[:, 1].tolist()] for stroke in to_strokes(points)]


def from_record(drawing: Any, *, max_points: int = 10_000) -> Int16Array:
    """Returns the `(N, 3)` points of one record's `drawing`, simplified first if it is not in the published form.

    Accepts what Quick, Draw! publishes: strokes `[[x...], [y...]]` (simplified) or `[[x...], [y...], [t...]]` (raw).
    A drawing with times, fractions or coordinates outside 0..255 is taken for raw and put through `simplify`.

    Args:
        max_points: more points than this are refused.

    Raises:
        StrokeError: the drawing is malformed; the message has the index of the offending stroke.
    """
    if not isinstance(drawing, Sequence) or isinstance(drawing, str) or not drawing:
        raise StrokeError("drawing: expected a list with at least one stroke [[x...], [y...]]")
    strokes = []
    raw = False
    for index, stroke in enumerate(drawing):
        if not isinstance(stroke, Sequence) or isinstance(stroke, str) or len(stroke) not in (2, 3):
            raise StrokeError(f"drawing[{index}]: expected [[x...], [y...]] or [[x...], [y...], [t...]]")
        try:
            axes = [np.asarray(axis) for axis in stroke]
        except ValueError as error:
            raise StrokeError(f"drawing[{index}]: coordinates must be flat lists of numbers") from error
        if any(axis.ndim != 1 or not axis.size or axis.dtype.kind not in "iuf" for axis in axes):
            raise StrokeError(f"drawing[{index}]: coordinates must be flat, non-empty lists of numbers")
        if len({len(axis) for axis in axes}) != 1:
            raise StrokeError(f"drawing[{index}]: lists of unequal length {[len(axis) for axis in axes]}")
        positions = np.stack(axes[:2], axis=1).astype(np.float64)
        if not np.isfinite(positions).all() or np.abs(positions).max() > 1e6:
            raise StrokeError(f"drawing[{index}]: coordinates must be finite and within 1e6 pixels")
        raw = raw or len(stroke) == 3 or bool((positions != np.rint(positions)).any())
        strokes.append(positions)
    total = sum(map(len, strokes))
    if total > max_points:
        raise StrokeError(f"drawing: {total:,} points, at most {max_points:,} are accepted")
    everything = np.concatenate(strokes)
    if raw or everything.min() < 0 or everything.max() > BOX:
        strokes = simplify(strokes)
        everything = np.concatenate(strokes)
    ends = np.cumsum([len(stroke) for stroke in strokes])
    x, y = everything.astype(np.int64).T
    return deltas(x, y, ends, ends[-1:])


def simplify(strokes: Sequence[FloatArray]) -> list[FloatArray]:
    """Returns strokes as Google simplified them: aligned, scaled to 0..255, resampled at 1 pixel, then thinned.

    Source: the four steps in the README of googlecreativelab/quickdraw-dataset.

    Args:
        strokes: `(n, 2)` arrays of x, y in any unit.

    Returns:
        `(m, 2)` arrays of whole pixels.
    """
    low = np.min([stroke.min(axis=0) for stroke in strokes], axis=0)
    high = np.max([stroke.max(axis=0) for stroke in strokes], axis=0)
    side = float((high - low).max())
    scale = BOX / side if side > 0 else 0.0
    simple = []
    for stroke in strokes:
        scaled = (stroke - low) * scale
        reached = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(scaled, axis=0).T))])
        # A dot becomes two equal points, as in the published files.
        distance = np.append(np.arange(0.0, max(reached[-1], 0.5), 1.0), reached[-1])
        resampled = np.stack([np.interp(distance, reached, scaled[:, axis]) for axis in (0, 1)], axis=1)
        simple.append(np.rint(thin(resampled, EPSILON)))
    return simple


def thin(line: FloatArray, epsilon: float) -> FloatArray:
    """Returns the points of a polyline that Ramer-Douglas-Peucker keeps.

    The distance is to the infinite line through the ends, as in the published files, not to the segment between them
    (which libraries such as GEOS take): on strokes that end near their start the two keep different points.

    Args:
        line: `(n, 2)` x, y.
        epsilon: points closer than this to the chord are dropped, in the unit of `line`.
    """
    keep = np.zeros(len(line), bool)
    keep[[0, -1]] = True
    spans = [(0, len(line) - 1)]
    while spans:  # one round a kept point; the distances of a span are one array
        start, stop = spans.pop()
        if stop - start < 2:
            continue
        inner = line[start + 1 : stop] - line[start]
        chord = line[stop] - line[start]
        length = math.hypot(*chord)
        if length > 0:
            distance = np.abs(inner[:, 0] * chord[1] - inner[:, 1] * chord[0]) / length
        else:
            distance = np.hypot(inner[:, 0], inner[:, 1])
        farthest = int(distance.argmax())
        if distance[farthest] > epsilon:
            middle = start + 1 + farthest
            keep[middle] = True
            spans += [(start, middle), (middle, stop)]
    return line[keep]
