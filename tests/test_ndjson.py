"""ndjson: whatever the lines hold, each is a drawing or a bad line with its reason, as Python's own parser has it."""

import io
import json
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
from conftest import real_records
from hypothesis import example, given
from hypothesis import strategies as st

from sketchray.formats import Bad, ndjson

MAX_POINTS = 300
PLAIN = b'{"word":"cat","key_id":"17","drawing":[[[0,25,255],[7,8,9]],[[1],[2]]]}'
FULL = (
    b'{"word":"The Eiffel Tower","countrycode":"TW","timestamp":"2017-01-23 11:26:44.71404 UTC","recognized":true,'
    b'"key_id":"6653857230749696","drawing":[[[11,1,1,5],[113,62,34,33]],[[69,69],[82,106]]]}'
)
RAW = b'{"word":"cat","key_id":"18","drawing":[[[1.5,-25,40],[7,8,1e2],[0,10,20]]]}'


def read(data: bytes, max_points: int = MAX_POINTS) -> tuple[list[dict[str, Any]], list[Bad]]:
    rows, bad = [], []
    for block in ndjson.read(io.BytesIO(data), max_points=max_points):
        rows += block.table.to_pylist()
        bad += block.bad
    return rows, bad


def read_slowly(data: bytes, max_points: int = MAX_POINTS) -> tuple[list[dict[str, Any]], list[Bad]]:
    """What `json` and `from_record` make of each line that is not blank."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    block = ndjson._parse_slowly([number for number, _ in lines], [line for _, line in lines], max_points)
    return block.table.to_pylist(), block.bad


def write(records: Sequence[Any], **how: Any) -> bytes:
    return b"".join(json.dumps(record, **how).encode() + b"\n" for record in records)


# Real files.


def test_real_records_in_every_spelling() -> None:
    records = real_records(60, classes=4)
    compact = {"separators": (",", ":")}
    times = [[[*stroke, list(range(len(stroke[0])))] for stroke in record["drawing"]] for record in records]
    for data in (
        write(records, **compact),
        write(records),
        write(records, **compact).replace(b"\n", b"\r\n"),
        write([dict(reversed(record.items())) for record in records], **compact),
        write([{**record, "key_id": int(record["key_id"])} for record in records]),
        write([{"drawing": record["drawing"]} for record in records], **compact),
        write([{**record, "drawing": drawing} for record, drawing in zip(records, times, strict=True)]),
    ):
        rows, bad = read(data, 10_000)
        assert (rows, bad) == read_slowly(data, 10_000)
        assert (len(rows), bad) == (len(records), [])


# Lines that are no drawings, beside good ones.

BAD_LINES = [
    (b"not json at all", "not JSON"),
    (PLAIN[:-1], "not JSON"),
    (PLAIN + PLAIN, "not JSON"),
    (PLAIN[:-4] + b",]]]}", "not JSON"),
    (PLAIN.replace(b"25", b"025"), "not JSON"),
    (PLAIN.replace(b"25,", b"25,,"), "not JSON"),
    (PLAIN.replace(b"]],[[", b"]],[[["), "not JSON"),
    (PLAIN.replace(b"25", b"-"), "not JSON"),
    (b"\xef\xbb\xbf" + PLAIN + b"x", "not JSON"),
    (PLAIN.replace(b"cat", b"c\xff"), "not JSON"),
    (PLAIN.replace(b"cat", b"c\x00t"), "not JSON"),
    (PLAIN.replace(b"cat", b"c\tt"), "not JSON"),
    (PLAIN.replace(b"cat", b"c\\t\\"), "not JSON"),
    (PLAIN.replace(b"cat", b"\\ud800"), "is not valid Unicode"),
    (b"\x00" * 40, "not JSON"),
    (b"[1]", "must be a JSON object, not list"),
    (b"null", "must be a JSON object, not NoneType"),
    (b"{}", "expected a list with at least one stroke"),
    (b'{"word":"cat"}', "expected a list with at least one stroke"),
    (PLAIN.replace(b"cat", b""), "is empty|word ''"),
    (PLAIN.replace(b'"cat"', b"7"), "word 7 is not the name"),
    (PLAIN.replace(b'"17"', b'"x"'), "key_id 'x' is not a whole number"),
    (PLAIN.replace(b'"17"', b'"18446744073709551616"'), "is not a whole number of 64 bits"),
    (PLAIN.replace(b'"17"', b"-1"), "key_id -1 is not a whole number"),
    (PLAIN.replace(b'"17"', b"1.5"), "key_id 1.5 is not a whole number"),
    (PLAIN.replace(b"255", b"NaN"), "numbers must be finite"),
    (PLAIN.replace(b"255", b"1e999"), "numbers must be finite"),
    (PLAIN.replace(b"255", b"99999999999999999999999"), r"drawing\[0\]: coordinates"),
    (PLAIN.replace(b"255", b"40000"), r"drawing\[0\]: coordinates must be within"),
    (PLAIN.replace(b"255", b'"255"'), r"drawing\[0\]: coordinates"),
    (PLAIN.replace(b"255", b"null"), r"drawing\[0\]: coordinates"),
    (PLAIN.replace(b"255", b"[255]"), r"drawing\[0\]: coordinates"),
    (PLAIN.replace(b"0,25,255", b"0,25"), r"drawing\[0\]: lists of unequal length \[2, 3\]"),
    (PLAIN.replace(b"[1],[2]", b"[1]"), r"drawing\[1\]: expected"),
    (PLAIN.replace(b"[1],[2]", b"[1],[2],[3],[4]"), r"drawing\[1\]: expected"),
    (PLAIN.replace(b"[[1],[2]]", b"[[],[]]"), r"drawing\[1\]: coordinates"),
    (PLAIN.replace(b"[[[0,25,255],[7,8,9]],[[1],[2]]]", b"[[[1]]]"), r"drawing\[0\]: expected"),
    (PLAIN.replace(b"[[[0,25,255],[7,8,9]],[[1],[2]]]", b"[[[[1]]]]"), r"drawing\[0\]: expected"),
    (PLAIN.replace(b"0,25,255", b"0," * 300 + b"0").replace(b"7,8", b"0," * 299 + b"0"), "at most 300 are accepted"),
    (b'{"drawing":' + b"[" * 10**6, "nested too deeply"),
    (b"[" * 10**6, "nested too deeply"),
    (b'{"a":' * 10**5, "nested too deeply"),
    (b"x" * (2 * ndjson.CHUNK_BYTES), "the line is longer than 4 MiB"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[line[:50].decode("latin1") for line, _ in BAD_LINES])
@pytest.mark.parametrize("good", [PLAIN, FULL], ids=["plain", "full"])
def test_a_bad_line_is_named_and_its_neighbours_are_kept(good: bytes, line: bytes, reason: str) -> None:
    rows, bad = read(b"\n".join([good, b"", good, line, RAW, good]))
    assert [row["line"] for row in rows] == [1, 3, 5, 6]
    assert rows[3] == {**rows[0], "line": 6}
    ((number, found),) = bad
    assert number == 4
    assert re.search(reason, found)


GOOD_LINES = [
    PLAIN,
    FULL,
    RAW,
    PLAIN + b"\r",
    b"  " + PLAIN + b"\t ",
    PLAIN.replace(b",", b" , "),
    PLAIN.replace(b"cat", b'c\\u00e4t \\\\ \\" \\ud83d\\ude00'),
    PLAIN.replace(b"cat", "\u00e4\u4e2d\U0001f600".encode()),
    PLAIN.replace(b"cat", b'"drawing":[[['.replace(b'"', b'\\"')),
    PLAIN.replace(b"cat", b"[[[1"),
    PLAIN.replace(b"cat", b"{}],1,2"),
    PLAIN.replace(b"255", b"-0"),
    PLAIN.replace(b"255", b"2.55e2"),
    PLAIN.replace(b"255", b"256"),
    PLAIN.replace(b"255", b"1000"),
    PLAIN.replace(b'"17"', b"17"),
    PLAIN.replace(b'"17"', b"null"),
    PLAIN.replace(b'"17"', b'"00000000000000000000017"'[:-5] + b'"'),
    PLAIN.replace(b'"17"', b'"18446744073709551615"'),
    PLAIN.replace(b"{", b'{"word":"dog",', 1),
    PLAIN.replace(b"{", b'{"drawing":[[[1],[1]]],', 1),
    PLAIN.replace(b"}", b',"word":"dog","more":{"drawing":[[[1]]]}}'),
    FULL.replace(b"true", b"false"),
    FULL.replace(b"true", b"null"),
    FULL.replace(b"true", b"1"),
    FULL.replace(b'"TW"', b"null"),
]


@pytest.mark.parametrize("line", GOOD_LINES)
@pytest.mark.parametrize("good", [PLAIN, FULL], ids=["plain", "full"])
def test_a_line_that_is_written_otherwise_is_read_too(good: bytes, line: bytes) -> None:
    data = b"\n".join([good, line, good])
    rows, bad = read(data)
    assert (rows, bad) == read_slowly(data)
    assert (len(rows), bad) == (3, [])


def test_a_byte_order_mark_before_the_first_line() -> None:
    data = b"\xef\xbb\xbf" + PLAIN + b"\n" + PLAIN
    assert read(data) == read_slowly(data)


def test_one_bad_line_among_many_pieces() -> None:
    line = FULL + b"\n"
    number = 3 * ndjson.PIECE_BYTES // len(line)
    lines = [line] * number
    places = [1, 700, number // 2, number]
    for place in places:
        lines[place - 1] = b"{}\n"
    (block,) = ndjson.read(io.BytesIO(b"".join(lines)), max_points=MAX_POINTS)
    assert [line for line, _ in block.bad] == places
    assert block.table["line"].to_pylist() == [line for line in range(1, number + 1) if line not in places]
    assert block.table["points"].combine_chunks().value_lengths().unique().to_pylist() == [6]


def test_lines_cross_the_bounds_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\n".join([PLAIN, FULL, b"", b"x" * 400, RAW, b"y" * 700, FULL, PLAIN])
    expected = read_slowly(data)
    monkeypatch.setattr(ndjson, "SMALL_BYTES", 100)
    for size in (301, 350, 512):
        monkeypatch.setattr(ndjson, "CHUNK_BYTES", size)
        monkeypatch.setattr(ndjson, "PIECE_BYTES", size // 2)
        rows, bad = read(data)
        assert rows == expected[0]
        assert [line for line, _ in bad] == [4, 6]


def test_a_stream_that_gives_few_bytes_at_a_time() -> None:
    class Trickle(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self, size: int = -1) -> bytes:
            part, self.data = self.data[:13], self.data[13:]
            return part

    data = b"\n".join([PLAIN, b"x", FULL])
    stream: BinaryIO = Trickle(data)  # type: ignore[assignment]
    blocks = list(ndjson.read(stream, max_points=MAX_POINTS))
    assert [row for block in blocks for row in block.table.to_pylist()] == read_slowly(data)[0]
    assert [line for block in blocks for line, _ in block.bad] == [2]


@pytest.mark.parametrize("line", [PLAIN, FULL, RAW], ids=["plain", "full", "raw"])
def test_a_file_cut_at_any_byte(line: bytes) -> None:
    data = line + b"\n" + line
    whole = read(data)[0]
    for size in range(len(data)):
        rows, bad = read(data[:size])
        assert rows == whole[: (size >= len(line))]
        partial = size not in (0, len(line), len(line) + 1)
        assert [number for number, _ in bad] == [1 + (size > len(line))] * partial


def test_nothing_at_all() -> None:
    assert read(b"") == ([], [])
    assert read(b"\n\r\n \n") == ([], [])


def test_drawings_alone() -> None:
    assert ndjson.parse_drawings(pa.array([], pa.string()), max_points=10).rows.to_pylist() == []
    texts = pa.array(["[[[1,2],[3,4]]]", None, "[[[1], [2]]]", "[[[1],\n[2]]]", "x", "[[[9],[9]]],[[[1],[1]]]"])
    found = ndjson.parse_drawings(texts, max_points=10)
    assert found.rows.to_pylist() == [0, 2, 3]
    assert [row for row, _ in found.bad] == [1, 4, 5]
    assert found.points.to_pylist() == [[[1, 3, 0], [1, 1, 1]], [[1, 2, 1]], [[1, 2, 1]]]


# Generated lines.

spaces = st.sampled_from(["", "", "", " ", "\t", "\r", "  "])
numbers = st.one_of(
    st.integers(0, 255).map(str),
    st.sampled_from(["-0", "-1", "00", "07", "256", "999", "1000", "1.0", "1.5", "1e2", "1E-3", "2.55e2", "40000"]),
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "null", "true", '"1"', "[]", "[1]", "{}", "9" * 30, "1e999", "", "-"]
    ),
)
usual = st.integers(0, 255).map(str)
words = st.one_of(
    st.just('"cat"'),
    st.text(max_size=5).map(json.dumps),
    st.text(max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)),
)
others = st.sampled_from(
    ["null", "true", "false", "1", '""', "[]", "{}", '"x"', "NaN", '{"drawing":[[[1],[1]]]}', "x", ""]
)
keys = st.one_of(st.integers(0, 2**65).map(str), st.integers(0, 2**65).map(lambda key: f'"{key}"'), others)


@st.composite
def nested(draw: st.DrawFn) -> str:
    """The text of a drawing, often a good one."""
    gap = draw(spaces)
    join = f"{gap},{gap}".join
    number = draw(st.sampled_from([usual, usual, usual, numbers]))
    strokes = []
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.integers(1, 3))
        kinds = draw(st.sampled_from([2, 2, 2, 2, 3, 1, 4]))
        sizes = [size] * kinds if draw(st.integers(0, 9)) else draw(st.lists(st.integers(0, 3), max_size=3))
        axes = [join(draw(st.lists(number, min_size=size, max_size=size))) for size in sizes]
        strokes.append(f"[{join(f'[{axis}]' for axis in axes)}]")
    return f"[{gap}{join(strokes)}]"


@st.composite
def records(draw: st.DrawFn) -> bytes:
    fields = [("word", draw(st.one_of(words, words, others))), ("key_id", draw(st.one_of(keys, keys, others)))]
    if draw(st.booleans()):
        country, moment = draw(st.one_of(words, others)), draw(words)
        flag = draw(st.one_of(st.sampled_from(["true", "false"]), others))
        fields[1:1] = [("countrycode", country), ("timestamp", moment), ("recognized", flag)]
    fields.append(("drawing", draw(st.one_of(nested(), nested(), nested(), others))))
    change = draw(st.sampled_from(["", "", "", "order", "lack", "twice", "extra"]))
    if change == "order":
        fields = draw(st.permutations(fields))
    elif change == "lack":
        fields.pop(draw(st.integers(0, len(fields) - 1)))
    elif change == "twice":
        fields.append(draw(st.sampled_from(fields)))
    elif change == "extra":
        fields.insert(draw(st.integers(0, len(fields))), ("more", draw(others)))
    gap = draw(spaces)
    text = f",{gap}".join(f'"{key}"{gap}:{gap}{value}' for key, value in fields)
    return f"{{{text}}}{gap}".encode("utf-8", "surrogatepass").replace(b"\n", b" ")


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A published line with some of its bytes changed."""
    line = bytearray(draw(st.sampled_from([PLAIN, PLAIN, FULL])))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(line) - 1))
        size = draw(st.integers(0, 2))
        line[place : place + size] = draw(
            st.one_of(st.text('[]{},:0123456789"\\-. x', max_size=3).map(str.encode), st.binary(max_size=2))
        )
    return bytes(line)


lines = st.one_of(st.sampled_from([PLAIN, FULL, RAW, b"", b"\r"]), records(), edited(), st.binary(max_size=30))


@given(st.lists(lines, max_size=6), st.booleans())
@example([PLAIN[:-1] + b',"x":1}', PLAIN], False)
def test_whatever_the_lines_hold(texts: list[bytes], ends: bool) -> None:
    data = b"\n".join(texts) + b"\n" * ends
    rows, bad = read(data)
    expected, expected_bad = read_slowly(data)
    assert rows == expected
    assert [line for line, _ in bad] == [line for line, _ in expected_bad]


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_never_raise(data: bytes) -> None:
    rows, bad = read(data)
    assert (rows, [line for line, _ in bad]) == ([], [line for line, _ in read_slowly(data)[1]])
