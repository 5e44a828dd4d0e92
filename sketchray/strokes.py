"""What a drawing is: an int16 `(N, 3)` array of points `(dx, dy, pen_up)`, as the SketchRNN files have it (stroke-3).

`dx, dy` lead from the point before (the first point: from the origin), in pixels; `pen_up` is 1 on the last point of
each stroke. Quick, Draw! publishes the same thing as nested lists `[[x...], [y...]]`, one pair a stroke.

Shapes: B drawings, N points of all drawings, S strokes of all drawings.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sketchray.errors import StrokeError

Int16Array = npt.NDArray[np.int16]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

BOX = 255  # Side of the square, in pixels, that a simplified drawing fills. Source: quickdraw-dataset README.
LIMIT = np.iinfo(np.int16).max  # Coordinates beyond plus or minus this many pixels are no drawing.
MAX_POINTS = 10_000  # Of a drawing as it comes; the longest published simplified ones have some hundreds.
RESAMPLED = 4 << 20  # Points that `simplify` resamples at a time, some 300 MB of work space.
FIXED = 1 << 40  # Parts of a pixel in which lengths along a stroke are counted.
EPSILON = 2.0  # Ramer-Douglas-Peucker tolerance in pixels. Source: quickdraw-dataset README.


def deltas(
    x: IntArray | Int16Array, y: IntArray | Int16Array, stroke_ends: IntArray, drawing_ends: IntArray
) -> Int16Array:
    """Returns `(N, 3)` points of many drawings from their absolute coordinates.

    Args:
        x, y: `(N,)` coordinates in pixels, all drawings end to end; as int16, which is faster, only those in 0..255.
        stroke_ends: `(S,)` index past the last point of each stroke, increasing.
        drawing_ends: `(B,)` index past the last point of each drawing, increasing.

    Raises:
        StrokeError: a step does not fit int16.
    """
    points = np.zeros((len(x), 3), x.dtype)
    if not len(x):
        return points.astype(np.int16)
    for axis, coordinate in enumerate((x, y)):
        points[0, axis] = coordinate[0]
        np.subtract(coordinate[1:], coordinate[:-1], out=points[1:, axis])
        starts = drawing_ends[:-1]
        points[starts, axis] = coordinate[starts]
    if max(points.max(), -points.min()) > np.iinfo(np.int16).max:
        raise StrokeError("a step between two points does not fit int16 (-32767..32767 pixels)")
    points[stroke_ends - 1, 2] = 1
    return points.astype(np.int16, copy=False)


def to_strokes(points: Int16Array) -> list[IntArray]:
    """Returns the strokes of a drawing as `(n, 2)` arrays of absolute x, y in pixels: the inverse of `deltas`."""
    positions = np.cumsum(points[:, :2].astype(np.int64), axis=0)
    ends = np.flatnonzero(points[:, 2]) + 1
    return [stroke for stroke in np.split(positions, ends) if len(stroke)]


def to_record(points: Int16Array) -> list[list[list[int]]]:
    """Returns a drawing as the nested lists of a Quick, Draw! record."""
    return [[stroke[:, 0].tolist(), stroke[:, 1].tolist()] for stroke in to_strokes(points)]


def from_record(drawing: Any, *, max_points: int = MAX_POINTS) -> Int16Array:
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
        except (ValueError, OverflowError) as error:
            raise StrokeError(f"drawing[{index}]: coordinates must be flat lists of numbers") from error
        if any(axis.ndim != 1 or not axis.size or axis.dtype.kind not in "iuf" for axis in axes):
            raise StrokeError(f"drawing[{index}]: coordinates must be flat, non-empty lists of numbers")
        if len({len(axis) for axis in axes}) != 1:
            raise StrokeError(f"drawing[{index}]: lists of unequal length {[len(axis) for axis in axes]}")
        if not all(np.isfinite(axis).all() for axis in axes):
            raise StrokeError(f"drawing[{index}]: numbers must be finite")
        positions = np.stack(axes[:2], axis=1).astype(np.float64)
        if np.abs(positions).max() > LIMIT:
            raise StrokeError(f"drawing[{index}]: coordinates must be within -{LIMIT}..{LIMIT} pixels, the int16 range")
        raw = raw or len(stroke) == 3 or bool((positions != np.rint(positions)).any())
        strokes.append(positions)
    total = sum(map(len, strokes))
    if total > max_points:
        raise StrokeError(f"drawing: {total:,} points, at most {max_points:,} are accepted")
    x, y = np.concatenate(strokes).T
    ends = np.cumsum([len(stroke) for stroke in strokes])
    if raw or min(x.min(), y.min()) < 0 or max(x.max(), y.max()) > BOX:
        x, y, ends = simplify(x, y, ends, np.array([len(strokes)]))
    return deltas(x.astype(np.int64), y.astype(np.int64), ends, ends[-1:])


def simplify(
    x: FloatArray, y: FloatArray, stroke_ends: IntArray, drawing_strokes: IntArray
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Returns drawings as Google simplified them: aligned, scaled to 0..255, resampled at 1 pixel, then thinned.

    Source: the four steps in the README of googlecreativelab/quickdraw-dataset.

    Args:
        x, y: `(N,)` coordinates in any unit, all drawings end to end.
        stroke_ends: `(S,)` index past the last point of each stroke.
        drawing_strokes: `(B,)` index past the last stroke of each drawing.

    Returns:
        x, y in whole pixels and the new `stroke_ends`.
    """
    if not len(x):
        return x, y, stroke_ends
    stroke_starts = _starts(stroke_ends)
    drawing_starts = stroke_starts[_starts(drawing_strokes)]
    drawing_lengths = np.diff(np.append(drawing_starts, len(x)))
    low = [np.minimum.reduceat(axis, drawing_starts) for axis in (x, y)]
    high = [np.maximum.reduceat(axis, drawing_starts) for axis in (x, y)]
    side = np.maximum(high[0] - low[0], high[1] - low[1])
    scale = np.divide(BOX, side, out=np.zeros_like(side), where=side > 0)
    x, y = (
        (axis - np.repeat(corner, drawing_lengths)) * np.repeat(scale, drawing_lengths)
        for axis, corner in zip((x, y), low, strict=True)
    )
    if len(drawing_strokes) > 1 and np.hypot(np.diff(x), np.diff(y)).sum() > RESAMPLED:
        halves = _halves(x, y, stroke_ends, drawing_strokes)
        first, second = (simplify(*half) for half in halves)
        ends = np.concatenate([first[2], second[2] + len(first[0])])
        return np.append(first[0], second[0]), np.append(first[1], second[1]), ends
    x, y, stroke_ends = resample(x, y, stroke_ends)
    keep = thin(x, y, stroke_ends, EPSILON)
    kept_ends = np.cumsum(keep, dtype=np.int64)[stroke_ends - 1]
    return np.rint(x[keep]), np.rint(y[keep]), kept_ends


def _halves(
    x: FloatArray, y: FloatArray, stroke_ends: IntArray, drawing_strokes: IntArray
) -> Iterator[tuple[FloatArray, FloatArray, IntArray, IntArray]]:
    """Yields the first and the second half of some drawings."""
    strokes = drawing_strokes[len(drawing_strokes) // 2 - 1]
    points = stroke_ends[strokes - 1]
    half = len(drawing_strokes) // 2
    yield x[:points], y[:points], stroke_ends[:strokes], drawing_strokes[:half]
    yield x[points:], y[points:], stroke_ends[strokes:] - points, drawing_strokes[half:] - strokes


def resample(x: FloatArray, y: FloatArray, stroke_ends: IntArray) -> tuple[FloatArray, FloatArray, IntArray]:
    """Returns `(N,)` points of strokes resampled at 1 pixel along each, its last point kept.

    A dot becomes two equal points, as in the published files.
    """
    starts, lengths = _starts(stroke_ends), np.diff(stroke_ends, prepend=0)
    step = np.hypot(np.diff(x, prepend=x[:1]), np.diff(y, prepend=y[:1]))
    step[starts] = 0.0
    # Sums in fixed point are exact, so that what stands before a stroke does not change its last bits.
    reached = np.cumsum(np.rint(step * FIXED).astype(np.int64))
    reached -= np.repeat(reached[starts], lengths)
    total = reached[stroke_ends - 1]
    counts = np.maximum(-(-total // FIXED), 1) + 1
    ends = np.cumsum(counts)
    of = np.repeat(np.arange(len(counts)), counts)  # the stroke of each new point
    distance = np.minimum((np.arange(ends[-1]) - _starts(ends)[of]) * FIXED, total[of])
    # A new point lies on the segment that starts at the last old point before it.
    first_after = np.repeat(_starts(ends), lengths) - (-reached // FIXED)
    segment = np.cumsum(np.bincount(first_after, minlength=len(of))) - 1
    segment = np.clip(segment, starts[of], np.maximum(stroke_ends[of] - 2, starts[of]))
    after = np.minimum(segment + 1, stroke_ends[of] - 1)
    length = (reached[after] - reached[segment]).astype(np.float64)
    share = np.divide(distance - reached[segment], length, out=np.zeros_like(length), where=length > 0)
    x, y = (axis[segment] + share * (axis[after] - axis[segment]) for axis in (x, y))
    return x, y, ends


def thin(x: FloatArray, y: FloatArray, stroke_ends: IntArray, epsilon: float) -> npt.NDArray[np.bool_]:
    """Returns which of the `(N,)` points of strokes Ramer-Douglas-Peucker keeps.

    The distance is to the infinite line through the ends, as in the published files, not to the segment between them
    (which libraries such as GEOS take): on strokes that end near their start the two keep different points.

    All strokes are halved together, one round for each depth of the recursion.

    Args:
        epsilon: points no farther than this from the chord are dropped, in the unit of `x` and `y`.
    """
    keep = np.zeros(len(x), bool)
    start, stop = _starts(stroke_ends), stroke_ends - 1
    keep[start] = keep[stop] = True
    while True:
        wide = stop - start > 1
        start, stop = start[wide], stop[wide]
        if not len(start):
            return keep
        inner = stop - start - 1
        ends = np.cumsum(inner)
        span = np.repeat(np.arange(len(inner)), inner)
        point = np.arange(ends[-1]) + np.repeat(start + 1 - _starts(ends), inner)
        chord_x, chord_y = x[stop] - x[start], y[stop] - y[start]
        length = np.hypot(chord_x, chord_y)
        closed = length == 0
        dx, dy = x[point], y[point]
        dx -= np.repeat(x[start], inner)
        dy -= np.repeat(y[start], inner)
        distance = dx * np.repeat(chord_y, inner)
        distance -= dy * np.repeat(chord_x, inner)
        np.abs(distance, out=distance)
        distance /= np.repeat(np.where(closed, 1.0, length), inner)
        if closed.any():
            at = np.flatnonzero(closed[span])
            distance[at] = np.hypot(dx[at], dy[at])
        farthest = np.maximum.reduceat(distance, _starts(ends))
        is_farthest = np.flatnonzero(distance == np.repeat(farthest, inner))
        first = is_farthest[np.flatnonzero(np.diff(span[is_farthest], prepend=-1))]
        split = farthest > epsilon
        middle = point[first][split]
        keep[middle] = True
        start, stop = np.concatenate([start[split], middle]), np.concatenate([middle, stop[split]])


def _starts(ends: IntArray) -> IntArray:
    """Returns where runs start that end at `ends`, the first at 0."""
    return np.concatenate([[0], ends[:-1]])
