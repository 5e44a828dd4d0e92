"""Binary files: against a writer of the published layout, the real torn file, and bytes of every kind."""

import io
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import real_records
from hypothesis import given
from hypothesis import strategies as st

from sketchray import doodles
from sketchray.errors import DataError
from sketchray.formats import SCHEMA, Bad, Block, binary
from sketchray.strokes import from_record, to_record

MAX_POINTS = 1_000
Drawing = list[list[list[int]]]


def encode(drawing: Drawing, key_id: int = 7, recognized: int = 1) -> bytes:
    """A record, as the published files have it."""
    strokes = b"".join(struct.pack("<H", len(x)) + bytes(x) + bytes(y) for x, y in drawing)
    return struct.pack("<Q2sBIH", key_id, b"US", recognized, 1_485_000_000, len(drawing)) + strokes


class Outcome(NamedTuple):
    rows: list[dict[str, Any]]
    bad: list[Bad]


def outcome(data: bytes, max_points: int = MAX_POINTS) -> Outcome:
    blocks: list[Block] = list(binary.read(io.BytesIO(data), max_points=max_points))
    assert all(block.table.schema == SCHEMA for block in blocks)
    return Outcome(
        [row for block in blocks for row in block.table.to_pylist()], [bad for block in blocks for bad in block.bad]
    )


def drawings(found: Outcome) -> list[Drawing]:
    return [to_record(np.array(row["points"], np.int16)) for row in found.rows]


A: Drawing = [[[0, 255, 3], [255, 0, 9]], [[7], [8]]]
B: Drawing = [[[1, 2], [3, 4]]]
STROKES = st.integers(1, 9).flatmap(
    lambda number: st.lists(st.lists(st.integers(0, 255), min_size=number, max_size=number), min_size=2, max_size=2)
)
DRAWINGS = st.lists(st.lists(STROKES, min_size=1, max_size=4), max_size=6)


def torn_file(quickdraw_dir: Path | None) -> bytes:
    """Returns the real file of 49 drawings and a torn one, or one like it where that is not at hand."""
    if quickdraw_dir is not None:
        return (quickdraw_dir / "binary" / "dog_truncated.bin").read_bytes()
    whole = b"".join(encode(to_record(doodles.draw("spiral", index)), index) for index in range(49))
    return whole + encode([[list(range(38)), list(range(38))]])[:31]


def test_a_torn_file_gives_its_49_drawings(quickdraw_dir: Path | None) -> None:
    data = torn_file(quickdraw_dir)
    found = outcome(data)
    assert len(found.rows) == 49
    assert found.bad == [Bad(50, "torn record: 31 of at least 95 bytes")]
    written = b"".join(
        encode(drawing, row["key_id"], row["recognized"])
        for drawing, row in zip(drawings(found), found.rows, strict=True)
    )
    # Every byte of the file is accounted for, but for the countries and times, which no shard keeps.
    assert len(written) + 31 == len(data)
    assert written[-30:] == data[: len(written)][-30:]


def test_drawings_come_as_the_ndjson_of_the_same_ones() -> None:
    records = real_records(40, classes=3)
    data = b"".join(
        encode(record["drawing"], int(record["key_id"]), number % 2) for number, record in enumerate(records)
    )
    found = outcome(data)
    assert found.bad == []
    for number, (row, record) in enumerate(zip(found.rows, records, strict=True)):
        assert np.array_equal(row["points"], from_record(record["drawing"]))
        assert row["key_id"] == int(record["key_id"])
        assert row["recognized"] is bool(number % 2)
        assert row["class"] is None
        assert row["split"] is None


@given(DRAWINGS, st.integers(0, 2**64 - 1), st.integers(1, 40))
def test_a_round_trip_in_blocks_of_any_size(written: list[Drawing], key: int, read_bytes: int) -> None:
    data = b"".join(encode(drawing, key) for drawing in written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary, "READ_BYTES", read_bytes)
        found = outcome(data)
    assert drawings(found) == written
    assert [row["key_id"] for row in found.rows] == [key] * len(written)
    assert found.bad == []


class Slow(io.RawIOBase):
    """A stream that cannot seek and hands over one byte more each time."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        self.size += 1
        taken, self.data = self.data[: min(size, self.size)], self.data[min(size, self.size) :]
        return taken


def test_a_slow_stream_gives_the_same_blocks() -> None:
    data = encode(A) + encode(B) * 50 + b"torn"
    stream: Any = Slow(data)
    (whole, tail), (slow, slow_tail) = (list(binary.read(file, max_points=9)) for file in (io.BytesIO(data), stream))
    assert len(slow.table) == 51
    assert slow.table.equals(whole.table)
    assert slow_tail.bad == tail.bad == [Bad(52, "torn record: 4 of at least 17 bytes")]


def test_a_file_torn_anywhere_keeps_what_stands_before() -> None:
    records = [encode(A), encode(B), encode(A)]
    ends = np.cumsum([len(record) for record in records]).tolist()
    data = b"".join(records)
    for cut in range(len(data) + 1):
        found = outcome(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert drawings(found) == [A, B, A][:whole]
        seen = cut - ([0, *ends][whole])
        if not seen:
            assert found.bad == []
            continue
        (bad,) = found.bad
        assert bad.line == whole + 1
        assert bad.reason.startswith(f"torn record: {seen} of at least ")
        assert seen < int(bad.reason.split()[-2]) <= len(records[whole])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (encode([]), "no points"),
        (encode([[[], []]]), "no points"),
        (encode([B[0], [[], []], B[0]]), "a stroke has no points"),
        (encode([[[1] * 21, [1] * 21]]), "21 points, at most 20 are accepted"),
        (encode([[[1] * 9, [1] * 9]] * 30), "270 points, at most 20 are accepted"),
        (encode([[[], []]] * 200), "no points"),
        (encode([[[1], [1]]] + [[[], []]] * 200), "a stroke has no points"),
        (encode(B, recognized=2), "recognized is 2, not 0 or 1: the record is damaged, or one before it"),
        (encode([[[1] * 9, [1] * 9]] * 30, recognized=255), "recognized is 255, not 0 or 1: the record"),
    ],
)
@pytest.mark.parametrize("read_bytes", [1, 50, 4 << 20])
def test_a_bad_record_leaves_its_neighbours(
    record: bytes, reason: str, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "READ_BYTES", read_bytes)
    found = outcome(encode(A) + record + encode(B) + record + encode(A), max_points=20)
    assert drawings(found) == [A, B, A]
    assert [row["line"] for row in found.rows] == [1, 3, 5]
    assert [line for line, _ in found.bad] == [2, 4]
    assert all(why.startswith(reason) for _, why in found.bad)


def test_a_drawing_of_exactly_as_many_points_as_are_accepted() -> None:
    assert drawings(outcome(encode(A), max_points=4)) == [A]
    assert outcome(encode(A), max_points=3).bad == [Bad(1, "4 points, at most 3 are accepted")]


def test_a_bad_first_record_does_not_condemn_the_file() -> None:
    found = outcome(encode(A, recognized=9) + encode(B))
    assert drawings(found) == [B]
    assert [line for line, _ in found.bad] == [1]


@pytest.mark.parametrize(
    "text", [b'{"word":"cat","key_id":"5","drawing":[[[0],[1]]]}\n' * 9, b"PK\x03\x04" + b"\xff" * 99]
)
def test_another_format_is_none_of_this(text: bytes) -> None:
    with pytest.raises(DataError, match="not a Quick, Draw! binary file: its first record has"):
        outcome(text)


def test_nothing_is_no_drawing() -> None:
    assert list(binary.read(io.BytesIO(b""), max_points=9)) == []


class Endless(io.RawIOBase):
    """A file whose first record says that it has 8 gigabytes, and which counts what was read of it."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.first = struct.pack("<Q2sBIH", 1, b"US", 1, 0, 65_535)

    def read(self, size: int = -1) -> bytes:
        taken = min(size, self.left)
        self.left -= taken
        data = self.first + b"\xff" * taken
        self.first = b""
        return data[:taken]


def peak_bytes(stream: Any) -> tuple[int, list[Block]]:
    tracemalloc.start()
    blocks = list(binary.read(stream, max_points=MAX_POINTS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, blocks


def test_a_record_that_says_it_is_huge_is_not_held() -> None:
    peak, blocks = peak_bytes(Endless(100 << 20))
    assert peak < 40 << 20
    (bad,) = [bad for block in blocks for bad in block.bad]
    assert bad.line == 1
    assert bad.reason.startswith("torn record: 104,857,600 of at least 104,")


@given(st.binary(max_size=400), st.integers(1, 64))
def test_arbitrary_bytes_are_drawings_or_bad(data: bytes, max_points: int) -> None:
    try:
        found = outcome(data, max_points)
    except DataError:
        return
    assert all(0 < len(row["points"]) <= max_points for row in found.rows)
    lines = [line for line, _ in found.bad]
    assert lines == sorted(set(lines))
    assert bool(data) == bool(found.rows or found.bad)


def changes(data: bytes) -> Iterator[bytes]:
    for index in range(len(data)):
        for bit in range(8):
            yield data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :]


def test_any_flipped_bit_leaves_what_stands_before() -> None:
    before = encode(A)
    for changed in changes(encode(B) + encode(A)):
        found = outcome(before + changed)
        assert drawings(found)[0] == A
        assert found.rows[0]["key_id"] == 7
