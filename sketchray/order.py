"""The order in which drawings are fed. No PyTorch, so that the tasks that read start sooner; no Ray either.

An epoch's order is a pure function of (seed, epoch): row groups are permuted and laid end to end, the sequence is cut
into equal *lanes*, each lane into *windows*; a window is shuffled, sorted by length, and cut into slices of like
length, whose order is shuffled again. A batch is one slice of every lane, and each worker reads its own lanes. The
number of lanes does not depend on the number of workers (1, 2, 4 or 8), so neither do the batches.

Every rank does the same number of steps. What does not fill a last batch is left out of the epoch: other drawings each
time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sketchray.errors import DataError
from sketchray.shards import Rows

if TYPE_CHECKING:
    from sketchray.batch import Batch

LANES = 8
SLICES = 32  # of a lane's window; more sort lengths better, fewer cost less memory
EVAL_ROWS = 16_384  # of a window that is only scored


@dataclass(frozen=True)
class TrainFeed:
    """One rank's part of the training batches of every epoch.

    Attributes:
        rows: of the train split, in shard order.
        batch_size: drawings a batch, over all ranks.
        seed: of the order.
        rank, world_size: of the reader.
    """

    rows: Rows
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be divided over {self.world_size} workers; use a multiple"
            )
        if len(self.rows) < self.lanes:
            raise DataError(
                f"{self.rows.uri}: {len(self.rows)} training drawings for {self.world_size} workers are too few; "
                f"ingest at least {self.lanes}"
            )

    @property
    def lanes(self) -> int:
        """Equal parts of the epoch's sequence: the same number for 1, 2, 4 and 8 workers where it divides the batch."""
        lanes = math.gcd(self.batch_size, LANES)
        return lanes if lanes % self.world_size == 0 else self.world_size

    @property
    def slice_rows(self) -> int:
        """Drawings that a lane gives to a batch."""
        return min(self.batch_size // self.lanes, len(self.rows) // self.lanes)

    @property
    def rank_rows(self) -> int:
        """Drawings of this rank in a batch."""
        return self.slice_rows * (self.lanes // self.world_size)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(self.rows) // self.lanes // self.slice_rows

    @property
    def windows(self) -> int:
        """Windows an epoch."""
        return math.ceil(self.steps / SLICES)

    def read(self, epoch: int, window: int) -> pa.Table:
        """Returns this rank's drawings of a window: its batches end to end, `rank_rows` each."""
        rows = _shuffled(self.rows, self.seed, epoch)
        slices = min(SLICES, self.steps - window * SLICES)
        order = np.random.default_rng([self.seed, epoch, window]).permutation(slices)  # the same for all lanes
        own = self.lanes // self.world_size
        tables, picks, read = [], [], 0
        for lane in range(self.rank * own, (self.rank + 1) * own):
            start = lane * len(rows) // self.lanes + window * SLICES * self.slice_rows
            table = rows.read(start, start + slices * self.slice_rows)
            shuffle = np.random.default_rng([self.seed, epoch, window, lane]).permutation(len(table))
            lengths = pc.list_value_length(table["points"]).to_numpy()
            by_length = shuffle[np.argsort(lengths[shuffle], kind="stable")]
            picks.append(read + by_length.reshape(slices, self.slice_rows)[order])
            tables.append(table)
            read += len(table)
        picked = np.concatenate(picks, axis=1).reshape(-1)  # (slices, lanes * slice_rows), read row by row
        return pa.concat_tables(tables).take(pa.array(picked))

    def cut(self, window: "Batch") -> "Iterator[Batch]":
        """Yields the batches of a window."""
        for start in range(0, len(window), self.rank_rows):
            yield window.slice(start, start + self.rank_rows)


@lru_cache(maxsize=4)
def _permutation(groups: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(groups).tolist())


def _shuffled(rows: Rows, seed: int, epoch: int) -> Rows:
    return rows.permuted(_permutation(len(rows.groups), seed, epoch))


@dataclass(frozen=True)
class EvalFeed:
    """One rank's part of a split, each drawing once, batches sorted by length within a window.

    Attributes:
        rows: of the split.
        batch_size: drawings a batch, on this rank.
        rank, world_size: of the reader; the ranks' parts are disjoint and together the whole.
    """

    rows: Rows
    batch_size: int = 256
    rank: int = 0
    world_size: int = 1

    @property
    def _bounds(self) -> tuple[int, int]:
        total = len(self.rows)
        return self.rank * total // self.world_size, (self.rank + 1) * total // self.world_size

    @property
    def windows(self) -> int:
        """Windows of this rank's part; none if it is empty."""
        start, stop = self._bounds
        return math.ceil((stop - start) / EVAL_ROWS)

    def read(self, epoch: int, window: int) -> pa.Table:
        """Returns the drawings of a window, shortest first; `epoch` changes nothing."""
        del epoch
        start, stop = self._bounds
        start += window * EVAL_ROWS
        table = self.rows.read(start, min(start + EVAL_ROWS, stop))
        lengths = pc.list_value_length(table["points"]).to_numpy()
        return table.take(pa.array(np.argsort(lengths, kind="stable")))

    def cut(self, window: "Batch") -> "Iterator[Batch]":
        """Yields the batches of a window."""
        for start in range(0, len(window), self.batch_size):
            yield window.slice(start, min(start + self.batch_size, len(window)))


Feed = TrainFeed | EvalFeed


def windows_of(feed: Feed, epochs: Iterable[int]) -> list[tuple[int, int]]:
    """Returns the windows of some epochs in order, as (epoch, window)."""
    return [(epoch, window) for epoch in epochs for window in range(feed.windows)]


class Read:
    """What a task of Ray Data does: reads the windows whose places in `todo` a block holds."""

    def __init__(self, feed: Feed, todo: Sequence[tuple[int, int]]) -> None:
        self.feed, self.todo = feed, todo

    def __call__(self, places: pa.Table) -> pa.Table:
        return pa.concat_tables([self.feed.read(*self.todo[place]) for place in places.column(0).to_pylist()])
