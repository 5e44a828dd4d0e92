"""Runs: drawings sorted by place, on disk, of which any range of places is read without the rest.

A shuffle that does not fit in memory sorts what does, writes it as a run, and merges one range of places at a time out
of all runs. Places are hashes and lie evenly: a run is cut into 2**k equal ranges, one Arrow record batch each, and
which batches hold a range follows from its bounds.
"""

from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sketchray.columns import from_column, to_column
from sketchray.formats import SCHEMA
from sketchray.ingest.place import PLACES
from sketchray.strokes import IntArray

# A drawing by `formats.SCHEMA`, and its place, the number of its part, and its rank among its class in that part.
# `split_key` decides its split if none is published.
RUN_SCHEMA = pa.schema(
    [
        *(field for field in SCHEMA if field.name != "line"),
        ("place", pa.int64()),
        ("split_key", pa.uint64()),
        ("part", pa.int32()),
        ("rank", pa.int64()),
    ]
)
POINT_BYTES = 6  # three int16
BATCH_ROWS = 128  # drawings, about 40 KB: what is read beyond a range is some such batches a run
SPLIT_ORDER = ("test", "valid", "train")  # of equal drawings the first is kept: nothing tested was trained on


def sort_unique(table: pa.Table) -> IntArray:
    """Returns the rows of drawings by place, of equal ones of a class one only.

    The one kept is that of the published split test, else valid, else train; then of the smallest key.
    """
    split = pc.fill_null(pc.index_in(table["split"], pa.array(SPLIT_ORDER)), len(SPLIT_ORDER)).to_numpy()
    no_key = pc.is_null(table["key_id"]).to_numpy()
    key = pc.fill_null(table["key_id"], 0).to_numpy()
    flag = pc.fill_null(table["recognized"].cast(pa.int8()), 2).to_numpy()
    place, part, rank = (table[name].to_numpy() for name in ("place", "part", "rank"))
    order: IntArray = np.argsort(place, kind="stable")
    again = np.flatnonzero(place[order[1:]] == place[order[:-1]])  # equal drawings have equal hashes; hardly others do
    if not len(again):
        return order
    tied = np.unique(np.concatenate([again, again + 1]))
    rows = order[tied]
    # Which of equals is the first must not depend on the order of the input.
    rows = rows[np.lexsort(tuple(column[rows] for column in (rank, part, flag, key, no_key, split, place)))]
    order[tied] = rows
    chosen = table.select(["class", "points"]).take(pa.array(rows))
    return np.delete(order, tied[_again(chosen, place[rows])])


def _again(table: pa.Table, place: IntArray) -> IntArray:
    """Returns the rows that equal the row before them in class and points."""
    rows: IntArray = np.flatnonzero(place[1:] == place[:-1]) + 1
    names = table["class"].combine_chunks()
    same = pc.equal(names.take(pa.array(rows)), names.take(pa.array(rows - 1))).to_numpy(zero_copy_only=False)
    points, offsets = from_column(table["points"])
    lengths = np.diff(offsets)
    rows = rows[same & (lengths[rows] == lengths[rows - 1])]
    if not len(rows):
        return rows
    ends = np.cumsum(lengths[rows])
    starts = ends - lengths[rows]
    within = np.arange(ends[-1]) - np.repeat(starts, lengths[rows])
    one, other = (points[np.repeat(offsets[chosen], lengths[rows]) + within] for chosen in (rows, rows - 1))
    return rows[np.logical_and.reduceat((one == other).all(axis=1), starts)]


def take(table: pa.Table, rows: IntArray) -> pa.Table:
    """Returns rows of drawings; their points are taken as bytes, ten times as fast as Arrow takes nested lists."""
    points, offsets = from_column(table["points"])
    chosen = pa.array(rows)
    buffers = [None, pa.py_buffer(offsets * POINT_BYTES), pa.py_buffer(np.ascontiguousarray(points))]
    drawings = pa.Array.from_buffers(pa.large_binary(), len(table), buffers).take(chosen)
    ends = np.frombuffer(drawings.buffers()[1], np.int64, len(rows) + 1) // POINT_BYTES
    taken = np.frombuffer(drawings.buffers()[2], np.int16, 3 * int(ends[-1])).reshape(-1, 3)
    index = table.schema.get_field_index("points")
    return table.remove_column(index).take(chosen).add_column(index, table.schema.field(index), to_column(taken, ends))


def write_run(stream: IO[bytes], table: pa.Table) -> None:
    """Writes drawings, sorted by place, as a run."""
    number = 1 << max(0, (len(table) // BATCH_ROWS).bit_length() - 1)
    bounds = np.searchsorted(table["place"].to_numpy(), [index * (PLACES // number) for index in range(1, number)])
    table = table.combine_chunks()
    with pa.ipc.new_file(stream, RUN_SCHEMA) as writer:
        for start, stop in zip([0, *bounds], [*bounds, len(table)], strict=True):
            batches = table.slice(start, stop - start).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], RUN_SCHEMA))


def read_run(file: pa.NativeFile, low: int, high: int) -> pa.Table:
    """Returns the drawings of a run whose places are in `low..high - 1`."""
    reader = pa.ipc.open_file(file)
    size = PLACES // reader.num_record_batches
    batches = [reader.get_batch(index) for index in range(low // size, -(-high // size))]
    table = pa.Table.from_batches(batches, RUN_SCHEMA)
    start, stop = np.searchsorted(table["place"].to_numpy(), [low, high])
    return table.slice(start, stop - start)
