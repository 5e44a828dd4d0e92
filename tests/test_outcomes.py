"""What is counted of a model's guesses, and which drawings are kept: against a plain loop, in any order and cut."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sketchray.outcomes import BINS, EXAMPLES, MISTAKES, OUTCOME, Outcomes, Tally

CLASSES = 7


def make_outcomes(*rows: tuple[int, int, int, float]) -> Outcomes:
    """Outcomes of (row, truth, guess, probability)."""
    return np.array(list(rows), OUTCOME)


def random_outcomes(number: int, seed: int = 0) -> Outcomes:
    """A model that is right in about a half, of some pairs more often confused, with many equal probabilities."""
    rng = np.random.default_rng(seed)
    outcomes = np.empty(number, OUTCOME)
    outcomes["row"] = rng.permutation(number) * 3
    outcomes["truth"] = rng.integers(0, CLASSES - 1, number)  # the last class has no drawing
    guess = np.minimum(rng.geometric(0.4, number) - 1, CLASSES - 1)
    outcomes["guess"] = np.where(rng.random(number) < 0.5, outcomes["truth"], guess)
    outcomes["probability"] = np.where(rng.random(number) < 0.3, 0.7, rng.random(number))
    return outcomes


def tally_of(*parts: Outcomes, classes: int = CLASSES) -> Tally:
    tally = Tally(classes)
    for part in parts:
        tally.add(part)
    return tally


def content(tally: Tally) -> dict[str, Any]:
    """All that a tally says."""
    pairs = [(truth, guess) for truth in range(CLASSES) for guess in range(CLASSES)]
    return {
        "confusion": tally.confusion.tolist(),
        "bins": tally.bins.tolist(),
        "ece": tally.ece,
        "confused": tally.confused(20),
        "examples": {pair: tally.examples(*pair, number=EXAMPLES).tolist() for pair in pairs},
        "mistakes": tally.mistakes().tolist(),
    }


def test_a_tally_is_what_a_loop_counts() -> None:
    outcomes = random_outcomes(3000)
    found = content(tally_of(outcomes))
    rows = sorted(outcomes.tolist())
    for (truth, guess), examples in found["examples"].items():
        own = [row for row in rows if row[1:3] == (truth, guess)]
        assert found["confusion"][truth][guess] == len(own)
        assert examples == own[:EXAMPLES]
    wrong = [row for row in rows if row[1] != row[2]]
    assert found["mistakes"] == sorted(wrong, key=lambda row: (-row[3], row[0]))[:MISTAKES]
    counts = {(row[1], row[2]): 0 for row in wrong}
    for row in wrong:
        counts[row[1:3]] += 1
    assert found["confused"] == sorted(counts, key=lambda pair: (-counts[pair], pair))[:20]
    assert sum(bin[0] for bin in found["bins"]) == 3000


@pytest.mark.parametrize("waiting", [10, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_neither_cuts_nor_order_change_a_bit(monkeypatch: pytest.MonkeyPatch, seed: int, waiting: int) -> None:
    outcomes = random_outcomes(3000, seed)
    whole = content(tally_of(outcomes))
    monkeypatch.setattr("sketchray.outcomes.WAITING", waiting)
    rng = np.random.default_rng(seed)
    cuts = [0, *sorted(rng.integers(0, 3000, 12).tolist()), 3000]
    parts = [outcomes[start:end] for start, end in pairwise(cuts)]  # some of them empty
    assert content(tally_of(*(parts[place] for place in rng.permutation(len(parts))))) == whole


def test_what_is_kept_is_bounded() -> None:
    tally = Tally(3)
    for number in range(40):
        outcomes = random_outcomes(2000, number)
        outcomes["row"] += number * 10_000
        outcomes["truth"] %= 3
        outcomes["guess"] %= 3
        tally.add(outcomes)
    assert tally.confusion.sum() == 80_000
    tally.mistakes()
    assert sum(map(len, tally._kept)) <= 9 * EXAMPLES + MISTAKES
    assert tally.examples(0, 1, number=EXAMPLES)["row"].max() < 10_000  # all from the first part


def test_a_tiny_confusion() -> None:
    # Class 0 is twice taken for 1, class 1 once for 0, class 2 once for 0: with equal counts the smaller label first.
    tally = tally_of(
        make_outcomes((8, 0, 1, 0.5), (2, 0, 1, 0.9), (5, 1, 0, 0.9), (3, 2, 0, 0.75), (1, 1, 1, 1.0), (9, 2, 2, 0.6)),
        classes=3,
    )
    assert tally.confused(20) == [(0, 1), (1, 0), (2, 0)]
    assert tally.confused(2) == [(0, 1), (1, 0)]
    assert tally.examples(0, 1, number=3)["row"].tolist() == [2, 8]
    assert tally.examples(0, 1, number=1)["row"].tolist() == [2]
    assert tally.examples(0, 0, number=3)["row"].tolist() == []
    assert tally.mistakes()["row"].tolist() == [2, 5, 3, 8]


def test_the_calibration_error_by_hand() -> None:
    # Of two at 0.9 one is right: 0.4 apart; both at 0.5 are right: 0.5 apart; the one at 0.25 is wrong: 0.25 apart.
    tally = tally_of(
        make_outcomes((0, 0, 0, 0.9), (1, 0, 1, 0.9), (2, 0, 0, 0.5), (3, 1, 1, 0.5), (4, 1, 0, 0.25)), classes=2
    )
    # Probabilities are float32, kept in steps of 2**-24.
    assert tally.ece == pytest.approx((2 * 0.4 + 2 * 0.5 + 0.25) / 5, abs=1e-7)


@pytest.mark.parametrize(
    ("probability", "right", "ece"),
    [
        ((0.25, 0.5, 0.75, 1.0), (1, 2, 3, 4), 0.0),  # calibrated, in powers of two: exactly 0
        ((1.0, 1.0, 1.0, 1.0), (1, 1, 1, 1), 0.75),  # sure, and right in a quarter
        ((0.25, 0.25, 0.25, 0.25), (4, 4, 4, 4), 0.75),  # unsure, and always right
        ((0.25, 0.75, 0.25, 0.75), (3, 1, 3, 1), 0.5),  # right on average, wrong in each bin
    ],
)
def test_calibrated_over_and_under_confident(
    probability: tuple[float, ...], right: tuple[int, ...], ece: float
) -> None:
    """Four drawings of each probability, of which some are right."""
    rows = [
        (0, 0 if place < hits else 1, value)
        for value, hits in zip(probability, right, strict=True)
        for place in range(4)
    ]
    tally = tally_of(make_outcomes(*((row, *rest) for row, rest in enumerate(rows))), classes=2)
    assert tally.ece == ece


def test_a_bin_includes_its_upper_end() -> None:
    for probability, place in ((0.0, 0), (0.06, 0), (0.067, 1), (0.2, 2), (0.2001, 3), (0.94, 14), (1.0, 14)):
        tally = tally_of(make_outcomes((0, 0, 0, probability)), classes=1)
        assert np.flatnonzero(tally.bins[:, 0]).tolist() == [place], probability
    assert BINS == 15


def test_no_outcomes() -> None:
    tally = tally_of(np.zeros(0, OUTCOME))
    assert tally.ece == 0
    assert tally.confused(20) == []
    assert len(tally.mistakes()) == 0
