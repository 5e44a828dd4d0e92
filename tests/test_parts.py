"""Parts: formats told by their bytes, equal drawings read from all of them, compression, damage and failures."""

import bz2
import errno
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from flaky_server import Answer, FlakyServer
from test_binary import encode as encode_binary
from test_npz import archive
from test_npz import encode as encode_npz
from tfrecord_writer import frame, to_example, to_ink

from sketchray import doodles, parts
from sketchray.columns import from_column, to_column
from sketchray.errors import DataError
from sketchray.fetch import remote
from sketchray.fetch.transfer import Limits
from sketchray.formats import Bad
from sketchray.formats.detect import HEAD_BYTES, detect
from sketchray.shards import make_schema
from sketchray.sources import Source, open_source
from sketchray.strokes import from_record, to_record

Drawing = list[list[list[int]]]


def stretch(points: np.ndarray) -> Drawing:
    """A doodle as wide as high, as the tutorial makes all drawings."""
    drawing = to_record(points)
    for axis in range(2):
        values = [value for stroke in drawing for value in stroke[axis]]
        low, high = min(values), max(values)
        for stroke in drawing:
            stroke[axis] = [round((value - low) * 255 / (high - low)) for value in stroke[axis]]
    return drawing


DRAWINGS = [stretch(doodles.draw(name, index)) for index in range(3) for name in ("star", "wave", "circle")]
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
    return drawings_of_source(open_source(str(path), **options))


def drawings_of_source(source: Source) -> list[Any]:
    records, bad = read(source)
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


def tfrecords(label: int | None = None) -> bytes:
    return b"".join(frame(to_example(to_ink(drawing), label)) for drawing in DRAWINGS)


def csv_text() -> bytes:
    rows = [f'"{json.dumps(drawing)}",owl\r\n' for drawing in DRAWINGS]
    return "".join(["drawing,word\r\n", *rows]).encode()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "simplified": ("simplified", ndjson),
    "with a BOM": ("simplified", lambda: b"\xef\xbb\xbf" + ndjson()),
    "after blank lines": ("simplified", lambda: b"\r\n\n" + ndjson()),
    "raw": ("raw", raw),
    "npz": ("npz", lambda: archive(**{"train": encode_npz(copies()), "valid": NONE, "test": NONE}).getvalue()),
    "binary": ("binary", lambda: b"".join(map(encode_binary, DRAWINGS))),
    "tfrecord": ("tfrecord", tfrecords),
    "tfrecord, zlib": ("tfrecord", lambda: zlib.compress(tfrecords())),
    "csv": ("csv", csv_text),
    "csv with a BOM": ("csv", lambda: b"\xef\xbb\xbf" + csv_text()),
    "parquet": ("parquet", lambda: parquet(nested())),
    "our shard": ("parquet", shard),
    "arrow file": ("parquet", lambda: arrow(pa.ipc.new_file)),
    "arrow stream": ("parquet", lambda: arrow(pa.ipc.new_stream)),
}
NONE = encode_npz([])
FORWARD = ("simplified", "raw", "binary", "tfrecord", "csv")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def copies() -> list[np.ndarray]:
    """The drawings as arrays that own their memory, as pickled ones do."""
    return [points.copy() for points in POINTS]


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
    two = COMPRESSIONS[compression](plain.read_bytes())  # as `cat a.gz b.gz` makes
    packed.write_bytes(two + two)
    if kind != "csv":  # its header would come twice
        assert drawings_of(packed) == 2 * drawings_of(plain)


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
@pytest.mark.parametrize("kind", ["npz", "parquet", "arrow file"])
def test_other_files_that_are_compressed_are_named(tmp_path: Path, kind: str, compression: str) -> None:
    (tmp_path / "cat.ndjson").write_bytes(ndjson())
    (tmp_path / "packed").write_bytes(COMPRESSIONS[compression](FILES[kind][1]()))
    records, bad = read(open_source(str(tmp_path)))
    assert len(records) == len(DRAWINGS)
    assert bad == [("packed", Bad(0, f"a compressed {FILES[kind][0]} file: decompress it"))]


@pytest.mark.parametrize(
    ("line", "format"),
    [
        ('{"drawing": [ [ [1.5,2], [3,4], [0,9] ] ]}', "raw"),
        ('{"word":"cat","drawing":[[[1],[2]],[[3],[4],[5]]]}', "simplified"),
        ('{"word":"\\"drawing\\":[[[1],[2],[3]]]","drawing":[[[1],[2]]]}', "simplified"),
        # A line longer than what is looked at, as that of a long raw drawing may be.
        ('{"drawing":[[[1],[2],[3]]' + ",[[1],[2],[3]]" * 9_000 + "]}", "raw"),
        ('{"drawing":[]}\n{"drawing":[[[1],[2],[3]]]}', "raw"),
        ("{not json", "simplified"),  # the reader says what is wrong
        ("[1, 2]", None),
        ("key_id,word", None),
        ("word,drawing", "csv"),
        ("hello", None),
        ("", None),
        ("\0" * 999, None),
    ],
)
def test_what_is_in_the_first_bytes_decides(line: str, format: str | None) -> None:
    assert detect(line.encode()[:HEAD_BYTES]) == format


def test_an_archive_of_something_else_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "cat.ndjson").write_bytes(ndjson())
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as file:
        file.writestr("train.csv", csv_text())
    _, ((name, found),) = read(open_source(str(tmp_path)))
    assert (name, found.line) == ("train.zip", 0)
    assert "holds ['train.csv'], but a SketchRNN file holds" in found.reason


@pytest.mark.parametrize("kind", ["simplified", "binary", "tfrecord", "csv"])
def test_a_file_of_many_blocks_is_read_to_its_end(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    drawings = [[[[0, 255, *rng.integers(0, 256, 900).tolist()] for _ in range(2)]] for _ in range(10)]
    write: dict[str, Callable[[], bytes]] = {
        "simplified": lambda: ndjson(drawings),
        "binary": lambda: b"".join(map(encode_binary, drawings)),
        "tfrecord": lambda: b"".join(frame(to_example(to_ink(drawing), None)) for drawing in drawings),
        "csv": lambda: "".join(f'"{drawing}"\n' for drawing in drawings).encode(),
    }
    content = write[kind]()
    times = 1 + (9 << 20) // len(content)  # more than two blocks of 4 MiB
    (tmp_path / "cat").write_bytes((b"drawing\n" if kind == "csv" else b"") + content * times)
    assert drawings_of(tmp_path / "cat") == drawings * times


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

    if compression != "zstd":  # has no checksum, as Arrow writes it
        path.write_bytes(packed[:-5000] + bytes([packed[-5000] ^ 255]) + packed[-4999:])
        records, bad = read(open_source(str(path)))
        assert [record["drawing"] for record in records[:1000]] == drawings[:1000]
        assert bad[-1][1].line == 0


def test_an_odd_end_of_compressed_data_loses_no_drawing(tmp_path: Path) -> None:
    path = tmp_path / "cat.ndjson.gz"
    path.write_bytes(gzip.compress(ndjson()) + b"something else")
    records, ((_, bad),) = read(open_source(str(path)))
    assert [record["drawing"] for record in records] == DRAWINGS
    assert bad.line == 0


class Failing(io.BytesIO):
    """A file on a disk or in a store that fails in the middle."""

    def readinto(self, buffer: Any, /) -> int:
        if self.tell() > 100_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(buffer)


@pytest.mark.parametrize("compression", ["none", *COMPRESSIONS])
def test_a_disk_that_fails_is_an_error_and_no_bad_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    rng = np.random.default_rng(0)
    content = ndjson([[rng.integers(0, 256, (2, 40)).tolist()] for _ in range(8000)])
    packed = COMPRESSIONS.get(compression, bytes)(content)
    (tmp_path / "cat.ndjson").write_bytes(packed)
    source = open_source(str(tmp_path))
    monkeypatch.setattr(parts, "open_file", lambda _: Failing(packed))
    with pytest.raises(DataError, match=r"cat\.ndjson: cannot be read .*Input/output error"):
        read(source)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    """A server on loopback, and a program that does not wait long."""
    quick = Limits(timeout_s=2, stall_s=2, attempts=3, backoff_s=0.01)
    monkeypatch.setitem(remote.open_uri.__kwdefaults__, "limits", quick)
    with FlakyServer({}) as running:
        yield running


@pytest.mark.parametrize("compression", ["none", *COMPRESSIONS])
def test_a_transfer_that_fails_is_an_error_and_no_bad_record(
    server: FlakyServer, tmp_path: Path, compression: str
) -> None:
    rng = np.random.default_rng(0)
    content = ndjson([[rng.integers(0, 256, (2, 40)).tolist()] for _ in range(8000)])
    path = "files/ice cream.ndjson"
    server.files[path] = COMPRESSIONS.get(compression, bytes)(content)
    source = open_source(server.url_of(path), per_class=20_000, cache_dir=str(tmp_path)).fetched()
    assert len(drawings_of_source(source)) == 8000
    server.always = Answer(cut=200_000, headers={"ETag": None})
    with pytest.raises(DataError, match=r"files/ice%20cream\.ndjson: "):
        read(source)
    server.always = Answer(status=503)
    with pytest.raises(DataError, match=r"files/ice%20cream\.ndjson: 503"):
        read(source)
