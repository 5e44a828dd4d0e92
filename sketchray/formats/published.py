"""Simplified ndjson exactly as published, its bytes taken apart by array arithmetic: five times as fast as a parser.

Only what is certain is read here: lines of one of `LAYOUTS`, without spaces, escapes or fractions, each a good drawing
in 0..255. Of anything else nothing is read, and `formats.ndjson` takes those lines with a JSON parser.

Shapes: L lines, C bytes of all drawings, V numbers, S strokes, N points.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sketchray.columns import to_column
from sketchray.formats import make_table
from sketchray.strokes import IntArray, deltas

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# What stands before and between the values of a line, up to its drawing, and the columns that the values go to. A
# value lies between two quotes; that of `recognized` has none, and is read with its colon and comma.
LAYOUTS: list[tuple[list[bytes], list[str | None]]] = [
    (
        [b'{"word":"', b'","countrycode":"', b'","timestamp":"', b'","recognized"', b'"key_id":"', b'","drawing":'],
        ["name", None, None, "recognized", "key_id"],
    ),
    ([b'{"word":"', b'","key_id":"', b'","drawing":'], ["name", "key_id"]),
    ([b'{"drawing":'], []),
]
RECOGNIZED = pa.array([b":false,", b":true,"], pa.binary())
PAD = 8  # zeros before and after the bytes, so that neighbours can be looked at everywhere


class _UnsureError(Exception):
    """Some line is not exactly as published."""


def parse(text: bytes, first: int, max_points: int) -> pa.Table | None:
    """Returns a drawing for each of some whole lines, or None if one of them may be none, or is written otherwise.

    Args:
        text: at least one line, each with its newline.
        first: the number of the first line.
    """
    try:
        heads, drawings = _split(text)
        columns = _read_heads(heads)
        points = _read_drawings(drawings, max_points)
    except _UnsureError:
        return None
    return make_table(points, np.arange(first, first + len(heads)), **columns)


def _require(certain: bool | np.bool_) -> None:
    if not certain:
        raise _UnsureError


def _split(text: bytes) -> tuple[pa.BinaryArray, Bytes]:
    """Returns what stands before the drawing of each line, and all drawings with their line ends, `(C,)`."""
    data = np.frombuffer(text, np.uint8)
    marks = data == ord("\n")
    opening = data == ord("[")
    marks[:-2] |= opening[:-2] & opening[1:-1] & opening[2:]
    cuts = np.append(0, np.flatnonzero(marks)).astype(np.int32)
    starts, newlines = cuts[1::2], cuts[2::2]
    _require((data[starts] == ord("[")).all() and (data[newlines] == ord("\n")).all())  # one `[[[` in each line
    _require(_is_digit(data[starts + 3]).all())
    newlines += 1
    lines = np.arange(0, 2 * len(starts), 2)
    return _pieces(data, cuts, lines), _bytes(_pieces(data, cuts, lines + 1))


def _read_heads(heads: pa.BinaryArray) -> dict[str, pa.Array]:
    """Returns columns of `make_table`, `(L,)` each."""
    text = _bytes(heads)
    edges = _offsets(heads)
    found = np.flatnonzero(text == ord('"'))
    fitting = [layout for layout in LAYOUTS if b"".join(layout[0]).count(b'"') * len(heads) == len(found)]
    _require(bool(fitting))
    parts, names = fitting[0]
    quotes = found.reshape(len(heads), -1)
    # Parts and values in turn; after the last part comes a value without bytes.
    ends = np.empty((len(heads), 2 * len(parts)), np.int32)
    for index, count in enumerate(np.cumsum([part.count(b'"') for part in parts])[:-1]):
        ends[:, 2 * index] = quotes[:, count - 1] + 1
        ends[:, 2 * index + 1] = quotes[:, count]
    ends[:, -2:] = edges[1:, None]
    cuts = np.append(np.int32(0), ends.reshape(-1))
    _require((cuts[1:] >= cuts[:-1]).all())
    # Quotes bound the parts but where a line starts. Values have no quotes, so bytes that JSON allows make a string.
    _require((text[edges[:-1]] == ord("{")).all())
    _require(_bytes(_pieces(text, cuts, np.arange(0, ends.size, 2))).tobytes() == b"".join(parts) * len(heads))
    _require(text.min() >= ord(" ") and not (text == ord("\\")).any())
    try:
        text.tobytes().decode()
    except UnicodeDecodeError as error:
        raise _UnsureError from error
    values = {name: index for index, name in enumerate(names) if name}
    return {
        name: _read_value(name, _pieces(text, cuts, np.arange(2 * index + 1, ends.size, ends.shape[1])))
        for name, index in values.items()
    }


def _read_value(name: str, values: pa.BinaryArray) -> pa.Array:
    lengths = np.diff(_offsets(values))
    if name == "recognized":
        flags = RECOGNIZED.take(pa.array((lengths == 6).astype(np.int8)))
        _require(flags.equals(values))
        return pa.array(lengths == 6)
    _require(lengths.min() > 0)
    if name == "key_id":
        # Any number of 19 digits has 64 bits.
        _require(lengths.max() <= 19 and _is_digit(_bytes(values)).all())
        return values.view(pa.string()).cast(pa.uint64())
    return values.view(pa.string())


def _read_drawings(drawings: Bytes, max_points: int) -> pa.ListArray:
    """Returns the column of drawings from their `(C,)` bytes, each `[[[`, a digit, ... and a newline."""
    padded = np.zeros(len(drawings) + 2 * PAD, np.uint8)
    padded[PAD:-PAD] = drawings
    values, last, ends_list = _read_numbers(padded)
    lists = np.flatnonzero(ends_list)  # (2 S,) the last number of x, of y, of the next x, ...
    stroke_end = _check_brackets(padded, last[lists])
    cuts = np.append(np.int32(0), (lists + 1).astype(np.int32))
    lengths = np.diff(cuts)
    _require((lengths[::2] == lengths[1::2]).all())
    stroke_ends = np.cumsum(lengths[::2], dtype=np.int64)
    drawing_ends = stroke_ends[stroke_end]
    _require(np.diff(drawing_ends, prepend=0).max() <= max_points)
    order = np.arange(len(lists)).reshape(-1, 2).T.reshape(-1)
    x, y = _bytes(_pieces(values, cuts, order)).astype(np.int16).reshape(2, -1)
    return to_column(deltas(x, y, stroke_ends, drawing_ends), np.append(0, drawing_ends))


def _read_numbers(padded: Bytes) -> tuple[Bytes, IntArray, Bools]:
    """Returns all numbers `(V,)`, where the last digit of each is in `padded`, and if it is the last of its list.

    All of them are 0..255 without leading zeros, and after each comes a bracket or a comma and the next number.
    """

    def at(array: npt.NDArray[Any], offset: int) -> npt.NDArray[Any]:
        return array[PAD + offset : len(padded) - PAD + offset]

    digit = _is_digit(padded)
    value = (padded - ord("0")) * digit
    two = at(value, -1) * 10 + at(value, 0)
    hundreds = at(value, -2) * at(digit, -1) * at(digit, 0)
    values = hundreds * 100 + two  # modulo 256
    pair = digit[:-1] & digit[1:]
    doubtful = values < two  # 256 and more, if the hundreds are no more than 2
    doubtful |= hundreds > 2
    doubtful |= at(pair, -3) & at(pair, -1)  # four digits
    zero = at(padded, 0) == ord("0")
    doubtful |= (zero & at(digit, 1)) > at(digit, -1)  # a leading zero
    is_last = at(digit, 0) > at(digit, 1)
    ends_list = at(padded, 1) == ord("]")
    follows = (padded[:-1] == ord(",")) & digit[1:]
    doubtful |= is_last > (at(follows, 1) | ends_list)
    _require(not doubtful.view(np.uint8).max())
    last = np.flatnonzero(is_last)
    return values.take(last), last + PAD, ends_list.take(last)


def _check_brackets(padded: Bytes, last: IntArray) -> Bools:
    """Returns which of `(S,)` strokes are the last of a drawing, from where the `(2 S,)` lists end.

    A drawing starts with the first number of an x, and after each list comes what must come, up to the next number or
    the end of the line. So there is nothing else in it, its last list is a y, and it ends where its line does.
    """
    # The eight bytes that follow each list, as one number.
    after = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))[last + 1]
    x, y = after[::2], after[1::2]
    stroke_end = _starts_with(y, b"]]]}\n")
    next_stroke = _starts_with(y, b"]],[[") & _is_digit((y >> np.uint64(40)).astype(np.uint8))
    next_list = _starts_with(x, b"],[") & _is_digit((x >> np.uint64(24)).astype(np.uint8))
    _require(next_list.all() and (stroke_end | next_stroke).all())
    return stroke_end


def _starts_with(eight: npt.NDArray[np.uint64], prefix: bytes) -> Bools:
    mask = np.uint64((1 << 8 * len(prefix)) - 1)
    found: Bools = eight & mask == np.uint64(int.from_bytes(prefix, "little"))
    return found


def _is_digit(data: Bytes) -> Bools:
    found: Bools = data - np.uint8(ord("0")) < 10  # modulo 256
    return found


def _pieces(data: Bytes, cuts: npt.NDArray[np.int32], chosen: IntArray) -> pa.BinaryArray:
    """Returns some of the pieces of `data` between `cuts`, of which the first is 0."""
    buffers = [None, pa.py_buffer(cuts), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(cuts) - 1, buffers).take(pa.array(chosen))


def _offsets(pieces: pa.BinaryArray) -> npt.NDArray[np.int32]:
    return np.frombuffer(pieces.buffers()[1], np.int32, len(pieces) + 1)


def _bytes(pieces: pa.BinaryArray) -> Bytes:
    """Returns pieces end to end."""
    return np.frombuffer(pieces.buffers()[2], np.uint8, int(_offsets(pieces)[-1]))
