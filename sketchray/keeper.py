"""Stores a run's checkpoints, in the background and whole, and removes those that are no longer needed."""

import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow.fs as pafs

from sketchray import checkpoint as checkpoints
from sketchray.errors import RunError, first_line
from sketchray.owner import Claim
from sketchray.runs import checkpoint_name, is_checkpoint, remove, stored_checkpoints
from sketchray.storage import child, naming, open_filesystem, patiently

logger = logging.getLogger(__name__)


class Keeper:
    """Stores a run's checkpoints in the background, one after the other. Rank 0 only.

    After each, the last two and the best two are left. Anything else that a run may leave goes: what a kill tore, and
    what was passed over as damaged and has been learned again.
    """

    def __init__(self, run: str, claim: Claim | None = None) -> None:
        """Stores for the job whose `claim` it is, to this run or to its sweep; without one, nobody looks."""
        self.run, self.claim = run, claim
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

        Where it is waited for, so is an object store that refuses; the other ranks wait too.

        Raises:
            RunError: another job goes on with the run.
            StorageError: the storage is full, must not be written to, or does not answer.
            OSError: it cannot be written for another reason.
        """
        if self._lost is not None:
            raise self._lost
        if not wait and self._pending is not None and not self._pending.done():
            logger.warning("step %d: no checkpoint, since %s still takes the one before", step, self.run)
            return
        self._pending = self._thread.submit(self._store, step, contents, patient=wait)
        if wait:
            self._pending.result()
        else:
            self._pending.add_done_callback(_tell_failure)

    def close(self) -> None:
        """Waits for what is being stored."""
        self._thread.shutdown()

    def _store(self, step: int, contents: Mapping[str, bytes], *, patient: bool) -> None:
        uri = child(self.run, checkpoint_name(step))

        def put() -> None:
            self._check_owner()
            _write(uri, contents)

        if patient:
            patiently(put, uri, "cannot be written")
        else:
            with naming(uri, "cannot be written", "the next one is stored"):
                put()
        try:
            self._check_owner()  # it may have taken long
            self._tidy(checkpoint_name(step))
        except OSError as error:  # the next one is another try
            logger.warning("%s: older checkpoints are still there (%s)", self.run, first_line(error))

    def _check_owner(self) -> None:
        if self.claim is not None:
            try:
                self.claim.check()
            except RunError as error:
                self._lost = error
                raise

    def _tidy(self, latest: str) -> None:
        """Removes the checkpoints that are no longer needed now that `latest` is stored."""
        metas = {name: meta for name, meta in stored_checkpoints(self.run).items() if name <= latest}
        scores = {name: meta.metrics["val_top1"] for name, meta in metas.items() if "val_top1" in meta.metrics}
        wanted = {*list(metas)[:2], *sorted(scores, key=lambda name: scores[name])[-2:]}
        filesystem, path = open_filesystem(self.run)
        for entry in filesystem.get_file_info(pafs.FileSelector(path)):
            if is_checkpoint(entry.base_name) and entry.base_name not in wanted:
                remove(filesystem, entry.path)


def _write(uri: str, contents: Mapping[str, bytes]) -> None:
    """Writes a checkpoint, or leaves nothing of it."""
    filesystem, path = open_filesystem(uri)
    remove(filesystem, path)  # a torn one of the same step
    try:
        checkpoints.write(uri, contents)
    except OSError:
        with contextlib.suppress(OSError):
            remove(filesystem, path)
        raise


def _tell_failure(stored: "Future[None]") -> None:
    error = stored.exception()
    if error is not None:
        logger.warning("no checkpoint in the middle of the epoch: %s", error)
