"""The drawing page in a real Chromium, answered by the model that comes with the project: drawing and guesses."""

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from conftest import find_quickdraw
from page_driver import DESKTOP, KNOWN, LINE, PHONE, Nib, doodle, expect_strokes, is_inked, wait_for_answer
from page_server import PageServer
from playwright.sync_api import Page, expect

from sketchray.predictor import Predictor
from sketchray.strokes import from_record, simplify


def raw_drawings() -> list[list[list[list[float]]]]:
    """Real raw drawings where there are some, and generated ones: smooth scribbles, dots, loops, a point said twice."""
    rng = np.random.default_rng(0)
    made = [
        [[[7.5], [9.25]], [[0.0, 40.0], [3.0, 90.5]]],
        [[[1, 1, 200, 200, 1], [1, 1, 1, 150, 1]], [[50, 50], [9, 9]]],
    ]
    for _ in range(60):
        walks = [np.cumsum(np.cumsum(rng.normal(size=(2, rng.integers(2, 80))), axis=1), axis=1) for _ in range(3)]
        made.append([walk.round(3).tolist() for walk in walks])
    directory = find_quickdraw()
    files = sorted((directory / "raw").glob("*.ndjson")) if directory else []
    real = [json.loads(line)["drawing"] for file in files for line in file.read_text().splitlines()]
    return made + [[stroke[:2] for stroke in drawing] for drawing in real]


def test_strokes_are_simplified_as_the_data_set_was(open_page: Callable[..., Page]) -> None:
    drawings = raw_drawings()
    expected = []
    for drawing in drawings:
        x, y = (np.concatenate([np.asarray(stroke[axis], np.float64) for stroke in drawing]) for axis in (0, 1))
        ends = np.cumsum([len(stroke[0]) for stroke in drawing])
        x, y, ends = simplify(x, y, ends, np.array([len(drawing)]))
        pieces = [np.split(axis.astype(int), ends[:-1]) for axis in (x, y)]
        expected.append([[xs.tolist(), ys.tolist()] for xs, ys in zip(*pieces, strict=True)])
    pairs = [[list(zip(*stroke, strict=True)) for stroke in drawing] for drawing in drawings]
    code = "async (all) => { const { simplify } = await import('/web/simplify.js'); return all.map(simplify); }"
    found = open_page().evaluate(code, pairs)
    different = [number for number, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]
    assert different == []


def test_what_is_drawn_is_guessed_as_the_model_guesses_it(
    open_page: Callable[..., Page], server: PageServer, predictor: Predictor
) -> None:
    page = open_page(calm=True)
    mouse = Nib(page)
    for name in KNOWN:
        for index in range(2):
            drawing = doodle(name, index)
            mouse.draw(drawing)
            shown = wait_for_answer(page)
            offline = [guess.label for guess in predictor.predict([from_record(drawing)])[0]]
            assert name in offline
            assert name in shown
            sent = server.drawings[-1]
            assert len(sent) == len(drawing)
            for (xs, ys), (sent_xs, sent_ys) in zip(drawing, sent, strict=True):
                # A pixel of the screen is not one of the drawing's: at most one of them off, and one by rounding.
                ends = [(xs[0], sent_xs[0]), (ys[0], sent_ys[0]), (xs[-1], sent_xs[-1]), (ys[-1], sent_ys[-1])]
                assert max(abs(one - other) for one, other in ends) <= 2
            exact = predictor.predict([from_record(sent)])[0]
            assert shown == [guess.label for guess in exact]
            assert page.locator("#guesses .value").first.inner_text() == f"{exact[0].probability:.0%}".replace(
                "%", "\xa0%"
            )
            expect(page.locator("#meta")).to_have_text(
                re.compile(rf"{len(sent)} strokes?, \d+ points, answered in \d+\sms")
            )
            page.keyboard.press("Escape")
    assert server.most_at_once == 1


def test_it_guesses_before_the_pen_is_lifted(open_page: Callable[..., Page], server: PageServer) -> None:
    page = open_page()
    mouse = Nib(page)
    mouse.draw(doodle("circle"), lift=False)
    expect(page.locator("#guesses .name")).to_have_count(5)
    wait_for_answer(page)
    asked = len(server.drawings)
    mouse.draw([[[250], [250]]])  # lifts it elsewhere: a press while one is down is none
    assert asked >= 1


@pytest.mark.parametrize(("device", "viewport"), [("mouse", DESKTOP), ("pen", DESKTOP), ("touch", PHONE)])
def test_mouse_pen_and_finger_draw(open_page: Callable[..., Page], device: str, viewport: dict[str, int]) -> None:
    touch = device == "touch"
    page = open_page(viewport=viewport, has_touch=touch, is_mobile=touch)
    page.evaluate("addEventListener('pointerdown', (event) => { window.kind = event.pointerType; }, true)")
    Nib(page, device).draw(doodle("ladder"))
    expect_strokes(page, f"{len(doodle('ladder'))} strokes")
    assert wait_for_answer(page)[0] == "ladder"
    assert page.evaluate("kind") == device
    assert page.evaluate("scrollY") == 0  # the finger drew, and did not scroll
    assert is_inked(page)


def test_a_second_finger_and_the_right_button_draw_nothing(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    fingers = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [(100, 300, 0)]),
        ("touchStart", [(100, 300, 0), (250, 300, 1)]),
        ("touchMove", [(140, 330, 0), (250, 360, 1)]),
        ("touchEnd", []),
    ):
        places = [{"x": x, "y": y, "id": number} for x, y, number in points]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    expect_strokes(page, "1 stroke")
    page.locator("#canvas").click(button="right")
    expect_strokes(page, "1 stroke")


def test_undo_and_clear_by_button_and_by_key(open_page: Callable[..., Page], server: PageServer) -> None:
    page = open_page()
    undo, clear = page.locator("#undo"), page.locator("#clear")
    expect(undo).to_have_attribute("aria-disabled", "true")
    Nib(page).draw(doodle("ladder"))
    count = len(doodle("ladder"))
    before = wait_for_answer(page)
    undo.click()
    expect_strokes(page, f"{count - 1} strokes")
    wait_for_answer(page)
    assert len(server.drawings[-1]) == count - 1
    page.keyboard.press("Control+z")
    expect_strokes(page, f"{count - 2} strokes")
    clear.click()
    expect_strokes(page, "blank")
    assert not is_inked(page)
    expect(page.locator("#guesses .name")).to_have_count(0)
    expect(clear).to_have_attribute("aria-disabled", "true")
    undo.click()  # takes the clear back
    expect_strokes(page, f"{count - 2} strokes")
    wait_for_answer(page)
    page.keyboard.press("Escape")
    expect_strokes(page, "blank")
    page.keyboard.press("Control+z")
    Nib(page).draw(doodle("ladder")[-2:])
    assert wait_for_answer(page) == before


def test_bars_glide_unless_motion_is_unwelcome(open_page: Callable[..., Page]) -> None:
    lengths = """() => new Promise((resolve) => {
      const seen = [];
      const look = () => {
        const bar = document.querySelector("#guesses .first .bar");
        if (bar) seen.push(new DOMMatrix(getComputedStyle(bar).transform).a);
        if (seen.length < 40) requestAnimationFrame(look); else resolve(seen);
      };
      look();
    })"""
    for calm in (False, True):
        page = open_page(calm=calm)
        page.evaluate(f"() => {{ window.watched = ({lengths})(); }}")
        Nib(page).draw([[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]])
        wait_for_answer(page)
        seen = page.evaluate("watched")
        steps = {round(length, 3) for length in seen}
        assert (len(steps) > 5) is not calm, steps


def test_nothing_overflows_and_all_of_it_fits_a_phone(open_page: Callable[..., Page]) -> None:
    for viewport in (PHONE, DESKTOP, {"width": 320, "height": 640}, {"width": 844, "height": 390}):
        page = open_page(viewport=viewport)
        Nib(page).draw(LINE)
        wait_for_answer(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        if viewport in (PHONE, DESKTOP):
            bottom = page.locator("#meta").bounding_box()
            assert bottom is not None
            assert math.floor(bottom["y"] + bottom["height"]) <= viewport["height"]
