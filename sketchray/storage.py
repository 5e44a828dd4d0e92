"""Paths and URIs, opened by pyarrow's file systems; what to do where a storage refuses."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from sketchray.errors import Error, StorageError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S, PAUSE_S = 900.0, 2.0  # with an object store that refuses; pyarrow itself gives up after 6 s
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# An object store's errors have no number, but for those that pyarrow translates. These are what S3 and GCS say.
STORE = re.compile(r"AWS Error|google::cloud::Status")
DENIED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|REQUEST_TIME_TOO_SKEWED|NO_SUCH_BUCKET|"
    r"UNKNOWN \(HTTP status (301|400|401|403|404|407)\))"
)
WAIT = "wait until the storage answers"
RESUME = "go on with --resume"


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a local path or a URI (`s3://`, `gs://`, ...), and the path on it.

    Raises:
        Error: no file system opens the URI.
        OSError: the bucket's region is asked for, and the store refuses.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), absolute(uri)
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and _remedy(error):
            raise
        raise Error(f"{uri}: not a URI that pyarrow opens ({error}); use a path, file://, s3:// or gs://") from error
    return filesystem, path


def absolute(uri: str) -> str:
    """Returns a local path made absolute, since Ray's workers start elsewhere; a URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def child(uri: str, name: str) -> str:
    """Returns the URI of something inside a directory; a query (`s3://bucket/runs?region=...`) stays at the end."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def read_file(uri: str) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        return bytes(file.read())


def _remedy(error: OSError) -> str | None:
    if error.errno in FULL:
        return "make room there"
    if error.errno in FORBIDDEN or DENIED.search(str(error)):
        return "give this job access to it"
    if error.errno is None and STORE.search(str(error)):
        return WAIT
    return None


@contextlib.contextmanager
def naming(uri: str, what: str = "cannot be used", then: str = RESUME) -> Iterator[None]:
    """Lets an error of pyarrow say what the user can do, where that is known; all others pass.

    Args:
        uri: of what is read or written inside.
        what: goes wrong then.
        then: is what the user does when the storage is in order.

    Raises:
        StorageError: the storage is full, forbidden, or does not answer.
    """
    try:
        yield
    except OSError as error:
        remedy = _remedy(error)
        if remedy is None:
            raise
        reason = os.strerror(error.errno) if error.errno else first_line(error)
        raise StorageError(f"{uri}: {what} ({reason}); {remedy}, then {then}") from error


def patiently(action: Callable[[], T], uri: str, what: str = "cannot be used", then: str = RESUME) -> T:
    """Returns what `action` returns. Where an object store refuses for now, it is asked again, for `PATIENCE_S`.

    For what runs long, and would lose more by an error than by waiting. What starts asks once, so that a mistake in a
    URI shows at once. A disk is not asked again.

    Args:
        action: may be called several times, from the beginning.
        uri, what, then: as for `naming`.

    Raises:
        StorageError: as `naming`.
    """
    deadline = time.monotonic() + PATIENCE_S
    with naming(uri, what, then):
        while True:
            try:
                return action()
            except OSError as error:
                if _remedy(error) != WAIT or time.monotonic() > deadline:
                    raise
                logger.warning("%s: the storage refuses, trying again (%s)", uri, first_line(error))
            time.sleep(PAUSE_S)
