"""Ingest: global shuffle, splits by hash, duplicates, and nothing half-written."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import real_records

from sketchray.columns import from_column
from sketchray.errors import DataError, find_error
from sketchray.ingest import choose_split, content_hash, ingest
from sketchray.shards import MANIFEST, open_shards
from sketchray.sources import open_source
from sketchray.strokes import to_record

pytestmark = pytest.mark.usefixtures("cluster")


def write_files(directory: Path, records: list[dict[str, Any]], files: int | None = None) -> Path:
    """Writes records as Google does, one class a file, or dealt over a number of files."""
    directory.mkdir()
    for number, record in enumerate(records):
        name = record["word"] if files is None else f"part{number % files}"
        with open(directory / f"{name}.ndjson", "a") as file:
            file.write(json.dumps(record) + "\n")
    return directory


def read_all(out: str | Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(out).glob("*.parquet"))])


def digests(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return real_records(60, classes=8)


def test_every_drawing_is_there_once_with_its_class(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    out = tmp_path / "out"
    result = ingest(open_source(str(write_files(tmp_path / "in", records))), str(out))
    table = read_all(out)
    classes = open_shards(str(out)).classes
    points, offsets = from_column(table["points"])
    found = Counter(
        (classes[label], key, json.dumps(to_record(points[offsets[row] : offsets[row + 1]])))
        for row, (label, key) in enumerate(zip(table["label"].to_pylist(), table["key_id"].to_pylist(), strict=True))
    )
    assert found == Counter((r["word"], int(r["key_id"]), json.dumps(r["drawing"])) for r in records)
    assert result["drawings"] == len(records)
    assert result["splits"] == dict(Counter(table["split"].to_pylist()))
    assert result["duplicates"] == 0


def test_same_drawings_same_bytes_whatever_the_order(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    ingest(open_source(str(write_files(tmp_path / "in", records))), str(tmp_path / "a"), num_shards=3)
    mixed = [records[index] for index in np.random.default_rng(0).permutation(len(records))]
    source = open_source(str(write_files(tmp_path / "mixed", mixed, files=5)))
    ingest(source, str(tmp_path / "b"), num_shards=3)
    ingest(source, str(tmp_path / "c"), num_shards=3, seed=1)
    assert len(list((tmp_path / "a").glob("*.parquet"))) == 3
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")

    def split_of(out: str) -> dict[int, str]:
        table = read_all(tmp_path / out)
        return dict(zip(table["key_id"].to_pylist(), table["split"].to_pylist(), strict=True))

    assert split_of("a") == split_of("c")  # the seed shuffles, and moves no drawing to another split


def test_shards_mix_classes(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    out = tmp_path / "out"
    ingest(open_source(str(write_files(tmp_path / "in", records))), str(out), num_shards=2)
    for path in out.glob("*.parquet"):
        labels = pq.read_table(path)["label"].to_numpy()
        # 8 classes in runs of 60 before; a quarter of a shuffled shard has every class, none above half.
        for part in np.array_split(labels, 4):
            counts = np.bincount(part, minlength=8)
            assert counts.max() < len(part) / 2
            assert (counts > 0).sum() >= 6


def test_row_groups_hold_one_split_and_the_manifest_says_which(doodle_shards: str) -> None:
    manifest = open_shards(doodle_shards).manifest
    for group in manifest.row_groups:
        with pq.ParquetFile(Path(doodle_shards) / group.shard) as file:
            table = file.read_row_group(group.index)
        assert set(table["split"].to_pylist()) == {group.split}
        assert len(table) == group.rows
    assert manifest.provenance["synthetic"] is True


def test_split_shares() -> None:
    shares = Counter(choose_split(np.arange(100_000, dtype=np.uint64)).tolist())
    # The standard deviation of a share of 100,000 is below 0.13 %.
    assert shares["train"] / 1e5 == pytest.approx(0.8, abs=0.006)
    assert shares["valid"] / 1e5 == pytest.approx(0.1, abs=0.006)


def test_hash_tells_class_order_and_value() -> None:
    points = np.array([[1, 2, 0], [3, 4, 1]], np.int16)
    swapped = points[::-1].copy()
    shifted = points + np.int16(1)

    def hash_of(name: str, drawing: np.ndarray) -> int:
        return int(content_hash([name], drawing, np.array([0, len(drawing)]))[0])

    variants = [hash_of("a", points), hash_of("b", points), hash_of("a", swapped), hash_of("a", shifted)]
    assert len(set(variants)) == 4
    batch = content_hash(["a", "b", "a"], np.concatenate([points, points, swapped]), np.array([0, 2, 4, 6]))
    assert batch.tolist() == variants[:3]


def test_equal_drawings_of_a_class_are_written_once(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    first = {**records[0], "key_id": "500"}
    again = {**first, "key_id": "30"}
    third = {**first, "key_id": "900"}
    other = {**first, "word": records[-1]["word"], "key_id": "7"}
    out = tmp_path / "out"
    source = write_files(tmp_path / "in", [first, again, third, other, *records[1:20]])
    result = ingest(open_source(str(source)), str(out))
    assert result["duplicates"] == 2
    assert result["drawings"] == 21
    keys = read_all(out)["key_id"].to_pylist()
    assert 30 in keys  # the smallest key of the three stays
    assert 7 in keys  # another class is another drawing
    assert not {500, 900} & set(keys)


def test_drawings_without_keys_are_split_by_content(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    bare = [{"word": record["word"], "drawing": record["drawing"]} for record in records]
    out = tmp_path / "out"
    ingest(open_source(str(write_files(tmp_path / "in", bare))), str(out))
    table = read_all(out)
    assert set(table["key_id"].to_pylist()) == {None}
    assert len(set(table["split"].to_pylist())) == 3


def test_a_bad_line_is_named_and_nothing_is_left(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_files(tmp_path / "in", records)
    path = source / f"{records[0]['word']}.ndjson"
    with open(path, "a") as file:
        file.write("{not json\n")
    number = len(path.read_text().splitlines())
    with pytest.raises(Exception) as caught:  # noqa: PT011  Ray wraps it in a class of its own
        ingest(open_source(str(source)), str(tmp_path / "out"))
    error = find_error(caught.value)
    assert isinstance(error, DataError)
    assert f"{path}:{number}: not JSON" in str(error)
    assert not (tmp_path / "out").exists()


def test_an_unknown_class_is_named(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = open_source(str(write_files(tmp_path / "in", records)), classes=[records[0]["word"], "unicorn"])
    with pytest.raises(DataError, match=r"--classes 'unicorn': no drawing of this class in the source"):
        ingest(source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_classes_and_per_class_select(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    wanted = sorted({record["word"] for record in records})[:2]
    source = open_source(str(write_files(tmp_path / "in", records)), classes=wanted, per_class=7)
    result = ingest(source, str(tmp_path / "out"))
    assert result["classes"] == 2
    assert open_shards(str(tmp_path / "out")).manifest.class_counts == {wanted[0]: 7, wanted[1]: 7}


def test_a_directory_in_use_is_refused_and_kept(tmp_path: Path, doodle_shards: str) -> None:
    source = open_source(None, "doodles", per_class=3)
    before = digests(Path(doodle_shards))
    with pytest.raises(DataError, match="already holds a data set"):
        ingest(source, doodle_shards)
    assert digests(Path(doodle_shards)) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(notes\.txt\)"):
        ingest(source, str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_killed_ingest_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "shard-00007-of-00009.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match=f"no {MANIFEST}, so this is not a complete data set"):
        open_shards(str(tmp_path))
    ingest(open_source(None, "doodles", per_class=3), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "shard-00000-of-00001.parquet"]


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="data format version 99, this sketchray reads 1; ingest again"):
        open_shards(str(tmp_path))
