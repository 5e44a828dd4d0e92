"""The working directory of an ingest: what is done so far, so that a killed one goes on where it was."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow.fs as pafs

from sketchray.errors import DataError, RunError
from sketchray.shards import MANIFEST
from sketchray.storage import child, open_filesystem, patiently, read_file

T = TypeVar("T")

STAGE = "_ingest"
PLAN = "plan.json"
ATTEMPTS = 50  # to remove what tasks may still write, 0.1 s apart
CARD, QUARANTINE = "card.html", "quarantine.ndjson"
AGAIN = "run the same command again to go on: what is complete stays"


class Stage:
    """The output directory of an ingest, and `_ingest` inside it. It can be sent to other processes.

    Files get their names when they are whole. What `_ingest` reports as done was complete before the report was.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self.is_new = False  # whether the directory is made by this ingest

    def check(self) -> None:
        """Refuses a directory that an ingest cannot write to, or should not.

        Raises:
            DataError: it is in use for something else.
        """
        filesystem, path = open_filesystem(self.out)
        kind = filesystem.get_file_info(path).type
        self.is_new = bool(kind == pafs.FileType.NotFound)
        if kind == pafs.FileType.File:
            raise DataError(f"--out {self.out}: is a file; name a directory")
        names = self.names()
        if MANIFEST in names and PLAN not in self.names(STAGE):
            raise DataError(f"--out {self.out}: already holds a data set; choose another directory or remove it")
        foreign = [name for name in names if not _is_ours(name)]
        if foreign:
            raise DataError(f"--out {self.out}: holds other files ({foreign[0]}); choose an empty directory")

    def open(self, plan: Any) -> bool:
        """Makes the directories for a plan; returns whether they hold the start of an ingest by the same plan.

        Raises:
            DataError: they hold the start of another ingest, or cannot be written.
        """
        if PLAN in self.names(STAGE):
            if self.read_json(PLAN) == plan:
                return True
            if self.reports("group"):
                raise DataError(
                    f"--out {self.out}: holds an unfinished ingest of another source, or with other flags; "
                    "run it again with those, choose another directory, or remove this one"
                )
        self._empty()
        filesystem, path = open_filesystem(self.out)
        try:
            filesystem.create_dir(f"{path}/{STAGE}")
            self.write(f"{STAGE}/{PLAN}", json.dumps(plan).encode())
        except (OSError, RunError) as error:
            raise DataError(f"--out {self.out}: cannot write there ({error}); choose another directory") from error
        return False

    def names(self, directory: str = "") -> list[str]:
        """Returns the names of what is in the output directory, or in one inside it; none if it does not exist."""
        filesystem, path = open_filesystem(self.out)
        selector = pafs.FileSelector(f"{path}/{directory}".rstrip("/"), allow_not_found=True)
        return sorted(info.base_name for info in filesystem.get_file_info(selector))

    def reports(self, kind: str) -> list[str]:
        """Returns the names of the reports of `group`s or `shard`s that are done, in order."""
        return [name for name in self.names(STAGE) if name.startswith(f"{kind}-") and name.endswith(".json")]

    def read_json(self, name: str) -> Any:
        """Returns the content of a file of `_ingest`."""
        return json.loads(self.use(lambda: read_file(child(self.out, f"{STAGE}/{name}"))))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file of the output directory, whole or not at all.

        Raises:
            RunError, StorageError: as `use`.
        """

        def put() -> None:
            filesystem, path = open_filesystem(self.out)
            # An object store makes an object when it is complete; a rename there would be a copy.
            is_local = isinstance(filesystem, pafs.LocalFileSystem)
            target = f"{path}/{STAGE}/{uuid4().hex}.tmp" if is_local else f"{path}/{name}"
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)
            if is_local:
                filesystem.move(target, f"{path}/{name}")

        self.use(put)

    def use(self, action: Callable[[], T]) -> T:
        """Returns what `action` returns, which reads or writes in the output directory, and may be called again.

        Raises:
            StorageError: the storage is full, forbidden, or does not answer.
            RunError: it fails otherwise.
        """
        try:
            return patiently(action, f"--out {self.out}", then=AGAIN)
        except OSError as error:
            raise RunError(f"--out {self.out}: cannot be used ({error}); {AGAIN}") from error

    def join(self, kind: str, name: str) -> None:
        """Writes what tasks left in `_ingest` as `KIND-*.ndjson` into one file, in their order."""

        def put() -> None:
            filesystem, path = open_filesystem(self.out)
            with filesystem.open_output_stream(f"{path}/{name}") as stream:
                for piece in self.names(STAGE):
                    if piece.startswith(f"{kind}-") and piece.endswith(".ndjson"):
                        with filesystem.open_input_stream(f"{path}/{STAGE}/{piece}") as source:
                            stream.upload(source)

        self.use(put)

    def finish(self) -> None:
        """Removes `_ingest`, the plan first: without it, what is left of it is no start of anything."""

        def clear() -> None:
            filesystem, path = open_filesystem(self.out)
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(f"{path}/{STAGE}/{PLAN}")
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(f"{path}/{STAGE}")

        self.use(clear)

    def remove(self) -> None:
        """Removes all that an ingest writes, and the directory if it is of its making."""
        filesystem, path = open_filesystem(self.out)
        for attempt in range(ATTEMPTS):
            try:
                self._empty()
                if self.is_new and not self.names():
                    filesystem.delete_dir(path)
                return
            except OSError:  # a task that Ray has not stopped yet still wrote there
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1)

    def _empty(self) -> None:
        filesystem, path = open_filesystem(self.out)
        for name in self.names():
            if name == STAGE:
                filesystem.delete_dir(f"{path}/{name}")
            elif _is_ours(name):
                filesystem.delete_file(f"{path}/{name}")


def _is_ours(name: str) -> bool:
    return name in (STAGE, CARD, QUARANTINE, MANIFEST) or (name.startswith("shard-") and name.endswith(".parquet"))
