"""Hostile requests to a service that runs: none may be answered with 5xx, but for 503 with Retry-After.

    serve run serve_config.yaml
    python benchmarks/serve_fuzz.py --url http://127.0.0.1:8000

`bytes` sends requests with bytes, headers, lengths and bodies changed at random, over bare sockets. `schema` lets
schemathesis make requests of the OpenAPI document, valid ones and others, and checks what the document says of the
answers. The last line is one JSON object; the exit status is 1 if something was found.

Ray reads four headers before the application does, and answers 500 where one is not UTF-8; such answers are counted
by themselves (`known`).
"""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import tyro

RAYS = (b"x-request-id", b"x-session-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
RECORD = (
    b'{"word": "cat", "key_id": "1", "drawing": [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]], [[7], [9]]], "top_k": 3}'
)
PATHS = (
    b"/v1/classify",
    b"/v1/classify/batch",
    b"/v1/model",
    b"/healthz",
    b"/",
    b"/docs",
    b"/web/draw.js",
    b"/openapi.json",
)
METHODS = (b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"PATCH", b"CONNECT", b"get", b"\xff")
HEADERS = (b"Content-Type", b"Content-Encoding", b"Content-Length", b"Authorization", b"Accept", b"Expect", b"Cookie")
HEADERS += (b"Transfer-Encoding", b"Range", b"If-None-Match", b"Upgrade", b"X-Forwarded-For", *RAYS)
NUMBERS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"1" + b"0" * 400,
    b"32768",
    b"1.5e-320",
    b'"1"',
    b"null",
    b"true",
    b"[]",
)
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Hostile requests.

    Attributes:
        url: of the service.
        rows: what to try.
        seconds: of `bytes`, and of `schema`, at most.
        requests: of `bytes`, at most.
        seed: of both.
        patience_s: how long an answer is waited for; many requests are never whole.
        findings: file for requests that were answered as none may be.
    """

    url: str
    rows: tuple[Literal["bytes", "schema"], ...] = ("bytes", "schema")
    seconds: float = 600
    requests: int | None = None
    seed: int = 0
    patience_s: float = 0.2
    findings: Path | None = None


def noise(rng: random.Random, most: int = 40) -> bytes:
    """Returns some random bytes."""
    return rng.randbytes(rng.randint(0, most))


def spoil(rng: random.Random, text: bytes) -> bytes:
    """Returns a text with a part cut, doubled or overwritten."""
    start, stop = sorted(rng.randint(0, len(text)) for _ in range(2))
    middle = rng.choice((b"", text[start:stop] * 2, noise(rng), b"[" * rng.randint(1, 3_000), b"\0"))
    return text[:start] + middle + text[stop:]


def make_body(rng: random.Random) -> bytes:
    """Returns a body: a record, a batch of some, or what looks like one."""
    body = RECORD
    if rng.random() < 0.4:
        body = re.sub(rb"\d+", lambda found: rng.choice(NUMBERS) if rng.random() < 0.2 else found[0], body)
    if rng.random() < 0.5:
        body = b"\n".join(body if rng.random() < 0.7 else spoil(rng, body) for _ in range(rng.randint(1, 5)))
    for _ in range(rng.choice((0, 0, 1, 2))):
        body = spoil(rng, body)
    return body


def make_request(rng: random.Random) -> bytes:
    """Returns a request that is nearly one."""
    body = make_body(rng)
    path = rng.choice(PATHS[:2] if rng.random() < 0.7 else PATHS)
    if rng.random() < 0.1:
        path = spoil(rng, path) or b"*"
    method = b"POST" if rng.random() < 0.8 else rng.choice(METHODS)
    headers = [(b"Host", b"x"), (b"Connection", b"close")]
    if rng.random() < 0.2:
        headers.append((b"Transfer-Encoding", b"chunked"))
        size = rng.randint(1, 64)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        body = (
            b"".join(b"%x\r\n%s\r\n" % (len(part) + rng.choice((0,) * 9 + (1,)), part) for part in parts) + b"0\r\n\r\n"
        )
    else:
        headers.append((b"Content-Length", b"%d" % (len(body) + rng.choice((0,) * 9 + (1, -1, 10**9)))))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        values = (
            noise(rng),
            b"\xff\xfe",
            b"gzip",
            b"chunked",
            b"Bearer x",
            b"0",
            b"-1",
            b"a" * 5_000,
            b"text/plain;charset=\xe9",
        )
        headers.append((rng.choice(HEADERS), rng.choice(values)))
    head = b"%s %s HTTP/1.1\r\n" % (method, path) + b"".join(b"%s: %s\r\n" % header for header in headers)
    request = head + b"\r\n" + body
    return spoil(rng, request) if rng.random() < 0.1 else request


def ask(host: str, port: int, request: bytes, patience_s: float) -> bytes:
    """Returns the beginning of the answer; nothing if none comes in time, or the connection is closed."""
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.settimeout(patience_s)
        try:
            connection.sendall(request)
            return connection.recv(4096)
        except OSError:
            return b""


def send_bytes(arguments: Arguments) -> dict[str, object]:
    """Sends requests until the time is over, and returns what came."""
    rng = random.Random(arguments.seed)
    place = urlsplit(arguments.url)
    assert place.hostname
    assert place.port
    statuses: Counter[str] = Counter()
    known, found = 0, []
    ends = time.monotonic() + arguments.seconds
    while time.monotonic() < ends and statuses.total() != arguments.requests:
        request = make_request(rng)
        answer = ask(place.hostname, place.port, request, arguments.patience_s)
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "none" if not answer else "other"
        statuses[status] += 1
        if status.startswith("5") and not (status == "503" and b"retry-after" in answer.lower()):
            if status == "500" and any(re.search(rb"(?i)\n%s:[^\n]*[\x80-\xff]" % name, request) for name in RAYS):
                known += 1
            else:
                found.append(request)
    good = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(RECORD), RECORD)
    last = ask(place.hostname, place.port, good, 10)
    if not last.startswith(b"HTTP/1.1 200"):
        found.append(good)
    if arguments.findings is not None:
        arguments.findings.write_text("".join(f"{request!r}\n" for request in found))
    return {"requests": statuses.total(), "statuses": dict(statuses.most_common()), "known": known, "found": len(found)}


def run_schemathesis(arguments: Arguments) -> dict[str, object]:
    """Runs schemathesis, and returns whether it found something."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{arguments.url}/openapi.json"]
    command += ["--checks", CHECKS, "--seed", str(arguments.seed), "--max-time", f"{arguments.seconds:g}"]
    command += ["--continue-on-failure", "--generation-database", "none", "--no-color"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "serve_fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    return {"found": done.returncode}


def main() -> None:
    """Tries what is asked for, and prints what came."""
    arguments = tyro.cli(Arguments)
    tries = {"bytes": send_bytes, "schema": run_schemathesis}
    result = {row: tries[row](arguments) for row in arguments.rows}
    print(json.dumps(result))
    sys.exit(any(found["found"] for found in result.values()))


if __name__ == "__main__":
    main()
