"""Quick, Draw!'s ndjson, simplified and raw: one JSON record a line.

The simplified files are read by `formats.published`; what differs from them in any way is parsed in C++, and what that
refuses in Python, which says why.

A record is `{"word", "key_id", "recognized", "drawing", ...}`, of which only `drawing` is required. Source: README of
googlecreativelab/quickdraw-dataset.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as paj

from sketchray.columns import to_column
from sketchray.errors import StrokeError
from sketchray.formats import SCHEMA, Bad, Block, make_table, published
from sketchray.formats.records import Drawings, from_nested
from sketchray.formats.rows import Faults, check_key, parse_keys, to_block
from sketchray.strokes import from_record

CHUNK_BYTES = 4 << 20  # read at a time; a longer line is no drawing
PIECE_BYTES = 512 << 10  # parsed at a time, in a processor's cache
SMALL_BYTES = 8 << 10  # not worth halving for a line in it that is not in the published form
FEW = 64  # lines among which a bad one is looked for in Python


def _schema(key_id: pa.DataType, number: pa.DataType) -> pa.Schema:
    drawing = pa.list_(pa.list_(pa.list_(number)))
    fields = [("word", pa.string()), ("key_id", key_id), ("recognized", pa.bool_()), ("drawing", drawing)]
    return pa.schema(fields)


# As Google publishes them simplified and raw, and with keys that are numbers.
SCHEMAS = [_schema(key, number) for key in (pa.string(), pa.uint64()) for number in (pa.int64(), pa.float64())]


def read(file: BinaryIO, *, max_points: int) -> Iterator[Block]:
    """Yields the drawings of an ndjson file, and which lines are none; a blank line is nothing."""
    for first, text in _chunks(file):
        if text is None:
            yield Block(SCHEMA.empty_table(), [Bad(first, f"the line is longer than {CHUNK_BYTES >> 20} MiB")])
            continue
        yield _parse_all(first, text, max_points)


def parse_drawings(texts: pa.StringArray, *, max_points: int) -> Drawings:
    """Returns the drawings among texts that each hold a `drawing` as JSON, as files of other formats have it."""
    # A text with a quote holds more than numbers; as a text, it is no drawing.
    values = (json.dumps(text) if text and '"' in text else text or "null" for text in texts.to_pylist())
    lines = [b'{"drawing":%s}\n' % value.replace("\n", " ").encode() for value in values]
    table, bad = _parse_all(0, b"".join(lines), max_points)
    return Drawings(table["line"].combine_chunks(), table["points"].combine_chunks(), [(row, why) for row, why in bad])


def _chunks(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields whole lines, with the number of the first; None for a line that is too long."""
    number, rest, too_long = 1, b"", False
    while data := file.read(CHUNK_BYTES):
        if too_long:
            end = data.find(b"\n") + 1
            if not end:
                continue
            yield number, None
            number, data, too_long = number + 1, data[end:], False
        end = data.rfind(b"\n") + 1
        if end:
            lines = b"".join([rest, memoryview(data)[:end]])
            yield number, lines
            number += _num_lines(lines)
            rest = b""
        rest += data[end:]
        if len(rest) > CHUNK_BYTES:
            rest, too_long = b"", True
    if too_long:
        yield number, None
    elif rest:
        yield number, rest + b"\n"


def _num_lines(text: bytes) -> int:
    # Several times as fast as bytes.count, where lines are short.
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("\n")))


def _pieces(text: bytes, size: int) -> Iterator[bytes]:
    """Yields whole lines, `size` bytes at most; a longer line alone."""
    start = 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + size) + 1 or text.find(b"\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _parse_all(first: int, text: bytes, max_points: int) -> Block:
    blocks = list(_parse_pieces(first, text, PIECE_BYTES, max_points))
    tables = [SCHEMA.empty_table(), *(block.table for block in blocks)]
    return Block(pa.concat_tables(tables), [bad for block in blocks for bad in block.bad])


def _parse_pieces(first: int, text: bytes, size: int, max_points: int) -> Iterator[Block]:
    for piece in _pieces(text, size):
        yield from _parse_text(first, piece, max_points)
        first += _num_lines(piece)


def _parse_text(first: int, text: bytes, max_points: int) -> Iterator[Block]:
    """Yields the drawings of some lines: in the published form if they are, else as JSON."""
    table = published.parse(text, first, max_points)
    if table is not None:
        yield Block(table, [])
    # Where the first line is in the published form, the others may be, but for a few.
    elif len(text) > SMALL_BYTES and published.parse(text[: text.find(b"\n") + 1], first, max_points) is not None:
        yield from _parse_pieces(first, text, len(text) // 2, max_points)
    else:
        lines = text.split(b"\n")
        numbers = [number for number, line in enumerate(lines, first) if line.strip()]
        yield _parse(numbers, [lines[number - first] for number in numbers], max_points)


def _parse(numbers: Sequence[int], lines: list[bytes], max_points: int) -> Block:
    """Returns the drawings of some lines; what C++ refuses is halved until Python can look at it."""
    records = _parse_fast(lines)
    if records is not None:
        return _to_block(numbers, records, max_points)
    if len(lines) <= FEW:
        return _parse_slowly(numbers, lines, max_points)
    middle = len(lines) // 2
    first, second = (_parse(numbers[part], lines[part], max_points) for part in (slice(middle), slice(middle, None)))
    return Block(pa.concat_tables([first.table, second.table]), first.bad + second.bad)


def _parse_fast(lines: list[bytes]) -> pa.Table | None:
    """Returns one row of records a line, or None if some line is not one record of a known schema."""
    # Arrow takes a record for what lies between braces, whatever the lines are.
    if not all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines):
        return None
    text = b"\n".join(lines)
    try:
        text.decode()  # Arrow does not look
    except UnicodeDecodeError:
        return None
    options = paj.ReadOptions(block_size=len(text) + 1, use_threads=False)
    for schema in SCHEMAS:
        parsing = paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            records = paj.read_json(pa.BufferReader(text), read_options=options, parse_options=parsing)
        except pa.ArrowInvalid:
            continue
        return records if len(records) == len(lines) else None
    return None


def _to_block(numbers: Sequence[int], records: pa.Table, max_points: int) -> Block:
    drawings = from_nested(records["drawing"].combine_chunks(), max_points)
    key_id, word = records["key_id"].combine_chunks(), records["word"].combine_chunks()
    faults: Faults = {}
    if key_id.type == pa.string():
        key_id, faults = parse_keys(key_id)
    for row in np.flatnonzero(pc.fill_null(pc.equal(word, ""), False).to_numpy(zero_copy_only=False)).tolist():
        faults[row] = _no_class("")
    recognized = records["recognized"].combine_chunks()
    return to_block(numbers, drawings, faults, name=word, key_id=key_id, recognized=recognized)


def _parse_slowly(numbers: Sequence[int], lines: list[bytes], max_points: int) -> Block:
    good, names, keys, recognized, drawings, bad = [], [], [], [], [], []
    for number, line in zip(numbers, lines, strict=True):
        try:
            record = _parse_line(line)
            points = from_record(record.get("drawing"), max_points=max_points)
            _check_fields(record)
        except StrokeError as error:
            bad.append(Bad(number, str(error)))
            continue
        key, flag = record.get("key_id"), record.get("recognized")
        good.append(number)
        names.append(record.get("word"))
        keys.append(None if key in (None, "") else int(key))
        recognized.append(flag if isinstance(flag, bool) else None)
        drawings.append(points)
    offsets = np.cumsum([0, *map(len, drawings)])
    column = to_column(np.concatenate([np.zeros((0, 3), np.int16), *drawings]), offsets)
    table = make_table(
        column,
        good,
        name=pa.array(names, pa.string()),
        key_id=pa.array(keys, pa.uint64()),
        recognized=pa.array(recognized, pa.bool_()),
    )
    return Block(table, bad)


def _parse_line(line: bytes) -> dict[str, Any]:
    """Returns the record of a line.

    Raises:
        StrokeError: the line is no record.
    """
    shown = line[:60].decode("utf-8", "replace").strip()
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise StrokeError(f"nested too deeply: {shown!r}") from error
    except ValueError as error:
        raise StrokeError(f"not JSON ({error}): {shown!r}") from error
    if not isinstance(record, dict):
        raise StrokeError(f"a record must be a JSON object, not {type(record).__name__}: {shown!r}")
    return record


def _check_fields(record: dict[str, Any]) -> None:
    """Raises StrokeError if the word or the key of a record is none."""
    word = record.get("word")
    if word is not None and (not isinstance(word, str) or not word):
        raise StrokeError(_no_class(word))
    try:
        (word or "").encode()
    except UnicodeEncodeError as error:
        raise StrokeError(f"word {word!r:.40} is not valid Unicode") from error
    if (reason := check_key(record.get("key_id"))) is not None:
        raise StrokeError(reason)


def _no_class(word: Any) -> str:
    return f"word {word!r:.40} is not the name of a class"
