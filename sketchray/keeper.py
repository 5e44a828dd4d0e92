"""Stores a run's checkpoints, in the background and whole, and removes those that are no longer needed."""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow.fs as pafs

from sketchray import checkpoint as checkpoints
from sketchray.errors import RunError
from sketchray.runs import check_owner, checkpoint_name, is_checkpoint, remove, stored_checkpoints
from sketchray.storage import child, open_filesystem

logger = logging.getLogger(__name__)

# Trying again helps against none of these.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
PATIENCE_S, PAUSE_S = 300.0, 2.0  # with an object store that refuses; pyarrow itself gives up after 7 s


class Keeper:
    """Stores a run's checkpoints in the background, one after the other. Rank 0 only.

    After each, the last two and the best two are left. Anything else that a run may leave goes: what a kill tore, and
    what was passed over as damaged and has been learned again.
    """

    def __init__(self, run: str, owner: str = "") -> None:
        """Stores for the job that `take_over` gave this `owner`; without one, no other job can have the run."""
        self.run, self.owner = run, owner
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
        if self.owner:
            check_owner(self.run, self.owner)
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
        self._tidy(name)

    def _tidy(self, latest: str) -> None:
        """Removes the checkpoints that are no longer needed now that `latest` is stored."""
        metas = {name: meta for name, meta in stored_checkpoints(self.run).items() if name <= latest}
        scores = {name: meta.metrics["val_top1"] for name, meta in metas.items() if "val_top1" in meta.metrics}
        wanted = {*list(metas)[:2], *sorted(scores, key=lambda name: scores[name])[-2:]}
        filesystem, path = open_filesystem(self.run)
        for entry in filesystem.get_file_info(pafs.FileSelector(path)):
            if is_checkpoint(entry.base_name) and entry.base_name not in wanted:
                remove(filesystem, entry.path)


def _tell_failure(stored: "Future[None]") -> None:
    error = stored.exception()
    if error is not None:
        logger.warning("no checkpoint in the middle of the epoch: %s", error)


def raise_if_full(uri: str, error: OSError) -> None:
    """Raises RunError where a storage is full or must not be written to, so that trying again is in vain."""
    if error.errno in FULL:
        reason = os.strerror(error.errno)
        raise RunError(f"{uri}: cannot be written ({reason}); make room there, then go on with --resume") from error
