"""Runs: sorting, equal drawings, and any range of places read without the rest."""

import io
from typing import Any

import numpy as np
import pyarrow as pa

from sketchray.columns import to_column
from sketchray.ingest.place import PLACES
from sketchray.ingest.spill import RUN_SCHEMA, read_run, sort_unique, take, write_run


def make_drawings(number: int, seed: int = 0, *, places: int = PLACES) -> pa.Table:
    """Drawings of one to three points, of two classes; those of one place are equal."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, places, number)
    lengths = 1 + place % 3
    points = np.ones((lengths.sum(), 3), np.int16)
    columns = {
        "class": [("cat", "dog")[kind] for kind in place % 2],
        "key_id": [None if key == 0 else int(key) for key in rng.integers(0, 5, number)],
        "recognized": [(None, False, True)[flag] for flag in rng.integers(0, 3, number)],
        "split": [(None, "train", "valid", "test")[split] for split in rng.integers(0, 4, number)],
        "points": to_column(points, np.cumsum([0, *lengths])),
        "place": place,
        "split_key": rng.integers(0, 1 << 60, number).astype(np.uint64),
        "part": rng.integers(0, 3, number).astype(np.int32),
        "rank": np.arange(number),
    }
    return pa.table(columns, schema=RUN_SCHEMA)


def preference(row: dict[str, Any]) -> tuple[Any, ...]:
    """What decides between equal drawings, smallest first."""
    split = ("test", "valid", "train", None).index(row["split"])
    flag = (False, True, None).index(row["recognized"])
    return split, row["key_id"] is None, row["key_id"] or 0, flag, row["part"], row["rank"]


def test_take_is_that_of_arrow() -> None:
    table = make_drawings(300)
    rows = np.random.default_rng(1).integers(0, 100, 50)
    for drawings in (table, table.slice(100, 100)):  # a slice's points do not start at its buffer's start
        assert take(drawings, rows) == drawings.take(pa.array(rows))
        assert take(drawings, rows[:0]) == drawings.slice(0, 0)


def test_of_equal_drawings_the_preferred_one_is_kept_in_any_order() -> None:
    table = make_drawings(400, places=60)
    best: dict[int, dict[str, Any]] = {}
    for row in table.to_pylist():
        best[row["place"]] = min(row, best.get(row["place"], row), key=preference)
    for seed in range(3):
        shuffled = table.take(pa.array(np.random.default_rng(seed).permutation(400))).combine_chunks()
        found = shuffled.take(pa.array(sort_unique(shuffled))).to_pylist()
        assert found == [best[place] for place in sorted(best)]


def test_drawings_that_only_share_a_place_are_all_kept() -> None:
    one = make_drawings(1, places=1)
    longer = one.set_column(
        one.column_names.index("points"), "points", to_column(np.ones((4, 3), np.int16), np.array([0, 4]))
    )
    named = one.set_column(one.column_names.index("class"), "class", pa.array(["owl"]))
    table = pa.concat_tables([drawings.cast(RUN_SCHEMA) for drawings in (one, longer, named)]).combine_chunks()
    assert sorted(sort_unique(table)) == [0, 1, 2]


def test_any_range_of_a_run_is_read() -> None:
    table = make_drawings(1000)
    table = take(table, sort_unique(table))
    file = io.BytesIO()
    write_run(file, table)
    places = table["place"].to_numpy()
    for low, high in ((0, PLACES), (0, PLACES // 3), (PLACES // 3, PLACES // 2), (int(places[5]), int(places[9]))):
        chosen = np.flatnonzero((places >= low) & (places < high))
        assert read_run(pa.BufferReader(file.getvalue()), low, high) == take(table, chosen)
