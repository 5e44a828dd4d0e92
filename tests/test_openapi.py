"""The OpenAPI document: its examples work, and what it says of each answer is so."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from plain_server import serving

from sketchray.service.keys import Keyring

KEY = {"Authorization": "Bearer key"}
ROUTES = {"/v1/classify": "post", "/v1/classify/batch": "post", "/v1/model": "get", "/healthz": "get"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    limits = {"max_body_bytes": 5_000, "max_batch_body_bytes": 5_000}
    with serving(Keyring("key"), **limits) as url, httpx.Client(base_url=url) as opened:
        yield opened


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json", headers=KEY).json()
    return found


def check(document: dict[str, Any], path: str, response: httpx.Response) -> None:
    """Checks that an answer is one that the document describes."""
    described = document["paths"][path][ROUTES[path]]["responses"][str(response.status_code)]
    media = response.headers["content-type"].split(";")[0]
    schema = described["content"][media]["schema"]
    if media == "application/json":
        jsonschema.validate(response.json(), {**schema, "components": document["components"]})
    for name in described.get("headers", ()):
        assert name in response.headers


def test_the_document_has_the_routes_and_the_key(document: dict[str, Any]) -> None:
    assert {path: list(methods) for path, methods in document["paths"].items()} == {
        path: [method] for path, method in ROUTES.items()
    }
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []  # stays open
    for path, method in ROUTES.items():
        statuses = set(document["paths"][path][method]["responses"])
        if method == "post":
            assert {"200", "401", "408", "413", "415", "503"} <= statuses
        assert ("422" in statuses) == (path == "/v1/classify")


def test_each_example_works(client: httpx.Client, document: dict[str, Any]) -> None:
    record = document["components"]["schemas"]["Record"]
    for example in record["examples"]:
        jsonschema.validate(example, record)
        response = client.post("/v1/classify", json=example, headers=KEY)
        assert response.status_code == 200
        assert len(response.json()["predictions"]) == example["top_k"]
        check(document, "/v1/classify", response)
    batch = document["paths"]["/v1/classify/batch"]["post"]["requestBody"]["content"]["application/x-ndjson"]
    for lines in batch["schema"]["examples"]:
        response = client.post("/v1/classify/batch", content=lines, headers=KEY)
        assert "error" not in response.text
        assert response.text.count("\n") == lines.count("\n") == 2
        check(document, "/v1/classify/batch", response)


def test_each_other_answer_is_as_described(client: httpx.Client, document: dict[str, Any]) -> None:
    for path in ("/v1/classify", "/v1/classify/batch"):
        for content, headers, status in (
            (b"{}", {}, 401),
            (b" " * 5_001, KEY, 413),
            (b"{}", {**KEY, "content-type": "image/png"}, 415),
            (b'{"drawing": [[[1], ["x"]]]}', KEY, 422),
        ):
            if status != 422 or path == "/v1/classify":
                response = client.post(path, content=content, headers=headers)
                assert response.status_code == status
                check(document, path, response)
    check(document, "/healthz", client.get("/healthz"))
    check(document, "/v1/model", client.get("/v1/model"))


def test_model_tells_what_is_served_and_the_limits(client: httpx.Client, document: dict[str, Any]) -> None:
    response = client.get("/v1/model", headers=KEY)
    check(document, "/v1/model", response)
    told = response.json()
    assert told["version"] == "0" * 12
    assert told["licence"] == "CC0"
    assert len(told["classes"]) == 10
    assert told["metrics"] == {"val_top1": 0.1}  # the other is NaN, which JSON has not
    assert told["limits"]["max_body_bytes"] == 5_000
    assert {"max_points", "max_strokes", "max_nesting", "max_top_k", "max_batches", "timeout_s"} <= set(told["limits"])
