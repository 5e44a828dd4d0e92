"""Simplified ndjson, byte by byte: nothing is taken that JSON's own parser would not read as the same drawing."""

import pytest
from conftest import find_quickdraw, real_records
from hypothesis import given
from hypothesis import strategies as st
from test_ndjson import FULL, MAX_POINTS, PLAIN, edited, read, read_slowly, records, write

from sketchray.formats import published
from sketchray.strokes import to_record


def is_published(data: bytes) -> bool:
    return published.parse(data, 1, MAX_POINTS) is not None


def test_published_records_take_the_fast_way_and_come_back() -> None:
    records = real_records(60, classes=4)
    full = [
        {**record, "countrycode": "FI", "timestamp": "2017-03-28 UTC", "recognized": i % 3 == 0}
        for i, record in enumerate(records)
    ]
    full = [
        {key: record[key] for key in ("word", "countrycode", "timestamp", "recognized", "key_id", "drawing")}
        for record in full
    ]
    plain = [{key: record[key] for key in ("word", "key_id", "drawing")} for record in records]
    for written in (plain, full, [{"drawing": record["drawing"]} for record in records]):
        table = published.parse(write(written, separators=(",", ":")), 5, 10_000)
        assert table is not None
        for line, (row, record) in enumerate(zip(table.to_pylist(), written, strict=True), 5):
            assert row["line"] == line
            assert row["class"] == record.get("word")
            assert row["key_id"] == (int(record["key_id"]) if "key_id" in record else None)
            assert row["recognized"] == record.get("recognized")
            assert row["split"] is None
        points = table["points"].combine_chunks()
        for row, record in enumerate(written):
            assert to_record(points[row].values.flatten().to_numpy().reshape(-1, 3)) == record["drawing"]


def test_the_official_file_takes_the_fast_way() -> None:
    directory = find_quickdraw()
    data = FULL + b"\n" if directory is None else (directory / "simplified_official_cat.ndjson").read_bytes()
    assert is_published(data if data.endswith(b"\n") else data + b"\n")
    assert read(data) == read_slowly(data)


# What is nearly in the published form. (The lines of a block must all be in it, so the neighbours are equal to them.)

STROKES = b"[[[0,25,255],[7,8,9]],[[1],[2]]]"
SHORT = b'{"word":"c","key_id":"1","drawing":[[[0,25],[7,8]],[[1],[2]]]}'
NEARLY = [
    PLAIN.replace(b"cat", b""),
    PLAIN.replace(b'"17"', b'""'),
    PLAIN.replace(b"17", b"18446744073709551616"),
    PLAIN.replace(b"17", b"1x"),
    PLAIN.replace(b"255", b"0" * 4),
    PLAIN.replace(b"255", b"1" * 4),
    PLAIN.replace(b"255", b"256"),
    PLAIN.replace(b"255", b"300"),
    PLAIN.replace(b"255", b"999"),
    PLAIN.replace(b"255", b"025"),
    PLAIN.replace(b"255", b"00"),
    PLAIN.replace(b"0,25,255", b"0,25"),
    PLAIN.replace(b"0,25,255", b"0," * MAX_POINTS + b"1").replace(b"7,8,9", b"0," * MAX_POINTS + b"1"),
    *[
        PLAIN.replace(STROKES, strokes)
        for strokes in (
            b"[[[1],[2]],[[3]]]",
            b"[[[1]],[[2],[3]]]",
            b"[[[1],[2],[3]]]",
            b"[[[1],[2],[3],[4]]]",
            b"[[[1],[2]],[[[3],[4]]]",
            b"[[[1],[2]],[[[3],[4]],[[[5],[6]]]",
            b"[[[1],[2]]],[[[3],[4]]]",
            b"[[[1],[2]],[3],[4]]",
            b"[[[1],[2]],[[3],[4]]",
            b"[[[1],[2]],[[3],[4]]]]",
            b"[[[1],[2]],[[,3],[4]]]",
            b"[[[1],[,2]]]",
            b"[[[,1],[2]]]",
            b"[[[-1],[2]]]",
            b"[[[1],[-2]],[[1],[2]]]",
            b"[[[1],[2]],[[-1],[2]]]",
            b"[[[1],[2]],[[[],[2]]]",
            b"[[[],[]]]",
            b"[[[",
            b"[[",
        )
    ],
    FULL.replace(b"true", b"TRUE!"),
    FULL.replace(b"true", b"tru"),
]


@pytest.mark.parametrize("line", NEARLY)
def test_the_fast_way_takes_no_line_of_which_it_is_not_sure(line: bytes) -> None:
    good = FULL if b"countrycode" in line else PLAIN
    for texts in ([line], [good, line], [line, good], [good, line, good]):
        data = b"\n".join(texts) + b"\n"
        assert not is_published(data)
        rows, bad = read(data)
        expected, expected_bad = read_slowly(data)
        assert (rows, [line for line, _ in bad]) == (expected, [line for line, _ in expected_bad])


@pytest.mark.parametrize(
    "lines",
    [
        (PLAIN.replace(b'"drawing":', b'"drawing"'), b":" + PLAIN),
        (PLAIN[1:], b"{" + PLAIN),
        (PLAIN.replace(b'"cat"', b'"c""at"'), PLAIN.replace(b'"cat"', b"cat")),
        (PLAIN.replace(b'"cat"', b'"cat'), b'"' + PLAIN),
        (PLAIN[:-1], PLAIN + b"}"),
        (PLAIN.replace(STROKES, STROKES * 2), PLAIN.replace(STROKES, b"")),
        (PLAIN.replace(b"[7,8,9]", b"[7,8]"), PLAIN.replace(b"[7,8,9]", b"[7,8,9,1]")),
        (PLAIN.replace(STROKES, b"[[[1],[2]],[[3]]]"), PLAIN.replace(STROKES, b"[[[1]],[[2],[3]]]")),
    ],
)
def test_what_one_line_lacks_the_next_does_not_make_good(lines: tuple[bytes, bytes]) -> None:
    data = b"\n".join([PLAIN, *lines, PLAIN]) + b"\n"
    assert not is_published(data)
    rows, bad = read(data)
    assert rows == read_slowly(data)[0]
    assert bad == read_slowly(data)[1]


@pytest.mark.parametrize("good", [SHORT, FULL[: FULL.index(b"[[[")] + b"[[[0],[1]]]}"], ids=["plain", "full"])
def test_every_edit_of_a_byte(good: bytes) -> None:
    assert is_published(good + b"\n")
    taken = 0
    for place in range(len(good)):
        for new in (b"", *(bytes([byte]) for byte in b'[]{},:09a"\\\x01 -.\xff')):
            for size in (0, 1):
                line = good[:place] + new + good[place + size :]
                table = published.parse(b"%s\n%s\n%s\n" % (good, line, good), 1, MAX_POINTS)
                if table is not None:
                    taken += 1
                    assert (table.slice(1, 1).to_pylist(), []) == read_slowly(b"\n" + line)
    assert taken > 100


@given(st.lists(st.one_of(st.just(PLAIN), edited(), records()), min_size=1, max_size=3))
def test_what_the_fast_way_takes_is_what_json_has(texts: list[bytes]) -> None:
    data = b"".join(text + b"\n" for text in texts)
    table = published.parse(data, 1, MAX_POINTS)
    if table is not None:
        assert (table.to_pylist(), []) == read_slowly(data)
