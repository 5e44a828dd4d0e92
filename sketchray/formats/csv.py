"""The files of the Kaggle competition "Quick, Draw! Doodle Recognition": CSV, each row's drawing a JSON text.

Of the columns `drawing`, `word`, `key_id` and `recognized`, in any order, only the first is required; others are
ignored. A record is a line. A drawing may also run over several lines, within its quotes.
"""

import csv
import json
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from sketchray.errors import DataError
from sketchray.formats import SCHEMA, Bad, Block
from sketchray.formats.ndjson import parse_drawings
from sketchray.formats.rows import parse_keys, to_block

CHUNK_BYTES = 4 << 20  # parsed at a time; a longer line is no drawing
SPREAD_BYTES = 128 << 10  # that a record on several lines may have; the csv module takes no longer field
COLUMNS = ("drawing", "word", "key_id", "recognized")
BOM = b"\xef\xbb\xbf"


def read(file: BinaryIO, *, max_points: int) -> Iterator[Block]:
    """Yields the drawings of a CSV file, and which lines are none; the header is line 1, a blank line is nothing.

    Raises:
        DataError: the first line that is not blank has no column `drawing`.
    """
    names: list[str] | None = None
    first, rest, too_long = 1, b"", False
    while True:
        data = file.read(CHUNK_BYTES)
        is_last = not data
        if too_long:
            end = data.find(b"\n") + 1
            if not end and not is_last:
                continue
            yield Block(SCHEMA.empty_table(), [Bad(first, f"the line is longer than {CHUNK_BYTES >> 20} MiB")])
            first, data, too_long = first + 1, data[end:], False
        data = rest + data
        end = len(data) if is_last else data.rfind(b"\n") + 1
        texts = data[:end].removesuffix(b"\n").split(b"\n") if end else []
        if names is None and (texts or is_last or len(data) > CHUNK_BYTES):
            place = next((row for row, text in enumerate(texts) if text.removeprefix(BOM).strip()), 0)
            names = _read_header((texts or [data[:SPREAD_BYTES]])[place])
            texts[: place + 1] = [b""] * min(place + 1, len(texts))
        if names is not None:
            lines, num_open = _join(texts, names, first, is_last=is_last)
            if lines.texts or lines.bad:
                yield _to_block(_parse(lines, names), names, max_points)
            first += len(texts) - num_open
            if num_open:
                end -= sum(len(text) + 1 for text in texts[-num_open:])
        rest = data[end:]
        if is_last:
            return
        if len(rest) > CHUNK_BYTES:
            rest, too_long = b"", True


class _Lines(NamedTuple):
    """Records, each on a line of its own, with the number of the line where it starts, and what is none."""

    numbers: list[int]
    texts: list[bytes]
    bad: list[Bad]


class _Parsed(NamedTuple):
    """The `COLUMNS` that a file has, as texts."""

    numbers: list[int]
    table: pa.Table
    bad: list[Bad]


def _read_header(line: bytes) -> list[str]:
    try:
        names = next(csv.reader([line.removeprefix(BOM).decode().rstrip("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a CSV file with a header ({error}): {line[:60]!r}") from error
    names = [name.strip() for name in names]
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    if "drawing" not in names:
        raise DataError(f"the first line has no column 'drawing', but {shown or 'nothing'}; name the columns there")
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise DataError(f"the first line has two columns {twice[0]!r}, of {shown}; rename one")
    return names


def _join(texts: list[bytes], names: list[str], first: int, *, is_last: bool) -> tuple[_Lines, int]:
    """Returns the records on some lines, and how many lines at the end may go on on the next ones.

    A line on which a quote stays open starts a record of several lines if that is one, up to the next such line.
    Otherwise this line alone is none, and those that follow stay what they are.
    """
    opening = [row for row, text in enumerate(texts) if text.count(b'"') % 2]
    joined: dict[int, bytes] = {}  # rows, and what to put there
    bad: list[Bad] = []
    num_open = 0
    while opening:
        start = opening.pop(0)
        spread = texts[start : opening[0] + 1] if opening else texts[start:]
        short = sum(len(text) + 1 for text in spread) <= SPREAD_BYTES
        if opening and short and _is_record(spread, names):
            joined |= dict.fromkeys(range(start, opening.pop(0) + 1), b"")
            joined[start] = b" ".join(spread)
        elif not opening and short and not is_last:
            num_open = len(spread)
        else:
            joined[start] = b""
            bad.append(Bad(first + start, "a quote is not closed"))
    records = [joined.get(row, text) for row, text in enumerate(texts[: len(texts) - num_open])] if joined else texts
    records = records[: len(texts) - num_open]
    numbers = [number for number, text in enumerate(records, first) if text.strip()]
    return _Lines(numbers, [records[number - first] for number in numbers], bad), num_open


def _is_record(texts: list[bytes], names: list[str]) -> bool:
    """Returns whether lines are one record, of which the drawing alone has line breaks."""
    try:
        rows = list(csv.reader((text.decode() + "\n" for text in texts), strict=True))
        fields = dict(zip(names, rows[0], strict=True))
        json.loads(fields.pop("drawing"))
    except (ValueError, RecursionError, csv.Error):
        return False
    return len(rows) == 1 and not any("\n" in field for field in fields.values())


def _parse(lines: _Lines, names: list[str]) -> _Parsed:
    """Returns the fields of some records; where Arrow finds more or fewer of them than lines, the lines are halved."""
    numbers, texts, bad = lines
    # A quote that is open at the end would swallow the row that is added there.
    data = b"\n".join([*texts, b"," * (len(names) - 1), b""])
    if data.startswith(BOM):  # which Arrow would take off
        data = BOM + data
    try:
        data.decode()  # Arrow does not say which row it is
    except UnicodeDecodeError:
        good = [_is_text(text) for text in texts]
        wrong = [Bad(number, "not UTF-8") for number, is_text in zip(numbers, good, strict=True) if not is_text]
        kept = [(number, text) for number, text, is_text in zip(numbers, texts, good, strict=True) if is_text]
        return _parse(_Lines([number for number, _ in kept], [text for _, text in kept], bad + wrong), names)
    used = {str(names.index(name)): name for name in COLUMNS if name in names}
    invalid: list[pacsv.InvalidRow] = []

    def skip(row: pacsv.InvalidRow) -> str:
        invalid.append(row)
        return "skip"

    labels = [str(index) for index in range(len(names))]
    strings = dict.fromkeys(used, pa.string())
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=labels),
            pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=skip),
            pacsv.ConvertOptions(include_columns=list(used), column_types=strings, null_values=[]),
        ).rename_columns(list(used.values()))
    except pa.ArrowInvalid:
        table = None
    # A return without a line feed may be one more end of a line to Arrow.
    lone = data.count(b"\r") != data.count(b"\r\n")
    alike = table is not None and len(table) + len(invalid) == len(texts) + 1
    alike = alike and all(row.number <= len(texts) for row in invalid)  # none is the row that was added
    if table is not None and alike and (not lone or len(texts) == 1):
        table = table.slice(0, len(table) - 1)
        reasons = {row.number - 1: f"{row.actual_columns} columns; the header has {len(names)}" for row in invalid}
        bad = bad + [Bad(numbers[row], reason) for row, reason in reasons.items()]
        return _Parsed([number for row, number in enumerate(numbers) if row not in reasons], table, bad)
    if len(texts) <= 1:
        empty = pa.table({name: pa.array([], pa.string()) for name in used.values()})
        reason = "not one record: a quote is not closed, or the line is two"
        return _Parsed([], empty, bad + [Bad(number, reason) for number in numbers])
    middle = len(texts) // 2
    halves = [_parse(_Lines(numbers[half], texts[half], []), names) for half in (slice(middle), slice(middle, None))]
    tables = pa.concat_tables([half.table for half in halves])
    return _Parsed(halves[0].numbers + halves[1].numbers, tables, bad + halves[0].bad + halves[1].bad)


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _to_block(records: _Parsed, names: list[str], max_points: int) -> Block:
    columns = {name: records.table[name].combine_chunks() for name in COLUMNS if name in names}
    drawings = parse_drawings(columns["drawing"], max_points=max_points)
    name, key_id, recognized = (columns.get(name) for name in COLUMNS[1:])
    faults: dict[int, str] = {}
    if key_id is not None:
        key_id, faults = parse_keys(key_id)
    if name is not None:
        name = pc.if_else(pc.equal(name, ""), None, name)
    if recognized is not None:
        truth = pa.array(["True", "true", "False", "false"])
        recognized = pa.array([True, True, False, False]).take(pc.index_in(recognized, truth))
    block = to_block(records.numbers, drawings, faults, name=name, key_id=key_id, recognized=recognized)
    block.bad.extend(records.bad)
    block.bad.sort()
    return block
