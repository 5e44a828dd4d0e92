"""Requests that wait, answered together; without Ray."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sketchray.service.batching import Batcher, Done


class Model:
    """Answers with ten times the number; waits for `gate` first, and raises what it is told to.

    Attributes:
        batches: what it was given, in order.
        started: set when it was given something.
    """

    def __init__(self, *, open: bool = True) -> None:
        self.gate, self.started = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []
        self.fault: Exception | None = None
        if open:
            self.gate.set()

    def __call__(self, asked: list[int]) -> list[int]:
        self.batches.append(asked)
        self.started.set()
        assert self.gate.wait(30)
        if self.fault is not None:
            raise self.fault
        return [10 * number for number in asked]


def together(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test on an event loop."""
    asyncio.run(asyncio.wait_for(main(), 60))


async def gathered(batcher: Batcher[int, int], model: Model, numbers: range) -> list[asyncio.Task[int]]:
    """Asks for each number, while the model, whose gate is closed, works on the first; returns when all wait."""
    first = asyncio.create_task(batcher.ask(numbers[0]))
    await asyncio.to_thread(model.started.wait, 30)
    others = [asyncio.create_task(batcher.ask(number)) for number in numbers[1:]]
    await asyncio.sleep(0)
    return [first, *others]


def test_one_alone_is_answered_at_once_and_those_that_gather_meanwhile_together() -> None:
    model = Model(open=False)

    async def main() -> None:
        batcher = Batcher(model, 4)
        asked = await gathered(batcher, model, range(10))
        model.gate.set()
        assert await asyncio.gather(*asked) == [10 * number for number in range(10)]
        assert await batcher.ask(77) == 770  # and it goes on when all were answered

    together(main)
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9], [77]]


def test_a_fault_reaches_all_of_its_batch_and_nobody_else() -> None:
    model = Model(open=False)
    model.fault = RuntimeError("broken")

    async def main() -> None:
        batcher = Batcher(model, 4)
        asked = await gathered(batcher, model, range(5))
        model.gate.set()
        faults = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(fault) for fault in faults] == ["broken"] * 5
        model.fault = None
        assert await batcher.ask(8) == 80
        assert batcher.busy_s() == 0

    together(main)


def test_too_few_answers_are_a_fault() -> None:
    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(lambda asked: asked[1:], 4)
        with pytest.raises(ValueError, match="shorter"):
            await batcher.ask(1)

    together(main)


def test_who_is_cancelled_leaves_the_queue_and_the_others_get_their_own() -> None:
    model = Model(open=False)

    async def main() -> None:
        batcher = Batcher(model, 4)
        asked = await gathered(batcher, model, range(6))
        for index in (0, 2, 3):  # one that the model works on, and two that wait
            asked[index].cancel()
        await asyncio.sleep(0)
        model.gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [found[index] for index in (1, 4, 5)] == [10, 40, 50]
        assert all(isinstance(found[index], asyncio.CancelledError) for index in (0, 2, 3))

    together(main)
    assert model.batches == [[0], [1, 4, 5]]


def test_how_long_the_model_hangs_can_be_seen() -> None:
    model = Model(open=False)

    async def main() -> None:
        batcher = Batcher(model, 4)
        assert batcher.busy_s() == 0
        (asked,) = await gathered(batcher, model, range(1))
        await asyncio.sleep(0.05)
        assert batcher.busy_s() >= 0.05
        model.gate.set()
        await asked
        assert batcher.busy_s() == 0

    together(main)


def test_each_batch_is_told_of() -> None:
    model = Model(open=False)
    told: list[Done[int]] = []

    async def main() -> None:
        batcher = Batcher(model, 4, told.append)
        started = time.monotonic()
        asked = await gathered(batcher, model, range(3))
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(*asked)
        while len(told) < 2:
            await asyncio.sleep(0.01)
        took_s = time.monotonic() - started
        assert [done.answers for done in told] == [[0], [10, 20]]
        assert told[0].worked_s >= 0.05
        assert all(0.05 <= waited_s <= took_s for waited_s in told[1].waited_s)

    together(main)
