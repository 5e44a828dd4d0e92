"""The Kaggle competition's CSV: against the csv and json modules, with every way to be wrong beside good rows."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import real_records
from hypothesis import example, given
from hypothesis import strategies as st

from sketchray.columns import from_column
from sketchray.errors import DataError
from sketchray.formats import Bad
from sketchray.formats.csv import CHUNK_BYTES, read
from sketchray.strokes import to_record

KAGGLE = ["countrycode", "drawing", "key_id", "recognized", "timestamp", "word"]
GOOD = [[[0, 9], [3, 4]], [[1], [2]]]


def write(rows: list[dict[str, Any]], columns: list[str] = KAGGLE, **options: Any) -> bytes:
    """Returns a file as pandas, which the competition used, writes it: quotes where they are needed."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, extrasaction="ignore", **{"lineterminator": "\n", **options})
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def row(number: int, drawing: Any = GOOD, **others: Any) -> dict[str, Any]:
    drawing = drawing if isinstance(drawing, str) else json.dumps(drawing)
    fields = {"countrycode": "US", "key_id": str(number), "recognized": number % 2 == 0, "word": f"cat {number}"}
    return {**fields, "timestamp": "2017-03-05 22:01:06.000000", "drawing": drawing, **others}


class Slow(io.RawIOBase):
    """A stream that is read forward only, a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file, self._step = io.BytesIO(data), step

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, self._step))


def flatten(data: bytes, step: int = CHUNK_BYTES, max_points: int = 1000) -> tuple[list[dict[str, Any]], list[Bad]]:
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    for block in read(Slow(data, step), max_points=max_points):  # type: ignore[arg-type]
        points, offsets = from_column(block.table["points"])
        parts = np.split(points, offsets[1:-1])[: len(block.table)]
        table = block.table.drop_columns(["points"]).to_pylist()
        rows += [{**fields, "drawing": to_record(part)} for fields, part in zip(table, parts, strict=True)]
        bad += block.bad
    assert bad == sorted(bad)
    return rows, bad


@pytest.mark.parametrize("step", [CHUNK_BYTES, 1000])
@pytest.mark.parametrize("options", [{}, {"lineterminator": "\r\n"}, {"quoting": csv.QUOTE_ALL}])
def test_every_row_comes_back(step: int, options: dict[str, Any]) -> None:
    records = real_records(40, classes=3)
    given_rows = [
        row(int(record["key_id"]), record["drawing"], word=record["word"], recognized=number % 2 == 0)
        for number, record in enumerate(records)
    ]
    rows, bad = flatten(write(given_rows, **options), step)
    assert bad == []
    assert [found["line"] for found in rows] == list(range(2, len(records) + 2))
    for found, record, fields in zip(rows, records, given_rows, strict=True):
        assert found["drawing"] == record["drawing"]
        assert (found["class"], found["key_id"]) == (record["word"], int(record["key_id"]))
        assert found["recognized"] == fields["recognized"]
        assert found["split"] is None


def test_columns_in_any_order_and_only_the_drawing_required() -> None:
    rows, bad = flatten(write([row(1), row(2)], ["word", "extra", "drawing"]))
    assert [(found["class"], found["key_id"], found["recognized"]) for found in rows] == [
        ("cat 1", None, None),
        ("cat 2", None, None),
    ]
    rows, _ = flatten(b"\xef\xbb\xbf" + write([row(1), row(2)], ["drawing"]))
    assert [found["drawing"] for found in rows] == [GOOD, GOOD]
    assert bad == []


def test_what_may_be_missing_is_null() -> None:
    rows, bad = flatten(write([row(1, word="", key_id="", recognized="maybe"), row(2, recognized="false")]))
    assert [(found["class"], found["key_id"], found["recognized"]) for found in rows] == [
        (None, None, None),
        ("cat 2", 2, False),
    ]
    assert bad == []


def test_a_word_with_commas_quotes_and_letters_of_the_world() -> None:
    rows, bad = flatten(write([row(1, word='a "cat", or two'), row(2, word="猫 é")]))
    assert [found["class"] for found in rows] == ['a "cat", or two', "猫 é"]
    assert bad == []


LINE = write([row(5)]).splitlines()[1]
BIG = str(2**64 - 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"US,short", "2 columns; the header has 6"),
        (LINE + b",more", "7 columns; the header has 6"),
        (b"free text without any sense", "1 columns"),
        (LINE.replace(b"US", b"\xff\xfe"), "not UTF-8"),
        (LINE.replace(b",5,", b",five,"), "key_id 'five' is not"),
        (LINE.replace(b",5,", b",-5,"), "key_id '-5' is not"),
        (LINE.replace(b",5,", b",99999999999999999999,"), "key_id '99999999999999999999' is not"),
        (write([row(5, [])]).splitlines()[1], "at least one stroke"),
        (write([row(5, [[[0, 1], [2]]])]).splitlines()[1], "unequal length"),
        (write([row(5, drawing="")]).splitlines()[1], "at least one stroke"),
        (write([row(5, drawing="[[[0,1],[2,3]]")]).splitlines()[1], "not JSON"),
        (write([row(5, [[[*range(99)], [*range(99)]]])]).splitlines()[1], "99 points, at most 50"),
        (LINE.replace(b"[[[", b'[[["', 1), "quote"),
        (LINE.replace(b'"[[[', b"[[[", 1), "quote"),
        (LINE.replace(b']]]"', b"]]]", 1), "quote"),
        (b'a"b,"' + LINE, "11 columns"),
        (b'a"b,"c', "quote"),
        (LINE + b"\r" + LINE, "quote|columns"),
    ],
)
@pytest.mark.parametrize("step", [CHUNK_BYTES, 37])
def test_a_bad_row_is_counted_and_its_neighbours_kept(line: bytes, reason: str, step: int) -> None:
    good = write([row(number) for number in range(1, 80)]).splitlines()
    data = b"\n".join([*good[:30], line, *good[30:60], line, *good[60:], line])
    rows, bad = flatten(data, step, max_points=50)
    assert [found["key_id"] for found in rows] == list(range(1, 80))
    assert [number for number, _ in bad] == [31, 62, 83]

    assert all(re.search(reason, why) for _, why in bad), bad


def test_the_largest_key() -> None:
    assert flatten(write([row(1, key_id=BIG), row(2, key_id="007")]))[0][0]["key_id"] == int(BIG)


@pytest.mark.parametrize("step", [CHUNK_BYTES, 50])
def test_a_drawing_may_run_over_lines_and_lines_may_be_blank(step: int) -> None:
    spread = row(2, drawing=json.dumps(GOOD, indent=1))
    data = write([row(1), spread, row(3)]).replace(b"US", b"\n\nUS", 1)
    rows, bad = flatten(data + b"\n\n", step)
    assert bad == []
    assert [(found["key_id"], found["drawing"]) for found in rows] == [(1, GOOD), (2, GOOD), (3, GOOD)]
    height = spread["drawing"].count("\n")
    assert [found["line"] for found in rows] == [4, 5, 6 + height]


def test_a_line_that_is_too_long_is_passed_over_without_holding_it() -> None:
    good = write([row(1), row(2)]).splitlines()
    for middle in (b"x" * (3 * CHUNK_BYTES), b'US,"' + b"[" * (2 * CHUNK_BYTES)):
        rows, bad = flatten(b"\n".join([*good[:2], middle, good[2]]))
        assert [found["line"] for found in rows] == [2, 4]
        assert bad == [Bad(3, "the line is longer than 4 MiB")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column 'drawing', but nothing"),
        (b"\n\n", "no column 'drawing', but nothing"),
        (b"countrycode,strokes,word\nUS,x,y\n", "no column 'drawing', but 'countrycode', 'strokes', 'word'"),
        (b"drawing,word,word\n", "two columns 'word'"),
        (b"\xff\xfed\x00r\x00\n", "not a CSV file"),
        (b"\x00" * (5 << 20), "drawing|not a CSV"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        flatten(data)


def test_a_real_file(quickdraw_dir: Path | None) -> None:
    if quickdraw_dir is None:  # doodles stand in, above
        return
    lines = (quickdraw_dir / "simplified_official_cat.ndjson").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    rows, bad = flatten(write([{**record, "drawing": json.dumps(record["drawing"])} for record in records]))
    assert bad == []
    assert [(found["drawing"], found["recognized"]) for found in rows] == [
        (record["drawing"], record["recognized"]) for record in records
    ]


pieces = st.sampled_from([b'"', b",", b"\n", b"\r", b"\r\n", b"[[[1,2],[3,4]]]", b'"[[[1,2],[3,4]]]"', b"\xff", LINE])
alphabet = st.lists(st.one_of(pieces, pieces, st.binary(max_size=3)), max_size=30).map(b"".join)


@given(alphabet, st.integers(1, 64))
@example(b'[[[1,2],[3,4]]]"\r"', 1)
@example(b",\n\xef\xbb\xbf\n", 1)
def test_arbitrary_bytes_are_read_the_same_however_they_arrive(body: bytes, step: int) -> None:
    header = ",".join(KAGGLE).encode() + b"\n"
    whole = flatten(header + body)
    assert flatten(header + body, step) == whole
    lines = body.removesuffix(b"\n").count(b"\n") + 2
    numbers = [found["line"] for found in whole[0]] + [bad.line for bad in whole[1]]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(2, lines + 1))
