"""Parquet and Arrow files: every layout against the records it was written from, and every way to be wrong."""

import contextlib
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import real_records
from hypothesis import given
from hypothesis import strategies as st

from sketchray import doodles
from sketchray.columns import POINTS, from_column
from sketchray.errors import DataError
from sketchray.formats import Bad, HostileError, layouts, parquet
from sketchray.formats.parquet import BATCH_ROWS, read
from sketchray.shards import make_schema
from sketchray.strokes import to_record

GOOD = [[[0, 9], [3, 4]], [[1], [2]]]
CLASSES = ["cat", "dog"]
STRUCT = pa.struct([("x", pa.list_(pa.uint8())), ("y", pa.list_(pa.uint8()))])
AXES = pa.struct([(axis, pa.list_(pa.list_(pa.uint8()))) for axis in "xy"])
STEPS = pa.list_(pa.list_(pa.int16()))


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def to_stream(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 64)
    return file.getvalue()


def to_file(table: pa.Table) -> bytes:
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table, 64)
    return file.getvalue()


def flatten(data: bytes, max_points: int = 10_000) -> tuple[list[dict[str, Any]], list[Bad]]:
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    for block in read(io.BytesIO(data), max_points=max_points):
        points, offsets = from_column(block.table["points"])
        parts = np.split(points, offsets[1:-1])[: len(block.table)]
        table = block.table.drop_columns(["points"]).to_pylist()
        rows += [{**fields, "drawing": to_record(part)} for fields, part in zip(table, parts, strict=True)]
        bad += block.bad
    assert bad == sorted(bad)
    return rows, bad


def by_stroke(drawing: Any) -> Any:
    return drawing and [dict(zip("xyt", stroke, strict=False)) for stroke in drawing]


def by_axis(drawing: Any) -> Any:
    return drawing and {name: [stroke[axis] for stroke in drawing] for axis, name in enumerate("xy")}


def to_steps(drawing: Any) -> list[list[int]]:
    """Returns the points of a record, step by step."""
    steps, before = [], (0, 0)
    for x, y in drawing:
        for index, here in enumerate(zip(x, y, strict=True)):
            steps.append([here[0] - before[0], here[1] - before[1], int(index == len(x) - 1)])
            before = here
    return steps


LAYOUTS: dict[str, tuple[Callable[[Any], Any], pa.DataType]] = {
    "nested lists": (lambda drawing: drawing, pa.list_(pa.list_(pa.list_(pa.int32())))),
    "nested large lists": (lambda drawing: drawing, pa.large_list(pa.large_list(pa.large_list(pa.float32())))),
    "list of structs": (by_stroke, pa.list_(STRUCT)),
    "struct of lists": (by_axis, AXES),
    "text": (json.dumps, pa.string()),
    "large text": (json.dumps, pa.large_string()),
    "steps": (to_steps, STEPS),
    "steps of three": (to_steps, POINTS),
    "steps as floats": (to_steps, pa.list_(pa.list_(pa.float64(), 3))),
}


@pytest.mark.parametrize("write", [to_parquet, to_stream, to_file])
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("name", parquet.DRAWINGS)
def test_every_layout_comes_back(layout: str, write: Callable[[pa.Table], bytes], name: str) -> None:
    records = real_records(30, classes=3)
    convert, kind = LAYOUTS[layout]
    columns = {
        "key_id": [record["key_id"] for record in records],
        "word": [record["word"] for record in records],
        "recognized": [index % 3 > 0 for index in range(len(records))],
        name: pa.array([convert(record["drawing"]) for record in records], kind),
    }
    rows, bad = flatten(write(pa.table(columns)))
    assert bad == []
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        assert row["drawing"] == record["drawing"]
        assert (row["class"], row["key_id"], row["split"]) == (record["word"], int(record["key_id"]), None)
        assert (row["line"], row["recognized"]) == (number + 1, number % 3 > 0)


def test_raw_drawings_are_simplified_alike_in_every_layout() -> None:
    drawing = [[[0.5, 10.25, 99.0], [3.0, 4.0, 5.5], [0, 5, 9]], [[7.0, 8.0], [1.0, 2.0], [12, 13]]]
    number = pa.list_(pa.float32())
    structs = pa.list_(pa.struct([(axis, number) for axis in "xyt"]))
    axes = pa.struct([(axis, pa.list_(number)) for axis in "xyt"])
    columns = [
        pa.array([drawing] * 2, pa.list_(pa.list_(number))),
        pa.array([by_stroke(drawing)] * 2, structs),
        pa.array([{name: [stroke[axis] for stroke in drawing] for axis, name in enumerate("xyt")}] * 2, axes),
    ]
    found = [flatten(to_parquet(pa.table({"drawing": column})))[0] for column in columns]
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]
    assert found[0][0]["drawing"][0][0][-1] == 255


def test_our_own_shards_keep_label_key_and_split() -> None:
    drawings = [doodles.draw(doodles.CLASSES[index], index).tolist() for index in range(4)]
    splits = ["train", "train", "valid", "test"]
    columns = [drawings, [1, 0, 1, 0], [5, None, 7, 8], [True, None, False, True], splits]
    schema = make_schema(CLASSES, {})
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    rows, bad = flatten(to_parquet(pa.table(arrays, schema=schema), row_group_size=3))
    assert bad == []
    assert [row["class"] for row in rows] == ["dog", "cat", "dog", "cat"]
    assert [(row["key_id"], row["recognized"], row["split"]) for row in rows] == list(zip(*columns[2:], strict=True))
    assert [to_steps(row["drawing"]) for row in rows] == drawings


def hugging_face(table: pa.Table, column: str = "word", names: Any = CLASSES) -> pa.Table:
    """Adds the metadata that Hugging Face's `datasets` writes."""
    features = {column: {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("column", ["word", "class", "label"])
def test_labels_of_hugging_face_are_named(column: str) -> None:
    table = pa.table({column: [1, 0, None, -1, 2], "strokes": pa.array([to_steps(GOOD)] * 5, STEPS)})
    rows, bad = flatten(to_parquet(hugging_face(table, column)))
    assert [row["class"] for row in rows] == ["dog", "cat", None, None]
    assert bad == [Bad(5, "label 2 is none of the 2 classes")]


def test_an_extension_type_of_hugging_face_is_read_as_what_it_stores() -> None:
    name = {"ARROW:extension:name": "datasets.features.features.Array2DExtensionType"}
    field = pa.field("drawing", STEPS, metadata={**name, "ARROW:extension:metadata": '[[null, 3], "int16"]'})
    table = pa.table([pa.array([to_steps(GOOD)], STEPS)], schema=pa.schema([field]))
    for write in (to_parquet, to_stream, to_file):
        assert [row["drawing"] for row in flatten(write(table))[0]] == [GOOD]


def test_texts_by_a_dictionary() -> None:
    table = pa.table({"drawing": [json.dumps(GOOD)] * 3, "word": ["cat", None, ""], "key_id": ["1", "1", None]})
    encoded = [table[name].combine_chunks().dictionary_encode() for name in table.column_names]
    table = pa.table(encoded, table.column_names)
    for write in (to_parquet, to_stream, to_file):
        rows, bad = flatten(write(table))
        assert bad == []
        assert [(row["class"], row["key_id"]) for row in rows] == [("cat", 1), (None, 1), (None, None)]


@pytest.mark.parametrize(
    ("layout", "drawing", "reason"),
    [
        ("nested lists", None, "at least one stroke"),
        ("nested lists", [[[1], [2, 3]]], "unequal length"),
        ("nested lists", [[[40_000], [0]]], "within -32767"),
        ("list of structs", None, "at least one stroke"),
        ("list of structs", [None], r"drawing\[0\]"),
        ("list of structs", [{"x": [1], "y": None}], "unequal|coordinates"),
        ("struct of lists", None, "at least one stroke"),
        ("struct of lists", {"x": [[1], [2]], "y": [[1]]}, r"unequal numbers of strokes \(x 2, y 1\)"),
        ("struct of lists", {"x": [[1, 2]], "y": [[1]]}, "unequal length"),
        ("text", None, "at least one stroke"),
        ("text", "[[[1],[2]", "not JSON"),
        ("text", "[]", "at least one stroke"),
        ("large text", "[[[1],[2]", "not JSON"),
        ("steps", None, "no points"),
        ("steps", [[1, 2, 1], [1, 2]], "three whole numbers"),
        ("steps", [[1, 2, 1], None], "three whole numbers"),
        ("steps", [[1, 2, None]], "three whole numbers"),
        ("steps", [[1, 2, 5]], "pen_up"),
        ("steps", [[0, 0, 0]] * 21, "21 points, at most 20"),
        ("steps as floats", [[0.5, 0, 1]], "three whole numbers"),
        ("steps as floats", [[32_768, 0, 1]], "three whole numbers"),
        ("steps as floats", [[float("nan"), 0, 1]], "three whole numbers"),
        ("steps as floats", [None, [0, 0, 1]], "three whole numbers"),
    ],
)
def test_a_row_that_is_no_drawing_leaves_its_neighbours_alone(layout: str, drawing: Any, reason: str) -> None:
    convert, kind = LAYOUTS[layout]
    cells = [convert(GOOD), drawing, convert(GOOD), drawing]
    table = pa.table({"drawing": pa.array(cells, kind), "key_id": pa.array([1, 2, 3, 4], pa.int64())})

    for write in (to_parquet, to_stream):
        rows, bad = flatten(write(table), max_points=20)
        assert [(row["line"], row["key_id"], row["drawing"]) for row in rows] == [(1, 1, GOOD), (3, 3, GOOD)]
        assert [number for number, _ in bad] == [2, 4]
        assert re.search(reason, bad[0].reason), bad


def test_bad_keys_and_texts_that_are_none() -> None:
    number = pa.table({"drawing": [json.dumps(GOOD)] * 3, "key_id": [5, -1, None]})
    rows, bad = flatten(to_parquet(number))
    assert [row["key_id"] for row in rows] == [5, None]
    assert bad == [Bad(2, "key_id -1 is not a whole number of 64 bits")]
    bytes_ = pa.array([b"cat", b"\xff\xfe", b"c" * 2000, b"dog"]).view(pa.string())
    for write in (to_parquet, to_stream):
        rows, bad = flatten(write(pa.table({"drawing": [json.dumps(GOOD)] * 4, "word": bytes_})))
        assert [row["class"] for row in rows] == ["cat", "dog"]
        assert bad == [Bad(2, "not UTF-8"), Bad(3, "a text of 2,000 bytes, at most 1,000 are accepted")]


def test_blocks_are_bounded() -> None:
    table = pa.table({"strokes": pa.array([to_steps(GOOD)] * (2 * BATCH_ROWS + 5), STEPS)})
    sizes = [len(block.table) for block in read(io.BytesIO(to_parquet(table)), max_points=10)]
    assert (sum(sizes), max(sizes)) == (len(table), BATCH_ROWS)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DRAWN = pa.array([GOOD], LAYOUTS["nested lists"][1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"image": pa.array([None], IMAGE), "label": [1]}), "holds images, not strokes"),
        (pa.table({"drawing": pa.array([None], IMAGE), "label": [1]}), "holds images, not strokes"),
        (pa.table({"word": ["cat"], "packed_drawing": [b"..."]}), r"no column points, .* but word .*packed_drawing"),
        (pa.table({"drawing": [5]}), "no column"),
        (pa.table({"drawing": DRAWN, "label": [1]}), "'label' is int64, and the file does not say"),
        (pa.table({"drawing": DRAWN, "word": [1.5]}), "'word' is double"),
        (pa.table({"drawing": DRAWN, "key_id": [1.5]}), "'key_id' is double"),
        (pa.table([DRAWN, DRAWN], ["drawing", "drawing"]), "two columns 'drawing'"),
        (hugging_face(pa.table({"drawing": DRAWN, "word": [1]}), names=5), "does not say"),
        (hugging_face(pa.table({"drawing": DRAWN, "label": [1]}), "word"), "does not say"),
    ],
)
def test_a_file_without_drawings_is_refused_with_what_it_holds(table: pa.Table, message: str) -> None:
    for write in (to_parquet, to_stream):
        with pytest.raises(DataError, match=message):
            flatten(write(table))


class Proof:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_a_pickle_in_an_extension_type_is_not_loaded(tmp_path: Path) -> None:
    body = pickle.dumps(Proof(tmp_path / "proof"))
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": body}
    field = pa.field("drawing", STEPS, metadata=metadata)
    table = pa.table([pa.array([to_steps(GOOD)], STEPS)], schema=pa.schema([field]))
    for write in (to_parquet, to_stream, to_file):
        data = write(table)
        assert write is to_parquet or b"py_extension_type" in data  # in Parquet the schema is in base64
        assert [row["drawing"] for row in flatten(data)[0]] == [GOOD]
    assert not (tmp_path / "proof").exists()
    pickle.loads(body)
    assert (tmp_path / "proof").exists(), "the pickle was harmless, so that the test proved nothing"


SIMPLE = pa.table({"drawing": pa.array([GOOD] * 300, LAYOUTS["nested lists"][1]), "word": ["cat"] * 300})


def test_of_a_damaged_file_the_sound_row_groups_are_kept() -> None:
    data = bytearray(to_parquet(SIMPLE, row_group_size=100, compression="snappy"))
    group = pq.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0)
    start = group.dictionary_page_offset
    data[start : start + 20] = bytes(20)
    rows, bad = flatten(bytes(data))
    assert [row["line"] for row in rows] == [*range(1, 101), *range(201, 301)]
    assert [number for number, _ in bad] == [101]
    assert "row group 2 of 3 is damaged" in bad[0].reason


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense that is long enough", to_parquet(SIMPLE)[:-10], to_file(SIMPLE)[:-10], to_stream(SIMPLE)[:50]],
)
def test_a_file_that_cannot_be_opened_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"not an? (Parquet|Arrow) file, or a damaged one"):
        flatten(data)


def test_a_torn_stream_keeps_what_came_before() -> None:
    rows, bad = flatten(to_stream(SIMPLE)[:-2000])
    assert 0 < len(rows) < 300
    assert [number for number, _ in bad] == [len(rows) + 1]


def test_a_text_that_many_rows_share_is_hostile_where_it_becomes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "MAX_TEXTS_BYTES", 5000)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100), pa.array([json.dumps(GOOD) + " " * 60]))
    for write in (to_parquet, to_stream):
        with pytest.raises(HostileError, match=r"rows hold [0-9,]+ bytes of text; 5,000 are allowed"):
            flatten(write(pa.table({"drawing": text})))


SEEDS = [
    write(pa.table({"drawing": pa.array([convert(GOOD)] * 40, kind), "word": ["cat"] * 40, "key_id": ["1"] * 40}))
    for convert, kind in LAYOUTS.values()
    for write in (to_parquet, to_stream, to_file)
]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_raises_nothing_else(data: bytes, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    with contextlib.suppress(DataError):
        flatten(bytes(damaged))
