"""Sources: what is listed and chosen of files, a bucket, shards and data sets, and what is said of the rest."""

import gzip
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import real_records
from flaky_server import FlakyServer
from test_parts import DRAWINGS, FILES, ndjson, nested, parquet, read, server, shard, tfrecords
from test_tfds import example, packed, write_array_record, write_tfrecord

from sketchray import doodles
from sketchray.errors import DataError
from sketchray.formats import Bad
from sketchray.sources import open_source
from sketchray.strokes import to_record

__all__ = ["server"]  # a fixture

GOOD = '{"word":"cat","key_id":"5","recognized":true,"drawing":[[[0,9],[3,4]],[[1],[2]]]}'
TENSOR = {"dtype": "int16", "shape": {"dimensions": ["-1", "3"]}, "encoding": "none"}
LABEL = {"classLabel": {"numClasses": "2"}}
FEATURES = {"featuresDict": {"features": {"drawing": {"tensor": TENSOR}, "label": LABEL}}}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zlib.compress])
def test_the_tutorials_files_with_their_classes_and_splits(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "training.tfrecord-00000-of-00001").write_bytes(compress(tfrecords(1)))
    (tmp_path / "eval.tfrecord-00000-of-00001").write_bytes(compress(tfrecords(1)))
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
    assert "classes by number: put the .classes file" in found.reason
    (tmp_path / "eval.tfrecord.classes").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"eval\.tfrecord\.classes: not UTF-8 text"):
        open_source(str(tmp_path))


def test_the_classes_of_a_tfrecord_are_beside_it_whatever_the_directory_is_called(tmp_path: Path) -> None:
    directory = tmp_path / "quickdraw.tfrecord.files"
    directory.mkdir()
    (directory / "eval.tfrecord.gz").write_bytes(gzip.compress(tfrecords(0)))
    (directory / "eval.tfrecord.classes").write_text("owl\n")
    (part,) = open_source(str(directory / "eval.tfrecord.gz")).parts
    assert (part.classes, part.split) == (("owl",), "valid")


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_data_set_of_tfds(tmp_path: Path, file_format: str) -> None:
    write = {"tfrecord": write_tfrecord, "array_record": write_array_record}[file_format]
    splits = [{"name": name, "shardLengths": ["2"]} for name in ("train", "test")]
    info = {"name": "sketch_rnn", "fileFormat": file_format, "splits": splits}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "features.json").write_text(json.dumps(FEATURES))
    (tmp_path / "label.labels.txt").write_text("cat\nice cream\n")
    drawn = {
        name: [doodles.draw("star", index, seed) for index in range(2)] for seed, name in enumerate(("train", "test"))
    }
    for name, drawings in drawn.items():
        records = [example(drawing=packed(points), label=[label]) for label, points in enumerate(drawings)]
        write(tmp_path / f"sketch_rnn-{name}.{file_format}-00000-of-00001", records)
    source = open_source(str(tmp_path))
    assert {part.format for part in source.parts} == {"tfds"}
    records, bad = read(source)
    assert bad == []
    assert [(one["class"], one["split"], one["drawing"]) for one in records] == [
        (name, split, to_record(points))
        for split in sorted(drawn)
        for name, points in zip(("cat", "ice cream"), drawn[split], strict=True)
    ]
    chosen, _ = read(open_source(str(tmp_path), "tfds", classes=["cat"], per_class=1))
    assert [one["class"] for one in chosen] == ["cat", "cat"]  # one of each file


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


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ice cream.ndjson", "ice cream"),
        ("ice cream.ndjson.gz", "ice cream"),
        ("t-shirt", "t-shirt"),
        ("a.b.ndjson", "a.b"),
        ("cat.full.npz", "cat"),
        ("The%20Eiffel%20Tower.ndjson", "The%20Eiffel%20Tower"),  # a name is quoted in a URL only
        ("NOSE.NDJSON.GZ", "NOSE"),
    ],
)
def test_a_record_without_a_class_is_of_the_files(tmp_path: Path, name: str, stem: str) -> None:
    kind = "npz" if name.endswith("npz") else "simplified"
    data = FILES[kind][1]()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    records, _ = read(open_source(str(tmp_path)))
    assert {record["class"] for record in records} == {stem}


def test_a_strange_file_beside_good_ones_is_a_bad_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "cat.ndjson").write_bytes(ndjson())
    (tmp_path / "empty.ndjson").touch()
    (tmp_path / "strange").write_text("hello\n")
    (tmp_path / "torn.parquet").write_bytes(parquet(nested())[:100])
    for name in ("README.md", ".hidden", "training.tfrecord.classes", "manifest.json", "quarantine.ndjson", "_SUCCESS"):
        (tmp_path / name).write_text("none of this is read")
    records, bad = read(open_source(str(tmp_path)))
    assert len(records) == len(DRAWINGS)
    assert {(name, one.line) for name, one in bad} == {("empty.ndjson", 0), ("strange", 0), ("torn.parquet", 0)}
    assert "4 files are not read, because of their names: README.md, manifest.json, quarantine.ndjson" in caplog.text


def test_a_file_with_the_name_of_a_sidecar_is_read_where_it_is_named_itself(tmp_path: Path) -> None:
    for name in ("cat.json", ".hidden", "cat.ndjson.part"):
        (tmp_path / name).write_bytes(ndjson())
        assert len(read(open_source(str(tmp_path / name)))[0]) == len(DRAWINGS)
        assert len(read(open_source(f"file://{tmp_path}/{name}"))[0]) == len(DRAWINGS)
        with pytest.raises(DataError, match="no file of drawings in this directory"):
            open_source(str(tmp_path))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.ndjson", "wb") as file:
        file.write(ndjson())
    with pytest.raises(DataError, match="the file's name is not UTF-8; rename it"):
        open_source(str(tmp_path))


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


def test_our_own_shards_keep_split_and_origin(tmp_path: Path, server: FlakyServer) -> None:
    (tmp_path / "shard-00000-of-00001.parquet").write_bytes(shard())
    for name in ("manifest.json", "card.html", "quarantine.ndjson"):
        (tmp_path / name).write_text('{"no": "drawings"}\n')
    source = open_source(str(tmp_path))
    assert source.synthetic
    records, _ = read(source)
    assert {(record["class"], record["split"]) for record in records} == {("owl", "test")}
    server.files["shard.parquet"] = shard()
    assert open_source(server.url_of("shard.parquet"), cache_dir=str(tmp_path / "cache")).fetched().synthetic


@pytest.mark.parametrize("text", ["hello", "[]", '{"provenance":[]}', "{}", '{"provenance":{"synthetic":"yes"}}'])
def test_metadata_of_others_is_no_claim_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(nested().replace_schema_metadata({"sketchray": text})))
    source = open_source(str(tmp_path))
    assert not source.synthetic
    assert len(read(source)[0]) == len(DRAWINGS)


def test_a_file_of_the_web_is_fetched_or_streamed_as_far_as_needed(server: FlakyServer, tmp_path: Path) -> None:
    server.files["files/The Eiffel Tower.ndjson?token=1"] = ndjson() * 500
    url = f"{server.url}/files/The%20Eiffel%20Tower.ndjson?token=1"
    few = open_source(url, per_class=5, cache_dir=str(tmp_path)).fetched()
    records, _ = read(few)
    assert {record["class"] for record in records} == {"The Eiffel Tower"}
    assert len(records) == 5
    assert few.parts[0].uri == url
    whole = open_source(url, cache_dir=str(tmp_path)).fetched()
    assert Path(whole.parts[0].uri).read_bytes() == ndjson() * 500
    asked = len(server.requests)
    records, _ = read(whole)
    assert len(records) == 500 * len(DRAWINGS)
    assert len(server.requests) == asked


def test_records_of_other_classes_are_bad_and_files_of_others_are_not_opened(tmp_path: Path) -> None:
    lines = ["", GOOD, "", GOOD.replace("cat", "dog"), "{", GOOD.replace("cat", "owl")]
    (tmp_path / "mixed.ndjson").write_text("\n".join(lines))
    (tmp_path / "dog.ndjson").write_bytes(b"\0 this would be bad, if it were looked at")
    for format in ("auto", "simplified"):
        records, bad = read(open_source(str(tmp_path), format, classes=["owl", "cat"]))  # type: ignore[arg-type]
        assert [record["line"] for record in records] == [2, 6]
        reasons = [(one.line, one.reason[:20]) for _, one in bad]
        assert reasons == [(4, "class 'dog' is outsi"), (5, "not JSON (Expecting ")]
    with pytest.raises(DataError, match="not of a class asked for"):
        open_source(str(tmp_path / "dog.ndjson"), classes=["owl"])


def test_per_class_stops_early_only_where_a_file_is_of_one_class(tmp_path: Path) -> None:
    cats, dogs, mixed = (GOOD.replace("cat", name) + "\n" for name in ("cat", "dog", "mixed"))
    # 60,000 lines are more than one block. Of no class of Quick, Draw! is `mixed`, though it is that of many records.
    (tmp_path / "mixed.ndjson").write_text(mixed * 60_000 + dogs * 3)
    (tmp_path / "cat.ndjson").write_text(cats * 60_000 + "{\n")
    source = open_source(str(tmp_path), per_class=2)
    records, bad = read(source)
    assert [record["class"] for record in records] == ["cat", "cat", "mixed", "mixed", "dog", "dog"]
    assert bad == []  # the end of cat.ndjson was not looked at
    for flag in ("per_class", "max_points"):
        with pytest.raises(DataError, match=f"--{flag.replace('_', '-')} 0: must be at least 1"):
            open_source(str(tmp_path), **{flag: 0})  # type: ignore[arg-type]


def test_per_class_keeps_names_apart(tmp_path: Path) -> None:
    names = ["cat", "cat\0", "Cat", " cat"] * 3
    (tmp_path / "all").write_text("".join(json.dumps({"word": name, "drawing": [[[1], [2]]]}) + "\n" for name in names))
    records, _ = read(open_source(str(tmp_path), per_class=2))
    assert [record["class"] for record in records] == names[:8]


def test_max_points_and_globs(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cow"):
        (tmp_path / f"{name}.ndjson").write_text(GOOD.replace("cat", name) + "\n")
    records, _ = read(open_source(str(tmp_path / "[ab]*.ndjson")))
    assert [record["class"] for record in records] == ["ant", "bee"]
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "owl.ndjson").write_text(GOOD.replace("cat", "owl"))
    records, _ = read(open_source(str(tmp_path / "**" / "o*.ndjson")))
    assert [record["class"] for record in records] == ["owl"]
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
