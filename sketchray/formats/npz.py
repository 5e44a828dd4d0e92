"""SketchRNN's `.npz` files: the published splits of one class, in pickles, of which nothing is run.

The drawings are stroke-3 as they come. The file names no class. Source: README of googlecreativelab/quickdraw-dataset.
"""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from sketchray.columns import Int16Array, to_column
from sketchray.errors import DataError
from sketchray.formats import Bad, Block, HostileError, check_points, make_table
from sketchray.sketch_rnn.npz import HostileFileError, unpack

BLOCK_ROWS = 16_384  # drawings, some 4 MB


def read(file: BinaryIO, *, max_points: int) -> Iterator[Block]:
    """Yields the drawings of train, then valid, then test; a bad one is numbered within the file, in this order.

    The file must seek. All of it is unpacked first, some 1.5 KB a drawing, so that a hostile file yields nothing.

    Raises:
        HostileError: a pickle asks for more than arrays, or unpacks to too much.
        DataError: not a SketchRNN file, or a damaged one.
    """
    try:
        splits = unpack(file)
    except HostileFileError as error:
        raise HostileError(str(error)) from error
    except ValueError as error:
        raise DataError(str(error)) from error
    first = 1
    for split, drawings in splits.items():
        for start in range(0, len(drawings), BLOCK_ROWS):
            yield _to_block(drawings[start : start + BLOCK_ROWS], first + start, split, max_points)
        first += len(drawings)


def _to_block(drawings: Sequence[Int16Array | str], first: int, split: str, max_points: int) -> Block:
    """Returns a block; a drawing that is a text is none, for the reason that the text says."""
    numbers = [number for number, drawing in enumerate(drawings, first) if not isinstance(drawing, str)]
    bad = [
        Bad(number, f"drawing {drawing}") for number, drawing in enumerate(drawings, first) if isinstance(drawing, str)
    ]
    good = [drawing for drawing in drawings if not isinstance(drawing, str)]
    points = np.concatenate([np.zeros((0, 3), np.int16), *good])
    column = to_column(points, np.cumsum([0, *map(len, good)]))
    faulty = check_points(column, max_points)
    if faulty:
        bad = sorted(bad + [Bad(numbers[row], reason) for row, reason in faulty])
        kept = np.ones(len(good), bool)
        kept[[row for row, _ in faulty]] = False
        column = column.filter(pa.array(kept))
        numbers = [number for number, is_kept in zip(numbers, kept, strict=True) if is_kept]
    return Block(make_table(column, numbers, split=split), bad)
