"""What a server says of a file: which version it is, how to check it, and when to ask again."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Protocol

import google_crc32c
import requests


class Digest(Protocol):
    """What hashlib's and google_crc32c's objects have in common."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


DIGESTS: dict[str, Callable[[], Digest]] = {
    "crc32c": google_crc32c.Checksum,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
}


@dataclass(frozen=True)
class Version:
    """What a server says of the bytes that it sends.

    Attributes:
        etag: a strong one, which equal bytes alone share; None if there is none.
        size: in bytes, if known.
        checksum: algorithm and value in base64, if published.
    """

    etag: str | None
    size: int | None
    checksum: tuple[str, str] | None


def retry_after_s(response: requests.Response) -> float | None:
    """Returns the seconds to wait that the server asks for, as a number or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def read_version(response: requests.Response) -> Version:
    """Returns the version that a whole answer, or one to a range, is of. The size is right in a whole answer only."""
    headers = response.headers
    etag = headers.get("ETag")
    size = headers.get("Content-Length", "")
    return Version(
        etag=etag if etag is not None and etag.startswith('"') else None,
        size=int(size) if size.isascii() and size.isdigit() else None,
        checksum=_checksum(headers),
    )


def _checksum(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns what Google Cloud Storage publishes of a whole object, in answers to ranges too."""
    if headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return None  # then it is of the compressed bytes, which do not come here
    pairs = dict(pair.strip().split("=", 1) for pair in headers.get("x-goog-hash", "").split(",") if "=" in pair)
    return next(((name, pairs[name]) for name in DIGESTS if name in pairs), None)
