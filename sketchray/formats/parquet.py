"""Parquet and Arrow files: our own shards, and the layouts of the copies on the Hugging Face Hub.

A column `points`, `drawing`, `strokes` or `ink` holds the drawings: nested lists, `x` and `y` by name, stroke-3 points
or JSON text; `word`, `class` or `label` the class, by name or by number. Source: quickdraw.py of google/quickdraw.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat
from pyarrow import ipc

from sketchray.errors import DataError
from sketchray.formats import SCHEMA, Bad, Block
from sketchray.formats.layouts import find_layout, is_text, storage, to_texts
from sketchray.formats.rows import Faults, parse_keys, to_block

BATCH_ROWS = 2048  # some 100 MB of work space, if they are raw drawings
BUFFER_BYTES = 1 << 20
MAX_WORD_BYTES = 1000
UNLABELLED = -1  # Hugging Face's number for no class
DRAWINGS = ("points", "drawing", "strokes", "ink")
NAMES = ("word", "class", "label")
PARQUET, ARROW = b"PAR1", b"ARROW1"
# What damaged and crafted files raise. Arrow gives no errno where the file's content is at fault.
DAMAGE = (pa.ArrowException, ValueError, TypeError, OverflowError, MemoryError)


class _Columns(NamedTuple):
    """What is read of a file: the drawings, and the columns that are there."""

    drawing: pa.Field
    name: pa.Field | None
    classes: Sequence[str] | None  # None where the class is a text
    key_id: pa.Field | None
    recognized: pa.Field | None
    split: pa.Field | None

    @property
    def names(self) -> list[str]:
        fields = (self.drawing, self.name, self.key_id, self.recognized, self.split)
        return [field.name for field in fields if field is not None]


class _Lost(NamedTuple):
    """Rows that cannot be read."""

    rows: int
    reason: str


def read(file: BinaryIO, *, max_points: int) -> Iterator[Block]:
    """Yields the drawings of a Parquet or Arrow file (streams and Feather too), and which rows are none, from 1.

    A damaged row group or batch is one bad record, at its first row. The file must seek.

    Raises:
        HostileError: the texts of a batch are longer than those of any data set.
        DataError: the file is damaged, holds no drawings, or classes by numbers without their names.
    """
    head = file.read(len(ARROW))
    file.seek(0)
    kind = "a Parquet" if head.startswith(PARQUET) else "an Arrow"
    try:
        schema, batches = _open_parquet(file) if head.startswith(PARQUET) else _open_arrow(file, head == ARROW)
        columns = _find_columns(schema)
    except OSError as error:
        if error.errno is not None:  # not of the content
            raise
        raise DataError(f"not {kind} file, or a damaged one: {error}") from error
    except DAMAGE as error:
        raise DataError(f"not {kind} file, or a damaged one: {error}") from error
    row = 1
    for batch in batches(columns.names):
        if isinstance(batch, _Lost):
            yield Block(SCHEMA.empty_table(), [Bad(row, batch.reason)])
            row += batch.rows
            continue
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield _to_block(part, columns, row, max_points)
            row += len(part)


Batches = Callable[[list[str]], Iterator[pa.RecordBatch | _Lost]]


def _open_parquet(file: BinaryIO) -> tuple[pa.Schema, Batches]:
    metadata = pq.read_metadata(file)
    schema = metadata.schema.to_arrow_schema()
    # As dictionaries, a text that many rows share stands in memory once.
    texts = [field.name for field in schema if is_text(field.type)]
    opened = pq.ParquetFile(file, metadata=metadata, read_dictionary=texts, buffer_size=BUFFER_BYTES)

    def read_group(index: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        yield from opened.iter_batches(BATCH_ROWS, row_groups=[index], columns=names, use_threads=False)

    def read_batches(names: list[str]) -> Iterator[pa.RecordBatch | _Lost]:
        for index in range(metadata.num_row_groups):
            # Not of its columns: to ask for a damaged one's metadata ends the process, and the reader checks them too.
            num_rows = metadata.row_group(index).num_rows
            yield from _guard(
                read_group(index, names), names, f"row group {index + 1} of {metadata.num_row_groups}", num_rows
            )

    return schema, read_batches


def _open_arrow(file: BinaryIO, is_file: bool) -> tuple[pa.Schema, Batches]:
    opened = ipc.open_file(file) if is_file else ipc.open_stream(file)

    def read_batches(names: list[str]) -> Iterator[pa.RecordBatch | _Lost]:
        if is_file:
            for index in range(opened.num_record_batches):
                batch = (opened.get_batch(number) for number in (index,))
                yield from _guard(batch, names, f"batch {index + 1} of {opened.num_record_batches}", 0)
        else:
            yield from _guard(iter(opened), names, "a batch, and all that follows,", 0)

    return opened.schema, read_batches


def _guard(
    batches: Iterator[pa.RecordBatch], names: list[str], what: str, num_rows: int
) -> Iterator[pa.RecordBatch | _Lost]:
    """Yields batches that are sound, and what was lost where they end before their time."""
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            batch = pa.record_batch([_to_bytes(batch[name]) for name in names], names)
            batch.validate(full=True)
        except (OSError, *DAMAGE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield _Lost(num_rows, f"{what} is damaged: {error}"[:300])
            return
        num_rows -= len(batch)
        yield batch


def _to_bytes(column: pa.Array) -> pa.Array:
    """Returns texts as bytes, so that a bad one can be told from the others, and any other column as it is."""
    if pat.is_dictionary(column.type) and is_text(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _to_bytes(column.dictionary), safe=False)
    if is_text(column.type):
        return column.view(pa.large_binary() if pat.is_large_string(column.type) else pa.binary())
    return storage(column)


def _find_columns(schema: pa.Schema) -> _Columns:
    """Returns where in a file the drawings are, and what else of them.

    Raises:
        DataError: there are none, or their classes cannot be known.
    """
    shown = ", ".join(f"{field.name} ({str(field.type)[:60]})" for field in schema)[:500] or "none"
    twice = [name for name in (*DRAWINGS, *NAMES, "key_id", "recognized") if schema.names.count(name) > 1]
    if twice:
        raise DataError(f"two columns {twice[0]!r}, of {shown}; rename one")
    fields = {field.name: field for field in schema}
    drawing = next((fields[name] for name in DRAWINGS if name in fields and find_layout(fields[name].type)), None)
    if drawing is None:
        if any(_is_image(field) for field in schema):
            raise DataError(f"it holds images, not strokes: {shown}; take a copy of the data set that holds strokes")
        raise DataError(f"no column {', '.join(DRAWINGS)} that holds drawings, but {shown}; see README for the layouts")
    names = [fields[name] for name in NAMES if name in fields]
    name = next((field for field in names if is_text(field.type)), names[0] if names else None)
    classes = None
    if name is not None and not is_text(name.type):
        classes = _class_names(schema.metadata or {}, name.name)
        if not pat.is_integer(name.type) or classes is None:
            reason = f"column {name.name!r} is {name.type}, and the file does not say which class a number stands for"
            raise DataError(f"{reason}; add a column 'word' of names")
    key_id, recognized = fields.get("key_id"), fields.get("recognized")
    if key_id is not None and not (is_text(key_id.type) or pat.is_integer(key_id.type)):
        raise DataError(f"column 'key_id' is {key_id.type}; make it text or whole numbers, or leave it out")
    return _Columns(
        drawing,
        name,
        classes,
        key_id,
        recognized if recognized is not None and pat.is_boolean(recognized.type) else None,
        fields.get("split") if b"sketchray" in (schema.metadata or {}) else None,
    )


def _is_image(field: pa.Field) -> bool:
    is_struct = pat.is_struct(field.type) and {"bytes", "path"} <= {inner.name for inner in field.type}
    return field.name == "image" or is_struct


def _class_names(metadata: Mapping[bytes, bytes], column: str) -> Sequence[str] | None:
    """Returns the class of each number, as our shards or Hugging Face's files give it."""
    try:
        if b"sketchray" in metadata:
            names = json.loads(metadata[b"sketchray"])["classes"]
        else:
            names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _to_block(batch: pa.RecordBatch, columns: _Columns, first: int, max_points: int) -> Block:
    faults: Faults = {}
    name = key_id = recognized = split = None
    if columns.name is not None:
        name, wrong = _to_names(batch[columns.name.name], columns.classes)
        faults |= wrong
    if columns.key_id is not None:
        key_id, wrong = _to_keys(batch["key_id"])
        faults |= wrong
    if columns.recognized is not None:
        recognized = batch["recognized"]
    if columns.split is not None:
        split = to_texts(batch["split"], MAX_WORD_BYTES)[0]
    layout = find_layout(columns.drawing.type)
    assert layout is not None  # _find_columns saw to it
    drawings = layout(batch[columns.drawing.name], max_points)
    numbers = range(first, first + len(batch))
    return to_block(numbers, drawings, faults, name=name, key_id=key_id, recognized=recognized, split=split)


def _to_names(column: pa.Array, classes: Sequence[str] | None) -> tuple[pa.StringArray, Faults]:
    """Returns the classes' names, null where there is none, and which are none."""
    if classes is None:
        texts, faults = to_texts(column, MAX_WORD_BYTES)
        return pc.if_else(pc.equal(texts, ""), None, texts), faults
    labels = pc.cast(pc.if_else(pc.equal(column, pa.scalar(UNLABELLED)), None, column), pa.int64(), safe=False)
    inside = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(classes)))
    wrong = np.flatnonzero(~pc.fill_null(inside, True).to_numpy(zero_copy_only=False)).tolist()
    faults = {row: f"label {labels[row].as_py()} is none of the {len(classes)} classes" for row in wrong}
    return pa.array(classes, pa.string()).take(pc.if_else(inside, labels, None)), faults


def _to_keys(column: pa.Array) -> tuple[pa.UInt64Array, Faults]:
    if not pat.is_integer(column.type):
        texts, faults = to_texts(column, MAX_WORD_BYTES)
        keys, wrong = parse_keys(texts)
        return keys, faults | wrong
    negative = pc.fill_null(pc.less(column, 0), False)
    rows = np.flatnonzero(negative.to_numpy(zero_copy_only=False)).tolist()
    faults = {row: f"key_id {column[row].as_py()} is not a whole number of 64 bits" for row in rows}
    return pc.if_else(negative, None, column).cast(pa.uint64()), faults
