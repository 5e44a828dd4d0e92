"""The routes, and the OpenAPI document that describes them."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic_core import to_json

import sketchray
from sketchray.predictor import Guess, Predictor
from sketchray.service.guard import BATCH, CLASSIFY, Guard
from sketchray.service.keys import Keyring
from sketchray.service.records import (
    Faults,
    Health,
    ModelInfo,
    Predictions,
    Query,
    Record,
    RecordError,
    Refusal,
    answer_lines,
    lines_of,
    num_points,
    parse,
    to_body,
    to_query,
)
from sketchray.service.settings import Settings

WEB = Path(__file__).parents[1] / "web"
FEW_POINTS = 200  # so many are simplified at once; more may take seconds, of work and of the others' waiting
REFUSALS = {
    401: "No valid key.",
    408: "Not whole and answered in time.",
    413: "The body is too large.",
    415: "Another media type or charset, or a compressed body.",
    503: "Too much load, or no replica; come again after Retry-After seconds.",
}
TEXT = {"text/plain": {"schema": {"type": "string"}}}  # of Serve and HAProxy, which refuse in plain words
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": text, **({"content": TEXT} if status in (408, 503) else {})}
    for status, text in REFUSALS.items()
}
OPEN_RESPONSES: dict[int | str, dict[str, Any]] = {503: RESPONSES[503]}
VERSION_HEADER = {"X-Model-Version": {"description": "Which model answered.", "schema": {"type": "string"}}}


class Answerer(Protocol):
    """What answers drawings."""

    predictor: Predictor

    async def answer(self, query: Query) -> list[Guess]:
        """Returns the guesses about one drawing."""

    def count(self, firsts: list[Guess], bad: int) -> None:
        """Takes note of what lines of a batch were guessed to be, and how many were bad."""


def make_app(answerer: Answerer, settings: Settings, keyring: Keyring) -> FastAPI:
    """Returns the application of one replica."""
    version = {"X-Model-Version": answerer.predictor.version}
    simplifying = ThreadPoolExecutor(1)  # one at a time: each may take hundreds of MB
    app = FastAPI(title="sketchray", summary="Guesses what a drawing shows.", version=sketchray.__version__)
    app.add_middleware(Guard, settings=settings, keyring=keyring)
    app.mount("/web", StaticFiles(directory=WEB), name="web")

    @app.exception_handler(RecordError)
    async def refuse(request: Request, error: RecordError) -> Response:
        """Answers 422 with the place of the fault; the input itself, which may be no valid JSON, is not sent back."""
        fault = {"loc": ["body", *error.loc], "msg": str(error), "type": error.type}
        return Response(to_json({"detail": [fault]}), 422, media_type="application/json")

    @app.post(
        CLASSIFY,
        responses={
            200: {"model": Predictions, "description": "The likeliest classes.", "headers": VERSION_HEADER},
            422: {"model": Faults, "description": "No drawing, or one over a limit."},
            **RESPONSES,
        },
        openapi_extra=_request_body("application/json", {"$ref": "#/components/schemas/Record"}),
    )
    async def classify(request: Request) -> Response:
        """Guesses what one drawing shows."""
        record = parse(await request.body(), settings)
        if num_points(record) <= FEW_POINTS:
            query = to_query(record, settings)
        else:
            query = await asyncio.get_running_loop().run_in_executor(simplifying, to_query, record, settings)
        guesses = await answerer.answer(query)
        return Response(to_json(to_body(guesses)), headers=version, media_type="application/json")

    @app.post(
        BATCH,
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "One line each, in order: `Predictions`, or `error` and `line` for a bad one.",
                "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
                "headers": VERSION_HEADER,
            },
            **RESPONSES,
        },
        openapi_extra=_request_body("application/x-ndjson", {"type": "string", "examples": [_example() + _example()]}),
    )
    async def classify_batch(request: Request) -> Response:
        """Guesses for one record a line; answers one line each, in order, with `error` and `line` for a bad one."""
        ends = time.monotonic() + settings.batch_timeout_s
        body = await request.body()
        most = settings.max_batch_drawings
        if body.count(b"\n") >= most and sum(len(part) for part in lines_of(body)) > most:
            raise HTTPException(413, f"over {most:,} lines; send fewer at a time")

        async def answers() -> AsyncIterator[bytes]:
            for part in lines_of(body):
                if time.monotonic() > ends:
                    given_up = {"error": f"not answered within {settings.batch_timeout_s:g} s", "line": part[0][0]}
                    yield to_json(given_up) + b"\n"
                    return
                text, firsts = await asyncio.to_thread(answer_lines, answerer.predictor, part, settings)
                answerer.count(firsts, len(part) - len(firsts))
                yield text

        return StreamingResponse(answers(), media_type="application/x-ndjson", headers=version)

    @app.get("/v1/model", responses={401: RESPONSES[401], **OPEN_RESPONSES})
    async def model() -> ModelInfo:
        """Tells what is being served."""
        meta = answerer.predictor.meta
        return ModelInfo(
            version=answerer.predictor.version,
            classes=meta.classes,
            metrics={name: value for name, value in meta.metrics.items() if math.isfinite(value)},
            data=meta.data,
            licence=meta.licence,
            limits=settings.limits(),
        )

    @app.get("/healthz", responses=OPEN_RESPONSES, openapi_extra={"security": []})
    async def healthz() -> Health:
        """Tells that a replica answers."""
        return Health(status="ok")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The drawing page."""
        return FileResponse(WEB / "index.html")

    def openapi() -> dict[str, Any]:
        """Returns the document: FastAPI's, with the schema of the bodies that we parse, and the keys."""
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = document["components"]
            components["schemas"]["Record"] = Record.model_json_schema()
            scheme = {"type": "http", "scheme": "bearer", "description": "Needed where the service has keys."}
            components["securitySchemes"] = {"key": scheme}
            document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _request_body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _example() -> str:
    example = Record.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index]
    return to_json(example).decode() + "\n"
