"""Each limit at its edge, and what is no drawing, over real HTTP; the application on a bare uvicorn."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from plain_server import SQUARE, Alone, serving

from sketchray import doodles
from sketchray.service.records import depth
from sketchray.strokes import to_record

LIMITS = {
    "max_body_bytes": 4_000,
    "max_batch_body_bytes": 8_000,
    "max_batch_drawings": 6,
    "max_batches": 2,
    "max_strokes": 5,
    "max_points": 40,
    "max_nesting": 10,
    "max_top_k": 7,
    "timeout_s": 1.0,
    "batch_timeout_s": 2.0,
}
BATCH = "/v1/classify/batch"
JSON = {"content-type": "application/json"}
RECORD = json.dumps({"drawing": SQUARE}).encode()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(**LIMITS) as url, httpx.Client(base_url=url) as opened:
        yield opened


def nested(lists: int) -> bytes:
    """Returns a good record with so many lists and objects inside each other, in a field that is ignored."""
    return b'{"drawing": [[[1], [2]]], "more": ' + b"[" * (lists - 1) + b"]" * (lists - 1) + b"}"


def good(**changes: Any) -> bytes:
    return json.dumps({"drawing": SQUARE, **changes}).encode()


@pytest.mark.parametrize(
    ("inside", "outside", "place"),
    [
        (good(drawing=[[[1], [2]]] * 5), good(drawing=[[[1], [2]]] * 6), "drawing: 6 strokes, at most 5"),
        (good(drawing=[[[1] * 40, [2] * 40]]), good(drawing=[[[1] * 41, [2] * 41]]), "drawing: 41 points, at most 40"),
        (nested(10), nested(11), "more than 10 lists inside each other"),
        (good(top_k=7), good(top_k=8), "top_k: at most 7"),
        (good(top_k=1), good(top_k=0), "greater than or equal to 1"),
        (good(note="[" * 50 + '\\"{'), good(note=[[[[[[[[[[[]]]]]]]]]]]), "more than 10 lists"),
        (
            good(drawing=[[[-32767], [32767]]]),
            good(drawing=[[[-32768], [0]]]),
            "drawing[0]: coordinates must be within",
        ),
    ],
)
def test_a_record_at_each_edge(client: httpx.Client, inside: bytes, outside: bytes, place: str) -> None:
    assert client.post("/v1/classify", content=inside, headers=JSON).status_code == 200
    refused = client.post("/v1/classify", content=outside, headers=JSON)
    assert refused.status_code == 422
    (fault,) = refused.json()["detail"]
    assert place in fault["msg"]
    assert fault["loc"][0] == "body"
    answers = client.post(BATCH, content=inside + b"\n" + outside).text.splitlines()
    assert "predictions" in json.loads(answers[0])
    assert place in json.loads(answers[1])["error"]
    assert json.loads(answers[1])["line"] == 2


@pytest.mark.parametrize("path", ["/v1/classify", BATCH])
def test_a_body_at_the_edge_with_and_without_a_length(client: httpx.Client, path: str) -> None:
    cap = LIMITS["max_batch_body_bytes"] if path == BATCH else LIMITS["max_body_bytes"]
    body = RECORD + b"\n" if path == BATCH else RECORD
    edge = body.ljust(cap, b"\n")
    for content in (edge, iter([edge[:9], edge[9:]])):
        assert client.post(path, content=content).status_code == 200
    for content in (edge + b"\n", iter([edge, b"\n"])):
        response = client.post(path, content=content)
        assert response.status_code == 413
        assert response.json()["detail"] == f"the body is over {cap:,} bytes; send less at a time"


def test_a_batch_at_the_edge(client: httpx.Client) -> None:
    lines = [RECORD] * 6
    full = client.post(BATCH, content=b"\n\n".join(lines))
    assert len(full.text.splitlines()) == 6  # blank lines are not counted
    refused = client.post(BATCH, content=b"\n".join([*lines, RECORD]))
    assert refused.status_code == 413
    assert refused.json()["detail"] == "over 6 lines; send fewer at a time"
    for size, word in ((4_000, "predictions"), (4_001, "the line is over 4,000 bytes")):
        (answer,) = client.post(BATCH, content=RECORD.ljust(size) + b"\n").text.splitlines()
        assert word in answer


NO_DRAWINGS = {
    "nothing": b"",
    "half": b"{",
    "not UTF-8": b"\xff\xfe",
    "a bomb of lists": b"[" * 3_999,
    "a bomb of objects": b'{"drawing":' * 300,
    "NaN": b'{"drawing": [[[NaN], [1]]]}',
    "infinity": b'{"drawing": [[[Infinity], [1]]]}',
    "1e400": b'{"drawing": [[[1e400], [1]]]}',
    "10**400": b'{"drawing": [[[1' + b"0" * 400 + b"], [1]]]}",
    "3,900 digits": b'{"drawing": [[[' + b"9" * 3_900 + b"], [1]]]}",
    "huge top_k": b'{"drawing": [[[1], [1]]], "top_k": 1' + b"0" * 400 + b"}",
    "float top_k": b'{"drawing": [[[1], [1]]], "top_k": 1.5}',
    "text": b'{"drawing": [[["1"], [1]]]}',
    "true": b'{"drawing": [[[true], [1]]]}',
    "null": b'{"drawing": [[[null], [1]]]}',
    "a list of lists too many": b'{"drawing": [[[[1]], [[1]]]]}',
    "a list too few": b'{"drawing": [[1], [1]]}',
    "an object": b'{"drawing": {"0": [[1], [1]]}}',
    "one axis": b'{"drawing": [[[1]]]}',
    "no axis": b'{"drawing": [[]]}',
    "uneven": b'{"drawing": [[[1, 2], [1]]]}',
    "two records": RECORD + RECORD,
    "a lone surrogate": b'{"drawing": [[[1], [1]]], "word": "\\ud800"}',
}


@pytest.mark.parametrize("body", NO_DRAWINGS.values(), ids=NO_DRAWINGS.keys())
def test_what_is_no_drawing_is_refused_in_few_words(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/classify", content=body, headers=JSON)
    assert response.status_code == 422
    assert response.json()["detail"]
    assert len(response.content) < 400
    batch = client.post(BATCH, content=b"%s\n%s" % (body, RECORD)).text.splitlines()
    if body:
        assert json.loads(batch[0])["line"] == 1
    assert "predictions" in json.loads(batch[-1])


def test_a_body_of_faults_is_answered_by_the_first(client: httpx.Client) -> None:
    body = b'{"drawing": [' + b",".join([b"1"] * 1_900) + b"]}"
    response = client.post("/v1/classify", content=body)
    assert [fault["loc"] for fault in response.json()["detail"]] == [["body", "drawing", 0]]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/classify", {}, 200),
        ("/v1/classify", {"content-type": "Application/JSON; Charset=UTF-8"}, 200),
        ("/v1/classify", {"content-type": 'application/geo+json; charset="us-ascii"'}, 200),
        ("/v1/classify", {"content-type": "application/json", "content-encoding": "Identity"}, 200),
        ("/v1/classify", {"content-type": "application/json; charset=utf-16"}, 415),
        ("/v1/classify", {"content-type": "application/json; charset=latin1"}, 415),
        ("/v1/classify", {"content-type": "text/plain"}, 415),
        ("/v1/classify", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("/v1/classify", {"content-type": "\u00e9/;;=".encode("latin-1")}, 415),
        ("/v1/classify", {"content-encoding": "gzip"}, 415),
        ("/v1/classify", {"content-encoding": "identity, br"}, 415),
        (BATCH, {"content-type": "application/x-ndjson; charset=utf-8"}, 200),
        (BATCH, {"content-type": "application/json"}, 415),
        (BATCH, {"content-encoding": "deflate"}, 415),
    ],
)
def test_other_media_types_and_compressed_bodies_are_415(
    client: httpx.Client, path: str, headers: dict[str, Any], status: int
) -> None:
    response = client.post(path, content=RECORD, headers=headers)
    assert response.status_code == status
    if status == 415:
        assert ("send application/" in response.text) != ("content-encoding" in headers)


@pytest.mark.parametrize(("path", "limit_s"), [("/v1/classify", 1.0), (BATCH, 2.0)])
def test_a_slow_body_is_408_in_time(client: httpx.Client, path: str, limit_s: float) -> None:
    started = time.monotonic()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.settimeout(20)
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n".encode())
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert f"within {limit_s:g} s".encode() in answer
    assert limit_s - 0.01 < time.monotonic() - started < limit_s + 10  # uvloop counts whole milliseconds


def test_an_answer_that_takes_too_long_is_408() -> None:
    with serving(answerer=Alone(wait_s=60), timeout_s=0.3) as url:
        assert httpx.post(f"{url}/v1/classify", content=RECORD).status_code == 408
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_batches_that_do_not_fit_are_503_and_fit_later(client: httpx.Client) -> None:
    waiting = f"POST {BATCH} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n".encode()
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        first.sendall(waiting)
        second.sendall(waiting)
        time.sleep(0.5)
        refused = client.post(BATCH, content=RECORD)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert client.post("/v1/classify", content=RECORD).status_code == 200
    ends = time.monotonic() + 10
    while client.post(BATCH, content=RECORD).status_code != 200:
        assert time.monotonic() < ends


def test_lines_past_the_time_are_given_up_in_an_orderly_way() -> None:
    lines = [json.dumps({"drawing": to_record(doodles.draw("star", index, 1))}) for index in range(256)] * 100
    with serving(batch_timeout_s=0.5) as url:
        response = httpx.post(f"{url}{BATCH}", content="\n".join(lines), timeout=60)
    *answered, last = response.text.splitlines()
    assert response.status_code == 200
    assert json.loads(last) == {"error": "not answered within 0.5 s", "line": len(answered) + 1}
    assert 0 < len(answered) < len(lines)


def test_a_time_that_is_over_at_once_is_408() -> None:
    with serving(batch_timeout_s=1e-9, timeout_s=1e-9) as url:
        for path in ("/healthz", "/", "/v1/model"):
            assert httpx.get(f"{url}{path}").status_code in {200, 408}
        for path in ("/v1/classify", BATCH):
            assert httpx.post(f"{url}{path}", content=RECORD).status_code in {200, 408}


def test_long_drawings_do_not_hold_up_short_ones() -> None:
    zigzag = {"drawing": [[[0, 32_000] * 1_000, [0, 32_000, 32_000, 0] * 500]]}
    with serving(timeout_s=60) as url, ThreadPoolExecutor() as pool:
        started = time.monotonic()
        slow = pool.submit(httpx.post, f"{url}/v1/classify", json=zigzag, timeout=60)
        time.sleep(0.05)
        assert httpx.post(f"{url}/v1/classify", content=RECORD).status_code == 200
        quick_s = time.monotonic() - started
        assert slow.result().status_code == 200
        assert quick_s < time.monotonic() - started


def test_counted_are_the_lists_and_objects_not_what_looks_like_them() -> None:
    for body, expected in ((b"", 0), (b"[]", 1), (b'[{"a": [1]}, []]', 3), (b'"[[\\"[["', 0), (b"]]]][", 0)):
        assert depth(body) == expected
