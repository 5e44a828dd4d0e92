"""Who may ask: keys from the environment, and keys of which a file holds the hashes."""

import hashlib
import hmac
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

KEYS = "SKETCHRAY_API_KEYS"  # environment variable: keys, separated by commas
KEYS_FILE = "SKETCHRAY_API_KEYS_FILE"  # environment variable: a file with the SHA-256 of a key on each line
HASH = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)

logger = logging.getLogger("ray.serve")  # whose lines Serve writes into the log of the replica


class Keyring:
    """The keys that are let in; without any, everyone is.

    A key is a long random text, so a plain SHA-256 of it tells nothing: unlike a password it cannot be guessed.

    Raises:
        ValueError: the file cannot be read, or a line of it is no hash.
    """

    def __init__(self, keys: str = "", file: str = "") -> None:
        self._own = [digest(key.strip().encode()) for key in keys.split(",") if key.strip()]
        self._file = Path(file) if file else None
        self._read: list[bytes] = []
        self._seen = self._state()
        if self._file is not None:
            self._read = read_hashes(self._file)

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Returns the keyring that the environment describes."""
        return cls(environment.get(KEYS, ""), environment.get(KEYS_FILE, ""))

    @property
    def guards(self) -> bool:
        """Whether a key is needed; a file without keys lets no one in."""
        return bool(self._own) or self._file is not None

    def knows(self, authorization: bytes) -> bool:
        """Tells whether the header `Authorization` has a key that is let in."""
        scheme, _, key = authorization.partition(b" ")
        self._refresh()
        given = digest(key.strip())
        # A sum, not any(): every hash is compared, each in constant time.
        found = sum(hmac.compare_digest(given, known) for known in self._own + self._read)
        return found > 0 and scheme.lower() == b"bearer"

    def _refresh(self) -> None:
        """Reads the file again when it has changed; one that is then broken changes nothing, and is logged."""
        state = self._state()
        if self._file is None or state == self._seen:
            return
        self._seen = state
        try:
            self._read = read_hashes(self._file)
            logger.info("%s: read again, %d keys", self._file, len(self._read))
        except ValueError as error:
            logger.error("%s; the keys read before stay", error)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._file) if self._file is not None else None
        except OSError:
            return None
        return stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def digest(key: bytes) -> bytes:
    """Returns the SHA-256 of a key."""
    return hashlib.sha256(key).digest()


def read_hashes(file: Path) -> list[bytes]:
    """Returns the hashes of a file: one a line in hexadecimal digits, then a space and whose key it is, if you like.

    Blank lines and lines that start with `#` are passed over.

    Raises:
        ValueError: the file cannot be read, or a line is no hash. What stands there is not told: it may be a key.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{KEYS_FILE}={file}: {error}; name a readable file of SHA-256 hashes, one a line") from error
    hashes = []
    for number, line in enumerate(lines, 1):
        word = line.split(maxsplit=1)[:1]
        if not word or word[0].startswith("#"):
            continue
        if not HASH.fullmatch(word[0]):
            raise ValueError(f"{KEYS_FILE}={file}: line {number} does not start with 64 hexadecimal digits (SHA-256)")
        hashes.append(bytes.fromhex(word[0]))
    return hashes


def is_loopback(host: str | None) -> bool:
    """Tells whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:  # None, which is every interface for HAProxy, or the name of a machine
        return False


def check_door(host: str | None, keyring: Keyring) -> None:
    """Refuses to serve everybody.

    Args:
        host: what Serve's proxies listen on.

    Raises:
        ValueError: others reach `host`, and no key is needed.
    """
    if not keyring.guards and not is_loopback(host):
        raise ValueError(
            f"http_options.host {host}: without keys the service listens on 127.0.0.1 only; set {KEYS} or {KEYS_FILE} "
            "in the runtime_env of the application, or http_options.host to 127.0.0.1 (and start Serve anew)"
        )
