"""TFRecord files of the drawing tutorial: what is a drawing, and what is none."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from conftest import real_records
from hypothesis import given
from hypothesis import strategies as st
from tfrecord_writer import (
    CLASSES,
    COMPRESSIONS,
    RECORD_A,
    RECORD_B,
    A,
    B,
    Drawing,
    example,
    field,
    floats,
    frame,
    integers,
    outcome,
    texts,
    to_example,
    to_ink,
)

from sketchray.errors import DataError
from sketchray.formats import tfrecord

pytestmark = pytest.mark.filterwarnings("error")  # array arithmetic on numbers that are none warns


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("packed", [True, False])
def test_real_drawings_come_back_stretched_to_the_box(compress: Callable[[bytes], bytes], packed: bool) -> None:
    records = real_records(30, classes=3)
    names = sorted({record["word"] for record in records})
    data = b"".join(
        frame(to_example(to_ink(record["drawing"]), names.index(record["word"]), packed=packed)) for record in records
    )
    found = outcome(compress(data), names)
    assert found.bad == []
    assert [row["class"] for row in found.rows] == [record["word"] for record in records]
    assert {(row["split"], row["key_id"], row["recognized"]) for row in found.rows} == {("valid", None, None)}
    for drawing, record in zip(found.drawings, records, strict=True):
        assert [len(x) for x, _ in drawing] == [len(x) for x, _ in record["drawing"]]
        points = np.concatenate([np.transpose(stroke) for stroke in drawing])
        original = np.concatenate([np.transpose(stroke) for stroke in record["drawing"]])
        low, side = original.min(axis=0), np.maximum(np.ptp(original, axis=0), 1)
        # Half a pixel is lost where an axis was stretched; float32 decides which way a half goes.
        assert np.abs(points - (original - low) * 255 / side).max() <= 0.5 + 1e-3
        assert points.min() == 0


STROKES = st.integers(2, 9).flatmap(
    lambda number: st.lists(st.lists(st.integers(0, 255), min_size=number, max_size=number), min_size=2, max_size=2)
)


@given(st.lists(st.lists(STROKES, min_size=1, max_size=4), max_size=5), st.sampled_from(COMPRESSIONS))
def test_a_round_trip(written: list[Drawing], compress: Callable[[bytes], bytes]) -> None:
    # Two corners make each drawing fill the box, which no stretching then changes.
    written = [[*drawing, [[0, 255], [0, 255]]] for drawing in written]
    found = outcome(compress(b"".join(frame(to_example(to_ink(drawing))) for drawing in written)))
    assert found.drawings == written
    assert found.bad == []


def test_what_stands_before_a_drawing_does_not_change_it() -> None:
    rng = np.random.default_rng(5)
    drawings = [[rng.integers(0, 90, (2, 40)).tolist()] for _ in range(60)]
    records = [frame(to_example(to_ink(drawing))) for drawing in drawings]
    together = outcome(b"".join(records)).drawings
    assert together == [outcome(record).drawings[0] for record in records]


def test_blocks_are_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 300)
    data = (RECORD_A + RECORD_B + frame(b"\xff")) * 20
    blocks = list(tfrecord.read(io.BytesIO(data), max_points=9, classes=CLASSES))
    assert len(blocks) > 10
    assert [name for block in blocks for name in block.table["class"].to_pylist()] == ["cat", "dog"] * 20
    assert [bad.line for block in blocks for bad in block.bad] == list(range(3, 61, 3))


def test_a_dot_has_no_steps() -> None:
    found = outcome(frame(to_example(np.zeros((0, 3)))) + RECORD_B)
    assert found.drawings == [[[[0], [0]]], B]


def test_a_drawing_ends_its_last_stroke() -> None:
    ink = to_ink(A)
    ink[-1, 2] = 0
    found = outcome(frame(to_example(ink)))
    assert found.drawings == [A]
    assert [pen_up for _, _, pen_up in found.rows[0]["points"]] == [0, 0, 1, 0, 1]


def test_without_a_class_index_the_class_is_left_open() -> None:
    data = frame(to_example(to_ink(A), None))
    for classes in (None, CLASSES):
        assert [row["class"] for row in outcome(data, classes).rows] == [None]


def test_a_class_index_needs_the_names() -> None:
    with pytest.raises(DataError, match="classes file"):
        outcome(RECORD_A, None)


BAD_EXAMPLES = {
    "ink: expected a list of floats": [
        b"",
        example({}),
        example({"shape": integers([1, 3])}),
        example({"ink": integers([1, 2, 3]), "shape": integers([1, 3])}),
        example({"ink": texts([b"abc"]), "shape": integers([1, 3])}),
        example({"ink": b"", "shape": integers([1, 3])}),
    ],
    "shape: expected a list of integers": [
        example({"ink": floats([0, 1, 1])}),
        example({"ink": floats([0, 1, 1]), "shape": floats([1, 3])}),
    ],
    "shape: expected [points, 3] of 3 numbers of ink, not ": [
        example({"ink": floats([0, 1, 1]), "shape": integers(shape)})
        for shape in ([], [1], [3, 1], [2, 3], [1, 3, 1], [-1, 3], [2**62, 3], [2**63, 3], list(range(99)))
    ],
    "shape: expected [points, 3] of 4 numbers of ink, not ": [
        # 3 times this is 4, modulo 2 to the 64.
        example({"ink": floats([0, 1, 1, 1]), "shape": integers([shape, 3])})
        for shape in (1, pow(3, -1, 2**64) * 4)
    ],
    "1,001 points, at most 1,000 are accepted": [to_example(np.zeros((1_000, 3)))],
    "class_index: expected one integer": [
        example({"ink": floats([0, 1, 1]), "shape": integers([1, 3]), "class_index": value})
        for value in (integers([]), integers([0, 1]), floats([0]), texts([b"cat"]))
    ],
    "class_index 3 is none of the 3 lines": [to_example(to_ink(A), 3)],
    "class_index -1 is none of the 3 lines": [to_example(to_ink(A), -1)],
    "ink: numbers must be finite": [
        to_example(np.array([[0, 1, 0], [value, 0, 1]])) for value in (float("nan"), float("inf"), float("-inf"))
    ]
    + [to_example(np.array([[0, 1, float("nan")]]))],
    "ink: the third number of a point must be 0 or 1": [
        to_example(np.array([[0, 1, value]])) for value in (0.5, 2, -1)
    ],
    "ink: a step leads out of the unit box": [to_example(np.array([[0, value, 1]])) for value in (1.01, -300, 3e38)],
    "ink: the steps lead out of the unit box": [to_example(np.array([[0.6, 0, 0], [0.6, 0, 1]]))],
    "not an Example: ": [
        b"\xff",  # a number without an end
        b"\xff" * 20,
        b"\x0a",  # a field without a length
        b"\x0a\x05abc",  # longer than the record
        b"\x0a\x02\x0a\x03\x78\x85\x01",  # longer than the message around it
        b"\x0b",  # a group
        b"\x0f",  # no wire type
        b"\x0d\x00",  # four bytes that are one
        example({"ink": field(2, field(1, b"abc"))}),
        example({"shape": field(3, field(1, b"\x80"))}),
        example({"shape": field(3, field(1, b"\x80") + field(1, b"\x01"))}),
        example({"shape": field(3, field(1, b"\x01" * 40 + b"\x80"))}),
        example({"shape": field(3, field(1, b"\x80" * 10 + b"\x01"))}),
        example({"shape": field(3, field(1, b"\x01" * 40 + b"\x80" * 10 + b"\x01"))}),
        to_example(to_ink(A))[:-1],
    ],
}


@pytest.mark.parametrize(
    ("payload", "reason"), [(payload, reason) for reason, payloads in BAD_EXAMPLES.items() for payload in payloads]
)
def test_a_bad_example_leaves_its_neighbours(payload: bytes, reason: str) -> None:
    found = outcome(RECORD_A + frame(payload) + RECORD_B + frame(payload))
    assert found.drawings == [A, B]
    assert [row["line"] for row in found.rows] == [1, 3]
    assert [line for line, _ in found.bad] == [2, 4]
    assert all(why.startswith(reason) for _, why in found.bad)


def test_bad_records_come_in_the_order_of_the_file() -> None:
    not_finite = frame(to_example(np.array([[0, float("nan"), 1]])))
    found = outcome(not_finite + frame(b"\xff") + not_finite + RECORD_A)
    assert [line for line, _ in found.bad] == [1, 2, 3]
    assert found.drawings == [A]


@given(st.binary(max_size=300) | st.lists(st.binary(max_size=60)).map(lambda parts: b"".join(map(frame, parts))))
def test_arbitrary_bytes_are_drawings_or_bad(data: bytes) -> None:
    for compress in COMPRESSIONS:
        try:
            found = outcome(compress(data), max_points=20)
        except DataError:
            continue
        assert all(0 < len(row["points"]) <= 20 for row in found.rows)
        lines = [line for line, _ in found.bad]
        assert lines == sorted(set(lines))
        assert bool(data) == bool(found.rows or found.bad)
