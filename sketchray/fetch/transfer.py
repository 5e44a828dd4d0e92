"""The bytes of a URL in spite of what happens on the way: retried with back-off, resumed where cut, verified."""

import base64
import logging
import random
import re
import threading
import time
from dataclasses import dataclass
from typing import BinaryIO

import requests
import urllib3

from sketchray.errors import DataError
from sketchray.fetch.answer import DIGESTS, Digest, Version, read_version, retry_after_s

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When an attempt has failed, and how many follow it.

    Attributes:
        timeout_s: an attempt fails after so long without a connection or a byte.
        stall_s: it fails as well if in so long a time
        min_bytes_per_s: less than this arrives.
        attempts: after so many failures in a row it is given up; `stall_s * min_bytes_per_s` bytes won end the row.
        backoff_s: the wait after the first failure. It doubles each time, and a random part of it is left out.
        longest_wait_s: no wait is longer, not even one that the server asks for.
    """

    timeout_s: float = 30
    stall_s: float = 60
    min_bytes_per_s: float = 1024
    attempts: int = 6
    backoff_s: float = 1
    longest_wait_s: float = 120


DEFAULT = Limits()


class StartOver(Exception):  # noqa: N818 # no error: an order to whoever keeps the bytes
    """The bytes read so far are of no use: the next ones are the first ones again."""


class Stopped(Exception):  # noqa: N818
    """Another thread asked for the end of the transfer."""


class Transfer:
    """Reads a URL forward, once.

    Attributes:
        position: bytes read so far.
        version: what is read, once the server has answered.
    """

    def __init__(self, url: str, limits: Limits, stop: threading.Event | None = None) -> None:
        self.position = 0
        self.version: Version | None = None
        self._url = url
        self._limits = limits
        self._stop = stop or threading.Event()
        self._response: requests.Response | None = None
        self._digest: Digest | None = None
        self._failures = 0
        self._mismatches = 0
        self._won = 0  # the position that failures are counted from
        self._waited_s = 0.0  # for the bytes
        self._received = 0  # in that time

    def resume(self, version: Version, known: BinaryIO) -> None:
        """Goes on after what a file holds, up to its end, of this version. It must have an ETag."""
        self._begin(version)
        while chunk := known.read(CHUNK_BYTES):
            self._advance(chunk)
        self._won = self.position

    def read(self, number: int = CHUNK_BYTES) -> bytes:
        """Returns the next bytes, at most `number`; none at the end, when all are verified.

        Raises:
            StartOver: what was read before does not belong to what comes now.
            DataError: the URL is refused, or the attempts are used up.
            Stopped: as another thread asked.
        """
        while not self._stop.is_set():
            try:
                if not self._is_complete():
                    chunk = self._receive(self._response or self._connect(), number)
                    if chunk:
                        self._advance(chunk)
                        return chunk
                    if self.version is not None and self.version.size is not None:
                        raise _Failure("the connection was cut")
                self._verify()
            except _Failure as failure:
                self._retry(failure)
            except NETWORK_ERRORS as error:
                self._retry(_Failure(_describe(error)))
            else:
                self.close()
                return b""
        raise Stopped

    def close(self) -> None:
        """Drops the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _is_complete(self) -> bool:
        return self.version is not None and self.position == self.version.size

    def _begin(self, version: Version | None) -> None:
        self.version = version
        self.position = 0
        self._digest = DIGESTS[version.checksum[0]]() if version is not None and version.checksum else None

    def _advance(self, chunk: bytes) -> None:
        self.position += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)

    def _connect(self) -> requests.Response:
        headers = {"Accept-Encoding": "identity"}
        if self.position:
            assert self.version is not None
            assert self.version.etag is not None  # else it was started over
            headers |= {"Range": f"bytes={self.position}-", "If-Range": self.version.etag}
        try:
            response = requests.get(self._url, headers=headers, stream=True, timeout=self._limits.timeout_s)
        except ValueError as error:  # requests' own kinds of it
            raise DataError(f"{self._url}: not a URL that can be read ({error}); check it") from error
        self._response = response
        self._waited_s, self._received = 0.0, 0
        self._check_status(response)
        found = read_version(response)
        if not self.position:
            self._begin(found)
            return response
        assert self.version is not None
        if response.status_code == 206:
            size = self.version.size if self.version.size is not None else "*"
            continues = rf"bytes {self.position}-\d+/({size}|\*)"
            if (
                not re.fullmatch(continues, response.headers.get("Content-Range", ""))
                or found.etag != self.version.etag
            ):
                raise _Failure("another range came than was asked for", start_over=True)
        elif found == self.version:
            self._pass_over(response)
        else:
            raise _Failure("the file has changed meanwhile", start_over=True)
        return response

    def _check_status(self, response: requests.Response) -> None:
        status, encoding = response.status_code, response.headers.get("Content-Encoding", "identity")
        answer = f"{status} {response.reason}"
        if status in (408, 429) or status >= 500:
            raise _Failure(answer, wait_s=retry_after_s(response))
        if status == 416 or (status == 206 and not self.position):
            raise _Failure(answer, start_over=True)
        if status not in (200, 206):
            raise DataError(f"{self._url}: {answer}; check the address, and whether you may read it")
        if encoding != "identity":
            raise DataError(
                f"{self._url}: sent with Content-Encoding {encoding!r}; use a server that sends it as it is"
            )

    def _pass_over(self, response: requests.Response) -> None:
        """Reads what is known already, from a server that cannot begin in the middle."""
        left = self.position
        while left:
            chunk = self._receive(response, min(left, CHUNK_BYTES))
            if not chunk:
                raise _Failure("the connection was cut")
            left -= len(chunk)

    def _receive(self, response: requests.Response, number: int) -> bytes:
        """Returns what has arrived, at least a byte unless it is the end. Time is counted only while waiting here."""
        start = time.monotonic()
        chunk: bytes = response.raw.read1(number) or b""
        self._waited_s += time.monotonic() - start
        self._received += len(chunk)
        if self._waited_s >= self._limits.stall_s:
            if self._received < self._limits.min_bytes_per_s * self._waited_s:
                raise _Failure(f"stalled: {self._received} bytes in {self._waited_s:.0f} s")
            self._waited_s, self._received = 0.0, 0
        return chunk

    def _verify(self) -> None:
        if self.version is None or self.version.checksum is None or self._digest is None:
            return
        name, published = self.version.checksum
        found = base64.b64encode(self._digest.digest()).decode()
        if found == published:
            return
        self._mismatches += 1
        reason = f"its {name} is {found}, published is {published}"
        if self._mismatches > 1:
            raise DataError(f"{self._url}: {reason}, twice; the server's file is damaged: use another mirror")
        raise _Failure(reason, start_over=True)

    def _retry(self, failure: "_Failure") -> None:
        """Waits before the next attempt, if there is one."""
        self.close()
        limits = self._limits
        if self.position - self._won >= limits.stall_s * limits.min_bytes_per_s:
            self._won, self._failures = self.position, 0
        self._failures += 1
        if self._failures >= limits.attempts:
            raise DataError(
                f"{self._url}: {failure}, at byte {self.position:,}, after {limits.attempts} attempts; try later"
            )
        wait_s = failure.wait_s
        if wait_s is None:
            wait_s = limits.backoff_s * 2 ** (self._failures - 1) * random.uniform(0.5, 1)
        wait_s = min(wait_s, limits.longest_wait_s)
        logger.warning("%s: %s, at byte %s; again in %.1f s", self._url, failure, f"{self.position:,}", wait_s)
        self._stop.wait(wait_s)
        resumable = self.version is not None and self.version.etag is not None
        if self.position and (failure.start_over or not resumable):
            self._begin(None)
            raise StartOver(str(failure))


class _Failure(Exception):  # noqa: N818
    """An attempt that failed, and another may not."""

    def __init__(self, reason: str, *, start_over: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.start_over = start_over
        self.wait_s = wait_s


def _describe(error: Exception) -> str:
    """Returns a line for a network error: the innermost one says what happened."""
    while isinstance(error.args[-1] if error.args else None, Exception):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    return _describe(reason) if isinstance(reason, Exception) else str(error) or type(error).__name__
