"""Servers of the same model for benchmarks/serve.py, each a process: ours, Serve's default proxy, FastAPI.

    python benchmarks/serve_peers.py ours|default-proxy|fastapi --port PORT

Each has one thread for the model and answers `POST /v1/classify`. It runs until it gets SIGTERM.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A server.

    Attributes:
        kind: which one.
        port: of loopback.
        checkpoint: the model.
        backend: that runs it.
    """

    kind: tyro.conf.Positional[Literal["ours", "default-proxy", "fastapi"]]
    port: int
    checkpoint: str = "models/quickdraw-345"
    backend: Literal["onnx", "torch"] = "onnx"


def serve_ours(arguments: Arguments) -> None:
    """Our service, on a Ray of its own; with Serve's default proxy if `default-proxy` is wanted."""
    from sketchray.cluster import quiet_ray
    from sketchray.demo import free_port, isolate_serve

    isolate_serve()
    quiet_ray()
    proxy = {"RAY_SERVE_ENABLE_HA_PROXY": str(int(arguments.kind == "ours"))}
    os.environ.update(proxy, RAY_worker_niceness="0")  # that of the peers; Ray's default is 15
    import ray
    from ray import serve

    from sketchray.service import Settings, build

    ray.init(address="local", num_cpus=2, log_to_driver=False, dashboard_port=free_port())
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port}, logging_config={"log_level": "ERROR"})
    settings = Settings(checkpoint=arguments.checkpoint, backend=arguments.backend)
    serve.run(build(settings), name="sketchray", route_prefix="/")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


def serve_fastapi(arguments: Arguments) -> None:
    """The usual way: FastAPI and uvicorn, which call the Predictor for each request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from sketchray.predictor import Predictor
    from sketchray.strokes import from_record

    class Record(BaseModel):
        drawing: list[list[list[float]]]
        top_k: int = 5

    predictor = Predictor.load(arguments.checkpoint, arguments.backend)
    app = FastAPI()

    @app.post("/v1/classify")
    async def classify(record: Record) -> dict[str, Any]:
        (guesses,) = predictor.predict([from_record(record.drawing)], record.top_k)
        return {"predictions": [guess._asdict() for guess in guesses]}

    uvicorn.run(app, port=arguments.port, log_level="error")


SERVERS: dict[str, Callable[[Arguments], None]] = {
    "ours": serve_ours,
    "default-proxy": serve_ours,
    "fastapi": serve_fastapi,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    given = tyro.cli(Arguments)
    SERVERS[given.kind](given)
