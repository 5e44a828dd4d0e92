"""What a model made of each drawing: counts of that, and which drawings a report shows. No Ray.

Parts are added up in any order and cut anywhere, with the same result. Shapes: B drawings, K classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sketchray.checkpoint import Meta
from sketchray.shards import Rows, ShardSet

BINS = 15  # of the first guess's probability, equally wide. Source: Guo et al. 2017
EXAMPLES = 6  # rows kept of each true class and guess
MISTAKES = 48  # rows kept of the most confident mistakes
WAITING = 1 << 20  # rows, 20 MB, that may wait before what need not be kept is dropped

# A row of the split, the labels (of the model) of its class and of the first guess, and the guess's probability.
OUTCOME = np.dtype([("row", np.int64), ("truth", np.int32), ("guess", np.int32), ("probability", np.float32)])
Outcomes = npt.NDArray[np.void]


class Tally:
    """Counts of outcomes, and the few rows that may be shown.

    Memory is bounded by the classes: 20 bytes for each of `EXAMPLES` rows of K x K cells at the most.

    Attributes:
        confusion: `(K, K)` drawings by true class (rows) and first guess (columns).
        bins: `(BINS, 3)` drawings, sum of probabilities and right guesses, by probability; a bin includes its upper
            end.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.bins = np.zeros((BINS, 3))
        self._kept: list[Outcomes] = []

    def add(self, outcomes: Outcomes) -> None:
        """Counts `(B,)` of `OUTCOME`; no two of all that are added have the same row."""
        number = len(self.confusion)
        cell = outcomes["truth"].astype(np.int64) * number + outcomes["guess"]
        self.confusion += np.bincount(cell, minlength=number**2).reshape(number, number)
        # In steps of 2**-24, float32's below 1, float64 holds sums of 500 million exactly, whatever their order.
        probability = np.rint(outcomes["probability"].astype(np.float64) * 2**24) / 2**24
        place = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
        for column, weights in enumerate((None, probability, outcomes["truth"] == outcomes["guess"])):
            self.bins[:, column] += np.bincount(place, weights, minlength=BINS)
        self._kept.append(self._choose(outcomes))
        if sum(map(len, self._kept)) > WAITING:
            self._kept = [self._choose(np.concatenate(self._kept))]

    def _choose(self, outcomes: Outcomes) -> Outcomes:
        """Returns the first rows of each true class and guess, and the most confident mistakes."""
        truth, guess, row = outcomes["truth"], outcomes["guess"], outcomes["row"]
        order = np.lexsort((row, guess, truth))
        cell = truth[order].astype(np.int64) * len(self.confusion) + guess[order]
        is_kept = np.zeros(len(outcomes), bool)
        # A row is one of its cell's first if the one that many places before it is of another cell.
        is_kept[order] = np.append(np.full(EXAMPLES, -1), cell[:-EXAMPLES])[: len(cell)] != cell
        wrong = np.flatnonzero(truth != guess)
        is_kept[wrong[np.lexsort((row[wrong], -outcomes["probability"][wrong]))[:MISTAKES]]] = True
        return outcomes[is_kept]

    def _rows(self) -> Outcomes:
        """Returns all that is kept."""
        self._kept = [self._choose(np.concatenate([np.zeros(0, OUTCOME), *self._kept]))]
        return self._kept[0]

    def examples(self, truth: int, guess: int, number: int) -> Outcomes:
        """Returns the first `number` rows, `EXAMPLES` at most, of a class that were taken for a class, in order."""
        rows = self._rows()
        found: Outcomes = rows[(rows["truth"] == truth) & (rows["guess"] == guess)]
        return found[np.argsort(found["row"])[: min(number, EXAMPLES)]]

    def mistakes(self) -> Outcomes:
        """Returns the `MISTAKES` wrong guesses of the highest probability, that one first; the smaller row if alike."""
        rows = self._rows()
        wrong: Outcomes = rows[rows["truth"] != rows["guess"]]
        return wrong[np.lexsort((wrong["row"], -wrong["probability"]))[:MISTAKES]]

    def confused(self, number: int) -> list[tuple[int, int]]:
        """Returns true class and guess of the most frequent mistakes, the most frequent first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:number]
        pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)), strict=True)
        return [(truth, guess) for truth, guess in pairs if wrong[truth, guess]]

    @property
    def ece(self) -> float:
        """The expected calibration error: how far probabilities are from the share that is right, on average.

        Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
        """
        drawings, probability, right = self.bins.T
        return float(np.abs(right - probability).sum() / max(drawings.sum(), 1))


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint makes of a split.

    Attributes:
        result: the job's JSON.
        tally: of all drawings of the split.
        checkpoint: what was evaluated: a checkpoint (not the run that it is the best of) or an ONNX file.
        meta: of the checkpoint.
        version: of the checkpoint, as the service's header has it.
        shards: where the drawings are.
    """

    result: dict[str, Any]
    tally: Tally
    checkpoint: str
    meta: Meta
    version: str
    shards: ShardSet


def read_rows(rows: Rows, numbers: npt.NDArray[np.int64]) -> pa.Table:
    """Returns points, key and `recognized` of one or more rows, given by number, in that order.

    Each row group that has one of them is read once.
    """
    wanted, places = np.unique(numbers, return_inverse=True)
    tables = []
    for group in np.unique(np.searchsorted(rows.ends, wanted, side="right")).tolist():
        end = rows.ends[group]
        start = end - rows.groups[group].rows
        inside = wanted[(wanted >= start) & (wanted < end)]
        tables.append(rows.read(start, end, ("points", "key_id", "recognized")).take(pa.array(inside - start)))
    return pa.concat_tables(tables).take(pa.array(places))
