"""Sources: formats told by their bytes, what is listed and chosen, and what is read of it, bad or good."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from conftest import real_records
from flaky_server import Answer, FlakyServer, doodle_file
from test_binary import encode as encode_binary
from test_npz import archive
from test_npz import encode as encode_npz
from tfrecord_writer import frame, to_example, to_ink

from sketchray import doodles
from sketchray.columns import from_column, to_column
from sketchray.errors import DataError
from sketchray.fetch import remote
from sketchray.fetch.transfer import Limits
from sketchray.formats import Bad
from sketchray.shards import make_schema
from sketchray.sources import Source, open_source
from sketchray.strokes import from_record, to_record

GOOD = '{"word":"cat","key_id":"5","recognized":true,"drawing":[[[0,9],[3,4]],[[1],[2]]]}'
DRAWINGS = [to_record(doodles.draw(name, index)) for index in range(3) for name in ("star", "wave", "circle")]
POINTS = [from_record(drawing) for drawing in DRAWINGS]


def read(source: Source) -> tuple[list[dict[str, Any]], list[tuple[str, Bad]]]:
    """The drawings of a source as records, and the bad ones, each with the name of its file."""
    records, bad = [], []
    for number, part in enumerate(source.parts):
        for block in source.read(number):
            points, offsets = from_column(block.table["points"])
            drawings = np.split(points, offsets[1:-1])[: len(block.table)]
            rows = block.table.drop_columns(["points"]).to_pylist()
            records += [{**row, "drawing": to_record(drawing)} for row, drawing in zip(rows, drawings, strict=True)]
            bad += [(Path(part.uri).name, one) for one in block.bad]
    return records, bad


def drawings_of(path: Path, **options: Any) -> list[Any]:
    records, bad = read(open_source(str(path), **options))
    assert bad == []
    return [record["drawing"] for record in records]


def ndjson(drawings: list[Any] = DRAWINGS, **fields: Any) -> bytes:
    return b"".join(json.dumps({"drawing": drawing, **fields}).encode() + b"\n" for drawing in drawings)


def column() -> pa.ListArray:
    return to_column(np.concatenate(POINTS), np.cumsum([0, *map(len, POINTS)]))


def nested() -> pa.Table:
    kind = pa.list_(pa.list_(pa.list_(pa.int16())))
    return pa.table({"drawing": pa.array(DRAWINGS, kind), "word": ["owl"] * len(DRAWINGS)})


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def arrow(writer: Callable[..., Any]) -> bytes:
    sink = io.BytesIO()
    with writer(sink, nested().schema) as file:
        file.write_table(nested())
    return sink.getvalue()


def raw() -> bytes:
    timed = [[[*stroke, list(range(len(stroke[0])))] for stroke in drawing] for drawing in DRAWINGS]
    return ndjson(timed)


def shard() -> bytes:
    number = len(POINTS)
    columns = [column(), [0] * number, [None] * number, [None] * number, ["test"] * number]
    return parquet(pa.table(columns, schema=make_schema(["owl"], {"synthetic": True})))


def tfrecords() -> bytes:
    return b"".join(frame(to_example(to_ink(drawing), 1)) for drawing in DRAWINGS)


def csv_text() -> bytes:
    rows = [f'"{json.dumps(drawing)}",owl\r\n' for drawing in DRAWINGS]
    return "".join(["drawing,word\r\n", *rows]).encode()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "simplified": ("simplified", ndjson),
    "raw": ("raw", raw),
    "npz": (
        "npz",
        lambda: archive(
            train=encode_npz([points.copy() for points in POINTS]), valid=encode_npz([]), test=encode_npz([])
        ).getvalue(),
    ),
    "binary": ("binary", lambda: b"".join(map(encode_binary, DRAWINGS))),
    "csv": ("csv", csv_text),
    "parquet": ("parquet", lambda: parquet(nested())),
    "our shard": ("parquet", shard),
    "arrow file": ("parquet", lambda: arrow(pa.ipc.new_file)),
    "arrow stream": ("parquet", lambda: arrow(pa.ipc.new_stream)),
}
FORWARD = ("simplified", "raw", "binary", "csv")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_a_format_is_told_by_its_bytes_whatever_the_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "misleading.parquet.ndjson.bin"
    format, write = FILES[kind]
    path.write_bytes(write())
    source = open_source(str(path))
    assert [part.format for part in source.parts] == [format]
    found = drawings_of(path)
    assert found == drawings_of(path, format=format)
    # Raw drawings are simplified, and these are simplified already but for a point or two.
    assert found == DRAWINGS if kind != "raw" else len(found) == len(DRAWINGS)


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
@pytest.mark.parametrize("kind", FORWARD)
def test_files_that_are_read_forward_may_be_compressed(tmp_path: Path, kind: str, compression: str) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(FILES[kind][1]())
    packed.write_bytes(COMPRESSIONS[compression](plain.read_bytes()))
    assert open_source(str(packed)).parts[0].format == kind
    assert drawings_of(packed) == drawings_of(plain)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zlib.compress])
def test_the_tutorials_files_with_their_classes_and_splits(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "training.tfrecord-00000-of-00001").write_bytes(compress(tfrecords()))
    (tmp_path / "eval.tfrecord-00000-of-00001").write_bytes(compress(tfrecords()))
    for name in ("training", "eval"):
        (tmp_path / f"{name}.tfrecord.classes").write_text("cat\nice cream\n")
    records, bad = read(open_source(str(tmp_path)))
    assert bad == []
    assert {record["class"] for record in records} == {"ice cream"}
    assert [record["split"] for record in records] == ["valid"] * 9 + ["train"] * 9
    (tmp_path / "eval.tfrecord.classes").unlink()
    _, ((name, found),) = read(open_source(str(tmp_path)))
    assert name.startswith("eval")
    assert found.line == 0
    assert "put the .classes file" in found.reason


def test_real_files_are_read_as_json_reads_them(tmp_path: Path) -> None:
    records = real_records(100, classes=3)
    for record in records:
        with open(tmp_path / f"{record['word']}.ndjson", "a") as file:
            file.write(json.dumps(record) + "\n")
    found, bad = read(open_source(str(tmp_path)))
    assert bad == []
    assert [(one["class"], one["key_id"], one["drawing"]) for one in found] == [
        (record["word"], int(record["key_id"]), record["drawing"])
        for record in sorted(records, key=lambda record: f"{record['word']}.ndjson")
    ]


def test_a_file_of_many_blocks_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "cat.ndjson"
    lines = ndjson(DRAWINGS, padding="x" * 2000)
    path.write_bytes(lines * 400)  # more than two blocks of 4 MiB
    assert len(drawings_of(path)) == 9 * 400


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ice cream.ndjson", "ice cream"),
        ("ice cream.ndjson.gz", "ice cream"),
        ("t-shirt", "t-shirt"),
        ("a.b.ndjson", "a.b"),
        ("cat.full.npz", "cat"),
    ],
)
def test_a_record_without_a_class_is_of_the_files(tmp_path: Path, name: str, stem: str) -> None:
    kind = "npz" if name.endswith("npz") else "simplified"
    data = FILES[kind][1]()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    records, _ = read(open_source(str(tmp_path)))
    assert {record["class"] for record in records} == {stem}


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
def test_of_damaged_compressed_data_what_precedes_is_kept(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "cat.ndjson"
    rng = np.random.default_rng(0)
    drawings = [[rng.integers(0, 256, (2, 40)).tolist()] for _ in range(8000)]
    packed = COMPRESSIONS[compression](ndjson(drawings))
    path.write_bytes(packed[: len(packed) * 3 // 4])
    records, bad = read(open_source(str(path)))
    assert len(records) > 1000
    assert [record["drawing"] for record in records] == drawings[: len(records)]
    assert bad[-1][1].line == 0
    assert "the compressed data are damaged" in bad[-1][1].reason


def test_a_strange_file_beside_good_ones_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "cat.ndjson").write_bytes(ndjson())
    (tmp_path / "empty.ndjson").touch()
    (tmp_path / "strange").write_text("hello\n")
    (tmp_path / "torn.parquet").write_bytes(parquet(nested())[:100])
    for name in ("README.md", ".hidden", "training.tfrecord.classes", "manifest.json", "quarantine.ndjson", "_SUCCESS"):
        (tmp_path / name).write_text("none of this is read")
    records, bad = read(open_source(str(tmp_path)))
    assert len(records) == len(DRAWINGS)
    assert {(name, one.line) for name, one in bad} == {("empty.ndjson", 0), ("strange", 0), ("torn.parquet", 0)}


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "nowhere", "no such file or directory"),
        (tmp_path / "*.ndjson", "no such file or directory"),
        (tmp_path, "no file of drawings in this directory"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(str(source))
    with pytest.raises(DataError, match="--source is missing"):
        open_source(None)
    (tmp_path / "empty.ndjson").touch()
    (tmp_path / "page").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"empty\.ndjson: empty, or of no format that is known; expected ndjson"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"no dataset_info\.json"):
        open_source(str(tmp_path), "tfds")


def test_an_unfinished_ingest_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "_ingest").mkdir()
    (tmp_path / "_ingest" / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="is not finished"):
        open_source(str(tmp_path))


def test_a_file_that_may_not_be_read_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "cat.ndjson").write_bytes(ndjson())
    source = open_source(str(tmp_path), "simplified")
    (tmp_path / "cat.ndjson").unlink()
    with pytest.raises(DataError, match=r"cat\.ndjson: No such file"):
        read(source)


def test_our_own_shards_keep_split_and_origin(tmp_path: Path) -> None:
    (tmp_path / "shard-00000-of-00001.parquet").write_bytes(shard())
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "card.html").write_text("<html>")
    source = open_source(str(tmp_path))
    assert source.synthetic
    records, _ = read(source)
    assert {(record["class"], record["split"]) for record in records} == {("owl", "test")}


def test_records_of_other_classes_are_bad_and_files_of_others_are_not_opened(tmp_path: Path) -> None:
    lines = ["", GOOD, "", GOOD.replace("cat", "dog"), "{", GOOD.replace("cat", "owl")]
    (tmp_path / "mixed.ndjson").write_text("\n".join(lines))
    (tmp_path / "dog.ndjson").write_bytes(b"\0 this would be bad, if it were looked at")
    records, bad = read(open_source(str(tmp_path), "simplified", classes=["owl", "cat"]))
    assert [record["line"] for record in records] == [2, 6]
    assert [(one.line, one.reason[:20]) for _, one in bad] == [(4, "class 'dog' is outsi"), (5, "not JSON (Expecting ")]
    with pytest.raises(DataError, match="not of a class asked for"):
        open_source(str(tmp_path / "dog.ndjson"), classes=["owl"])


def test_per_class_stops_early_only_where_a_file_is_of_one_class(tmp_path: Path) -> None:
    cats, dogs = (GOOD.replace("cat", name) + "\n" for name in ("cat", "dog"))
    # 60,000 lines are more than one block.
    (tmp_path / "mixed.ndjson").write_text(cats * 60_000 + dogs * 3)
    (tmp_path / "cat.ndjson").write_text(cats * 60_000 + "{\n")
    source = open_source(str(tmp_path), per_class=2)
    records, bad = read(source)
    assert [record["class"] for record in records] == ["cat", "cat", "cat", "cat", "dog", "dog"]
    assert bad == []  # the end of cat.ndjson was not looked at
    for flag in ("per_class", "max_points"):
        with pytest.raises(DataError, match=f"--{flag.replace('_', '-')} 0: must be at least 1"):
            open_source(str(tmp_path), **{flag: 0})  # type: ignore[arg-type]


def test_max_points_and_globs(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cow"):
        (tmp_path / f"{name}.ndjson").write_text(GOOD.replace("cat", name) + "\n")
    records, _ = read(open_source(str(tmp_path / "[ab]*.ndjson")))
    assert [record["class"] for record in records] == ["ant", "bee"]
    records, bad = read(open_source(str(tmp_path / "cow.ndjson"), max_points=2))
    assert records == []
    assert bad == [("cow.ndjson", Bad(1, "drawing: 3 points, at most 2 are accepted"))]


def test_doodles_are_chosen_by_class_and_number() -> None:
    source = open_source(None, "doodles", classes=["star", "wave"], per_class=4)
    assert [part.name for part in source.parts] == ["star", "wave"]
    records, _ = read(source)
    assert [record["drawing"] for record in records[:4]] == [to_record(doodles.draw("star", n)) for n in range(4)]
    with pytest.raises(DataError, match="'unicorn': no such doodle"):
        open_source(None, "doodles", classes=["unicorn"])


@pytest.fixture
def bucket_url(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket on loopback, and a program that does not wait long."""
    quick = Limits(timeout_s=2, stall_s=2, attempts=3, backoff_s=0.01)
    monkeypatch.setitem(remote.open_uri.__kwdefaults__, "limits", quick)
    files = {f"full/simplified/{name}.ndjson": doodle_file(name, 300) for name in ("cat", "The Eiffel Tower")}
    with FlakyServer(files) as server:
        monkeypatch.setenv("SKETCHRAY_BUCKET", server.url_of("").rstrip("/"))
        yield server


def test_the_bucket_is_fetched_once_or_streamed_as_far_as_needed(bucket_url: FlakyServer, tmp_path: Path) -> None:
    wanted = ["cat", "The Eiffel Tower"]
    source = open_source("quickdraw", classes=wanted, cache_dir=str(tmp_path)).fetched()
    records, _ = read(source)
    assert sorted({record["class"] for record in records}) == sorted(wanted)
    assert len(records) == 600
    asked = len(bucket_url.requests)
    open_source("quickdraw", classes=wanted, cache_dir=str(tmp_path)).fetched()
    assert len(bucket_url.requests) == asked
    few = open_source("quickdraw", classes=["cat"], per_class=5, cache_dir=str(tmp_path)).fetched()
    assert few.parts[0].uri.startswith("http://")
    assert len(read(few)[0]) == 5


def test_a_transfer_that_fails_is_an_error_and_no_bad_record(bucket_url: FlakyServer, tmp_path: Path) -> None:
    source = open_source("quickdraw", classes=["cat"], per_class=5, cache_dir=str(tmp_path)).fetched()
    bucket_url.always = Answer(status=503)
    with pytest.raises(DataError, match=r"full/simplified/cat\.ndjson"):
        read(source)
