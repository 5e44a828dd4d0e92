"""The page of the report: what it says and draws, and that it is safe to open."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_card import Checker, check_html
from test_evaluation import CONV, make_shards

from sketchray import charts
from sketchray.census import draw, to_path
from sketchray.checkpoint import Meta
from sketchray.columns import from_column
from sketchray.errors import DataError
from sketchray.mistakes import arrange
from sketchray.outcomes import OUTCOME, Evaluation, Tally
from sketchray.report import SCRIPT, interval, render, write_report
from sketchray.shards import ShardSet

HISTORY = [
    {
        "epoch": epoch + 1.0,
        "step": 10.0 * (epoch + 1),
        "val_loss": 3 / (epoch + 2),
        "val_top1": 0.2 * epoch,
        "train_loss": 3.5 / (epoch + 2),
        "train_top1": 0.15 * epoch,
        "lr": 0.003 / (epoch + 1),
        "clipped_share": 1 / (epoch + 1),
        "drawings_per_s": 1234.5,
    }
    for epoch in range(4)
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shards(tmp_path_factory.mktemp("reported") / "data")


def evaluation_of(shards: ShardSet, *, right: bool = False, **changes: Any) -> Evaluation:
    """Of a model that takes every fourth drawing for the class after its own, the more surely the later its row."""
    rows = shards.rows("test")
    outcomes = np.empty(len(rows), OUTCOME)
    outcomes["row"] = np.arange(len(rows))
    outcomes["truth"] = rows.read(0, len(rows))["label"].to_numpy()
    is_wrong = (np.arange(len(rows)) % 4 == 0) & (not right)
    outcomes["guess"] = (outcomes["truth"] + is_wrong) % len(shards.classes)
    outcomes["probability"] = 0.5 + outcomes["row"] / len(rows) / 2
    tally = Tally(len(shards.classes))
    tally.add(outcomes)
    meta = Meta(
        model=CONV,
        config={"lr": 0.003, "model": {"rnn_size": 192}},
        classes=shards.classes,
        epoch=4,
        step=40,
        metrics={},
        history=HISTORY,
        data={},
        licence="none",
        versions={"torch": "9.8.7"},
    )
    top1 = float(np.diag(tally.confusion).sum() / len(rows))
    early = {"25": 0.1, "50": 0.2, "75": 0.4, "100": top1}
    result = {"split": "test", "drawings": len(rows), "loss": 1.25, "top1": top1, "top5": 0.9, "map3": 0.8}
    whole = Evaluation({**result, "ece": tally.ece, "early": early}, tally, "runs/a/best", meta, "0a1b2c", shards)
    return replace(whole, **changes)


def page_of(evaluation: Evaluation) -> tuple[str, Checker]:
    page = render(evaluation)
    return page, check_html(page)


def test_the_page_says_what_was_evaluated_and_how_well(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    text = " ".join(page_of(evaluation)[1].text)
    for wanted in (
        "Evaluation: 130 drawings of 5 classes, test split",
        "runs/a/best (version 0a1b2c)",
        "4 epochs, 40 steps",
        "torch 9.8.7",
        shards.uri,
        "model.rnn_size",
        f"{evaluation.result['top1']:.1%}",
        f"{evaluation.tally.ece:.1%}",
        "80.0%",
        "1.250",
        f"chance: {math.log(5):.3f}",
    ):
        assert wanted in text


def test_the_confused_pairs_are_drawn_with_drawings_of_both_classes(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    page, checker = page_of(evaluation)
    table = shards.rows("test").read(0, 130)
    label = table["label"].to_numpy()
    paths = [to_path(picture) for picture in draw(*from_column(table["points"]))]
    sections = re.findall(r'<section class="pair">.*?</section>', page, re.DOTALL)
    assert len(sections) == 5
    counts = []
    for section in sections:
        drawn, taken = re.findall(r"<h3>(.*), taken for (.*)</h3>", section)[0]
        truth, guess = shards.classes.index(drawn), shards.classes.index(taken)
        assert guess == (truth + 1) % 5
        is_wrong = np.arange(130) % 4 == 0
        mistakes = np.flatnonzero((label == truth) & is_wrong).tolist()
        counts.append(len(mistakes))
        assert f"{len(mistakes)} of {(label == truth).sum()} (" in section
        assert "the other way round 0 of" in section
        expected = mistakes[:6]
        for of_class in (truth, guess):
            expected += np.flatnonzero((label == of_class) & ~is_wrong).tolist()[:3]
        assert re.findall(r'<path d="(.*?)"', section) == [paths[row] for row in expected]
    assert counts == sorted(counts, reverse=True)
    assert checker.elements.count("section") == 5


def test_the_most_confident_mistakes_come_first_with_their_keys(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    page, _ = page_of(evaluation)
    gallery = page[page.index('class="gallery mistakes"') : page.index("<h2>Each class")]
    figures = gallery.split("<figure>")[1:]
    table = shards.rows("test").read(0, 130, ("points", "label", "key_id", "recognized"))
    mistakes = range(128, -1, -4)  # the later, the surer
    assert len(figures) == len(mistakes)
    for row, figure in zip(mistakes, figures, strict=True):
        key, recognized = table["key_id"][row].as_py(), table["recognized"][row].as_py()
        truth = table["label"][row].as_py()
        assert f"<strong>{shards.classes[truth]}</strong> taken for" in figure
        assert f"<strong>{shards.classes[(truth + 1) % 5]}</strong>, {0.5 + row / 260:.1%}" in figure
        assert (f"key {key}" in figure) == (key is not None)
        assert ("not recognized by the game" in figure) == (recognized is False)


def test_each_class_has_a_row_the_hardest_first(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    page, _ = page_of(evaluation)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*)</tr>', page[page.index("<h2>Each class") :])
    confusion = evaluation.tally.confusion
    assert sorted(name for name, _ in rows) == shards.classes
    shares = []
    for name, cells in rows:
        index = shards.classes.index(name)
        after = (index + 1) % 5
        drawings, right = confusion[index].sum(), confusion[index, index]
        assert re.findall(r">(.*?)</td>", cells) == [
            f"{drawings}",
            f"{right / drawings:.1%}",
            f"{right / confusion[:, index].sum():.1%}",
            shards.classes[after],
            f"{confusion[index, after] / drawings:.1%}",
        ]
        shares.append(right / drawings)
    assert shares == sorted(shares)


def test_the_curves_are_those_of_the_history(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    page, checker = page_of(evaluation)
    told = [text for text in checker.text if re.match(r"(train|valid|learning rate|clipped), epoch", text)]
    assert len(told) == 6 * 4
    assert "valid, epoch 3: 40%" in told
    assert "train, epoch 4: 0.7" in told
    assert "clipped, epoch 2: 50%" in told
    assert "1,234 drawings/s" in page
    broken = [{**HISTORY[0], "train_loss": math.nan}, {"epoch": 2.0, "val_top1": 0.5}]
    for history in (HISTORY[:1], broken):
        page_of(replace(evaluation, meta=evaluation.meta.model_copy(update={"history": history})))
    page, _ = page_of(replace(evaluation, meta=evaluation.meta.model_copy(update={"history": []})))
    assert "it has no history of its epochs" in page


def test_calibration_is_told_in_words_and_bars(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    page, checker = page_of(evaluation)
    drawings, probability, right = evaluation.tally.bins.sum(0)
    assert f"given {probability / drawings:.1%} and is right in {right / drawings:.1%}" in page
    assert ("too sure" in page) == (probability > right)
    assert "not sure enough" in page_of(evaluation_of(shards, right=True))[0]
    assert sum(text.startswith("93.3% to 100.0%: ") for text in checker.text) == 2


def test_only_the_pages_own_script_may_run(shards: ShardSet) -> None:
    page, checker = page_of(evaluation_of(shards))
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert ("content", policy) in checker.attributes
    assert not {"link", "img", "iframe", "object"} & set(checker.elements)
    assert not {"src", "onload", "onclick"} & {name for name, _ in checker.attributes}
    assert "url(" not in page


def test_foreign_text_stays_text(shards: ShardSet) -> None:
    evil = "<script>alert('1')</script>\" onload=\"x&amp;"
    evaluation = evaluation_of(shards)
    classes = [evil, "</title>", "a\x00\u202e", "long" * 1000, "é"]
    meta = evaluation.meta.model_copy(
        update={"classes": classes, "config": {evil: {evil: evil}}, "versions": {evil: evil}, "data": {"source": evil}}
    )
    page, checker = page_of(replace(evaluation, meta=meta, checkpoint=evil, version=evil))
    page.encode()
    same = evaluation.meta.model_copy(update={"config": {"a": {"b": 1}}, "data": {"source": "x"}})
    assert checker.elements == page_of(replace(evaluation, meta=same))[1].elements
    assert not {"onload", "onclick"} & {name for name, _ in checker.attributes}
    assert checker.text.count(evil) > 5


def test_the_page_can_be_used_without_seeing_it(shards: ShardSet) -> None:
    page, checker = page_of(evaluation_of(shards))
    assert ("lang", "en") in checker.attributes
    levels = [int(tag[1]) for tag in checker.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert checker.elements.count("caption") == checker.elements.count("table")
    charts_and_grid = len(re.findall(r"<svg [^>]*role=\"img\"\s+aria-label=\"[^\"]+\"", page))
    assert charts_and_grid == 4 + 2 + 1 + 1


def test_training_data_are_told_from_others(shards: ShardSet) -> None:
    evaluation = evaluation_of(shards)
    own = evaluation.meta.model_copy(update={"data": {**shards.manifest.provenance, "splits": shards.manifest.splits}})
    for split, meta, told in (("all", own, True), ("test", own, False), ("all", evaluation.meta, False)):
        result = {**evaluation.result, "split": split}
        page = render(replace(evaluation, result=result, meta=meta))
        assert ("was trained on drawings of this split" in page) == told


def test_no_mistake_and_many_classes_have_a_page(shards: ShardSet) -> None:
    page, _ = page_of(evaluation_of(shards, right=True))
    assert "Nothing: each drawing was guessed right." in page
    evaluation = evaluation_of(shards)
    number = np.arange(130)
    tally = Tally(345)
    tally.add(np.array(list(zip(number, number, number + 1, number / 130, strict=True)), OUTCOME))
    meta = evaluation.meta.model_copy(update={"classes": [f"class {label}" for label in range(345)]})
    page, _ = page_of(replace(evaluation, meta=meta, tally=tally))
    assert "The 21 most confused classes" in page
    assert '<details class="sortable">' in page
    assert f"Known, but not in this split: {', '.join(meta.classes[130:])}"[:200] in page


def test_the_same_evaluation_gives_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    evaluation = evaluation_of(shards)
    path = write_report(str(tmp_path / "new" / "report"), evaluation)
    assert path == tmp_path / "new" / "report" / "report.html"
    assert path.read_text(encoding="utf-8") == render(evaluation)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--report .*file/x: cannot write there .*; choose another directory"):
        write_report(str(tmp_path / "file" / "x"), evaluation)


def test_alike_classes_stand_beside_each_other() -> None:
    confusion = np.diag([50] * 6)
    for one, other in ((0, 3), (3, 5), (1, 4)):
        confusion[one, other] = confusion[other, one] = 20
    order = arrange(confusion, range(6))
    assert sorted(order) == list(range(6))
    assert [abs(order.index(one) - order.index(other)) for one, other in ((0, 3), (3, 5), (1, 4))] == [1, 1, 1]


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        (0, 1, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.0027, 0, [0, 0.001, 0.002, 0.003]),
        (0.68, 2.85, 0, [0.5, 1, 1.5, 2, 2.5, 3]),
        (0, 3, 1, [0, 1, 2, 3]),
        (0, 2, 1, [0, 1, 2]),
        (5, 5, 0, [5, 6]),
        (0, 0, 0, [0, 0.2]),
        (0, 12345, 1, [0, 5000, 10000, 15000]),
    ],
)
def test_ticks_are_round_and_span_the_range(low: float, high: float, least: float, expected: list[float]) -> None:
    assert charts.ticks(low, high, least=least) == expected


def test_ticks_of_epochs_end_at_the_last() -> None:
    assert charts.ticks_to(2) == [1, 2]
    assert charts.ticks_to(5) == [1, 2, 3, 4, 5]
    assert charts.ticks_to(12) == [1, 5, 12]
    assert charts.ticks_to(41) == [1, 10, 20, 30, 41]


def test_the_interval_of_a_share() -> None:
    # Wilson's interval of 81 of 263, as in Newcombe 1998, table I: 0.2553 to 0.3662.
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert interval(1.0, 10)[1] == pytest.approx(1.0)
    assert 0 < interval(1.0, 10)[0] < 1
