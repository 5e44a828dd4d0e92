"""The order of feeding: every drawing at most once an epoch, the same batches for any number of workers."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sketchray.batch import Batch
from sketchray.columns import to_column
from sketchray.errors import DataError
from sketchray.feed import HEAD_START, batches, ray_batches
from sketchray.order import SLICES, EvalFeed, TrainFeed
from sketchray.shards import RowGroup, Rows


def make_rows(directory: Path, drawings: int, group: int = 64, seed: int = 0) -> Rows:
    """Writes drawings whose label is their number and whose points repeat it; lengths vary from 1 to 60."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 61, drawings)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    points = np.repeat(np.arange(drawings), lengths)[:, None].repeat(3, axis=1).astype(np.int16)
    table = pa.table({"points": to_column(points, offsets), "label": pa.array(np.arange(drawings), pa.int16())})
    pq.write_table(table, directory / "shard.parquet", row_group_size=group)
    groups = [
        RowGroup(shard="shard.parquet", index=number, split="train", rows=min(group, drawings - start))
        for number, start in enumerate(range(0, drawings, group))
    ]
    return Rows(str(directory), groups)


def labels(batch: Batch) -> list[int]:
    return batch.labels.tolist()


def padding(stream: list[Batch]) -> float:
    """The share of padded points that is padding."""
    padded = sum(int(batch.offsets.diff().max()) * len(batch) for batch in stream)
    return 1 - sum(len(batch.values) for batch in stream) / padded


@pytest.mark.parametrize("drawings", [1000, 1003, 1024])
@pytest.mark.parametrize("batch_size", [16, 24, 100])
def test_an_epoch_is_full_batches_of_different_drawings(tmp_path: Path, drawings: int, batch_size: int) -> None:
    feed = TrainFeed(make_rows(tmp_path, drawings), batch_size, seed=1)
    stream = list(batches(feed))
    seen = [label for batch in stream for label in labels(batch)]
    assert len(stream) == feed.steps
    assert {len(batch) for batch in stream} == {batch_size}
    assert len(set(seen)) == len(seen)
    # What is left out would not have filled another batch, give or take a drawing a lane.
    assert drawings - len(seen) < batch_size + feed.lanes


def test_a_batch_holds_whole_drawings(tmp_path: Path) -> None:
    for batch in batches(TrainFeed(make_rows(tmp_path, 300), 32, seed=0)):
        for number, label in enumerate(labels(batch)):
            points = batch.values[batch.offsets[number] : batch.offsets[number + 1]]
            assert len(points) > 0
            assert (points == label).all()


def test_epochs_and_seeds_differ_and_repeat(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 1000)

    def order(seed: int, epoch: int) -> list[int]:
        return [label for batch in batches(TrainFeed(rows, 32, seed), [epoch]) for label in labels(batch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_an_epoch_does_not_depend_on_those_before(tmp_path: Path) -> None:
    feed = TrainFeed(make_rows(tmp_path, 500), 32, seed=0)
    whole = [labels(batch) for batch in batches(feed, range(3))]
    resumed = [labels(batch) for batch in batches(feed, range(2, 3))]
    assert whole[2 * feed.steps :] == resumed


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_global_batches_are_the_same_for_any_number_of_workers(tmp_path: Path, world_size: int) -> None:
    rows = make_rows(tmp_path, 1000)
    alone = [set(labels(batch)) for batch in batches(TrainFeed(rows, 32, 5))]
    ranks = [list(batches(TrainFeed(rows, 32, 5, rank, world_size))) for rank in range(world_size)]
    together = [set().union(*(labels(batch) for batch in step)) for step in zip(*ranks, strict=True)]
    assert together == alone


def test_every_rank_does_the_same_steps_on_uneven_shards(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 997, group=50)
    for world_size in (2, 3, 5):
        feeds = [TrainFeed(rows, 30, 0, rank, world_size) for rank in range(world_size)]
        counts = {len(list(batches(feed))) for feed in feeds}
        assert counts == {feeds[0].steps}


def test_batches_are_of_like_length_but_not_in_order_of_length(tmp_path: Path) -> None:
    stream = list(batches(TrainFeed(make_rows(tmp_path, 4000), 32, seed=0)))
    means = np.array([len(batch.values) / len(batch) for batch in stream])
    # Lengths 1..60 in random batches of 32 would be padded to nearly 60, so that half of it were padding.
    assert padding(stream) < 0.2
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_few_drawings_make_one_smaller_batch(tmp_path: Path) -> None:
    feed = TrainFeed(make_rows(tmp_path, 20), 256, seed=0)
    assert [len(batch) for batch in batches(feed)] == [16]


def test_too_few_drawings_and_indivisible_batches_are_refused(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 7)
    with pytest.raises(DataError, match="7 training drawings for 1 workers are too few; ingest at least 8"):
        TrainFeed(rows, 256, seed=0)
    with pytest.raises(ValueError, match="batch_size=33 cannot be divided over 2 workers"):
        TrainFeed(rows, 33, 0, 0, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_evaluation_sees_each_drawing_once_over_all_ranks(tmp_path: Path, world_size: int) -> None:
    rows = make_rows(tmp_path, 37)
    stream = [batch for rank in range(world_size) for batch in batches(EvalFeed(rows, 8, rank, world_size))]
    assert sorted(label for batch in stream for label in labels(batch)) == list(range(37))


@pytest.mark.parametrize(("epochs", "skip"), [([0, 1], 0), ([0, 1], 40), ([1], 100)])
def test_ray_data_feeds_the_same_batches(cluster: str, tmp_path: Path, epochs: list[int], skip: int) -> None:
    """A thread leads, and the last windows are few enough for it alone."""
    feed = TrainFeed(make_rows(tmp_path, 3000), 16, 2, 1, 2)
    assert skip < feed.steps
    left = len(epochs) * feed.windows - skip // SLICES
    assert (left > HEAD_START) == (len(epochs) == 2)
    for ours, rays in zip(batches(feed, epochs, skip=skip), ray_batches(feed, epochs, skip=skip), strict=True):
        assert labels(ours) == labels(rays)
        assert (ours.values == rays.values).all()
        assert (ours.offsets == rays.offsets).all()


def test_a_feed_that_is_given_up_leaves_no_thread(cluster: str, tmp_path: Path) -> None:
    def threads() -> int:
        return sum(thread.name.startswith("feed") for thread in threading.enumerate())

    stream = ray_batches(TrainFeed(make_rows(tmp_path, 3000), 16, 2, 1, 2), [0, 1])
    next(stream)
    assert threads() == 2  # one reads, the other starts Ray Data
    del stream
    assert threads() == 0


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    feed = TrainFeed(make_rows(tmp_path, 100), 16, seed=0)
    (tmp_path / "shard.parquet").unlink()
    with pytest.raises(DataError, match=r"shard\.parquet.*the data set is damaged, ingest again"):
        next(batches(feed))
