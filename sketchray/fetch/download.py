"""Files of the web, kept in a cache: whole or not at all."""

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from sketchray.errors import DataError
from sketchray.fetch.answer import Version
from sketchray.fetch.transfer import DEFAULT, Limits, StartOver, Stopped, Transfer

logger = logging.getLogger(__name__)

PARALLEL = 4  # files at a time: one connection alone seldom fills a line, and more would be unkind to the server


def default_cache_dir() -> Path:
    """Returns where downloads are kept by default: `$XDG_CACHE_HOME/sketchray` or `~/.cache/sketchray`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sketchray"


def cached_path(url: str, cache_dir: Path) -> Path:
    """Returns where the file of a URL is kept: under its own name, in a directory for the URL's directory.

    Raises:
        DataError: the URL names no file.
    """
    parts = urlsplit(url)
    directory, _, quoted = parts.path.rpartition("/")
    name = unquote(quoted)
    if parts.scheme not in ("http", "https") or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise DataError(f"{url}: names no file; expected http(s)://HOST/PATH/FILE")
    place = sha256(f"{parts.scheme}://{parts.netloc}{directory}?{parts.query}".encode()).hexdigest()[:12]
    return cache_dir / f"{parts.hostname}-{place}" / name


def download(urls: Sequence[str], cache_dir: Path, *, limits: Limits = DEFAULT) -> list[Path]:
    """Returns the local files of URLs, in their order. What the cache lacks is fetched, some files at a time.

    A file that is there under its own name is whole, and is not asked for again. Until it is, it is `NAME.part`, from
    which the next call goes on, also after a kill. Processes that want the same file wait for the first of them.

    Args:
        urls: http or https.
        cache_dir: is made if need be.
        limits: of the attempts.

    Raises:
        DataError: a file is refused, damaged or out of reach, or cannot be written. What is complete stays.
    """
    paths = [cached_path(url, cache_dir) for url in urls]
    if not paths:
        return []
    wanted = dict(zip(paths, urls, strict=True))
    progress = _Progress(len(wanted))
    stop = threading.Event()
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(_fetch, url, path, limits, progress, stop) for path, url in wanted.items()]
        try:
            for future in as_completed(futures):
                future.result()
        finally:  # after an error, Ctrl-C too, the other threads stop where they are
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    progress.log()
    return paths


class _Progress:
    """Logs what all the threads have done, at most once a second."""

    def __init__(self, num_files: int) -> None:
        self._num_files = num_files
        self._finished = 0
        self._received = 0
        self._running: dict[str, tuple[int, int | None]] = {}
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()

    def add(self, name: str, received: int, position: int, size: int | None) -> None:
        """Counts bytes of a file that is now read up to a position."""
        with self._lock:
            self._received += received
            self._running[name] = (position, size)
            if time.monotonic() - self._last >= 1:
                self.log()

    def finish(self, name: str) -> None:
        """Counts a file that is complete."""
        with self._lock:
            self._finished += 1
            self._running.pop(name, None)

    def log(self) -> None:
        """Logs a line: each file under way, and the total."""
        self._last = time.monotonic()
        files = [
            f"{name} {position / 1e6:.1f} of {'?' if size is None else f'{size / 1e6:.1f}'} MB"
            for name, (position, size) in self._running.items()
        ]
        rate = self._received / 1e6 / max(self._last - self._start, 1e-3)
        total = f"{self._finished} of {self._num_files} files, {self._received / 1e6:.1f} MB at {rate:.1f} MB/s"
        logger.info("download: %s", "; ".join([*files, total]))


def _fetch(url: str, path: Path, limits: Limits, progress: _Progress, stop: threading.Event) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock").acquire(cancel_check=stop.is_set):
            if not path.exists():
                _fill(Transfer(url, limits, stop), path, progress)
    except Timeout:  # as the check said
        raise Stopped from None
    except OSError as error:
        remedy = f"free space there, or name another cache directory than {path.parents[1]}"
        raise DataError(f"{error.filename or path}: {error.strerror or error}; {remedy}") from error
    progress.finish(path.name)


def _fill(transfer: Transfer, path: Path, progress: _Progress) -> None:
    """Fetches what is missing of a file, and gives it its name when it is whole."""
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    noted = _read_note(note)
    with part.open("a+b" if noted is not None else "w+b") as file:
        if noted is not None:
            file.seek(0)
            transfer.resume(noted, file)
        try:
            while chunk := _read(transfer, file):
                version = transfer.version
                assert version is not None
                if version != noted:  # noted before its first byte is written: the bytes are never of another
                    note.write_text(json.dumps(asdict(version)))
                    noted = version
                file.write(chunk)
                progress.add(path.name, len(chunk), transfer.position, version.size)
        finally:
            transfer.close()
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    note.unlink(missing_ok=True)


def _read_note(note: Path) -> Version | None:
    """Returns the version of what a process before this one left, if it is one to go on with."""
    try:
        stored = json.loads(note.read_text())
    except (FileNotFoundError, ValueError):  # ValueError: it was killed while it wrote the note
        return None
    name_and_value = stored["checksum"]
    version = Version(stored["etag"], stored["size"], tuple(name_and_value) if name_and_value else None)
    return version if version.etag is not None else None


def _read(transfer: Transfer, file: BinaryIO) -> bytes:
    """Returns the next bytes, before which the file is emptied if they are the first ones again."""
    while True:
        try:
            return transfer.read()
        except StartOver:
            file.seek(0)
            file.truncate()
