"""How often the right class is in the top 5 on the page, beside the model on the same drawings offline.

    python benchmarks/page.py --data data --checkpoint runs/base

Serves the checkpoint on a Ray of its own, opens the page in Chromium (Debian's `chromium`), and draws drawings of a
split with the mouse, stroke by stroke, 80 % of the paper wide. The page sees pixels, simplifies them, asks while the
strokes grow, and shows bars; what they say when it has answered about the last stroke counts. Offline is the same
checkpoint on the drawings as they are in the data set.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tyro
from playwright.sync_api import CDPSession, Page, sync_playwright

from sketchray.cluster import quiet_ray
from sketchray.columns import from_column
from sketchray.demo import free_port, isolate_serve
from sketchray.predictor import Predictor
from sketchray.shards import open_shards
from sketchray.strokes import Int16Array, to_record

TOP_K = 5
MARGIN = 0.1  # of the paper, on each side


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The page beside the model.

    Attributes:
        data: directory of an ingested data set.
        checkpoint: a checkpoint, a run (its best) or a URI of one.
        split: of the data set.
        drawings: how many of its first ones; the order is that of a hash.
        chromium: the browser.
        width, height: of its window, in pixels.
        url: of a service that runs and serves the same checkpoint, instead of one of its own.
    """

    data: str
    checkpoint: str = "models/quickdraw-345"
    split: str = "test"
    drawings: int = 300
    chromium: str = "/usr/bin/chromium"
    width: int = 1280
    height: int = 800
    url: str | None = None


def main() -> None:
    """Draws, and prints the table."""
    arguments = tyro.cli(Arguments)
    predictor = Predictor.load(arguments.checkpoint)
    shards = open_shards(arguments.data)
    rows = shards.rows(arguments.split)
    table = rows.read(0, min(arguments.drawings, len(rows)))
    points, offsets = from_column(table["points"])
    drawings = [points[start:stop] for start, stop in pairwise(offsets)]
    truth = [shards.manifest.classes[label] for label in table["label"].to_pylist()]
    offline = [[guess.label for guess in predictor.predict([drawing], TOP_K)[0]] for drawing in drawings]

    page_guesses, milliseconds = [], []
    with served(arguments) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": arguments.width, "height": arguments.height})
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_default_timeout(120_000)  # a busy machine may take its time
        mouse = page.context.new_cdp_session(page)
        page.goto(url)
        page.get_by_text(f"Model {predictor.version}").wait_for()
        for number, drawing in enumerate(drawings, 1):
            page_guesses.append(guess_on_page(page, mouse, drawing))
            milliseconds.append(float(page.locator("#meta").inner_text().split("answered in ")[1].split()[0]))
            page.keyboard.press("Escape")
            if number % 50 == 0:
                print(f"{number} of {len(drawings)} drawn", flush=True)
        browser.close()

    print(f"\n{len(drawings)} drawings, {len(faults)} errors on the console {faults[:3] or ''}")
    print("| | right at first guess | in the top 5 |\n|---|---|---|")
    for name, guesses in (("on the page", page_guesses), ("offline", offline)):
        first = np.mean([labels[0] == label for labels, label in zip(guesses, truth, strict=True)])
        top = np.mean([label in labels for labels, label in zip(guesses, truth, strict=True)])
        print(f"| {name} | {100 * first:.1f} % | {100 * top:.1f} % |")
    same = np.mean([one[0] == other[0] for one, other in zip(page_guesses, offline, strict=True)])
    print(
        f"\nThe first guess is the same for {100 * same:.1f} %; answers took {statistics.median(milliseconds):.0f} ms"
    )


@contextmanager
def served(arguments: Arguments) -> Iterator[str]:
    """Yields the URL of a service of the checkpoint."""
    if arguments.url is not None:
        yield arguments.url
        return
    import ray
    from ray import serve

    from sketchray.service import Settings, build

    isolate_serve()
    quiet_ray()
    ray.init(address="local", num_cpus=2, log_to_driver=False, dashboard_port=free_port())
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(build(Settings(checkpoint=arguments.checkpoint)), name="sketchray", route_prefix="/")
        yield f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()
        ray.shutdown()


def guess_on_page(page: Page, mouse: CDPSession, drawing: Int16Array) -> list[str]:
    """Draws it with the mouse and returns the classes that the page shows in the end, best first."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    scale = box["width"] * (1 - 2 * MARGIN) / 255
    left, top = (box[axis] + MARGIN * box["width"] for axis in ("x", "y"))
    for xs, ys in to_record(drawing):
        nib = [{"x": left + x * scale, "y": top + y * scale, "button": "left"} for x, y in zip(xs, ys, strict=True)]
        press(mouse, "mousePressed", nib[0])
        for place in nib[1:]:
            press(mouse, "mouseMoved", place)
        press(mouse, "mouseReleased", nib[-1])
    page.wait_for_selector('#guesses[aria-busy="false"]')
    return page.locator("#guesses .name").all_inner_texts()


def press(mouse: CDPSession, what: str, place: dict[str, Any]) -> None:
    """Gives the browser an event as a mouse would; Playwright's own way takes thrice the time with a button down."""
    mouse.send("Input.dispatchMouseEvent", {**place, "type": what, "buttons": 1, "clickCount": 1})


if __name__ == "__main__":
    main()
