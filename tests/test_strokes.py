"""Drawings: records, points, simplification."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import real_records

from sketchray import doodles
from sketchray.columns import from_column, to_column
from sketchray.errors import StrokeError
from sketchray.strokes import (
    EPSILON,
    RESAMPLED,
    FloatArray,
    deltas,
    from_record,
    simplify,
    thin,
    to_record,
    to_strokes,
)

BOTH_FORMS = "4939281837588480"  # the key of a drawing that is at hand raw and simplified


def test_a_record_comes_back_unchanged() -> None:
    for record in real_records(50, classes=4):
        points = from_record(record["drawing"])
        assert points.dtype == np.int16
        assert points[:, 2].sum() == len(record["drawing"])
        assert to_record(points) == record["drawing"]


def test_the_first_point_leads_from_the_origin() -> None:
    assert from_record([[[3, 5], [4, 4]], [[0], [0]]]).tolist() == [[3, 4, 0], [2, 0, 1], [-5, -4, 1]]


def test_a_raw_drawing_is_simplified_as_published(quickdraw_dir: Path | None) -> None:
    if quickdraw_dir is None:  # then the oracle below stands alone
        return
    raw = find(quickdraw_dir / "raw" / "cat.ndjson")
    published = find(quickdraw_dir / "simplified_official_cat.ndjson")
    assert to_record(from_record(raw["drawing"])) == published["drawing"]


def find(path: Path) -> dict[str, Any]:
    records = map(json.loads, path.read_text().splitlines())
    record: dict[str, Any] = next(record for record in records if record["key_id"] == BOTH_FORMS)
    return record


def recursive_rdp(line: FloatArray, epsilon: float) -> list[list[float]]:
    """Ramer-Douglas-Peucker, written out point by point."""
    (x0, y0), (x1, y1) = line[0], line[-1]
    farthest, place = 0.0, 0
    for index in range(1, len(line) - 1):
        x, y = line[index]
        chord = math.hypot(x1 - x0, y1 - y0)
        cross = abs((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0))
        distance = cross / chord if chord else math.hypot(x - x0, y - y0)
        if distance > farthest:
            farthest, place = distance, index
    if farthest <= epsilon:
        return [line[0].tolist(), line[-1].tolist()]
    return recursive_rdp(line[: place + 1], epsilon)[:-1] + recursive_rdp(line[place:], epsilon)


@pytest.mark.parametrize("seed", range(20))
def test_thinning_is_ramer_douglas_peucker(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = rng.normal(0, 2, (rng.integers(2, 200), 2)).cumsum(0)
    if seed % 3 == 0:
        line[-1] = line[0]  # a closed stroke has no chord
    keep = thin(*line.T, np.array([len(line)]), EPSILON)
    assert line[keep].tolist() == recursive_rdp(line, EPSILON)


def test_strokes_are_thinned_together_as_each_alone() -> None:
    rng = np.random.default_rng(7)
    lines = [rng.normal(0, 3, (length, 2)).cumsum(0) for length in (1, 2, 90, 3, 40, 1)]
    keep = thin(*np.concatenate(lines).T, np.cumsum([len(line) for line in lines]), EPSILON)
    for line, kept in zip(lines, np.split(keep, np.cumsum([len(line) for line in lines])[:-1]), strict=True):
        assert line[kept].tolist() == (recursive_rdp(line, EPSILON) if len(line) > 1 else line.tolist())


def slow_simplify(strokes: list[FloatArray]) -> list[list[list[float]]]:
    """The published steps, a stroke at a time: np.interp for the resampling, recursion for the thinning."""
    low = np.min([stroke.min(axis=0) for stroke in strokes], axis=0)
    side = np.max([(stroke - low).max() for stroke in strokes])
    simple = []
    for stroke in strokes:
        scaled = (stroke - low) * (255 / side if side else 0)
        reached = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(scaled, axis=0).T))])
        distance = np.append(np.arange(0.0, max(reached[-1], 0.5), 1.0), reached[-1])
        line = np.stack([np.interp(distance, reached, axis) for axis in scaled.T], axis=1)
        simple.append(np.rint(recursive_rdp(line, EPSILON)).tolist())
    return simple


def random_drawing(rng: np.random.Generator) -> list[FloatArray]:
    """Strokes as a hand draws them, in fractions of pixels; some are dots, some stand still for a while."""
    strokes = []
    for _ in range(rng.integers(1, 6)):
        steps = rng.normal(0, 8, (rng.integers(1, 80), 2))
        steps[rng.random(len(steps)) < 0.1] = 0
        strokes.append(steps.cumsum(0))
    return strokes


@pytest.mark.parametrize("budget", [RESAMPLED, 1000])
def test_many_drawings_are_simplified_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr("sketchray.strokes.RESAMPLED", budget)
    rng = np.random.default_rng(11)
    drawings = [random_drawing(rng) for _ in range(200)]
    strokes = [stroke for drawing in drawings for stroke in drawing]
    x, y = np.concatenate(strokes).T
    ends = np.cumsum([len(stroke) for stroke in strokes])
    x, y, ends = simplify(x, y, ends, np.cumsum([len(drawing) for drawing in drawings]))
    found = [line.tolist() for line in np.split(np.stack([x, y], axis=1), ends[:-1])]
    expected = [line for drawing in drawings for line in slow_simplify(drawing)]
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    # Sums of steps differ in their last bits, and at times a coordinate lies halfway between two pixels.
    assert same >= 0.99 * len(expected)


def test_simplified_drawings_fill_the_box_and_keep_their_shape() -> None:
    angle = np.linspace(0, 2 * np.pi, 500)
    circle = np.stack([1000 * np.cos(angle) - 5, 1000 * np.sin(angle) + 7], axis=1)
    simple = simplified(circle)
    assert simple.min(0).tolist() == [0, 0]
    assert simple.max() == 255
    radius = np.hypot(*(simple - 127.5).T)
    assert np.abs(radius - 127.5).max() < 1  # rounding to whole pixels
    assert len(simple) < 60


def test_a_dot_becomes_two_equal_points() -> None:
    assert simplified(np.array([[7.5, 9.25]])).tolist() == [[0, 0], [0, 0]]


def simplified(line: FloatArray) -> FloatArray:
    """Returns a drawing of one stroke, simplified."""
    x, y, ends = simplify(*line.T, np.array([len(line)]), np.array([1]))
    assert ends.tolist() == [len(x)]
    return np.stack([x, y], axis=1)


def test_a_simplified_record_is_left_as_it_is() -> None:
    drawing = [[[0, 128, 129, 255], [0, 128, 129, 255]]]  # would be thinned if taken for raw
    assert to_record(from_record(drawing)) == drawing
    assert to_record(from_record([[[0, 1000], [0, 500]]])) == [[[0, 255], [0, 128]]]


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        (None, "expected a list with at least one stroke"),
        ([], "expected a list with at least one stroke"),
        ("[[0],[0]]", "expected a list with at least one stroke"),
        ([[[0], [0]], [[1]]], r"drawing\[1\]: expected"),
        ([[[0], [0], [0], [0]]], r"drawing\[0\]: expected"),
        ([[[0], [0]], 5], r"drawing\[1\]: expected"),
        ([[[0], [0]], [[], []]], r"drawing\[1\]: coordinates must be flat, non-empty"),
        ([[[0, 1], [0]]], r"drawing\[0\]: lists of unequal length \[2, 1\]"),
        ([[[0, "a"], [0, 1]]], r"drawing\[0\]: coordinates"),
        ([[[[0]], [[0]]]], r"drawing\[0\]: coordinates"),
        ([[[0, [1]], [0, 1]]], r"drawing\[0\]: coordinates"),
        ([[[None], [0]]], r"drawing\[0\]: coordinates"),
        ([[[True], [False]]], r"drawing\[0\]: coordinates"),
        ([[[math.nan], [0]]], r"drawing\[0\]: numbers must be finite"),
        ([[[math.inf], [0]]], r"drawing\[0\]: numbers must be finite"),
        ([[[1], [0], [math.inf]]], r"drawing\[0\]: numbers must be finite"),
        ([[[10**30], [0]]], r"drawing\[0\]: coordinates"),
        ([[[-32_768], [0]]], r"drawing\[0\]: coordinates must be within -32767\.\.32767 pixels"),
        ([[[0] * 11, [0] * 11]], "11 points, at most 10 are accepted"),
    ],
)
def test_what_is_no_drawing_is_refused_with_its_place(drawing: Any, message: str) -> None:
    with pytest.raises(StrokeError, match=message):
        from_record(drawing, max_points=10)


def test_a_step_beyond_int16_is_refused() -> None:
    ends = np.array([2])
    with pytest.raises(StrokeError, match="does not fit int16"):
        deltas(np.array([0, 40_000]), np.array([0, 0]), ends, ends)


def test_columns_come_back_also_from_slices_and_chunks() -> None:
    import pyarrow as pa

    drawings = [doodles.draw(name, 1) for name in doodles.CLASSES]
    offsets = np.concatenate([[0], np.cumsum([len(points) for points in drawings])])
    column = to_column(np.concatenate(drawings), offsets)
    for array, expected in (
        (column, drawings),
        (column[3:7], drawings[3:7]),
        (pa.chunked_array([column[5:], column[:2]]), drawings[5:] + drawings[:2]),
        (column[:0], []),
    ):
        points, found = from_column(array)
        assert found[0] == 0
        assert [part.tolist() for part in np.split(points, found[1:-1])[: len(expected)]] == [
            drawing.tolist() for drawing in expected
        ]
        assert len(points) == sum(map(len, expected))


def test_doodles_are_deterministic_and_in_the_published_form() -> None:
    for name in doodles.CLASSES:
        points = doodles.draw(name, 4, seed=2)
        assert points.tolist() == doodles.draw(name, 4, seed=2).tolist()
        assert points.tolist() != doodles.draw(name, 5, seed=2).tolist()
        assert points.tolist() != doodles.draw(name, 4, seed=3).tolist()
        everything = np.concatenate(to_strokes(points))
        assert everything.min() >= 0
        assert 253 <= everything.max() <= 255  # thinning may drop the outermost point, if it is near the rest
