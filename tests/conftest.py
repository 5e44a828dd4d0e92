"""Real drawings where they are at hand, doodles where not; one Ray cluster and one service for the whole session."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from sketchray import doodles
from sketchray.cluster import quiet_ray
from sketchray.demo import free_port, isolate_serve
from sketchray.ingest import ingest
from sketchray.model import ModelConfig
from sketchray.recipe import TrainConfig
from sketchray.sources import open_source
from sketchray.strokes import to_record
from sketchray.training import train

if TYPE_CHECKING:
    from object_store import ObjectStore
    from page_server import PageServer
    from playwright.sync_api import Browser, Page

    from sketchray.predictor import Predictor

ROOT = Path(__file__).parents[1]
# `make test` tries the same examples each time, and no slow machine fails it; `--hypothesis-profile long` tries others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=20_000, deadline=None, print_blob=True)
settings.load_profile("same")
TINY = TrainConfig(
    model=ModelConfig(conv_channels=(32, 48), conv_kernels=(5, 5), conv_strides=(2, 2), rnn_layers=1, rnn_size=32),
    num_epochs=2,
    batch_size=32,
    warmup=0.1,
    lr=1e-2,
)


def find_quickdraw() -> Path | None:
    """Returns the directory of real drawings: QUICKDRAW_DIR, or the one beside the project, if it is there."""
    directory = Path(os.environ.get("QUICKDRAW_DIR", ROOT.parent / "shared" / "data" / "quickdraw"))
    return directory if directory.is_dir() else None


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests for two processes: what needs the Ray cluster stays together, all else goes by file."""
    for item in items:
        on_ray = "cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("cluster" if on_ray else item.path.stem))


@pytest.fixture(scope="session")
def quickdraw_dir() -> Path | None:
    """The directory of real drawings, if it is there."""
    return find_quickdraw()


def real_records(per_class: int, classes: int = 1) -> list[dict[str, Any]]:
    """Returns real simplified records, `per_class` of each of some classes; doodles where there are none."""
    directory = find_quickdraw()
    if directory is None:
        return [
            {"word": name, "key_id": str(number * 1000 + index + 1), "drawing": to_record(doodles.draw(name, index))}
            for number, name in enumerate(doodles.CLASSES[:classes])
            for index in range(per_class)
        ]
    files = sorted((directory / "simplified").glob("*.ndjson"))[:classes]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()[:per_class]]


@pytest.fixture
def store() -> "Iterator[ObjectStore]":
    """An S3 server."""
    from object_store import ObjectStore

    with ObjectStore() as started:
        yield started


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Opens the machine's Chromium, without a window.

    No longer than for one file: while it is open, its thread has an asyncio loop, and nothing else may start one there.
    """
    from playwright.sync_api import expect, sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        remedy = "no Chromium on PATH; `apt-get install chromium`"
        pytest.fail(remedy) if os.environ.get("CI") else pytest.skip(remedy)
    expect.set_options(timeout=30_000)  # for a busy machine; what is there is seen at once
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def predictor() -> "Predictor":
    """The model that comes with the project."""
    from sketchray.predictor import Predictor

    return Predictor.load(str(ROOT / "models" / "quickdraw-345"))


@pytest.fixture(scope="module")
def running(predictor: "Predictor") -> "Iterator[PageServer]":
    """The page's server, for a file of tests."""
    from page_driver import KNOWN
    from page_server import PageServer

    with PageServer(predictor, KNOWN) as server:
        yield server


@pytest.fixture
def server(running: "PageServer") -> "PageServer":
    """The page's server, without trouble."""
    running.reset()
    return running


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium, for a file of tests."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser: "Browser", server: "PageServer") -> "Iterator[Callable[..., Page]]":
    """Opens the page in a context of its own; in the end, nothing came from elsewhere and no console has errors."""
    from page_driver import DESKTOP
    from playwright.sync_api import expect

    contexts = []
    faults: list[str] = []

    def note(text: str) -> None:
        if not text.startswith("Failed to load resource"):  # what a server in trouble answers; the page says so itself
            faults.append(text)

    def open_one(*, known: bool = True, calm: bool = False, clock: bool = False, **options: Any) -> "Page":
        options = {"viewport": DESKTOP, "reduced_motion": "reduce" if calm else "no-preference", **options}
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(server.url) else note(f"asked {asked.url}"))
        if clock:
            page.clock.install()
        page.goto(server.url)
        if known:
            expect(page.locator("#model")).to_contain_text(server.predictor.version)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Starts the one Ray cluster of the test session, two CPUs, and returns its address for jobs run as processes."""
    import ray

    isolate_serve()
    quiet_ray()
    port = free_port()  # the usual one may be another cluster's
    # Ray Train's clean-up asks the dashboard, and would not know whose where a machine has several clusters.
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    context = ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=512 << 20,
        log_to_driver=False,
        dashboard_port=port,
    )
    yield context.address_info["address"]
    del os.environ["RAY_API_SERVER_ADDRESS"]
    ray.shutdown()


@pytest.fixture(scope="session")
def doodle_shards(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ingests 120 generated doodles of each class."""
    out = str(tmp_path_factory.mktemp("data") / "doodles")
    ingest(open_source(None, "doodles", per_class=120, seed=3), out, seed=3)
    return out


@pytest.fixture(scope="session")
def run(doodle_shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trains a small model with two workers, and returns the run's directory."""
    runs = str(tmp_path_factory.mktemp("runs"))
    result = train(TINY, data=doodle_shards, storage_path=runs, name="tiny", num_workers=2)
    return str(result["run"])
