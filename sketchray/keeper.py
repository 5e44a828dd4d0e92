"""Stores a run's checkpoints, in the background and whole, and removes those that are no longer needed.

A run has one job. Two that learn the same run, started twice by mistake or behind a network that was cut, would remove
each other's checkpoints. So each leaves its mark in `RUN/owner.json` when its workers start, and stops where it finds
another one's: the later job has the run.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow.fs as pafs
from pydantic import BaseModel, ValidationError

from sketchray import checkpoint as checkpoints
from sketchray.errors import RunError
from sketchray.runs import checkpoint_name, is_checkpoint, remove, stored_checkpoints
from sketchray.storage import child, open_filesystem

logger = logging.getLogger(__name__)

OWNER = "owner.json"
# Trying again helps against none of these.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
PATIENCE_S, PAUSE_S = 300.0, 2.0  # with an object store that refuses; pyarrow itself gives up after 7 s


class Keeper:
    """Stores a run's checkpoints in the background, one after the other. Rank 0 only.

    After each, the last two and the best two are left. Anything else that a run may leave goes: what a kill tore, and
    what was passed over as damaged and has been learned again.
    """

    def __init__(self, run: str, owner: str = "") -> None:
        """Stores for the job whose mark is `owner`; without one, nobody looks whose run it is."""
        self.run, self.owner = run, owner
        self._lost: RunError | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def keep(self, step: int, contents: Mapping[str, bytes], *, wait: bool) -> None:
        """Stores a checkpoint.

        Args:
            step: after which it was made.
            contents: what `checkpoint.pack` returned.
            wait: until it is stored. If not, a failure is only told, since the next checkpoint is another try; and
                where the storage is still busy with the one before, this one is left out.

        Where it is waited for, an object store that refuses (an answer of 503, a network that fails) is asked again for
        `PATIENCE_S`: the other ranks wait meanwhile, which costs less than an epoch that is learned again.

        Raises:
            RunError: the storage is full or must not be written to, or another job goes on with the run.
            OSError: it cannot be written for another reason.
        """
        if self._lost is not None:
            raise self._lost
        if not wait and self._pending is not None and not self._pending.done():
            logger.warning("step %d: no checkpoint, since %s still takes the one before", step, self.run)
            return
        self._pending = self._thread.submit(self._insist if wait else self._store, step, contents)
        if wait:
            self._pending.result()
        else:
            self._pending.add_done_callback(_tell_failure)

    def close(self) -> None:
        """Waits for what is being stored."""
        self._thread.shutdown()

    def _insist(self, step: int, contents: Mapping[str, bytes]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._store(step, contents)
            except OSError as error:
                # An object store's errors have no number; those of a disk do, and last.
                if error.errno is not None or time.monotonic() > deadline:
                    raise
                logger.warning("step %d: the checkpoint is not stored yet, trying again (%s)", step, error)
            time.sleep(PAUSE_S)

    def _store(self, step: int, contents: Mapping[str, bytes]) -> None:
        self._check_owner()
        name = checkpoint_name(step)
        uri = child(self.run, name)
        filesystem, path = open_filesystem(uri)
        remove(filesystem, path)  # a torn one of the same step
        try:
            checkpoints.write(uri, contents)
        except OSError as error:
            with contextlib.suppress(OSError):
                remove(filesystem, path)
            raise_if_full(uri, error)
            raise
        self._check_owner()  # it may have taken long
        self._tidy(name)

    def _check_owner(self) -> None:
        if self.owner and (found := _read_owner(self.run)).mark not in ("", self.owner):
            self._lost = found.refusal(self.run)
            raise self._lost

    def _tidy(self, latest: str) -> None:
        """Removes the checkpoints that are no longer needed now that `latest` is stored."""
        metas = {name: meta for name, meta in stored_checkpoints(self.run).items() if name <= latest}
        scores = {name: meta.metrics["val_top1"] for name, meta in metas.items() if "val_top1" in meta.metrics}
        wanted = {*list(metas)[:2], *sorted(scores, key=lambda name: scores[name])[-2:]}
        filesystem, path = open_filesystem(self.run)
        for entry in filesystem.get_file_info(pafs.FileSelector(path)):
            if is_checkpoint(entry.base_name) and entry.base_name not in wanted:
                remove(filesystem, entry.path)


class Owner(BaseModel):
    """The job that learns a run, or learned it last, as `owner.json` has it; the mark is "" where there was none."""

    mark: str = ""
    host: str = ""
    process: int = 0
    since: str = ""

    def refusal(self, run: str) -> RunError:
        """Returns the error of another job."""
        return RunError(
            f"{run}: another job goes on with this run since {self.since} (process {self.process} on {self.host}), so "
            f"this one stops; it was submitted twice, or --resume was given while it ran"
        )


def owner_of(run: str) -> str:
    """Returns the mark of the job that learns a run, or learned it last; "" where there was none.

    Raises:
        RunError: the file is damaged.
    """
    return _read_owner(run).mark


def take_over(run: str, mark: str, before: str) -> None:
    """Makes a job the one that learns a run, unless it is already. Rank 0 only, when a group of workers starts.

    Args:
        run: directory or URI.
        mark: of the job.
        before: what `owner_of` returned when the job began.

    Raises:
        RunError: meanwhile another job has it, or the storage is full or must not be written to.
        OSError: it cannot be written.
    """
    found = _read_owner(run)
    if found.mark == mark:
        return
    if found.mark != before:
        raise found.refusal(run)
    since = datetime.now(UTC).isoformat(" ", "seconds")
    owner = Owner(mark=mark, host=socket.gethostname(), process=os.getpid(), since=since)
    filesystem, path = open_filesystem(run)
    # Never half written where another job looks: an object is there at once, a file is not.
    beside = f".{OWNER}.{mark}" if isinstance(filesystem, pafs.LocalFileSystem) else OWNER
    try:
        checkpoints.write(run, {beside: owner.model_dump_json().encode()})
    except OSError as error:
        raise_if_full(run, error)
        raise
    if beside != OWNER:
        filesystem.move(f"{path}/{beside}", f"{path}/{OWNER}")


def _read_owner(run: str) -> Owner:
    filesystem, path = open_filesystem(child(run, OWNER))
    try:
        with filesystem.open_input_file(path) as file:
            return Owner.model_validate_json(file.read())
    except FileNotFoundError:
        return Owner()
    except ValidationError as error:
        raise RunError(f"{child(run, OWNER)}: damaged; remove it, then go on with --resume") from error


def _tell_failure(stored: "Future[None]") -> None:
    error = stored.exception()
    if error is not None:
        logger.warning("no checkpoint in the middle of the epoch: %s", error)


def raise_if_full(uri: str, error: OSError) -> None:
    """Raises RunError where a storage is full or must not be written to, so that trying again is in vain."""
    if error.errno in FULL:
        reason = os.strerror(error.errno)
        raise RunError(f"{uri}: cannot be written ({reason}); make room there, then go on with --resume") from error
