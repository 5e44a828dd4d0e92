"""Reading published files: against json.loads, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import real_records

from sketchray.columns import from_column
from sketchray.errors import DataError
from sketchray.sources import open_source
from sketchray.strokes import to_record

GOOD = '{"word":"cat","key_id":"5","recognized":true,"drawing":[[[0,9],[3,4]],[[1],[2]]]}'


def read(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    """The drawings of a source as records."""
    source = open_source(str(path), **options)
    records = []
    for part in range(len(source.parts)):
        for table in source.read(part):
            points, offsets = from_column(table["points"])
            drawings = np.split(points, offsets[1:-1])
            rows = zip(table.drop_columns(["points"]).to_pylist(), drawings, strict=True)
            records += [{**row, "drawing": to_record(drawing)} for row, drawing in rows]
    return records


def test_real_files_are_read_as_json_reads_them(tmp_path: Path) -> None:
    records = real_records(100, classes=3)
    for record in records:
        with open(tmp_path / f"{record['word']}.ndjson", "a") as file:
            file.write(json.dumps(record) + "\n")
    expected = [
        {
            "class": record["word"],
            "key_id": int(record["key_id"]),
            "recognized": record.get("recognized"),
            "drawing": record["drawing"],
        }
        for record in sorted(records, key=lambda record: f"{record['word']}.ndjson")
    ]
    assert read(tmp_path) == expected


def test_missing_fields_extra_fields_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "ice cream.ndjson"
    path.write_text(f'\n{{"drawing":[[[1],[2]]],"countrycode":"DE","extra":[{{}}]}}\n\n{GOOD}\n')
    first, second = read(path)
    assert first == {"class": "ice cream", "key_id": None, "recognized": None, "drawing": [[[1], [2]]]}
    assert (second["class"], second["key_id"], second["recognized"]) == ("cat", 5, True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "a record must be a JSON object, not list"),
        ("{}", "drawing: expected a list"),
        ('{"drawing":null}', "drawing: expected a list"),
        ('{"drawing":[]}', "drawing: expected a list"),
        ('{"drawing":[[[1],[2]],[[],[]]]}', r"drawing\[1\]: coordinates must be flat, non-empty"),
        ('{"drawing":[[[1,2],[2]]]}', r"drawing\[0\]: lists of unequal length"),
        ('{"drawing":[[["1"],[2]]]}', r"drawing\[0\]: coordinates"),
        ('{"drawing":[[[1],[null]]]}', r"drawing\[0\]: coordinates"),
        ('{"drawing":"x"}', "drawing: expected a list"),
        ('{"drawing":[[[1],[2]]],"key_id":"5x"}', "key_id '5x' is not a string of digits"),
        ('{"drawing":[[[1],[2]]],"key_id":5}', "key_id 5 is not a string of digits"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "cat.ndjson"
    path.write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(DataError, match=rf"cat\.ndjson:3: {reason}"):
        read(path)


@pytest.mark.parametrize(
    "line", ['{"drawing":[[[0.5],[1]]]}', '{"drawing":[[[40000],[0]]]}', '{"word":7,"drawing":[[[1],[2]]]}']
)
def test_a_file_that_is_not_simplified_is_refused_with_its_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "cat.ndjson"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(DataError, match=r"cat\.ndjson"):
        read(path)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "nowhere", "no such file or directory"),
        (tmp_path, r"no \*\.ndjson file in this directory"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(str(source))
    (tmp_path / "empty.ndjson").touch()
    with pytest.raises(DataError, match=r"empty\.ndjson: the file is empty"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match="--source is missing"):
        open_source(None)
    (tmp_path / "raw.ndjson").write_text('{"drawing":[[[1.5],[2.5],[0]]]}\n')
    with pytest.raises(DataError, match="raw drawings, with times"):
        open_source(str(tmp_path / "raw.ndjson"))


def test_classes_per_class_and_globs_select(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cow"):
        lines = [f'{{"word":"{name}","drawing":[[[{n}],[1]]]}}' for n in range(9)]
        (tmp_path / f"{name}.ndjson").write_text("\n".join(lines))
    assert {record["class"] for record in read(tmp_path, classes=["bee", "cow"])} == {"bee", "cow"}
    few = read(tmp_path, per_class=2)
    assert [record["class"] for record in few] == ["ant", "ant", "bee", "bee", "cow", "cow"]
    assert few[1]["drawing"] == [[[1], [1]]]
    assert len(read(tmp_path / "[ab]*.ndjson")) == 18
    with pytest.raises(DataError, match="--per-class 0: must be at least 1"):
        open_source(str(tmp_path), per_class=0)


def test_doodles_are_chosen_by_class_and_number() -> None:
    source = open_source(None, "doodles", classes=["star", "wave"], per_class=4)
    assert source.parts == ("star", "wave")
    assert [len(table) for part in range(2) for table in source.read(part)] == [4, 4]
    with pytest.raises(DataError, match="'unicorn': no such doodle"):
        open_source(None, "doodles", classes=["unicorn"])
