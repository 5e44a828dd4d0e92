"""What the data card says of drawings: the counts, the gallery, and how parts add up."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from conftest import real_records
from hypothesis import given, settings
from hypothesis import strategies as st

from sketchray import doodles
from sketchray.census import GALLERY, SHOWN_POINTS, SIDE, Statistics, collect, merge, to_path
from sketchray.columns import to_column
from sketchray.strokes import from_record, to_strokes

Points = npt.NDArray[np.int16]
NAMES = ("circle", "ladder", "star", "empty")


def make_table(drawings: Sequence[Points], label: Sequence[int], seed: int = 0) -> pa.Table:
    """A shard's columns: splits, flags and places drawn by a generator."""
    rng = np.random.default_rng(seed)
    number = len(drawings)
    points = np.concatenate([*drawings, np.zeros((0, 3), np.int16)])
    return pa.table(
        {
            "points": to_column(points, np.cumsum([0, *map(len, drawings)])),
            "label": pa.array(label, pa.int16()),
            "recognized": pa.array([(True, False, None)[kind] for kind in rng.integers(0, 3, number)], pa.bool_()),
            "split": pa.array([("train", "valid", "test")[kind] for kind in rng.integers(0, 3, number)], pa.string()),
            "place": pa.array(rng.permutation(number) * ((1 << 62) // max(number, 1)), pa.int64()),
        }
    )


def make_doodles(number: int, seed: int = 0) -> pa.Table:
    label = [int(kind) for kind in np.random.default_rng(seed + 100).integers(0, 3, number)]
    return make_table([doodles.draw(NAMES[kind], index) for index, kind in enumerate(label)], label, seed)


TABLE = make_doodles(150)
WHOLE = collect(TABLE, NAMES)


def count_in_a_loop(table: pa.Table, classes: Sequence[str]) -> dict[str, Any]:
    """The same counts, a drawing at a time."""
    counts: dict[str, Any] = {
        "drawings": [[0, 0, 0] for _ in classes],
        "points": [0 for _ in classes],
        "shortest": [0 for _ in classes],
        "longest": [0 for _ in classes],
        "recognized": [[0, 0, 0] for _ in classes],
        "lengths": [0] * 50,
        "strokes": [0] * 25,
    }
    for row in table.to_pylist():
        label, length = row["label"], len(row["points"])
        counts["drawings"][label][("train", "valid", "test").index(row["split"])] += 1
        counts["points"][label] += length
        counts["shortest"][label] = min(length, counts["shortest"][label] or length)
        counts["longest"][label] = max(length, counts["longest"][label])
        counts["recognized"][label][{False: 0, True: 1, None: 2}[row["recognized"]]] += 1
        counts["lengths"][min((length + 4) // 5, 50) - 1] += 1
        counts["strokes"][min(len(to_strokes(np.array(row["points"], np.int16))), 25) - 1] += 1
    return counts


def test_counts_are_those_of_a_loop() -> None:
    assert WHOLE.model_dump(exclude={"classes", "gallery"}) == count_in_a_loop(TABLE, NAMES)
    assert WHOLE.class_counts == {name: TABLE["label"].to_pylist().count(index) for index, name in enumerate(NAMES)}


def test_the_tails_are_in_the_last_bins() -> None:
    def drawing(strokes: int, length: int) -> Points:
        points = np.ones((length, 3), np.int16)
        points[:, 2] = np.arange(length) >= length - strokes
        return points

    lengths = [1, 5, 6, 245, 246, 10_000]
    table = make_table([drawing(1, length) for length in lengths] + [drawing(40, 40)], [0] * 7)
    found = collect(table, ["line"])
    assert found.model_dump(exclude={"classes", "gallery"}) == count_in_a_loop(table, ["line"])
    assert [found.lengths[index] for index in (0, 1, 48, 49)] == [2, 1, 1, 2]
    assert (found.strokes[0], found.strokes[-1]) == (6, 1)


def test_a_drawing_whose_last_point_does_not_lift_the_pen_has_that_stroke() -> None:
    points = np.array([[0, 0, 0], [9, 0, 1], [0, 9, 0], [9, 0, 0]], np.int16)
    found = collect(make_table([points, points], [0, 0]), ["angle"])
    assert found.strokes[1] == 2
    assert len(found.gallery[0][0][1].split(" ")) == 2


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, len(TABLE)), max_size=6), order=st.randoms(use_true_random=False))
def test_parts_add_up_to_the_whole_wherever_it_is_cut(cuts: list[int], order: Any) -> None:
    rows = list(range(len(TABLE)))
    order.shuffle(rows)
    table = TABLE.take(pa.array(rows))
    bounds = [0, *sorted(cuts), len(TABLE)]
    parts = [collect(table.slice(a, b - a), NAMES) for a, b in pairwise(bounds)]
    order.shuffle(parts)
    assert merge(parts) == WHOLE
    assert merge([Statistics.empty(NAMES), *parts]) == WHOLE
    chunked = pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(bounds)])
    assert collect(chunked, NAMES) == WHOLE


def test_the_gallery_has_the_drawings_of_the_smallest_places() -> None:
    rows = sorted(TABLE.to_pylist(), key=lambda row: row["place"])
    for label, shown in enumerate(WHOLE.gallery):
        assert [place for place, _ in shown] == [row["place"] for row in rows if row["label"] == label][:GALLERY]
    assert [len(shown) for shown in WHOLE.gallery] == [GALLERY, GALLERY, GALLERY, 0]


def positions(path: str) -> list[list[list[int]]]:
    """The points of an SVG path of `M` and `l` commands."""
    strokes = []
    for stroke in path.split("M")[1:]:
        start, steps = (part.replace("-", " -").split() for part in stroke.split("l"))
        pairs = np.array([*map(int, start), *map(int, steps)]).reshape(-1, 2)
        strokes.append(pairs.cumsum(0).tolist())
    return strokes


def test_a_picture_is_the_drawing_on_the_grid() -> None:
    points = from_record(
        [[[10, 30, 30], [5, 5, 15]], [[20], [10]]]
    )  # 20 by 10 pixels: 90 by 45 steps, 22.5 from the top
    [(_, picture)] = collect(make_table([points], [0]), ["hook"]).gallery[0]
    assert positions(to_path(picture)) == [[[0, 22], [90, 22], [90, 68]], [[45, 45], [45, 45]]]


@pytest.mark.parametrize(
    "record", real_records(10, classes=4), ids=lambda record: f"{record['word']}-{record['key_id']}"
)
def test_a_picture_is_near_its_drawing(record: dict[str, Any]) -> None:
    points = from_record(record["drawing"])
    [(_, picture)] = collect(make_table([points], [0]), ["x"]).gallery[0]
    drawn = positions(to_path(picture))
    strokes = to_strokes(points)
    every = np.concatenate(strokes)
    low, size = every.min(0), np.ptp(every, axis=0)
    assert len(drawn) == len(strokes)
    for thinned, stroke in zip(drawn, strokes, strict=True):
        wanted = (stroke - low) * SIDE / size.max() + (SIDE - size * SIDE / size.max()) / 2
        assert np.abs(np.array([thinned[0], thinned[-1]]) - wanted[[0, -1]]).max() <= 0.5
        kept = np.abs(np.array(thinned)[:, None] - wanted[None]).max(2).min(1)  # to the nearest point drawn
        assert (kept[: None if len(stroke) > 1 else 1] <= 0.5).all()


def test_a_line_that_hardly_bends_is_drawn_straight() -> None:
    points = from_record([[list(range(0, 256, 15)), [row % 2 for row in range(18)]]])
    [(_, picture)] = collect(make_table([points], [0]), ["line"]).gallery[0]
    assert positions(to_path(picture)) == [[[0, 45], [90, 45]]]


def test_a_dot_far_away_is_in_the_middle() -> None:
    points = np.array([[32767, -32768, 1]], np.int16)
    [(_, picture)] = collect(make_table([points], [0]), ["dot"]).gallery[0]
    assert positions(to_path(picture)) == [[[45, 45], [45, 45]]]


def test_a_very_long_drawing_does_not_outweigh_the_rest() -> None:
    scribble = np.random.default_rng(0).integers(-300, 300, (10_000, 3)).astype(np.int16)
    scribble[:, 2] = np.arange(10_000) % 2
    [(_, picture)] = collect(make_table([scribble], [0]), ["scribble"]).gallery[0]
    assert sum(map(len, picture.split(" "))) == 2 * SHOWN_POINTS
    assert all(positions(to_path(picture)))


def test_statistics_travel_as_json_and_are_small() -> None:
    assert Statistics.model_validate_json(WHOLE.model_dump_json()) == WHOLE
    records = real_records(GALLERY, classes=345)
    classes = sorted({record["word"] for record in records})
    label = [classes.index(record["word"]) for record in records]
    big = collect(make_table([from_record(record["drawing"]) for record in records], label), classes)
    assert len(big.model_dump_json()) < 220_000


def test_no_drawings_have_statistics() -> None:
    assert collect(make_table([], []), NAMES) == Statistics.empty(NAMES)
