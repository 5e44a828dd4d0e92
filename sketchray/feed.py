"""The feeding: windows of drawings as batches of tensors, by Ray Data, or by a thread where there is no Ray."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa
import torch

from sketchray.batch import Batch
from sketchray.columns import from_column
from sketchray.order import SLICES, Feed, Read, windows_of

WINDOWS_PER_PIPELINE = 4_096  # planning a pipeline takes a while for each of its tasks
HEAD_START = 4  # windows that a rank reads by itself while the processes of Ray Data start, some seconds


def collate(table: pa.Table) -> Batch:
    """Returns the drawings of an Arrow table as tensors on the CPU."""
    values, offsets = from_column(table["points"])
    labels = table["label"].to_numpy().astype(np.int64)
    # Ray hands out read-only memory and PyTorch wants to own what it may write; the copy is 270 bytes a drawing.
    return Batch(torch.from_numpy(values.copy()), torch.from_numpy(offsets), torch.from_numpy(labels))


def batches(feed: Feed, epochs: Iterable[int] = (0,), *, skip: int = 0) -> Iterator[Batch]:
    """Yields the batches of some epochs, read two windows ahead by a thread of this process. Needs no Ray.

    Args:
        skip: batches of the first epoch that are left out, a TrainFeed's only: what a run learned before it went on.
    """
    todo, rest = _after(windows_of(feed, epochs), skip)
    return islice(_threaded(feed, todo), rest, None)


def _after(todo: list[tuple[int, int]], skip: int) -> tuple[list[tuple[int, int]], int]:
    """Returns the windows that are left after `skip` batches, and how many batches of the first are to be skipped."""
    windows, rest = divmod(skip, SLICES)
    return todo[windows:], rest


def _threaded(feed: Feed, todo: list[tuple[int, int]]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1, "feed") as reader:
        pending = deque(reader.submit(feed.read, *todo.pop(0)) for _ in range(min(2, len(todo))))
        for following in [*todo, *[None] * len(pending)]:
            table = pending.popleft().result()
            if following is not None:
                pending.append(reader.submit(feed.read, *following))
            yield from feed.cut(collate(table))


def ray_batches(feed: Feed, epochs: Iterable[int] = (0,), *, skip: int = 0) -> Iterator[Batch]:
    """Yields the same batches as `batches`, read ahead by Ray Data's tasks, anywhere in the cluster.

    Each rank runs a streaming pipeline of its own, one task a window, in order. It goes on across the end of an epoch,
    so that no epoch starts by waiting. Nor does the first, whose first windows a thread reads meanwhile.

    Args:
        skip: as for `batches`.
    """
    todo, rest = _after(windows_of(feed, epochs), skip)
    return islice(_led(feed, todo[:HEAD_START], todo[HEAD_START:]), rest, None)


def _led(feed: Feed, head: list[tuple[int, int]], tail: list[tuple[int, int]]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1, "feed") as starter:
        piped = _piped(feed, tail)
        first = starter.submit(lambda: list(islice(piped, 1)))
        yield from _threaded(feed, head)
        yield from first.result()
    del first
    yield from piped


def _piped(feed: Feed, todo: list[tuple[int, int]]) -> Iterator[Batch]:
    if not todo:
        return
    import ray
    from ray.data.collate_fn import ArrowBatchCollateFn

    class Collate(ArrowBatchCollateFn):
        """Stateless, since Ray Data calls it in several threads."""

        def __call__(self, batch: pa.Table) -> Batch:  # type: ignore[override]  # Ray passes any type on
            return collate(batch)

    for start in range(0, len(todo), WINDOWS_PER_PIPELINE):
        part = todo[start : start + WINDOWS_PER_PIPELINE]
        # The tasks reserve no CPU: what a killed job had reserved would keep the next one waiting, and an elastic group
        # may be given every CPU of a cluster that shrinks. (Those of `ray.data.range` reserve one each.)
        places = ray.data.from_items(list(range(len(part))), override_num_blocks=len(part))
        dataset = places.map_batches(
            Read(feed, part),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(2),
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        dataset.context.raise_original_map_exception = True  # so that what stops a run can be told
        for window in dataset.iter_torch_batches(batch_size=None, collate_fn=Collate(), device="cpu"):
            yield from feed.cut(window)  # type: ignore[arg-type]
