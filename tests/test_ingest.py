"""Ingest: global shuffle, splits by hash, duplicates, and nothing half-written."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import real_records
from test_npz import archive, encode, touch

from sketchray import doodles
from sketchray.columns import from_column, to_column
from sketchray.errors import DataError, find_error
from sketchray.formats import HostileError
from sketchray.ingest import ingest
from sketchray.ingest.stage import CARD, QUARANTINE
from sketchray.shards import MANIFEST, make_schema, open_shards
from sketchray.sources import ATTRIBUTION, open_source
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


def test_the_published_split_wins_and_nothing_tested_is_trained_on(tmp_path: Path) -> None:
    drawings = [doodles.draw("star", index) for index in range(6)]
    splits = {"train": [0, 1, 2, 2, 3], "valid": [1, 4], "test": [0, 3, 5]}
    # SketchRNN's layout without its pickles: our own shards, once as they are and once as somebody else has split them.
    for number, (split, indices) in enumerate(splits.items()):
        write_shard(tmp_path / "in" / f"{number}.parquet", [drawings[index] for index in indices], split)
    result = ingest(open_source(str(tmp_path / "in")), str(tmp_path / "out"))
    assert result["splits"] == {"train": 1, "valid": 2, "test": 3}
    assert result["duplicates"] == 4
    table = read_all(tmp_path / "out")
    found = {json.dumps(row["points"]): row["split"] for row in table.to_pylist()}
    expected = ["test", "valid", "train", "test", "valid", "test"]
    assert found == {json.dumps(drawing.tolist()): split for drawing, split in zip(drawings, expected, strict=True)}


def write_shard(path: Path, drawings: list[np.ndarray], split: str) -> None:
    path.parent.mkdir(exist_ok=True)
    number = len(drawings)
    offsets = np.concatenate([[0], np.cumsum([len(drawing) for drawing in drawings])])
    columns = [
        to_column(np.concatenate(drawings), offsets),
        pa.array([0] * number, pa.int16()),
        pa.nulls(number, pa.uint64()),
        pa.nulls(number, pa.bool_()),
        pa.array([split] * number),
    ]
    pq.write_table(pa.table(columns, schema=make_schema(["star"], {"synthetic": True})), path)


def test_bad_records_are_counted_and_quarantined_and_good_ones_kept(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    source = write_files(tmp_path / "in", records)
    path = source / f"{records[0]['word']}.ndjson"
    number = len(path.read_text().splitlines())
    with open(path, "a") as file:
        file.write('{not json\n\n{"drawing":[[[1,2],[3]]]}\n')
    (source / "strange.bin").write_bytes(b"\0\1\2 something else")
    result = ingest(open_source(str(source)), str(tmp_path / "out"))
    assert result["drawings"] == len(records)
    assert result["quarantined"] == open_shards(str(tmp_path / "out")).manifest.quarantined == 3
    lines = (tmp_path / "out" / QUARANTINE).read_text().splitlines()
    found = {(bad["source"], bad["line"]): bad["reason"] for bad in map(json.loads, lines)}
    assert found.keys() == {(str(path), number + 1), (str(path), number + 3), (str(source / "strange.bin"), 0)}
    assert found[str(path), number + 1].startswith("not JSON")
    assert found[str(path), number + 3] == "drawing[0]: lists of unequal length [2, 1]"


def test_strict_stops_at_a_bad_record_and_writes_nothing(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_files(tmp_path / "in", records)
    path = source / f"{records[0]['word']}.ndjson"
    with open(path, "a") as file:
        file.write("{not json\n")
    number = len(path.read_text().splitlines())
    with pytest.raises(Exception) as caught:  # noqa: PT011  Ray wraps it in a class of its own
        ingest(open_source(str(source)), str(tmp_path / "out"), strict=True)
    error = find_error(caught.value)
    assert isinstance(error, DataError)
    assert f"{path}:{number}: not JSON" in str(error)
    assert not (tmp_path / "out").exists()


def test_a_hostile_pickle_ends_the_run_with_nothing_written(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_files(tmp_path / "in", records)
    proof = tmp_path / "it ran"
    (source / "evil.npz").write_bytes(archive(train=encode([touch(proof)["os.system"]])).getvalue())
    with pytest.raises(Exception) as caught:  # noqa: PT011  Ray wraps it in a class of its own
        ingest(open_source(str(source)), str(tmp_path / "out"))
    assert isinstance(find_error(caught.value), HostileError)
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


def test_a_source_without_any_drawing_says_why(tmp_path: Path) -> None:
    (tmp_path / "cat.ndjson").write_text('{"drawing":[]}\n')
    with pytest.raises(DataError, match=r"no drawing in the source: drawing: expected a list .*\(cat:1\)"):
        ingest(open_source(str(tmp_path / "cat.ndjson")), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_records_of_other_classes_are_quarantined_and_their_files_not_read(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    wanted = sorted({record["word"] for record in records})[0]
    everything = tmp_path / "everything.ndjson"
    everything.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = ingest(open_source(str(everything), classes=[wanted]), str(tmp_path / "out"))
    assert (result["drawings"], result["quarantined"]) == (60, len(records) - 60)
    lines = (tmp_path / "out" / QUARANTINE).read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [
        line for line, record in enumerate(records, 1) if record["word"] != wanted
    ]


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


def test_per_class_counts_over_all_files(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = open_source(str(write_files(tmp_path / "in", records, files=3)), per_class=25)
    result = ingest(source, str(tmp_path / "out"))
    assert set(open_shards(str(tmp_path / "out")).manifest.class_counts.values()) == {25}
    assert result["drawings"] == 8 * 25
    # The first file has 20 drawings of each class, in order: all of them, and five of the second.
    keys = set(read_all(tmp_path / "out")["key_id"].to_pylist())
    first = [int(record["key_id"]) for record in records[0::3]]
    second = [int(record["key_id"]) for record in records[1::3]]
    assert keys == set(first) | {key for start in range(0, len(second), 20) for key in second[start : start + 5]}


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


def test_a_directory_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "shard-00007-of-00009.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match=f"no {MANIFEST}, so this is not a complete data set"):
        open_shards(str(tmp_path))
    ingest(open_source(None, "doodles", per_class=3), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, MANIFEST, "shard-00000-of-00001.parquet"]


def test_a_copy_that_lacks_something_is_refused(tmp_path: Path, doodle_shards: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(doodle_shards, copy)
    open_shards(str(copy)).verify()
    (shard,) = copy.glob("*.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(DataError, match=f"{shard.name}: damaged, its checksum is wrong"):
        open_shards(str(copy)).verify()
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"{shard.name}: has [\d,]+ bytes instead of"):
        open_shards(str(copy))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: is missing"):
        open_shards(str(copy))


def test_attribution_is_in_the_shards_and_doodles_are_synthetic_again(
    tmp_path: Path, doodle_shards: str, records: list[dict[str, Any]]
) -> None:
    ingest(open_source(doodle_shards), str(tmp_path / "again"))
    assert open_shards(str(tmp_path / "again")).manifest.provenance["synthetic"] is True
    assert read_all(tmp_path / "again").num_rows == read_all(doodle_shards).num_rows
    ingest(open_source(str(write_files(tmp_path / "in", records))), str(tmp_path / "real"))
    (shard,) = (tmp_path / "real").glob("*.parquet")
    content = json.loads(pq.read_schema(shard).metadata[b"sketchray"])
    assert content["provenance"]["attribution"] == ATTRIBUTION


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="data format version 99, this sketchray reads 2; ingest again"):
        open_shards(str(tmp_path))
