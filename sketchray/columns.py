"""Drawings as an Arrow column: `points: list<fixed_size_list<int16>[3]>`, values and offsets without Python objects.

Shapes: B drawings, N points of all drawings.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

POINT = pa.list_(pa.field("element", pa.int16(), nullable=False), 3)
POINTS = pa.list_(pa.field("element", POINT, nullable=False))

Int16Array = npt.NDArray[np.int16]
IntArray = npt.NDArray[np.int64]


def to_column(points: Int16Array, offsets: IntArray) -> pa.ListArray:
    """Returns the column of B drawings from `(N, 3)` points laid end to end and their `(B + 1,)` offsets."""
    flat = pa.array(np.ascontiguousarray(points).reshape(-1))
    values = pa.FixedSizeListArray.from_arrays(flat, type=POINT)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=POINTS)


def from_column(column: pa.ChunkedArray | pa.ListArray) -> tuple[Int16Array, IntArray]:
    """Returns `(N, 3)` points and `(B + 1,)` offsets of a column; views into Arrow's memory where it can."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = array.offsets.to_numpy().astype(np.int64)
    # `values` of a slice are those of its parent, and its offsets count in them.
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return values.flatten().to_numpy().reshape(-1, 3), offsets - offsets[0]
