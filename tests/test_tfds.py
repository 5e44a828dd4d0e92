"""Data sets prepared by TFDS: built by our builder, and shards written here, of both file formats."""

import contextlib
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sketchray.sketch_rnn
from sketchray import doodles
from sketchray.columns import from_column
from sketchray.errors import DataError
from sketchray.formats import Bad, Block
from sketchray.formats.tfds import BLOCK_ROWS, Prepared, describe, read
from sketchray.sketch_rnn import Builder, SketchRnnConfig
from sketchray.sketch_rnn.dummy_data_generation import CORNERS
from sketchray.sketch_rnn.npz import read_npz

DUMMY_DATA = Path(sketchray.sketch_rnn.__file__).parent / "dummy_data"
CLASSES = ("cat", "dog")
DOT = [[1, 2, 1]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that our builder made, of doodles."""
    tfds.disable_progress_bar()
    config = SketchRnnConfig(name="dummy", classes=tuple(CORNERS))
    builder = Builder(data_dir=tmp_path_factory.mktemp("tfds"), config=config, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=DUMMY_DATA))
    return Path(builder.data_dir)


def crc32c(data: bytes) -> int:
    """CRC32C, bit by bit, masked as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", crc32c(length)) + record + struct.pack("<I", crc32c(record)))


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features: bytes | list[int]) -> bytes:
    """Returns a serialised tf.train.Example."""
    entries = []
    for name, value in features.items():
        kind = (
            field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, b"".join(map(varint, value))))
        )
        entries.append(field(1, field(1, name.encode()) + field(2, kind)))
    return field(1, b"".join(entries))


def packed(points: Any) -> bytes:
    return np.asarray(points, "<i2").tobytes()


WRITERS: dict[str, Callable[[Path, Iterable[bytes]], None]] = {
    "tfrecord": write_tfrecord,
    "array_record": write_array_record,
}


def blocks(path: Path, **options: Any) -> list[Block]:
    with path.open("rb") as file:
        return list(read(file, **options))


def flatten(
    path: Path, classes: tuple[str, ...] = CLASSES, split: str | None = None, max_points: int = 1000
) -> tuple[list[tuple[int, str, Any]], list[Bad]]:
    rows, bad = [], []
    for block in blocks(path, max_points=max_points, classes=classes, split=split):
        points, offsets = from_column(block.table["points"])
        parts = [part.tolist() for part in np.split(points, offsets[1:-1])[: len(block.table)]]
        assert block.table["split"].to_pylist() == [split] * len(block.table)
        assert block.table["key_id"].null_count == len(block.table)
        rows += zip(block.table["line"].to_pylist(), block.table["class"].to_pylist(), parts, strict=True)
        bad += block.bad
    return rows, bad


def test_what_our_builder_made_comes_back(prepared: Path) -> None:
    names = ("The Eiffel Tower", "hexagon", "square")
    found = describe(str(prepared))
    files = {f"sketch_rnn-{split}.array_record-00000-of-00001": split for split in ("train", "valid", "test")}
    assert found == Prepared(names, dict(files))
    for file, split in files.items():
        rows, bad = flatten(prepared / file, found.classes, split)
        assert bad == []
        assert [line for line, _, _ in rows] == list(range(1, len(rows) + 1))
        expected = [(name, item.tolist()) for name in names for item in read_npz(DUMMY_DATA / f"{name}.npz")[split]]
        assert sorted((name, points) for _, name, points in rows) == sorted(expected)


@pytest.mark.parametrize("file_format", list(WRITERS))
def test_both_encodings_of_both_file_formats(tmp_path: Path, file_format: str) -> None:
    drawings = [doodles.draw(doodles.CLASSES[index % 5], index) for index in range(60)]
    records = [
        example(drawing=packed(points) if index % 2 else points.reshape(-1).tolist(), label=[index % 2], other=b"x")
        for index, points in enumerate(drawings)
    ]
    WRITERS[file_format](tmp_path / "shard", records)
    rows, bad = flatten(tmp_path / "shard", split="valid")
    assert bad == []
    assert rows == [(i + 1, CLASSES[i % 2], points.tolist()) for i, points in enumerate(drawings)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\xff", "not an Example"),
        (b"", "drawing: expected"),
        (example(label=[0]), "drawing: expected"),
        (example(drawing=packed(DOT)), "label: expected"),
        (example(drawing=packed(DOT), label=[0, 1]), "label: expected"),
        (example(drawing=packed(DOT), label=b"cat"), "label: expected"),
        (example(drawing=packed(DOT), label=[2]), "label 2 is none of the 2 classes"),
        (example(drawing=packed(DOT), label=[-1]), "label -1 is none"),
        (example(drawing=packed(DOT)[:5], label=[0]), "5 bytes are no points"),
        (example(drawing=[1, 2], label=[0]), "three integers"),
        (example(drawing=[40_000, 2, 1], label=[0]), "within int16"),
        (example(drawing=b"", label=[0]), "no points"),
        (example(drawing=packed([[1, 2, 3]]), label=[0]), "pen_up"),
        (example(drawing=packed(DOT * 9), label=[0]), "9 points, at most 8"),
    ],
)
@pytest.mark.parametrize("file_format", list(WRITERS))
def test_a_bad_record_leaves_its_neighbours_alone(tmp_path: Path, file_format: str, record: bytes, reason: str) -> None:
    good = example(drawing=packed(DOT), label=[1])
    WRITERS[file_format](tmp_path / "shard", [good, record, good, record])
    rows, bad = flatten(tmp_path / "shard", max_points=8)
    assert rows == [(1, "dog", DOT), (3, "dog", DOT)]
    assert [number for number, _ in bad] == [2, 4]
    assert re.search(reason, bad[0].reason)


@pytest.mark.parametrize("file_format", list(WRITERS))
def test_a_damaged_record_leaves_its_neighbours_alone(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "shard"
    records = [example(drawing=packed([[index, 0, 1]]), label=[0], mark=b"-mark%02d-" % index) for index in range(20)]
    WRITERS[file_format](path, records)
    data = path.read_bytes()
    assert data.count(b"-mark07-") == 1
    path.write_bytes(data.replace(b"-mark07-", b"-mork07-"))
    rows, bad = flatten(path)
    assert [line for line, _, _ in rows] == [*range(1, 8), *range(9, 21)]
    assert [number for number, _ in bad] == [8]


@pytest.mark.parametrize("file_format", list(WRITERS))
def test_blocks_are_bounded(tmp_path: Path, file_format: Any) -> None:
    WRITERS[file_format](tmp_path / "shard", [example(drawing=packed(DOT), label=[0])] * (BLOCK_ROWS + 3))
    found = blocks(tmp_path / "shard", max_points=9, classes=CLASSES, split=None)
    assert [len(block.table) for block in found] == [BLOCK_ROWS, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense " * 100, "^not a TFRecord file"),
        (bytes.fromhex("83af70d10d884a3f"), "^not an array_record file"),
        (bytes.fromhex("83af70d10d884a3f") + b"nonsense" * 9999, "^not an array_record file"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "shard").write_bytes(content)
    with pytest.raises(DataError, match=message):
        flatten(tmp_path / "shard")


def test_an_array_record_without_its_end_is_refused(tmp_path: Path) -> None:
    write_array_record(tmp_path / "shard", [example(drawing=packed(DOT), label=[0])] * 9)
    whole = (tmp_path / "shard").read_bytes()
    (tmp_path / "shard").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no records are found from its end"):
        flatten(tmp_path / "shard")


def edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def drawing(content: dict[str, Any]) -> dict[str, Any]:
    features: dict[str, Any] = content["featuresDict"]["features"]["drawing"]["tensor"]
    return features


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset_info.json", None, "no dataset_info.json, so this is no data set"),
        ("features.json", None, "no features.json, so this is no data set"),
        ("label.labels.txt", None, "label.labels.txt: .*names the classes"),
        ("sketch_rnn-test.array_record-00000-of-00001", None, "sketch_rnn-test.* are missing"),
        ("dataset_info.json", edit(fileFormat="parquet"), "file format 'parquet'"),
        ("dataset_info.json", edit(splits=[]), "has no shards"),
        ("dataset_info.json", edit(splits=5), "no splits"),
        ("dataset_info.json", edit(splits=[{"name": "train"}]), "no splits"),
        ("dataset_info.json", edit(name="../../etc"), "not in the directory"),
        ("features.json", edit(featuresDict={"features": {"image": {}}}), "not the features of sketch_rnn"),
        ("features.json", lambda content: drawing(content).update(dtype="float32"), "not the features"),
        ("features.json", lambda content: drawing(content).update(encoding="zlib"), "not the features"),
    ],
)
def test_a_directory_of_something_else_is_refused(
    prepared: Path, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None] | None, message: str
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    if change is None:
        (folder / name).unlink()
    else:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        describe(str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_directory_with_a_damaged_file_is_refused(prepared: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    (folder / "features.json").write_bytes(content)
    with pytest.raises(DataError, match=r"features\.json"):
        describe(str(folder))


changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(list(WRITERS)), changes, st.floats(0, 1))
def test_a_damaged_file_raises_nothing_else(
    tmp_path: Path, file_format: str, changes: list[tuple[float, int]], kept: float
) -> None:
    path = tmp_path / file_format
    if not path.exists():
        WRITERS[file_format](path, [example(drawing=packed(DOT * 5), label=[index % 2]) for index in range(9)])
    damaged = bytearray(path.read_bytes())
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    (tmp_path / "damaged").write_bytes(damaged[: int(len(damaged) * kept)] if kept < 0.5 else damaged)
    with contextlib.suppress(DataError):
        flatten(tmp_path / "damaged")
