"""Requests that wait, answered together. No Ray."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Done(NamedTuple, Generic[Answer]):
    """A batch that was answered.

    Attributes:
        answers: in the order in which the requests came.
        waited_s: how long each of them had waited.
        worked_s: how long the answers took.
    """

    answers: list[Answer]
    waited_s: list[float]
    worked_s: float


class Batcher(Generic[Asked, Answer]):
    """Gives what waits to `work`, as much as it takes at once, the moment that it is free.

    Nobody waits for a batch to fill: a request that comes alone is answered at once, and while it is, others gather.
    To be used from one event loop; `work` runs beside it, in a thread.
    """

    def __init__(
        self,
        work: Callable[[list[Asked]], list[Answer]],
        max_batch_size: int,
        note: Callable[[Done[Answer]], None] = lambda done: None,
    ) -> None:
        self._work, self._max_batch_size, self._note = work, max_batch_size, note
        self._waiting: dict[asyncio.Future[Answer], tuple[Asked, float]] = {}  # in the order in which they came
        self._thread = ThreadPoolExecutor(1, "model")
        self._working: asyncio.Task[None] | None = None
        self._since: float | None = None  # when the batch began that is being worked on

    async def ask(self, asked: Asked) -> Answer:
        """Returns the answer; one who is cancelled leaves the queue.

        Raises:
            Exception: what `work` raised about the batch.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[future] = asked, time.monotonic()
        if self._working is None:
            self._working = asyncio.create_task(self._work_on())
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    def busy_s(self) -> float:
        """Returns how long the batch takes already that is being worked on; 0 if there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    async def _work_on(self) -> None:
        """Answers until nobody waits."""
        try:
            while self._waiting:
                await self._answer_batch()
        finally:
            self._working = None

    async def _answer_batch(self) -> None:
        futures = list(islice(self._waiting, self._max_batch_size))
        batch, came = zip(*(self._waiting.pop(future) for future in futures), strict=True)
        self._since = started = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, list(batch))
            results = list(zip(futures, answers, strict=True))
        except Exception as error:  # whatever it is, it is theirs who asked; the next batch may be better
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        finally:
            self._since = None
        for future, answer in results:
            if not future.done():  # who was cancelled meanwhile wants none
                future.set_result(answer)
        self._note(Done(answers, [started - moment for moment in came], time.monotonic() - started))
