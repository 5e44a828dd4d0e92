"""A data set `sketch_rnn` that TensorFlow Datasets has prepared, read without TensorFlow.

Its directory holds `dataset_info.json`, `features.json`, `label.labels.txt` and shards of `tf.train.Example`s, in
TFRecord or array_record files, with `drawing` (stroke-3) and `label`. Source: sketchray/sketch_rnn.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from sketchray.columns import Int16Array, to_column
from sketchray.errors import DataError
from sketchray.formats import Bad, Block, check_points, make_table
from sketchray.formats.example import parse_example
from sketchray.formats.tfrecord import framed

INFO, FEATURES, LABELS = "dataset_info.json", "features.json", "label.labels.txt"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}
ARRAY_RECORD = bytes.fromhex("83af70d10d884a3f")  # Source: riegeli, doc/riegeli_records_file_format.md, file signature
BLOCK_ROWS = 8192
BATCH_ROWS = 1024  # records that array_record reads at a time
# One thread, one MiB: by default it reads 16 MB ahead for each processor.
OPTIONS = "readahead_buffer_size:1M,max_parallelism:1"


class Prepared(NamedTuple):
    """What a directory says of its shards: the classes by label, and the split of each file's name."""

    classes: tuple[str, ...]
    splits: dict[str, str | None]


def describe(directory: str) -> Prepared:
    """Returns what a local directory of a prepared data set holds; other splits than the published ones are None.

    Raises:
        DataError: it is none, or its features are not `drawing` and `label`.
    """
    folder = Path(directory)
    info = _read_json(folder, INFO)
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in ("array_record", "tfrecord"):
        raise DataError(f"{folder / INFO}: file format {file_format!r}; build it as array_record or tfrecord")
    _check_features(folder, _read_json(folder, FEATURES))
    try:
        classes = tuple((folder / LABELS).read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / LABELS}: {error}; it names the classes: build the data set again") from error
    splits: dict[str, str | None] = {}
    try:
        for split in info["splits"]:
            lengths = split["shardLengths"]
            for index in range(len(lengths)):
                shard = f"{index:05d}-of-{len(lengths):05d}"
                name = split.get("filepathTemplate", TEMPLATE)
                fields = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": file_format}
                for key, value in (fields | {"SHARD_X_OF_Y": shard}).items():
                    name = name.replace("{" + key + "}", value)
                if name != Path(name).name:
                    raise ValueError(f"shard {name!r} is not in the directory")
                splits[name] = SPLITS.get(split["name"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{folder / INFO}: no splits that TFDS writes ({error!r}); build the data set again") from error
    missing = [name for name in splits if not (folder / name).is_file()]
    if missing or not splits:
        lost = f"{missing[0]} and {len(missing) - 1} others are missing" if missing else "it has no shards"
        raise DataError(f"{folder}: {lost}; build the data set again")
    return Prepared(classes, splits)


def read(file: BinaryIO, *, max_points: int, classes: Sequence[str], split: str | None) -> Iterator[Block]:
    """Yields the drawings of a shard, and which records are none. Its format is seen from its first bytes.

    Args:
        file: one that seeks. Of array_record it must be a local one, which is opened by its name.
        classes: names in the order of the labels.
        split: which of the published ones these drawings belong to.

    Raises:
        DataError: the file is not of either format.
    """
    head = file.read(len(ARRAY_RECORD))
    file.seek(0)
    records = _array_records(file.name) if head == ARRAY_RECORD else framed(file)
    examples: list[_Example] = []
    bad: list[Bad] = []
    for record in records:
        if isinstance(record, Bad):
            bad.append(record)
        else:
            number, payload = record
            try:
                examples.append(_to_example(number, payload, len(classes)))
            except ValueError as error:
                bad.append(Bad(number, str(error)))
        if len(examples) + len(bad) == BLOCK_ROWS:
            yield _to_block(examples, bad, max_points, classes, split)
            examples, bad = [], []
    if examples or bad:
        yield _to_block(examples, bad, max_points, classes, split)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no {name}, so this is no data set that TFDS has prepared") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / name}: {error}; build the data set again") from error
    if not isinstance(content, dict):
        raise DataError(f"{folder / name}: a JSON object is expected; build the data set again")
    return content


def _check_features(folder: Path, content: dict[str, Any]) -> None:
    """Raises DataError if a data set has other features than ours."""
    match content:
        case {
            "featuresDict": {
                "features": {
                    "drawing": {"tensor": {"dtype": "int16", "shape": {"dimensions": ["-1", "3"]}, **tensor}},
                    "label": {"classLabel": _},
                }
            }
        } if tensor.get("encoding", "none") in ("none", "bytes"):
            return
    raise DataError(
        f"{folder / FEATURES}: not the features of sketch_rnn: a Tensor `drawing` of int16 (None, 3), not compressed, "
        "and a ClassLabel `label`; build the data set with sketchray.sketch_rnn"
    )


def _array_records(path: str) -> Iterator[tuple[int, bytes] | Bad]:
    from array_record.python.array_record_module import ArrayRecordReader  # type: ignore[import-untyped] # on Linux only

    try:
        reader = ArrayRecordReader(path, OPTIONS)
        number = reader.num_records()
    except (RuntimeError, ValueError) as error:
        raise DataError(f"not an array_record file, or a damaged one: {error}") from error
    if not number:  # so a file without its end is opened, too
        raise DataError("not an array_record file, or a damaged one: no records are found from its end")
    for start in range(0, number, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, number)
        try:
            records = reader.read(start, stop)
        except (RuntimeError, ValueError, IndexError):
            yield from _one_by_one(reader, start, stop)
            continue
        yield from enumerate(records, start + 1)
    reader.close()


def _one_by_one(reader: Any, start: int, stop: int) -> Iterator[tuple[int, bytes] | Bad]:
    for index in range(start, stop):
        try:
            yield index + 1, reader.read([index])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            yield Bad(index + 1, f"the record is damaged: {str(error)[:200]}")


class _Example(NamedTuple):
    number: int
    points: Int16Array  # (N, 3)
    label: int


def _to_example(number: int, payload: bytes, num_classes: int) -> _Example:
    """Returns what an example holds of a drawing.

    Raises:
        ValueError: it is none; the message says why.
    """
    example = parse_example(payload)
    drawing, label = example.get("drawing"), example.get("label")
    if isinstance(drawing, list) and len(drawing) == 1:
        if len(drawing[0]) % 6:
            raise ValueError(f"drawing: {len(drawing[0])} bytes are no points of three int16 each")
        points = np.frombuffer(drawing[0], "<i2")
    elif isinstance(drawing, np.ndarray) and drawing.dtype == np.int64:
        if len(drawing) % 3 or (drawing != drawing.astype(np.int16)).any():
            raise ValueError("drawing: expected three integers within int16 a point")
        points = drawing.astype(np.int16)
    else:
        raise ValueError("drawing: expected the bytes of int16 points, or a list of integers")
    if not isinstance(label, np.ndarray) or label.dtype != np.int64 or len(label) != 1:
        raise ValueError("label: expected one integer")
    if not 0 <= label[0] < num_classes:
        raise ValueError(f"label {label[0]} is none of the {num_classes} classes of {LABELS}")
    return _Example(number, points.reshape(-1, 3), int(label[0]))


def _to_block(
    examples: list[_Example], bad: list[Bad], max_points: int, classes: Sequence[str], split: str | None
) -> Block:
    points = np.concatenate([np.zeros((0, 3), np.int16), *(example.points for example in examples)])
    column = to_column(points, np.cumsum([0, *(len(example.points) for example in examples)]))
    faulty = dict(check_points(column, max_points))
    if faulty:
        bad = sorted(bad + [Bad(examples[row].number, reason) for row, reason in faulty.items()])
        kept = [row for row in range(len(examples)) if row not in faulty]
        column, examples = column.take(pa.array(kept, pa.int64())), [examples[row] for row in kept]
    names = pa.array(classes, pa.string()).take(pa.array([example.label for example in examples], pa.int64()))
    return Block(make_table(column, [example.number for example in examples], name=names, split=split), bad)
