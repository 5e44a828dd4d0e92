"""The HTTP contract, on the real Serve with HAProxy in front."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT
from starlette.testclient import TestClient

from sketchray import doodles
from sketchray.checkpoint import best
from sketchray.demo import free_port
from sketchray.errors import CheckpointError
from sketchray.predictor import Predictor
from sketchray.service import KEYS, MAX_BODY_BYTES, WEB, Settings, app, build
from sketchray.strokes import to_record

SQUARE = [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]]


@pytest.fixture(scope="module")
def service(run: str) -> Iterator[str]:
    """Serves the small model behind HAProxy on loopback, and returns the URL.

    Only while this file runs: a replica holds one of the cluster's two CPUs, and trainings need both.
    """
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    serve.run(build(Settings(checkpoint=run)), name="sketchray", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def client(service: str) -> Any:
    with httpx.Client(base_url=service, timeout=30) as opened:
        yield opened


def test_a_record_is_answered_as_the_predictor_answers(client: httpx.Client, run: str) -> None:
    predictor = Predictor.load(run)
    for name in doodles.CLASSES:
        points = doodles.draw(name, 5, seed=99)
        record = {"word": name, "key_id": "1", "countrycode": "DE", "recognized": True, "drawing": to_record(points)}
        response = client.post("/v1/classify", json=record)
        assert response.status_code == 200
        assert response.headers["X-Model-Version"] == predictor.version
        predictions = response.json()["predictions"]
        expected = predictor.predict([points])[0]
        assert [guess["label"] for guess in predictions] == [guess.label for guess in expected]
        # The service may answer in a batch with others, whose sums are rounded in another order.
        assert [guess["probability"] for guess in predictions] == pytest.approx(
            [guess.probability for guess in expected], abs=1e-5
        )


def test_top_k_counts_the_guesses(client: httpx.Client) -> None:
    for top_k, expected in ((1, 1), (3, 3), (1000, 10)):
        response = client.post("/v1/classify", json={"drawing": SQUARE, "top_k": top_k})
        assert len(response.json()["predictions"]) == expected


def test_raw_records_and_unfinished_drawings_are_answered(client: httpx.Client) -> None:
    raw = [[[10.5, 300.25, 301.0], [-4.0, 2.5, 260.0], [0, 40, 90]]]
    for drawing in (raw, [[[7], [9]]]):
        assert client.post("/v1/classify", json={"drawing": drawing}).status_code == 200


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "drawing"),
        ({"drawing": []}, "at least one stroke"),
        ({"drawing": [*SQUARE, [[1, 2], [3]]]}, "drawing[1]"),
        ({"drawing": [*SQUARE, [[], []]]}, "drawing[1]"),
        ({"drawing": [[[1], [2], [3], [4]]]}, "drawing[0]"),
        ({"drawing": [*SQUARE, [[1, "x"], [3, 4]]]}, '"drawing",1,0,1'),
        ({"drawing": [[[1e300], [1]]]}, "drawing[0]"),
        ({"drawing": [[[0] * 10_001, [0] * 10_001]]}, "at most 10,000"),
        ({"drawing": SQUARE, "top_k": 0}, "top_k"),
        ({"drawing": "M0 0"}, "drawing"),
        ([1], "body"),
    ],
)
def test_bad_drawings_are_422_with_their_place(client: httpx.Client, body: Any, place: str) -> None:
    response = client.post("/v1/classify", json=body)
    assert response.status_code == 422
    assert place in json.dumps(response.json()["detail"], separators=(",", ":"))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"drawing": [[[NaN], [1]]]}', b'{"drawing": [[[NaN], ["a"]]]}']
)
def test_bytes_that_are_no_drawing_are_422(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"]


def test_a_body_over_the_cap_is_413_with_or_without_a_length(client: httpx.Client) -> None:
    body = b" " * (MAX_BODY_BYTES + 1)
    headers = {"content-type": "application/json"}
    assert client.post("/v1/classify", content=body, headers=headers).status_code == 413
    assert client.post("/v1/classify", content=iter([body]), headers=headers).status_code == 413
    edge = json.dumps({"drawing": SQUARE}).encode().ljust(MAX_BODY_BYTES)
    assert client.post("/v1/classify", content=edge, headers=headers).status_code == 200


def test_a_batch_answers_line_by_line_in_order(client: httpx.Client) -> None:
    names = [doodles.CLASSES[index % 10] for index in range(600)]
    lines = [json.dumps({"drawing": to_record(doodles.draw(name, 3, 99)), "top_k": 2}) for name in names]
    lines[7], lines[300], lines[301] = "no json", '{"drawing": []}', ""
    response = client.post("/v1/classify/batch", content="\n".join(lines))
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert response.headers["X-Model-Version"]
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert len(answers) == 599  # the blank line is no record
    assert answers[7]["line"] == 8
    assert "JSON" in answers[7]["error"]
    assert answers[300] == {"error": "drawing: expected a list with at least one stroke [[x...], [y...]]", "line": 301}
    alone = client.post("/v1/classify", json=json.loads(lines[42])).json()
    assert answers[42]["predictions"][0]["label"] == alone["predictions"][0]["label"]
    assert {len(answer["predictions"]) for answer in answers if "error" not in answer} == {2}


def test_model_tells_what_is_served(client: httpx.Client, run: str) -> None:
    info = client.get("/v1/model").json()
    assert info["classes"] == list(doodles.CLASSES)
    assert info["data"]["synthetic"] is True
    assert info["version"] == Predictor.load(run).version
    assert info["limits"]["max_body_bytes"] == MAX_BODY_BYTES
    assert "val_top1" in info["metrics"]


def test_the_page_and_its_assets_are_served_with_a_strict_policy(client: httpx.Client) -> None:
    page = client.get("/")
    assert "<!doctype html>" in page.text.lower()
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in WEB.glob("*.*"):
        if path.name != "index.html" and path.suffix != ".py":
            assert client.get(f"/web/{path.name}").status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/nothing").status_code == 404


def test_openapi_names_the_routes_and_its_example_works(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/classify", "/v1/classify/batch", "/v1/model", "/healthz"} <= set(document["paths"])
    example = document["components"]["schemas"]["Record"]["examples"][0]
    assert len(client.post("/v1/classify", json=example).json()["predictions"]) == 3


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The application without Serve: the keys are read from the environment of the process that answers."""
    monkeypatch.setitem(os.environ, KEYS, "old,new")
    return TestClient(app, raise_server_exceptions=False)


def test_keys_are_needed_where_they_are_set(keyed: TestClient) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "new"[:-1]}):
        response = keyed.post("/v1/classify", json={"drawing": SQUARE}, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert keyed.get("/v1/model").status_code == 401
    for key in ("old", "new"):
        assert keyed.get("/nothing", headers={"Authorization": f"Bearer {key}"}).status_code == 404


def test_page_and_health_stay_open(keyed: TestClient) -> None:
    assert keyed.get("/web/index.html").status_code == 200
    assert keyed.get("/").status_code != 401
    assert keyed.get("/healthz").status_code != 401
    assert keyed.get("/openapi.json").status_code == 401


def test_a_bad_checkpoint_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        build(Settings(checkpoint=str(tmp_path)))


def test_the_build_makes_room_for_full_batches(run: str) -> None:
    application = build(Settings(checkpoint=best(run), max_batch_size=48))
    deployment = application._bound_deployment
    assert deployment.max_ongoing_requests >= 96
    assert deployment.max_queued_requests > 0
    assert deployment.backpressure_config.retry_after_s


def test_the_config_file_fits_the_builder() -> None:
    import yaml

    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    application = config["applications"][0]
    settings = Settings(**application["args"])
    assert config["http_options"]["host"] == "127.0.0.1"
    assert application["deployments"][0]["max_ongoing_requests"] >= 2 * settings.max_batch_size
