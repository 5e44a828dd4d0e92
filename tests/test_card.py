"""The page of the data card: what it says, and that it is safe to open."""

import json
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import real_records
from test_census import NAMES, TABLE, WHOLE, make_table

from sketchray.card import render
from sketchray.census import GALLERY, Statistics, collect, merge
from sketchray.strokes import from_record

REAL = {
    "format": "simplified",
    "synthetic": False,
    "licence": "CC BY 4.0",
    "attribution": "Google",
    "seed": 7,
    "num_shards": 3,
}
VOID = {"meta"}  # elements of the page without an end tag


class Checker(HTMLParser):
    """Collects text, elements and attributes, and refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def check_html(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    ids = [value for name, value in checker.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in checker.attributes if name == "href" and value.startswith("#")}
    assert targets <= set(ids)
    return checker


def page_of(statistics: Statistics = WHOLE, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "classes": NAMES,
        "provenance": REAL,
        "duplicates": 1234,
        "quarantine": {"is not JSON": 12, "no points": 2000},
        "examples": [{"source": "cat.ndjson", "line": 70_001, "reason": "not JSON (line 1)"}],
    }
    return render(statistics, **{**arguments, **changes})


def test_the_page_says_what_was_counted() -> None:
    checker = check_html(page_of())
    text = " ".join(checker.text)
    for wanted in (
        "150 drawings of 4 classes",
        "1,234 drawings dropped",
        "2,012 records",
        "70,001",
        "not JSON (line 1)",
    ):
        assert wanted in text
    for name, number in WHOLE.class_counts.items():
        assert name in checker.text
        assert str(number) in checker.text
    assert text.index("no points") < text.index("is not JSON")  # the most frequent first
    assert checker.elements.count("path") == 3 * GALLERY
    missed, recognized, _ = np.sum(WHOLE.recognized, axis=0)
    assert f"{recognized / (missed + recognized):.1%} of the {missed + recognized} of which it is known" in text


def test_the_page_says_of_how_many_it_is_known_what_the_game_recognized() -> None:
    for counts, wanted in (
        ([3, 1, 0], "25.0%"),
        ([2, 0, 5], "0.0% of the 2 of which it is known"),
        ([0, 0, 4], "unknown"),
    ):
        statistics = Statistics.empty(["cat"]).model_copy(update={"recognized": [counts]})
        page = page_of(statistics, classes=["cat"])
        assert f'<th scope="row">recognized by the game</th><td>{wanted}</td>' in page


@pytest.mark.parametrize(
    ("provenance", "note"),
    [
        ({"synthetic": True, "licence": "a licence"}, "Synthetic doodles."),
        ({"synthetic": False, "licence": "unknown"}, "Of unknown origin."),
    ],
)
def test_what_is_not_googles_is_not_called_so(provenance: dict[str, str | bool], note: str) -> None:
    for page, is_real in ((page_of(provenance=provenance), False), (page_of(), True)):
        assert (note in page) == (not is_real)
        assert ("Google" in page) == is_real
        assert ("creativecommons.org/licenses/by/4.0" in page) == is_real


def test_the_page_loads_and_runs_nothing() -> None:
    checker = check_html(page_of())
    assert not {"script", "link", "img", "iframe", "object"} & set(checker.elements)
    assert not {"src", "onload", "onclick"} & {name for name, _ in checker.attributes}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in checker.attributes
    assert "url(" not in page_of()
    assert "@import" not in page_of()


def test_foreign_text_stays_text() -> None:
    evil = "<script>alert('1')</script>\" onload=\"x&amp;"
    classes = [evil, "</title>", "a\x00\x1b\u202eb\ud800", "long" * 1000]
    statistics = WHOLE.model_copy(update={"classes": classes})
    page = page_of(
        statistics,
        classes=classes,
        provenance={**REAL, "source": evil, evil: 1},
        quarantine={evil: 1},
        examples=[{"source": evil, "line": 1, "reason": evil}],
    )
    page.encode()
    checker = check_html(page)
    tame = check_html(page_of(quarantine={"x": 1}, provenance={**REAL, "a": 1, "b": 1}))
    assert checker.elements == tame.elements
    assert not {"onload", "script"} & {name for name, _ in checker.attributes}
    assert checker.text.count(evil) == 7  # table, gallery, two of the provenance, reason, source and reason again
    assert ("aria-label", f"{GALLERY} drawings of {evil}") in checker.attributes
    assert "a\ufffd\ufffd\ufffdb\ufffd" in checker.text
    assert "long" * 75 + "…" in checker.text


def test_the_page_can_be_used_without_seeing_it() -> None:
    checker = check_html(page_of())
    assert ("lang", "en") in checker.attributes
    levels = [int(tag[1]) for tag in checker.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    labels = [value for name, value in checker.attributes if name == "aria-label"]
    assert len([label for label in labels if label.startswith("Histogram of")]) == 2
    assert f"{GALLERY} drawings of star" in labels
    assert checker.elements.count("caption") == checker.elements.count("table")


def test_the_same_drawings_give_the_same_bytes() -> None:
    halves = [collect(TABLE.slice(start, 75), NAMES) for start in (75, 0)]
    turned = dict(reversed(REAL.items()))
    assert page_of(merge(halves), provenance=turned, quarantine={"no points": 2000, "is not JSON": 12}) == page_of()
    assert json.dumps(merge(halves).model_dump()) == json.dumps(WHOLE.model_dump())


@pytest.mark.parametrize(("number", "is_open"), [(40, True), (41, False)])
def test_a_long_table_is_folded(number: int, is_open: bool) -> None:
    names = [f"class {index}" for index in range(number)]
    page = page_of(Statistics.empty(names), classes=names)
    assert ("<details open>" in page) == is_open


def test_no_drawings_have_a_page() -> None:
    check_html(page_of(Statistics.empty(NAMES), provenance={}, quarantine={}, examples=[]))


def test_a_page_of_all_classes_is_small() -> None:
    records = real_records(GALLERY, classes=345)
    classes = sorted({record["word"] for record in records})
    label = [classes.index(record["word"]) for record in records]
    statistics = collect(make_table([from_record(record["drawing"]) for record in records], label), classes)
    assert len(page_of(statistics, classes=classes)) < 1_000_000
