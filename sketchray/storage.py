"""Paths and URIs, opened by pyarrow's file systems."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from sketchray.errors import Error


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a local path or a URI (`s3://`, `gs://`, ...), and the path on it.

    Raises:
        Error: no file system opens the URI.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), absolute(uri)
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Error(f"{uri}: not a URI that pyarrow opens ({error}); use a path, file://, s3:// or gs://") from error
    return filesystem, path


def absolute(uri: str) -> str:
    """Returns a local path made absolute, since Ray's workers start elsewhere; a URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def child(uri: str, name: str) -> str:
    """Returns the URI of something inside a directory; a query (`s3://bucket/runs?region=...`) stays at the end."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"
