"""The drawing page behind the service's own guard, and a model that answers it, without Ray; in trouble on command."""

import json
import threading
import time
from types import TracebackType
from typing import Any, Self

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware

from sketchray.demo import free_port
from sketchray.predictor import Predictor
from sketchray.service import WEB, Settings
from sketchray.service.guard import Guard
from sketchray.service.keys import Keyring
from sketchray.strokes import from_record


class PageServer:
    """Serves on loopback, in a thread; `stop` and `start` may come again, at the same address.

    Attributes:
        classes: what it tells that it knows; the challenge draws from them.
        key: the key that it wants; None: none.
        trouble: what it answers instead of guesses; None: guesses.
        drawings: the simplified drawings that came, in order.
        most_at_once: requests for guesses that were under way together, at most.
    """

    def __init__(self, predictor: Predictor, classes: list[str]) -> None:
        self.predictor, self.all_classes = predictor, classes
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.app = self._make_app()
        self.reset()

    def reset(self) -> None:
        """Forgets what was asked of it and what came."""
        self.classes = self.all_classes
        self.key: str | None = None
        self.trouble: Response | None = None
        self.drawings: list[list[list[list[int]]]] = []
        self.under_way = self.most_at_once = 0

    def _make_app(self) -> FastAPI:
        guard = Middleware(Guard, settings=Settings(checkpoint="none"), keyring=Keyring())
        app = FastAPI(middleware=[guard])  # the real headers, among them the page's policy
        app.mount("/web", StaticFiles(directory=WEB))

        @app.get("/")
        async def page() -> FileResponse:
            return FileResponse(WEB / "index.html")

        @app.get("/v1/model")
        async def model(request: Request) -> Response:
            meta = self.predictor.meta
            told = {"version": self.predictor.version, "classes": self.classes, "data": meta.data, "metrics": {}}
            return self._refusal(request) or JSONResponse(told)

        @app.post("/v1/classify")
        async def classify(request: Request) -> Response:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            try:
                body = json.loads(await request.body())
                return self.trouble or self._refusal(request) or self._answer(body["drawing"], body["top_k"])
            finally:
                self.under_way -= 1

        return app

    def _refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"detail": "no valid key"}, 401, {"WWW-Authenticate": "Bearer"})

    def _answer(self, drawing: Any, top_k: int) -> Response:
        self.drawings.append(drawing)
        with torch.inference_mode():
            guesses = self.predictor.predict([from_record(drawing)], top_k)[0]
        headers = {"X-Model-Version": self.predictor.version}
        return JSONResponse({"predictions": [guess._asdict() for guess in guesses]}, headers=headers)

    def start(self) -> None:
        """Starts to listen."""
        self.server = uvicorn.Server(uvicorn.Config(self.app, "127.0.0.1", self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), f"nothing listens at {self.url}"
            time.sleep(0.01)

    def stop(self) -> None:
        """Stops to listen; connections that are open are closed."""
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
