"""Whose a run is. A run, or a sweep, has one job.

Two that learn the same, started twice by mistake or behind a network that was cut, would remove each other's
checkpoints. So each leaves its mark in `RUN/owner.json` when it begins to write there, and stops where it finds another
one's: the later job has the run.
"""

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.fs as pafs
from pydantic import BaseModel, ValidationError

from sketchray import checkpoint as checkpoints
from sketchray.errors import RunError
from sketchray.storage import child, open_filesystem, patiently, read_file

OWNER = "owner.json"


class Owner(BaseModel):
    """The job that has a run, or had it last, as `owner.json` says; the mark is "" where there was none."""

    mark: str = ""
    host: str = ""
    process: int = 0
    since: str = ""


@dataclass(frozen=True)
class Claim:
    """A job's claim to a run or a sweep. It can be sent to the job's other processes.

    Attributes:
        run: directory or URI.
        mark: of the job.
        before: the mark that it found when it began.
    """

    run: str
    mark: str
    before: str

    def take(self) -> None:
        """Makes the job the one that has the run, unless it is already.

        Raises:
            RunError: meanwhile another job has it, or the file is damaged.
            StorageError: the storage is full, must not be written to, or does not answer.
            OSError: it cannot be written for another reason.
        """
        found = patiently(lambda: _read(self.run), self.run)
        if found.mark == self.mark:
            return
        if found.mark not in ("", self.before):
            raise _refused(self.run, found)
        since = datetime.now(UTC).isoformat(" ", "seconds")
        owner = Owner(mark=self.mark, host=socket.gethostname(), process=os.getpid(), since=since)
        filesystem, path = open_filesystem(self.run)
        # Never half written where another job looks: an object is there at once, a file is not.
        beside = f".{OWNER}.{self.mark}" if isinstance(filesystem, pafs.LocalFileSystem) else OWNER
        contents = {beside: owner.model_dump_json().encode()}
        patiently(lambda: checkpoints.write(self.run, contents), self.run, "cannot be written")
        if beside != OWNER:
            filesystem.move(f"{path}/{beside}", f"{path}/{OWNER}")

    def check(self) -> None:
        """Looks whether the job still has the run. A file that somebody removed changes nothing.

        Raises:
            RunError: another job has it, or the file is damaged.
            OSError: it cannot be read.
        """
        found = _read(self.run)
        if found.mark not in ("", self.mark):
            raise _refused(self.run, found)


def claim(run: str) -> Claim:
    """Returns the claim of a new job.

    Raises:
        RunError: the file of an earlier one is damaged.
    """
    return Claim(run, uuid.uuid4().hex, _read(run).mark)


def _read(run: str) -> Owner:
    try:
        return Owner.model_validate_json(read_file(child(run, OWNER)))
    except FileNotFoundError:
        return Owner()
    except ValidationError as error:
        raise RunError(f"{child(run, OWNER)}: damaged; remove it, then go on with --resume") from error


def _refused(run: str, owner: Owner) -> RunError:
    return RunError(
        f"{run}: another job goes on here since {owner.since} (process {owner.process} on {owner.host}), so this one "
        f"stops; it was submitted twice, or --resume was given while it ran"
    )
