"""What a request must pass before a route sees it: keys, media type, size, time; and headers that answers get."""

import asyncio
import math
from collections.abc import Mapping
from email.message import Message as Head

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sketchray.service.keys import Keyring
from sketchray.service.settings import Settings

CLASSIFY, BATCH = "/v1/classify", "/v1/classify/batch"
MEDIA_TYPES = {
    CLASSIFY: ("application/json",),
    BATCH: ("application/x-ndjson", "application/ndjson", "application/jsonl"),
}
CHARSETS = ("utf-8", "utf8", "us-ascii")
RETRY_AFTER_S = 1.0
CSP = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


class Guard:
    """ASGI middleware around the routes of one replica."""

    def __init__(self, app: ASGIApp, settings: Settings, keyring: Keyring) -> None:
        self.app, self.settings, self.keyring = app, settings, keyring
        self.batches = 0  # being worked on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = "/" + scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        batch = path == BATCH
        cap = self.settings.max_batch_body_bytes if batch else self.settings.max_body_bytes
        limit_s = self.settings.batch_timeout_s if batch else self.settings.timeout_s
        received = 0

        async def receive_capped() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > cap:  # a body in chunks, which has no length
                raise HTTPException(413, _too_large(cap))
            return message

        async def send_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                if clock.expired():
                    await asyncio.sleep(0)  # where the cancellation arrives
                clock.reschedule(None)  # a batch looks at the time itself, and ends its answer in an orderly way
                answer = MutableHeaders(scope=message)
                answer["X-Content-Type-Options"] = "nosniff"
                if is_page(path):
                    answer["Content-Security-Policy"] = CSP
                    answer["Referrer-Policy"] = "no-referrer"
            await send(message)

        try:
            async with asyncio.timeout(limit_s) as clock:
                refusal = self.refuse(path, scope["method"], dict(scope["headers"]), cap)
                if refusal is not None:
                    await refusal(scope, receive, send_answer)
                    return
                self.batches += batch
                try:
                    await self.app(scope, receive_capped, send_answer)
                finally:
                    self.batches -= batch
        except TimeoutError:
            detail = f"not whole and answered within {limit_s:g} s; send less, or faster"
            await _refusal(408, detail)(scope, receive, send)

    def refuse(self, path: str, method: str, headers: Mapping[bytes, bytes], cap: int) -> JSONResponse | None:
        """Returns the answer to a request that is refused by its head, None to all others."""
        if self.keyring.guards and not is_open(path) and not self.keyring.knows(headers.get(b"authorization", b"")):
            detail = "no valid key; send the header Authorization: Bearer KEY"
            return _refusal(401, detail, {"WWW-Authenticate": "Bearer"})
        if method != "POST" or path not in MEDIA_TYPES:
            return None
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > cap):  # Python parses no number of any length
            return _refusal(413, _too_large(cap))
        if path == BATCH and self.batches >= self.settings.max_batches:
            detail = f"busy with {self.batches} batches; come again"
            return _refusal(503, detail, {"Retry-After": str(math.ceil(RETRY_AFTER_S))})
        return refuse_media(headers, MEDIA_TYPES[path])


def refuse_media(headers: Mapping[bytes, bytes], wanted: tuple[str, ...]) -> JSONResponse | None:
    """Returns the answer to a body that is compressed or of another kind than wanted, None to all others."""
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.lower() != "identity":
        detail = f"Content-Encoding {encoding!r}: bodies are taken as they are, not compressed"
        return _refusal(415, detail, {"Accept-Encoding": "identity"})
    media = headers.get(b"content-type", b"").decode("latin-1")
    if media and media not in wanted and not _suits(media, wanted):
        return _refusal(415, f"Content-Type {media!r}: send {wanted[0]} in UTF-8")
    return None


def is_page(path: str) -> bool:
    """Tells whether a path is that of the drawing page or of what belongs to it."""
    return path == "/" or path.startswith("/web/")


def is_open(path: str) -> bool:
    """Tells whether a path needs no key."""
    return is_page(path) or path == "/healthz"


def _suits(media: str, wanted: tuple[str, ...]) -> bool:
    head = Head()
    head["Content-Type"] = media
    name = head.get_content_type()
    charset = head.get_param("charset", "utf-8")
    json = name.endswith("+json") and "application/json" in wanted
    return (name in wanted or json) and isinstance(charset, str) and charset.lower() in CHARSETS


def _too_large(cap: int) -> str:
    return f"the body is over {cap:,} bytes; send less at a time"


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
