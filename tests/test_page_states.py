"""The drawing page in a real Chromium: keyboard, challenge, trouble, and what axe-core says of each state."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_driver import DESKTOP, LINE, PHONE, Nib, doodle, expect_strokes, wait_for_answer
from page_server import PageServer
from playwright.sync_api import Page, expect
from starlette.responses import JSONResponse

BUSY = JSONResponse({"detail": "full"}, 503, {"Retry-After": "1"})


def test_the_keyboard_reaches_everything(open_page: Callable[..., Page]) -> None:
    page = open_page()
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.localName"))
    assert reached == ["a", "go", "undo", "clear", "known-title", "a", "a"]
    page.locator("#go").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_attribute("data-state", "ready")
    expect(page.locator("#spoken")).to_have_text(re.compile("Draw an? .* in 20 seconds"))
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_attribute("data-state", "running")
    expect(page.locator("#stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_attribute("data-state", "off")
    expect(page.locator("#go")).to_be_focused()


def stop_clock(page: Page) -> None:
    """Stops the page's clock, so that a slow machine has its 20 seconds too."""
    page.clock.pause_at(datetime.now() + timedelta(hours=1))


def test_a_challenge_is_won_by_drawing_the_word(open_page: Callable[..., Page]) -> None:
    page = open_page(clock=True)
    stop_clock(page)
    page.locator("#go").click()
    expect(page.locator("#headline")).to_have_text("Ready when you are.")
    first = page.locator("#prompt-text strong").inner_text()
    page.locator("#skip").click()
    expect(page.locator("#prompt-text strong")).not_to_have_text(first)
    word = page.locator("#prompt-text strong").inner_text().removeprefix("a ")
    Nib(page).draw(doodle(word))  # whoever draws has started
    expect(page.locator("#prompt")).to_have_attribute("data-state", "won")
    expect(page.locator("#prompt-text")).to_have_text(re.compile(rf"Got it! That.s a {word}, in [\d.]+\ss"))
    expect(page.locator("#score")).to_have_text("1 of 1 guessed")
    page.locator("#go").click()
    expect_strokes(page, "blank")
    expect(page.locator("#prompt")).to_have_attribute("data-state", "ready")


def test_a_challenge_ends_after_20_seconds(open_page: Callable[..., Page]) -> None:
    page = open_page(clock=True)
    stop_clock(page)
    page.locator("#go").click()
    page.locator("#go").click()
    expect(page.locator("#timer")).to_be_visible()
    Nib(page).draw([[[0, 255], [0, 3]]])
    wait_for_answer(page)
    page.clock.fast_forward(21_000)
    expect(page.locator("#prompt")).to_have_attribute("data-state", "lost")
    expect(page.locator("#prompt-text")).to_contain_text("s up.")
    expect(page.locator("#score")).to_have_text("0 of 1 guessed")


def test_a_busy_server_is_left_alone_as_long_as_it_asks(open_page: Callable[..., Page], server: PageServer) -> None:
    page = open_page()
    server.trouble = BUSY
    Nib(page).draw(doodle("circle"))
    expect(page.locator("#notice-text")).to_have_text(
        re.compile(r"Many people are drawing just now. Trying again( in \d s\.|…)")
    )
    expect(page.locator("#retry")).to_be_hidden()
    assert not server.drawings
    server.trouble = None
    expect(page.locator("#notice")).to_be_hidden()  # nobody had to do anything
    assert wait_for_answer(page)[0] == "circle"


def test_a_server_that_is_gone_is_asked_again(open_page: Callable[..., Page], server: PageServer) -> None:
    page = open_page()
    server.stop()
    try:
        Nib(page).draw(doodle("circle"))
        expect(page.locator("#notice-text")).to_contain_text("The server cannot be reached.")
    finally:
        server.start()
    # Not `click`, which waits for what it clicks: the page asks again by itself too, and then the button is gone.
    page.locator("#retry").dispatch_event("click")
    assert wait_for_answer(page)[0] == "circle"
    expect(page.locator("#notice")).to_be_hidden()


def test_a_key_is_typed_in_and_kept_for_this_tab_only(open_page: Callable[..., Page], server: PageServer) -> None:
    server.key = "open-sesame"
    page = open_page(known=False)
    expect(page.locator("#notice-text")).to_have_text("This server asks for a key.")
    for typed, said in (("two words", "A key has no spaces and no accents."), ("wrong", "did not accept this key")):
        page.get_by_label("Key").fill(typed)
        page.keyboard.press("Enter")
        expect(page.locator("#notice-text")).to_contain_text(said)
    page.get_by_label("Key").fill(server.key)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#notice")).to_be_hidden()
    Nib(page).draw(doodle("zigzag"))
    assert wait_for_answer(page)[0] == "zigzag"
    page.reload()
    expect(page.locator("#model")).to_contain_text(server.predictor.version)
    assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
    other = page.context.new_page()
    other.goto(server.url)
    expect(other.locator("#notice-text")).to_have_text("This server asks for a key.")


def test_a_drawing_that_is_refused_is_told_why(open_page: Callable[..., Page], server: PageServer) -> None:
    page = open_page()
    fault = {"loc": ["body", "drawing"], "msg": "too many points", "type": "stroke_error"}
    server.trouble = JSONResponse({"detail": [fault]}, 422)
    Nib(page).draw(LINE)
    expect(page.locator("#notice-text")).to_have_text("The server refused it: body.drawing too many points")


def states(page: Page, server: PageServer) -> Iterator[str]:
    """Brings the page into each of its states, one after the other."""
    prompt, nib = page.locator("#prompt"), Nib(page)
    yield "blank"
    page.locator("#known-title").click()
    nib.draw(doodle("circle"))
    wait_for_answer(page)
    yield "drawn"
    page.locator("#go").click()
    yield "ready"
    page.locator("#go").click()
    expect(prompt).to_have_attribute("data-state", "running")
    yield "running"
    nib.draw(LINE)
    wait_for_answer(page)
    page.clock.fast_forward(21_000)
    expect(prompt).to_have_attribute("data-state", "lost")
    yield "lost"
    server.trouble = BUSY
    nib.draw(LINE)
    expect(page.locator("#notice")).to_have_attribute("data-kind", "busy")
    yield "busy"
    server.trouble, server.key = None, "secret"
    expect(page.locator("#notice")).to_have_attribute("data-kind", "key")
    yield "key"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_in_any_state_light_or_dark(
    open_page: Callable[..., Page], server: PageServer, viewport: dict[str, int]
) -> None:
    page = open_page(viewport=viewport, calm=True, clock=True)
    for state in states(page, server):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            result = Axe().run(page)
            assert result.violations_count == 0, f"{state}, {scheme}:\n{result.generate_report()}"
