"""What the data card says of some drawings: gathered shard by shard, where they are written, and added up.

Shapes: B drawings, N points of all drawings, K classes.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from sketchray.columns import Int16Array, IntArray, from_column
from sketchray.shards import SPLITS
from sketchray.strokes import thin

LENGTH_BIN = 5  # points; bin i holds the lengths 5i + 1 to 5i + 5
LENGTH_BINS = 50  # the last one holds all from 246 on
STROKE_BINS = 25  # bin i holds i + 1 strokes, the last one all from 25 on
GALLERY = 6  # drawings shown of a class
# A class with so many drawings in a shard has as many, more or less, in each: that there are fewer than GALLERY in the
# one before has a chance below 1e-10.
MANY = 64
SIDE = 90  # steps of the grid that a shown drawing fills
TOLERANCE = 1.5  # steps that a shown line may be off: less than a pixel on the page
SHOWN_POINTS = 500  # of a shown drawing, the first ones: a few of 10,000 points would outweigh the rest of the page
# A coordinate is one character that JSON writes as it is; a space ends a stroke.
ALPHABET = bytes(code for code in range(ord("#"), ord("~") + 1) if code != ord("\\"))
STEP_OF = {chr(code): step for step, code in enumerate(ALPHABET)}


class Statistics(BaseModel):
    """What the card says of some drawings. Statistics of shards add up to those of the set.

    Attributes:
        classes: names, in label order; each of the (K, ...) lists below has one entry a class.
        drawings: (K, 3) drawings in train, valid and test.
        points: (K,) points of all drawings.
        shortest, longest: (K,) points of a drawing, 0 where there is none.
        recognized: (K, 3) drawings that the game did not recognize, that it did, and of which that is not known.
        lengths: drawings by number of points, in bins of `LENGTH_BIN`.
        strokes: drawings by number of strokes, in bins of 1.
        gallery: (K, up to GALLERY) place and picture of the drawings of the smallest places, in that order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: list[str]
    drawings: list[list[int]]
    points: list[int]
    shortest: list[int]
    longest: list[int]
    recognized: list[list[int]]
    lengths: list[int]
    strokes: list[int]
    gallery: list[list[tuple[int, str]]]

    @classmethod
    def empty(cls, classes: Sequence[str]) -> "Statistics":
        """Returns the statistics of no drawings."""
        number = len(classes)
        return cls(
            classes=list(classes),
            drawings=[[0, 0, 0]] * number,
            points=[0] * number,
            shortest=[0] * number,
            longest=[0] * number,
            recognized=[[0, 0, 0]] * number,
            lengths=[0] * LENGTH_BINS,
            strokes=[0] * STROKE_BINS,
            gallery=[[]] * number,
        )

    @property
    def class_counts(self) -> dict[str, int]:
        """Drawings of each class."""
        return dict(zip(self.classes, map(sum, self.drawings), strict=True))


def collect(table: pa.Table, classes: Sequence[str], *, is_first: bool = True) -> Statistics:
    """Returns the statistics of drawings.

    Args:
        table: the columns of a shard and `place`, in any order of rows. No two drawings of a class have one place.
        classes: names, in label order.
        is_first: whether no other shard has smaller places. If one has, the gallery of a class with `MANY` drawings
            comes from there, and is left out: pictures take as long as all other counts.
    """
    number = len(classes)
    points, offsets = from_column(table["points"])
    lengths = np.diff(offsets)
    label = table["label"].to_numpy()
    split = pc.index_in(table["split"], pa.array(SPLITS)).to_numpy()
    recognized = pc.fill_null(table["recognized"].cast(pa.int8()), 2).to_numpy()
    strokes = np.diff(np.flatnonzero(_stroke_ends(points, offsets)).searchsorted(offsets))
    shortest, longest = np.full(number, np.iinfo(np.int64).max), np.zeros(number, np.int64)
    np.minimum.at(shortest, label, lengths)
    np.maximum.at(longest, label, lengths)
    total = np.bincount(label, weights=lengths, minlength=number)  # exact: far below 2**53

    order = np.lexsort((table["place"].to_numpy(), label))
    counts = np.bincount(label, minlength=number)
    rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    shown_of = np.minimum(counts, GALLERY if is_first else np.where(counts < MANY, GALLERY, 0))
    shown = table.take(pa.array(order[rank < np.repeat(shown_of, counts)]))
    pictures = iter(zip(shown["place"].to_pylist(), draw(*from_column(shown["points"])), strict=True))
    return Statistics(
        classes=list(classes),
        drawings=_count(label, split, number),
        points=total.astype(np.int64).tolist(),
        shortest=np.where(longest, shortest, 0).tolist(),
        longest=longest.tolist(),
        recognized=_count(label, recognized, number),
        lengths=np.bincount(np.minimum((lengths - 1) // LENGTH_BIN, LENGTH_BINS - 1), minlength=LENGTH_BINS).tolist(),
        strokes=np.bincount(np.minimum(strokes, STROKE_BINS) - 1, minlength=STROKE_BINS).tolist(),
        gallery=[[next(pictures) for _ in range(number)] for number in shown_of.tolist()],
    )


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Returns the statistics of all drawings of one or more parts of the same classes, the parts in any order."""
    return reduce(_add, parts)


def _add(one: Statistics, other: Statistics) -> Statistics:
    assert one.classes == other.classes
    sums = {
        name: np.add(getattr(one, name), getattr(other, name)).tolist()
        for name in ("drawings", "points", "recognized", "lengths", "strokes")
        if getattr(one, name)
    }
    pairs = zip(one.shortest, other.shortest, strict=True)
    galleries = zip(one.gallery, other.gallery, strict=True)
    return Statistics(
        classes=one.classes,
        shortest=[min(pair) or max(pair) for pair in pairs],
        longest=list(map(max, one.longest, other.longest)),
        gallery=[sorted(first + second)[:GALLERY] for first, second in galleries],
        **sums,
    )


def _count(label: npt.NDArray[Any], kind: npt.NDArray[Any], number: int) -> list[list[int]]:
    """Returns how many drawings of each class are of each of three kinds."""
    counts: list[list[int]] = (
        np.bincount(label.astype(np.int64) * 3 + kind, minlength=number * 3).reshape(-1, 3).tolist()
    )
    return counts


def _stroke_ends(points: Int16Array, offsets: IntArray) -> npt.NDArray[np.bool_]:
    """Returns which of the `(N,)` points end a stroke: a drawing's last one does, whatever its `pen_up`."""
    is_end: npt.NDArray[np.bool_] = points[:, 2] != 0
    is_end[offsets[1:] - 1] = True
    return is_end


def draw(points: Int16Array, offsets: IntArray) -> list[str]:
    """Returns B small pictures: each drawing scaled to the grid, its middle in the grid's, lines thinned."""
    if not len(points):
        return []
    starts, of = offsets[:-1], np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    at = points[:, :2].cumsum(0, dtype=np.int64)
    low, high = np.minimum.reduceat(at, starts), np.maximum.reduceat(at, starts)  # (B, 2)
    size = high - low
    scale = SIDE / np.maximum(size.max(1, keepdims=True), 1)
    at = (at - low[of]) * scale[of] + (SIDE - size * scale)[of] / 2
    is_end = _stroke_ends(points, offsets)
    ends = np.flatnonzero(is_end) + 1
    keep = thin(at[:, 0], at[:, 1], ends, TOLERANCE)
    before: IntArray = np.cumsum(keep) - keep
    keep &= before - before[starts][of] < SHOWN_POINTS
    text = np.frombuffer(ALPHABET, np.uint8)[np.rint(at[keep]).astype(np.int64)].tobytes().decode()
    # Where each stroke starts in the text, and at last where it ends: two characters a point.
    bounds = np.append(0, 2 * np.cumsum(keep)[ends - 1]).tolist()
    strokes = [text[start:end] for start, end in pairwise(bounds)]
    last = np.cumsum(is_end)[offsets[1:] - 1].tolist()
    return [" ".join(filter(None, strokes[first:end])) for first, end in pairwise([0, *last])]


def to_path(picture: str) -> str:
    """Returns the SVG path of a picture in `Statistics.gallery`, on a grid of 0..SIDE: a start and steps a stroke."""
    path = []
    for stroke in picture.split(" "):
        at = [STEP_OF[letter] for letter in stroke]
        steps = [after - before for before, after in zip(at, at[2:], strict=False)]  # x and y by turns
        path.append(f"M{at[0]} {at[1]}l{' '.join(map(str, steps or (0, 0)))}".replace(" -", "-"))
    return "".join(path)
