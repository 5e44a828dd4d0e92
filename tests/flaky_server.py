"""An HTTP server on loopback that has the layout of Google's bucket, and misbehaves on command."""

import base64
import functools
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote

from sketchray import doodles
from sketchray.strokes import to_record

PIECE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request is answered; by default as it should be."""

    status: int | None = None  # instead of 200 or 206, with no body
    headers: Mapping[str, str | None] = field(default_factory=dict)  # in place of the right ones; None: left out
    cut: int | None = None  # the connection is closed after so many bytes of the body; -1: before the headers
    ranges: bool = True  # whether Range is understood
    content: bytes | None = None  # instead of the file's
    pause_s: float = 0  # before each piece of the body
    piece: int = PIECE


GOOD = Answer()


@dataclass
class Request:
    """What came, and how much of the body went out."""

    path: str
    headers: dict[str, str]
    time: float
    sent: int = 0


class FlakyServer:
    """Serves `files` (path to content). The answers of `script` are used up one a request; then comes `always`.

    Attributes:
        requests: those that came.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.script: list[Answer] = []
        self.always = GOOD
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def url_of(self, path: str) -> str:
        return f"{self.url}/{quote(path)}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(handler.path).lstrip("/")
        request = Request(path, {name.lower(): value for name, value in handler.headers.items()}, time.monotonic())
        with self.lock:
            self.requests.append(request)
            answer = self.script.pop(0) if self.script else self.always
        content = self.files.get(path) if answer.content is None else answer.content
        if answer.cut == -1:
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        status, body, headers = choose(content, request.headers, answer)
        handler.send_response(status)
        for name, value in {**headers, **answer.headers}.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        try:
            for start in range(0, len(body[: answer.cut]), answer.piece):
                time.sleep(answer.pause_s)
                piece = body[: answer.cut][start : start + answer.piece]
                handler.wfile.write(piece)
                request.sent += len(piece)
        except OSError:
            pass  # the client had enough


def choose(content: bytes | None, asked: Mapping[str, str], answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    """Returns status, body and headers, as Google Cloud Storage would give them."""
    if answer.status is not None:
        return answer.status, b"", {"Content-Length": "0"}
    if content is None:
        return 404, b"", {"Content-Length": "0"}
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if "x-goog-hash" not in answer.headers:
        headers["x-goog-hash"] = f"crc32c={crc32c(content)},md5={md5(content)}"
    wanted = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
    if wanted and answer.ranges and asked.get("if-range", etag) == etag:
        start = int(wanted[1])
        if start >= len(content):
            return 416, b"", {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"}
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, content[start:], {**headers, "Content-Length": str(len(content) - start)}
    return 200, content, {**headers, "Content-Length": str(len(content))}


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def crc_table() -> Iterable[int]:
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        yield crc


TABLE = tuple(crc_table())


@functools.cache
def crc32c(content: bytes) -> str:
    """Castagnoli's CRC, byte by byte, in base64."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return base64.b64encode((crc ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


def doodle_file(name: str, number: int = 60) -> bytes:
    """Returns a simplified ndjson file of a class; what is drawn are doodles of some kind."""
    kind = doodles.CLASSES[sum(name.encode()) % len(doodles.CLASSES)]
    records = (
        {"word": name, "key_id": str(index + 1), "recognized": True, "drawing": to_record(doodles.draw(kind, index))}
        for index in range(number)
    )
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
