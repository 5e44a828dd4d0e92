"""Files at URIs, listed and opened by fsspec; those of the web by `sketchray.fetch.transfer`."""

import glob
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from sketchray.errors import DataError
from sketchray.fetch.transfer import CHUNK_BYTES, DEFAULT, Limits, StartOver, Transfer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs, with tracebacks, what it raises or gets over anyway

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
CREDENTIALS = {
    "s3fs": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a store that is not Amazon's), "
    "or FSSPEC_S3_ANON=true for a public bucket",
    "gcsfs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
}


def is_web(uri: str) -> bool:
    """Returns whether a URI is of a single file that comes by HTTP."""
    return uri.startswith(("http://", "https://"))


def open_uri(uri: str, *, limits: Limits = DEFAULT) -> BinaryIO:
    """Returns the file at a URI, open for reading. One that comes by HTTP is read forward only.

    Raises:
        DataError: nothing opens the URI, or it is not there, or may not be read.
    """
    if is_web(uri):
        return open_stream(uri, limits)
    with _explained(uri):
        filesystem, path = url_to_fs(uri)
        return cast(BinaryIO, filesystem.open(path, "rb"))


def list_uris(uri: str) -> list[str]:
    """Returns the files of a URI in the order of their names: of a directory, of a glob pattern, or itself.

    Raises:
        DataError: nothing opens the URI, or nothing is there, or it may not be listed.
    """
    if is_web(uri):
        return [uri]
    with _explained(uri):
        filesystem, path = url_to_fs(uri)
        if filesystem.isfile(path):
            return [uri]
        if glob.has_magic(path):
            found = filesystem.glob(path, detail=True).values()
        else:
            found = filesystem.ls(path, detail=True)
        files = [filesystem.unstrip_protocol(item["name"]) for item in found if item["type"] == "file"]
    if not files:
        raise DataError(f"{uri}: no file is there; name a file, a directory or a glob pattern")
    return sorted(files)


class _Stream(io.RawIOBase):
    """A transfer as a file that is read forward."""

    def __init__(self, url: str, limits: Limits) -> None:
        self._url = url
        self._transfer = Transfer(url, limits)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            chunk = self._transfer.read(len(view))
        except StartOver as error:
            raise DataError(f"{self._url}: {error}, and what was read of it is used already; run again") from error
        view[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._transfer.close()
        super().close()


def open_stream(url: str, limits: Limits = DEFAULT) -> BinaryIO:
    """Returns the file at a URL, to be read forward. It is fetched as it is read: one closed early costs no more.

    Cuts are mended unseen. At the end, length and checksum are verified.

    Raises:
        DataError: (when it is read) the URL is refused, cannot be reached, changes or is damaged.
    """
    return cast(BinaryIO, io.BufferedReader(_Stream(url, limits), CHUNK_BYTES))


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns what fsspec's file systems raise into a DataError that says what to do."""
    protocol = uri.partition("://")[0]
    package = PACKAGES.get(protocol, "")
    try:
        yield
    except ImportError as error:
        remedy = f"pip install {package}" if package else f"install the package of fsspec that opens {protocol}://"
        raise DataError(f"{uri}: {error}; {remedy}") from error
    except FileNotFoundError as error:
        raise DataError(f"{uri}: there is no such file, directory or bucket; check the name") from error
    except PermissionError as error:
        remedy = CREDENTIALS.get(package, "check who may read it")
        raise DataError(f"{uri}: access is denied ({error}); {remedy}") from error
    except Exception as error:  # each cloud's library has a tree of exceptions of its own
        remedy = CREDENTIALS.get(package, f"known are {', '.join(sorted(set(PACKAGES)))}, file, http and https")
        raise DataError(f"{uri}: cannot be opened ({type(error).__name__}: {error}); {remedy}") from error
