"""The column layouts in which Parquet and Arrow files hold drawings, each read into stroke-3 points.

Shapes: B rows, S strokes of all rows, P points of all rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from sketchray.columns import IntArray, to_column
from sketchray.formats import HostileError, check_points
from sketchray.formats.ndjson import parse_drawings
from sketchray.formats.records import Drawings, from_nested
from sketchray.formats.rows import Faults

Layout = Callable[[pa.Array, int], Drawings]

MAX_TEXT_BYTES = 4 << 20  # of one drawing as JSON
MAX_TEXTS_BYTES = 256 << 20  # of the texts of one batch: a dictionary can repeat one of them in each row
NUMBERS = pa.list_(pa.float64())
NESTED = pa.list_(pa.list_(NUMBERS))
NOT_A_POINT = "a point must be three whole numbers [dx, dy, pen_up] within int16"


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column holds texts, as they are or by a dictionary."""
    plain = kind.value_type if pat.is_dictionary(kind) else kind
    return bool(pat.is_string(plain) or pat.is_large_string(plain))


def find_layout(kind: pa.DataType) -> Layout | None:
    """Returns the function that reads a column of drawings of this type, None for a type that holds none."""
    if is_text(kind):
        return _from_texts
    depth, leaf = _nesting(kind)
    if pat.is_struct(leaf) and depth in (0, 1):
        axes = [_nesting(leaf.field(name).type) for name in _axes(leaf)]
        if len(axes) > 1 and all(axis_depth == 2 - depth and _is_number(inner) for axis_depth, inner in axes):
            return _from_strokes if depth else _from_axes
    if _is_number(leaf) and depth in (2, 3):
        return _from_stroke_3 if depth == 2 else _from_lists
    return None


def storage(column: pa.Array) -> pa.Array:
    """Returns a column without its extension type, if it has one."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def to_texts(column: pa.Array, max_bytes: int) -> tuple[pa.StringArray, Faults]:
    """Returns the texts of a column, null where there is none or a bad one, and which are bad.

    Raises:
        HostileError: together they are longer than `MAX_TEXTS_BYTES`.
    """
    values = column.dictionary if pat.is_dictionary(column.type) else column
    lengths = pc.binary_length(values)
    if pat.is_dictionary(column.type):
        lengths = lengths.take(column.indices)
    sizes: IntArray = pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    faults = {
        row: f"a text of {sizes[row]:,} bytes, at most {max_bytes:,} are accepted"
        for row in np.flatnonzero(sizes > max_bytes).tolist()
    }
    total = int(sizes[sizes <= max_bytes].sum())
    if total > MAX_TEXTS_BYTES:
        raise HostileError(f"{len(column)} rows hold {total:,} bytes of text; {MAX_TEXTS_BYTES:,} are allowed")
    if faults:
        column = pc.if_else(pa.array(sizes <= max_bytes), column, None)
    if pat.is_dictionary(column.type):
        column = column.dictionary.take(column.indices)
    try:
        return column.cast(pa.string()), faults
    except pa.ArrowInvalid:
        texts = [_decode(value) for value in column.to_pylist()]
        faults |= {row: "not UTF-8" for row, text in enumerate(texts) if text is False}
        return pa.array([text or None for text in texts], pa.string()), faults


def _decode(value: bytes | None) -> str | bool | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return False


def _nesting(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """Returns how many lists are around the innermost type, and that."""
    depth = 0
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        if not (pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind)):
            return depth, kind
        depth, kind = depth + 1, kind.value_type


def _is_number(kind: pa.DataType) -> bool:
    return bool(pat.is_integer(kind) or pat.is_floating(kind))


def _axes(struct: pa.StructType) -> list[str]:
    names = {field.name for field in struct}
    return [name for name in ("x", "y", "t") if name in names] if {"x", "y"} <= names else []


def _from_texts(column: pa.Array, max_points: int) -> Drawings:
    texts, faults = to_texts(column, MAX_TEXT_BYTES)
    drawings = parse_drawings(texts, max_points=max_points)
    return drawings._replace(bad=sorted((dict(drawings.bad) | faults).items()))


def _from_lists(column: pa.Array, max_points: int) -> Drawings:
    return from_nested(pc.cast(column, NESTED, safe=False), max_points)


def _from_strokes(column: pa.Array, max_points: int) -> Drawings:
    """Reads a list of structs, one a stroke."""
    strokes = pc.list_flatten(column)
    axes = [pc.struct_field(strokes, name) for name in _axes(strokes.type)]
    return from_nested(_zip(axes, _lengths(column)), max_points)


def _from_axes(column: pa.Array, max_points: int) -> Drawings:
    """Reads a struct of the `x` of all strokes and their `y`, which is how Hugging Face stores a list of structs."""
    axes = {name: pc.struct_field(column, name) for name in _axes(column.type)}
    if axes["x"].null_count < len(column) and "t" in axes and axes["t"].null_count == len(column):
        del axes["t"]
    counts = np.stack([_lengths(axis) for axis in axes.values()])  # (axes, B)
    good = np.flatnonzero((counts == counts[0]).all(axis=0))
    rows = pa.array(good)
    strokes = [pc.list_flatten(axis.take(rows)) for axis in axes.values()]
    found = from_nested(_zip(strokes, counts[0][good]), max_points)
    bad = [(int(good[row]), reason) for row, reason in found.bad]
    for row in np.setdiff1d(np.arange(len(column)), good).tolist():
        each = ", ".join(f"{name} {count}" for name, count in zip(axes, counts[:, row].tolist(), strict=True))
        bad.append((row, f"drawing: unequal numbers of strokes ({each})"))
    return Drawings(rows.take(found.rows), found.points, sorted(bad))


def _zip(axes: Sequence[pa.Array], strokes: IntArray) -> pa.ListArray:
    """Returns the nested lists of B rows from the axes of their strokes, `(S,)` each, and the strokes of each row."""
    number, size = len(axes), len(axes[0])
    order = np.arange(number * size).reshape(number, size).T.reshape(-1)
    values = pa.concat_arrays([pc.cast(axis, NUMBERS, safe=False) for axis in axes]).take(pa.array(order))
    pairs = pa.ListArray.from_arrays(pa.array(np.arange(0, number * size + 1, number, dtype=np.int32)), values)
    offsets = np.concatenate([[0], np.cumsum(strokes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs)


def _from_stroke_3(column: pa.Array, max_points: int) -> Drawings:
    """Reads lists of points `[dx, dy, pen_up]`; a row with another point is bad."""
    lengths = _lengths(column)
    points = storage(pc.list_flatten(column))
    widths = _lengths(points)
    values = pc.list_flatten(points)
    point_row = np.repeat(np.arange(len(column)), lengths)
    value_row = np.repeat(point_row, widths)
    faulty = np.zeros(len(column), bool)
    faulty[point_row[widths != 3]] = True
    if values.type != pa.int16() or values.null_count:
        numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # null becomes NaN
        limits = np.iinfo(np.int16)
        inside = (numbers >= limits.min) & (numbers <= limits.max) & (numbers == np.rint(numbers))
        faulty[value_row[~inside]] = True
        flat: npt.NDArray[np.int16] = np.where(inside, numbers, 0).astype(np.int16)
    else:
        flat = values.to_numpy()
    bad = [(row, NOT_A_POINT) for row in np.flatnonzero(faulty).tolist()]
    good = np.flatnonzero(~faulty)
    kept = flat if not bad else flat[~faulty[value_row]]
    read = to_column(kept.reshape(-1, 3), np.concatenate([[0], np.cumsum(lengths[good])]))
    refused = check_points(read, max_points)
    if refused:
        bad = sorted(bad + [(int(good[row]), reason) for row, reason in refused])
        rest = np.setdiff1d(np.arange(len(good)), [row for row, _ in refused])
        good, read = good[rest], read.take(pa.array(rest))
    return Drawings(pa.array(good), read, bad)


def _lengths(lists: pa.Array) -> IntArray:
    lengths: IntArray = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths
