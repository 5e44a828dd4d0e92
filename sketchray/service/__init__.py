"""The HTTP service: the Serve deployment, and the builder that `serve_config.yaml` names.

Serving imports no training code, no Ray Data and no Optuna.
"""

from collections import Counter
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.context import _get_global_client
from ray.serve.metrics import Counter as CounterMetric
from ray.serve.metrics import Histogram

from sketchray.predictor import Guess, Predictor
from sketchray.service.batching import Batcher, Done
from sketchray.service.guard import RETRY_AFTER_S
from sketchray.service.keys import KEYS, KEYS_FILE, Keyring, check_door
from sketchray.service.records import Query, predict
from sketchray.service.routes import WEB, make_app
from sketchray.service.settings import Settings

# Bounds of the histograms' buckets.
BATCH_SIZES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 10_000]

__all__ = ["KEYS", "KEYS_FILE", "WEB", "Classifier", "Settings", "build"]


@serve.deployment
@serve.ingress()
class Classifier:
    """One replica: the model behind the routes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = Settings.model_validate(settings)
        self.keyring = Keyring.of()
        check_door(_host(), self.keyring)
        self.predictor = Predictor.load(self.settings.checkpoint, self.settings.backend)
        self.batcher = Batcher(partial(predict, self.predictor), self.settings.max_batch_size, self.note)
        self.sizes = Histogram("sketchray_batch_size", "Requests that the model answered together.", BATCH_SIZES)
        self.waited = Histogram("sketchray_batch_wait_ms", "Until the model took a request.", MILLISECONDS)
        self.worked = Histogram("sketchray_batch_execution_ms", "That the model took for a batch.", MILLISECONDS)
        self.guesses = CounterMetric("sketchray_guesses", "First guesses, by class.", tag_keys=("label",))
        self.bad_lines = CounterMetric("sketchray_bad_lines", "Lines of batches that were no drawing.")

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self, self.settings, self.keyring)

    async def answer(self, query: Query) -> list[Guess]:
        """Answers a request, together with others that wait."""
        return await self.batcher.ask(query)

    def check_health(self) -> None:
        """Tells Serve, which asks now and then, whether to replace this replica."""
        if (busy_s := self.batcher.busy_s()) > self.settings.timeout_s:
            raise RuntimeError(f"the model has not answered for {busy_s:.0f} s")

    def note(self, done: Done[list[Guess]]) -> None:
        """Takes note of a batch, for Ray's Prometheus endpoint."""
        self.sizes.observe(len(done.answers))
        self.worked.observe(1000 * done.worked_s)
        for waited_s in done.waited_s:
            self.waited.observe(1000 * waited_s)
        self.count([guesses[0] for guesses in done.answers])

    def count(self, firsts: list[Guess], bad: int = 0) -> None:
        """Takes note of first guesses and bad lines, for Ray's Prometheus endpoint."""
        for label, number in Counter(guess.label for guess in firsts).items():
            self.guesses.inc(number, {"label": label})
        if bad:
            self.bad_lines.inc(bad)


def _host() -> str | None:
    """Returns what the proxies of the Serve that runs listen on, HAProxy too; loopback where none runs yet."""
    # Serve tells its HTTP options nowhere in public but over the dashboard, whose address is not known here.
    # Asked without a cluster, it would start one.
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return "127.0.0.1" if client is None else client.http_config.host


def build(settings: Settings) -> Application:
    """Returns the application that Serve runs; `import_path: sketchray.service:build`.

    The checkpoint is loaded here once, and exported, so that a bad one fails the build and what is being served stays.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: Serve listens on more than loopback and there is no key, or the file of keys is bad.
    """
    check_door(_host(), Keyring.of())
    Predictor.load(settings.checkpoint, settings.backend)
    deployment = Classifier.options(  # type: ignore[attr-defined]
        # Serve's default of 5 would cap every batch; twice the batch lets one fill while another is answered.
        max_ongoing_requests=2 * settings.max_batch_size,
        max_queued_requests=8 * settings.max_batch_size,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        # A new version starts before the old one stops.
        max_surge_percent=100,
        # A replica that hangs is found and replaced sooner than by Serve's default (10 and 30 s).
        health_check_period_s=5,
        health_check_timeout_s=10,
    )
    application: Application = deployment.bind(settings.model_dump())
    return application
