"""The HTTP contract, on the real Serve with HAProxy in front; what one replica does: test_limits.py, test_keys.py."""

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT
from plain_server import SQUARE

from sketchray import checkpoint as checkpoints
from sketchray import doodles
from sketchray.demo import free_port
from sketchray.errors import CheckpointError
from sketchray.predictor import Predictor
from sketchray.service import WEB, Settings, build
from sketchray.strokes import to_record

ZIGZAG = [[[0, 32_000] * 200, [0, 32_000, 32_000, 0] * 100]]  # half a tenth of a second to simplify
AT_ONCE = 32  # requests that HAProxy lets a replica work on


@pytest.fixture(scope="module")
def service(run: str) -> Iterator[str]:
    """Serves the small model behind HAProxy on loopback, and returns the URL.

    Only while this file runs: a replica holds one of the cluster's two CPUs, and trainings need both.
    """
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    deploy(run)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def deploy(checkpoint: str) -> None:
    """Deploys the application, or a new version of it."""
    from ray import serve

    application = build(Settings(checkpoint=checkpoint, timeout_s=60))
    serve.run(application, name="sketchray", route_prefix="/", logging_config={"encoding": "JSON"})


@pytest.fixture(scope="module")
def client(service: str) -> Iterator[httpx.Client]:
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
    # Together, so that they are answered in one batch, each with as many as it wants.
    with ThreadPoolExecutor() as pool:
        asked = [1, 3, 1000] * 5
        answers = pool.map(lambda top_k: client.post("/v1/classify", json={"drawing": SQUARE, "top_k": top_k}), asked)
        assert [len(answer.json()["predictions"]) for answer in answers] == [1, 3, 10] * 5


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
        ({"drawing": [[[0] * 10_001, [0] * 10_001]]}, "at most 10,000"),
        ({"drawing": SQUARE, "top_k": 0}, "top_k"),
        ([1], "body"),
    ],
)
def test_bad_drawings_are_422_with_their_place(client: httpx.Client, body: Any, place: str) -> None:
    response = client.post("/v1/classify", json=body)
    assert response.status_code == 422
    assert place in json.dumps(response.json()["detail"], separators=(",", ":"))


def test_a_body_over_the_cap_is_413_with_or_without_a_length(client: httpx.Client) -> None:
    cap = Settings(checkpoint="").max_body_bytes
    headers = {"content-type": "application/json"}
    for body in (b" " * (cap + 1), iter([b" " * (cap + 1)])):
        assert client.post("/v1/classify", content=body, headers=headers).status_code == 413
    edge = json.dumps({"drawing": SQUARE}).encode().ljust(cap)
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


def test_the_page_and_its_assets_are_served_with_a_strict_policy(client: httpx.Client) -> None:
    page = client.get("/")
    assert "<!doctype html>" in page.text.lower()
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in WEB.glob("*.*"):
        if path.name != "index.html" and path.suffix != ".py":
            assert client.get(f"/web/{path.name}").status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/nothing").status_code == 404


def test_only_loopback_is_served_but_for_haproxys_own_ports(service: str) -> None:
    from sketchray.service import _host

    assert _host() == "127.0.0.1"
    # What listens on 127.0.0.1 is not at 127.0.0.2; what listens on every interface is.
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.replace("127.0.0.1", "127.0.0.2"))
    for name, path in (("STATS", "/stats"), ("METRICS", "/metrics")):
        port = os.environ[f"RAY_SERVE_HAPROXY_{name}_PORT"]
        assert httpx.get(f"http://127.0.0.2:{port}{path}").status_code == 200  # and neither asks for a key


def test_ten_times_what_it_can_take_is_refused_quickly_and_then_it_goes_on(service: str) -> None:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=service, timeout=60, limits=limits) as client, ThreadPoolExecutor(10 * AT_ONCE) as pool:

        def ask(_: int) -> tuple[int, float, str]:
            started = time.monotonic()
            answer = client.post("/v1/classify", json={"drawing": ZIGZAG})
            return answer.status_code, time.monotonic() - started, answer.headers.get("Retry-After", "")

        answers = list(pool.map(ask, range(10 * AT_ONCE)))
        assert {status for status, _, _ in answers} == {200, 503}
        refused = [(seconds, header) for status, seconds, header in answers if status == 503]
        accepted = [seconds for status, seconds, _ in answers if status == 200]
        assert {header for _, header in refused} == {"1"}
        assert len(accepted) >= AT_ONCE
        assert sorted(seconds for seconds, _ in refused)[len(refused) // 2] < max(accepted) / 2
        started = time.monotonic()
        assert client.post("/v1/classify", json={"drawing": SQUARE}).status_code == 200
        assert time.monotonic() - started < 5


def metrics() -> str:
    """Returns what Ray's Prometheus endpoint of this node says."""
    import ray

    (node,) = ray.nodes()
    return httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30).text


def test_the_metrics_have_what_an_operator_looks_at(client: httpx.Client) -> None:
    assert client.post("/v1/classify", json={"drawing": SQUARE}).status_code == 200
    client.post("/v1/classify/batch", content="no json")
    assert client.post("/v1/classify", json={"drawing": "no drawing"}).status_code == 422
    wanted = [
        r'ray_sketchray_guesses\w*\{.*label="',
        r"ray_sketchray_bad_lines",
        r"ray_sketchray_batch_size",
        r"ray_sketchray_batch_wait_ms",
        r"ray_sketchray_batch_execution_ms",
        r"ray_serve_http_request_latency_ms",
        r"ray_serve_deployment_processing_latency_ms",
        r'ray_serve_num_http_error_requests\w*\{.*"422"',
    ]
    ends = time.monotonic() + 60  # reported each ten seconds
    while missing := [pattern for pattern in wanted if not re.search(pattern, text := metrics())]:
        assert time.monotonic() < ends, (missing, set(re.findall(r"ray_s[a-z_]+", text)))
        time.sleep(1)


def test_the_access_log_is_json_without_drawings(client: httpx.Client) -> None:
    from ray._private.worker import _global_node

    x = [123, 124, 125, 126, 127]
    client.post("/v1/classify", json={"drawing": [[x, x]]})
    logs = Path(_global_node.get_logs_dir_path()) / "serve"
    ends = time.monotonic() + 30
    lines: list[dict[str, Any]] = []
    while not any(line.get("route") == "/v1/classify" for line in lines):
        assert time.monotonic() < ends, [path.name for path in logs.iterdir()]
        time.sleep(0.5)
        # More requests, since Serve writes its lines some at a time.
        client.get("/healthz")
        text = "".join(path.read_text() for path in logs.glob("replica_sketchray_*"))
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert all({"request_id", "method", "status", "latency_ms"} & set(line) for line in lines if "route" in line)
    messages = [line["message"] for line in lines if line.get("route") == "/v1/classify"]
    assert [message for message in messages if not re.fullmatch(r"POST /v1/classify \d{3} [\d.]+ms", message)] == []
    assert "123, 124" not in text
    assert "drawing" not in text


def version_two(run: str, folder: Path) -> str:
    """Writes the checkpoint of a run under another licence, which makes it another version."""
    model, meta = checkpoints.load(checkpoints.best(run))
    changed = meta.model_copy(update={"licence": "CC0-1.0", "files": {}})
    folder.mkdir()
    checkpoints.save(folder, model.state_dict(), changed)
    return str(folder)


def test_a_new_checkpoint_goes_live_under_load_and_a_broken_one_does_not(
    client: httpx.Client, run: str, tmp_path: Path
) -> None:
    second = version_two(run, tmp_path / "second")
    old, new = Predictor.load(run).version, Predictor.load(second).version
    seen: list[tuple[int, str]] = []
    closed: list[str] = []
    done = threading.Event()

    def post(own: httpx.Client) -> httpx.Response:
        return own.post("/v1/classify", json={"drawing": SQUARE})

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while not done.is_set():
                try:
                    answer = post(own)
                except httpx.RemoteProtocolError as error:
                    # HAProxy closes idle connections when its replicas change; a request may be on its way into one.
                    closed.append(str(error))
                    answer = post(own)
                seen.append((answer.status_code, answer.headers.get("X-Model-Version", answer.text)))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            replace_under_load(client, tmp_path, second, new)
        finally:
            done.set()
        for asked in asking:
            asked.result()  # raises what it met
    assert set(Counter(seen)) == {(200, old), (200, new)}
    assert len(closed) <= 8  # of four connections, with one replica more and then one less
    assert client.get("/v1/model").json()["licence"] == "CC0-1.0"


def replace_under_load(client: httpx.Client, tmp_path: Path, second: str, new: str) -> None:
    """Tries a broken checkpoint, then puts another in place, and waits until it answers and the old one is gone."""
    (tmp_path / "broken").mkdir()
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        deploy(str(tmp_path / "broken"))
    deploy(second)
    ends = time.monotonic() + 60
    while client.get("/v1/model").json()["version"] != new:
        assert time.monotonic() < ends
    time.sleep(1)


def test_the_build_makes_room_for_full_batches(run: str) -> None:
    application = build(Settings(checkpoint=run, max_batch_size=48))
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
    assert config["http_options"]["request_timeout_s"] > settings.batch_timeout_s
    assert application["deployments"][0]["max_ongoing_requests"] >= 2 * settings.max_batch_size
