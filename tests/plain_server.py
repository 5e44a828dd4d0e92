"""The application on a bare uvicorn, without Ray: what one replica does with a request."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn

from sketchray import doodles
from sketchray.checkpoint import Meta
from sketchray.demo import free_port
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.predictor import Guess, Predictor
from sketchray.service.keys import Keyring
from sketchray.service.records import Query, predict
from sketchray.service.routes import make_app
from sketchray.service.settings import Settings

SQUARE = [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]]
MODEL = ModelConfig(conv_channels=(8,), conv_kernels=(3,), conv_strides=(2,), rnn_layers=0)


def untrained() -> Predictor:
    """Returns a small predictor of the doodles' classes whose weights are random."""
    torch.manual_seed(0)
    about = {"metrics": {"val_loss": float("nan"), "val_top1": 0.1}, "data": {"synthetic": True}, "licence": "CC0"}
    meta = Meta(model=MODEL, config={}, classes=list(doodles.CLASSES), epoch=0, step=0, versions={}, **about)
    return Predictor(StrokeClassifier(MODEL, len(meta.classes)).eval(), meta, "0" * 12)


@dataclass
class Alone:
    """Answers each drawing by itself, after `wait_s`."""

    predictor: Predictor = field(default_factory=untrained)
    wait_s: float = 0.0
    bad: int = 0

    async def answer(self, query: Query) -> list[Guess]:
        """Returns the guesses about one drawing."""
        await asyncio.sleep(self.wait_s)
        return predict(self.predictor, [query])[0]

    def count(self, firsts: list[Guess], bad: int) -> None:
        """Counts the bad lines."""
        self.bad += bad


@contextmanager
def serving(keyring: Keyring | None = None, answerer: Alone | None = None, **settings: Any) -> Iterator[str]:
    """Serves the application on loopback, and yields its URL."""
    app = make_app(answerer or Alone(), Settings(checkpoint="none", **settings), keyring or Keyring())
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()
