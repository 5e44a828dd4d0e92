"""The HTTP service: FastAPI models, the Serve deployment, and the builder that `serve_config.yaml` names.

Serving imports no training code, no Ray Data and no Optuna.
"""

import asyncio
import hmac
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sketchray.errors import StrokeError
from sketchray.predictor import Guess, Predictor
from sketchray.strokes import Int16Array, from_record

WEB = Path(__file__).parent / "web"
KEYS = "SKETCHRAY_API_KEYS"  # environment variable: keys separated by commas
BATCH_PATH = "/v1/classify/batch"
MAX_BODY_BYTES = 1 << 20
MAX_BATCH_BODY_BYTES = 64 << 20
LINES_AT_A_TIME = 256  # of a batch request, given to the model together
RETRY_AFTER_S = 1.0
CSP = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


class Settings(BaseModel):
    """`args` of the application in `serve_config.yaml`.

    Attributes:
        checkpoint: the model: a checkpoint, a run (its best), an ONNX file, or a URI of one.
        max_batch_size: requests that the model answers together.
        batch_wait_timeout_s: how long the first of them waits for others.
        max_points: a drawing with more points is refused.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    max_batch_size: int = Field(32, ge=1)
    batch_wait_timeout_s: float = Field(0.002, ge=0)
    max_points: int = Field(10_000, ge=1)


class Record(BaseModel):
    """A Quick, Draw! record, simplified or raw; fields that are not named here are ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"drawing": [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]], "top_k": 3}]}
    )

    drawing: list[list[list[float]]] = Field(description="Strokes [[x...], [y...]] in pixels; raw ones add times.")
    top_k: int = Field(5, ge=1, le=1000, description="How many guesses to return; at most one for each class.")


class Prediction(BaseModel):
    """A guess: a class name and its probability."""

    label: str
    probability: float


class Predictions(BaseModel):
    """The likeliest classes, best first."""

    predictions: list[Prediction]


class ModelInfo(BaseModel):
    """What is being served."""

    version: str
    classes: list[str]
    metrics: dict[str, float]
    data: dict[str, Any]
    licence: str
    limits: dict[str, int]


class Guard:
    """ASGI middleware: the body cap, the keys, and the page's security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = "/" + scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        page = path == "/" or path.startswith("/web/")
        cap = MAX_BATCH_BODY_BYTES if path == BATCH_PATH else MAX_BODY_BYTES
        length = headers.get("content-length", "0")
        keys = [key for key in os.environ.get(KEYS, "").split(",") if key]
        refusal = None
        if keys and not page and path != "/healthz" and not _knows_key(headers.get("authorization", ""), keys):
            refusal = JSONResponse(
                {"detail": "no valid key; send the header Authorization: Bearer KEY"},
                401,
                {"WWW-Authenticate": "Bearer"},
            )
        elif length.isdigit() and int(length) > cap:
            refusal = _too_large(cap)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        received = 0

        async def receive_capped() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > cap:  # a body in chunks, which has no length
                raise HTTPException(413, f"the body is over {cap} bytes; send less at a time")
            return message

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["X-Content-Type-Options"] = "nosniff"
                if page:
                    answer["Content-Security-Policy"] = CSP
                    answer["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive_capped, send_headers)


def _too_large(cap: int) -> JSONResponse:
    return JSONResponse({"detail": f"the body is over {cap} bytes; send less at a time"}, 413)


def _knows_key(authorization: str, keys: list[str]) -> bool:
    given = authorization.removeprefix("Bearer ").encode()
    # A sum, not any(): every key is compared, each in constant time.
    return sum(hmac.compare_digest(given, key.encode()) for key in keys) > 0


app = FastAPI(title="sketchray", summary="Guesses what a drawing shows.", version="1")
app.add_middleware(Guard)
app.mount("/web", StaticFiles(directory=WEB), name="web")


@app.exception_handler(RequestValidationError)
async def refuse_malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answers 422 with the place of each fault; the input itself, which may be no valid JSON, is not sent back."""
    return JSONResponse({"detail": [_place(fault) for fault in error.errors()]}, 422)


def _place(fault: Any) -> dict[str, Any]:
    return {name: fault[name] for name in ("loc", "msg", "type")}


def _lines(predictor: Predictor, lines: list[tuple[int, bytes]], max_points: int) -> bytes:
    """Returns the answers to some lines of a batch request, one line each, in order."""
    answers: list[dict[str, Any]] = []
    good: list[tuple[int, Record, Int16Array]] = []
    for number, line in lines:
        answers.append({})
        try:
            record = Record.model_validate_json(line)
            good.append((len(answers) - 1, record, from_record(record.drawing, max_points=max_points)))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            answers[-1] = {"error": f"{where}: {fault['msg']}" if where else fault["msg"], "line": number}
        except StrokeError as error:
            answers[-1] = {"error": str(error), "line": number}
    if good:
        guesses = predictor.predict([points for _, _, points in good], max(record.top_k for _, record, _ in good))
        for (place, record, _), own in zip(good, guesses, strict=True):
            answers[place] = {"predictions": [guess._asdict() for guess in own[: record.top_k]]}
    return b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)


@serve.deployment
@serve.ingress(app)
class Classifier:
    """One replica: the model behind the routes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = Settings.model_validate(settings)
        self.predictor = Predictor.load(self.settings.checkpoint)
        self.answer_together.set_max_batch_size(self.settings.max_batch_size)  # type: ignore[attr-defined]
        self.answer_together.set_batch_wait_timeout_s(self.settings.batch_wait_timeout_s)  # type: ignore[attr-defined]

    @serve.batch
    async def answer_together(self, drawings: list[Int16Array]) -> list[list[Guess]]:
        """Answers the requests that wait; off the event loop, so that others come in meanwhile."""
        return await asyncio.to_thread(self.predictor.predict, drawings, len(self.predictor.meta.classes))

    @app.post("/v1/classify", response_model=Predictions)
    async def classify(self, record: Record, response: Response) -> dict[str, Any]:
        """Guesses what one drawing shows."""
        try:
            points = from_record(record.drawing, max_points=self.settings.max_points)
        except StrokeError as error:
            fault = {"loc": ["body", "drawing"], "msg": str(error), "type": "stroke_error"}
            raise HTTPException(422, [fault]) from error
        guesses = await self.answer_together(points)
        response.headers["X-Model-Version"] = self.predictor.version
        return {"predictions": [guess._asdict() for guess in guesses[: record.top_k]]}

    @app.post(
        BATCH_PATH,
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}}},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
        },
    )
    async def classify_batch(self, request: Request) -> StreamingResponse:
        """Guesses for one record a line; answers one line each, in order, with `error` and `line` for a bad one."""
        lines = [(number, line) for number, line in enumerate((await request.body()).splitlines(), 1) if line.strip()]

        async def answers() -> AsyncIterator[bytes]:
            for start in range(0, len(lines), LINES_AT_A_TIME):
                part = lines[start : start + LINES_AT_A_TIME]
                yield await asyncio.to_thread(_lines, self.predictor, part, self.settings.max_points)

        headers = {"X-Model-Version": self.predictor.version}
        return StreamingResponse(answers(), media_type="application/x-ndjson", headers=headers)

    @app.get("/v1/model", response_model=ModelInfo)
    async def model(self) -> dict[str, Any]:
        """Tells what is being served."""
        meta = self.predictor.meta
        limits = {
            "max_points": self.settings.max_points,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_batch_body_bytes": MAX_BATCH_BODY_BYTES,
        }
        return {
            "version": self.predictor.version,
            "classes": meta.classes,
            "metrics": meta.metrics,
            "data": meta.data,
            "licence": meta.licence,
            "limits": limits,
        }

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Tells that this replica answers."""
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    async def page(self) -> FileResponse:
        """The drawing page."""
        return FileResponse(WEB / "index.html")


def build(settings: Settings) -> Application:
    """Returns the application that Serve runs; `import_path: sketchray.service:build`.

    The checkpoint is loaded here once, so that a bad one fails the build and what is being served stays.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    Predictor.load(settings.checkpoint)
    deployment = Classifier.options(  # type: ignore[attr-defined]
        # Serve's default of 5 would cap every batch; twice the batch lets one fill while another is answered.
        max_ongoing_requests=2 * settings.max_batch_size,
        max_queued_requests=8 * settings.max_batch_size,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        # A new version starts before the old one stops.
        max_surge_percent=100,
    )
    application: Application = deployment.bind(settings.model_dump())
    return application
