"""Draws on the page as a hand does, and waits for what the page says."""

from playwright.sync_api import Page, expect

from sketchray import doodles
from sketchray.strokes import to_record

Drawing = list[list[list[int]]]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
KNOWN = ["circle", "ladder", "zigzag"]  # doodles that a model of human drawings knows
LINE: Drawing = [[[20, 230], [30, 220]]]


class Nib:
    """A mouse, pen or finger on the paper: events that the browser takes as if they came from the device."""

    def __init__(self, page: Page, device: str = "mouse") -> None:
        self.page, self.device = page, device
        self.browser = page.context.new_cdp_session(page)

    def draw(self, drawing: Drawing, *, lift: bool = True) -> None:
        """Draws strokes of coordinates 0..255 onto the middle of the paper; `lift=False` leaves the last one open."""
        box = self.page.locator("#canvas").bounding_box()
        assert box is not None
        scale = 0.8 * box["width"] / 255
        left, top = box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"]
        for number, (xs, ys) in enumerate(drawing, 1):
            places = [(left + scale * x, top + scale * y) for x, y in zip(xs, ys, strict=True)]
            self.send("down", *places[0])
            for place in places[1:]:
                self.send("move", *place)
            if lift or number < len(drawing):
                self.send("up", *places[-1])

    def send(self, what: str, x: float, y: float) -> None:
        """Sends one event at a place of the window, in pixels."""
        if self.device == "touch":
            kind = {"down": "touchStart", "move": "touchMove", "up": "touchEnd"}[what]
            points = [] if what == "up" else [{"x": x, "y": y}]
            self.browser.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        else:
            kind = {"down": "mousePressed", "move": "mouseMoved", "up": "mouseReleased"}[what]
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            self.browser.send("Input.dispatchMouseEvent", {**event, "pointerType": self.device})


def wait_for_answer(page: Page) -> list[str]:
    """Waits until what the page shows is about all that was drawn, and returns the classes, best first."""
    expect(page.locator("#guesses")).to_have_attribute("aria-busy", "false")
    return page.locator("#guesses .name").all_inner_texts()


def expect_strokes(page: Page, strokes: str) -> None:
    expect(page.locator("#canvas")).to_have_attribute("aria-label", f"Your drawing: {strokes}")


def is_inked(page: Page) -> bool:
    code = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(Boolean)"
    return bool(page.locator("#canvas").evaluate(code))


def doodle(name: str, index: int = 0) -> Drawing:
    return to_record(doodles.draw(name, index, seed=99))
