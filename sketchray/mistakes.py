"""What a model confuses, drawn: confused pairs side by side, a picture of who is taken for whom, confident mistakes.

Shapes: K classes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sketchray.census import SIDE, draw, to_path
from sketchray.columns import from_column
from sketchray.outcomes import EXAMPLES, Evaluation, Outcomes, read_rows
from sketchray.page import escape, plural

PAIRS = 20  # most confused, drawn
TYPICAL = 3  # right drawings shown of each class of a pair
GRID_CLASSES = 30  # more have no room for their names
CELL = 22  # pixels of a cell of the grid
LETTER, LONGEST_NAME = 6.5, 18  # pixels of a letter of the grid, letters shown of a name

STYLE = """
.pair { margin: 1.5rem 0; break-inside: avoid } .pair h3, .pair p { display: inline; margin: 0 .5rem 0 0 }
.pair p { font-size: .9rem }
.sides { display: grid; grid-template-columns: 2fr 1fr 1fr; gap: .6rem 1rem; margin-top: .3rem }
.sides figure { margin: 0; font-size: .85rem }
.sides figcaption { border-bottom: 3px solid var(--test) }
.sides .taken figcaption { border-color: var(--valid) }
.sides .taken .pictures { grid-template-columns: repeat(6, 1fr) }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr 1fr } .sides .taken { grid-column: span 2 } }
.mistakes { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) }
.mistakes .pictures { grid-template-columns: 1fr; padding: 0 15% } .mistakes figcaption { line-height: 1.35 }
.mistakes small { display: block; font-size: .75rem }
.confusion { display: block; font-size: 12px; fill: var(--ink) } .confusion .cell { fill: var(--train) }
.confusion .share { font-size: 10px; text-anchor: middle }
.confusion .ruled { fill: none; stroke: var(--line); stroke-width: .5; opacity: .4 }
"""


def render(evaluation: Evaluation) -> str:
    """Returns three sections of the report; reads the drawings that they show."""
    tally, classes = evaluation.tally, evaluation.meta.classes
    pairs = tally.confused(PAIRS)
    if not pairs:
        return "<h2>What it confuses</h2>\n<p>Nothing: each drawing was guessed right.</p>"
    of_pair = {
        pair: (
            tally.examples(*pair, number=EXAMPLES),
            tally.examples(pair[0], pair[0], number=TYPICAL),
            tally.examples(pair[1], pair[1], number=TYPICAL),
        )
        for pair in pairs
    }
    worst = tally.mistakes()
    drawings = Drawings(evaluation, [worst, *(part for parts in of_pair.values() for part in parts)])
    drawn = "\n".join(
        _pair(truth, guess, tally.confusion, classes, [drawings.svg(part) for part in parts])
        for (truth, guess), parts in of_pair.items()
    )
    return f"""<h2>What it confuses</h2>
<p>The {plural(len(pairs), "pair")} of a class and a guess with most drawings. Of each, the first in the order of the
shards, which is by a hash: nobody chose them.</p>
{drawn}
<h2>Who is taken for whom</h2>
{_grid(tally.confusion, classes, pairs)}
<h2>Its most confident mistakes</h2>
<p>The wrong guesses of the highest probability. Some may be the player's: a class is what was
asked for, not what the drawing shows.</p>
<div class="gallery mistakes">
{drawings.gallery(worst, classes)}
</div>"""


class Drawings:
    """Pictures of some rows of the split, read at once."""

    def __init__(self, evaluation: Evaluation, parts: Iterable[Outcomes]) -> None:
        rows = evaluation.shards.rows(evaluation.result["split"])
        numbers = np.unique(np.concatenate([part["row"] for part in parts]))
        table = read_rows(rows, numbers)
        paths = [to_path(picture) for picture in draw(*from_column(table["points"]))]
        self.paths = dict(zip(numbers.tolist(), paths, strict=True))
        self.keys = dict(zip(numbers.tolist(), table["key_id"].to_pylist(), strict=True))
        self.recognized = dict(zip(numbers.tolist(), table["recognized"].to_pylist(), strict=True))

    def svg(self, outcomes: Outcomes) -> list[str]:
        """Returns a picture of each, which says on pointing how sure the guess was."""
        return [
            f'<svg viewBox="-5 -5 {SIDE + 10} {SIDE + 10}"><title>probability {probability:.1%}</title>'
            f'<path d="{self.paths[row]}"/></svg>'
            for row, probability in zip(outcomes["row"].tolist(), outcomes["probability"].tolist(), strict=True)
        ]

    def gallery(self, outcomes: Outcomes, classes: Sequence[str]) -> str:
        """Returns a figure of each, with class, guess, probability and key."""
        figures = []
        for picture, (row, truth, guess, probability) in zip(self.svg(outcomes), outcomes.tolist(), strict=True):
            facts = [f"key {self.keys[row]}"] if self.keys[row] is not None else []
            if self.recognized[row] is not None:
                facts.append("recognized by the game" if self.recognized[row] else "not recognized by the game")
            label = f"A drawing of {escape(classes[truth])}"
            figures.append(
                f'<figure><div class="pictures" role="img" aria-label="{label}">{picture}</div>'
                f"<figcaption><strong>{escape(classes[truth])}</strong> taken for "
                f"<strong>{escape(classes[guess])}</strong>, {probability:.1%}"
                f"<small>{', '.join(facts)}</small></figcaption></figure>"
            )
        return "\n".join(figures)


def _pair(
    truth: int, guess: int, confusion: npt.NDArray[np.int64], classes: Sequence[str], pictures: Sequence[Sequence[str]]
) -> str:
    drawn, taken = escape(classes[truth]), escape(classes[guess])
    captions = ("mistakes", f"{drawn}, guessed right", f"{taken}, guessed right")
    figures: list[str] = []
    for caption, shown in zip(captions, pictures, strict=True):
        label = f"{plural(len(shown), 'drawing')}: {caption}"
        inside = f'<div class="pictures" role="img" aria-label="{label}">{"".join(shown)}</div>' if shown else "none"
        kind = "" if figures else ' class="taken"'
        figures.append(f"<figure{kind}><figcaption>{caption}</figcaption>{inside}</figure>")
    return f"""<section class="pair"><h3>{drawn}, taken for {taken}</h3>
<p>{_share(confusion, truth, guess)}; the other way round {_share(confusion, guess, truth)}</p>
<div class="sides">{"".join(figures)}</div></section>"""


def _share(confusion: npt.NDArray[np.int64], truth: int, guess: int) -> str:
    number, drawings = int(confusion[truth, guess]), int(confusion[truth].sum())
    return f"{number:,} of {drawings:,} ({number / drawings:.1%})" if drawings else "unknown"


def _grid(confusion: npt.NDArray[np.int64], classes: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    """Returns the confusion matrix, or that of the most confused classes where there are many."""
    chosen = np.flatnonzero(confusion.sum(0) + confusion.sum(1)).tolist()
    note = "All classes"
    if len(chosen) > GRID_CLASSES:
        chosen = list(dict.fromkeys(label for pair in pairs for label in pair))[:GRID_CLASSES]
        note = f"The {len(chosen)} most confused classes"
    order = arrange(confusion, chosen)
    shares = confusion[np.ix_(order, order)] / np.maximum(confusion[order].sum(1, keepdims=True), 1)
    names = [escape(classes[label][:LONGEST_NAME]) for label in order]
    edge = 12 + round(LETTER * max(len(classes[label][:LONGEST_NAME]) for label in order))
    side = CELL * len(order)
    ruled = "".join(f"M{edge} {edge + at}h{side}M{edge + at} {edge}v{side}" for at in range(0, side + 1, CELL))
    marks = [f'<path class="ruled" d="{ruled}"/>']
    for down, right in np.argwhere(shares > 0).tolist():
        share = float(shares[down, right])
        # The root, so that rare mistakes can be seen; not opaque, so that numbers can be read.
        depth = 0.6 * share**0.5
        truth, guess = order[down], order[right]
        told = f"{classes[truth]}, taken for {classes[guess]}: {_share(confusion, truth, guess)}"
        x, y = edge + CELL * right, edge + CELL * down
        marks.append(
            f'<g><title>{escape(told)}</title><rect class="cell" x="{x}" y="{y}" width="{CELL}" height="{CELL}" '
            f'opacity="{depth:.2f}"/>'
        )
        if share >= 0.005:
            look = "share on" if depth > 0.6 else "share"
            marks.append(
                f'<text class="{look}" x="{x + CELL / 2:g}" y="{y + CELL / 2 + 3.5:g}">{100 * share:.0f}</text>'
            )
        marks.append("</g>")
    for place, name in enumerate(names):
        middle = edge + CELL * (place + 0.5) + 4
        marks.append(f'<text x="{edge - 6}" y="{middle:g}" text-anchor="end">{name}</text>')
        marks.append(f'<text transform="translate({middle:g} {edge - 6}) rotate(-90)">{name}</text>')
    size = edge + side + 1
    return f"""<p>{note}, alike ones beside each other. A row is a class, a column a guess; the numbers are per cent
of the class.</p>
<div class="wide" role="region" aria-label="Confusion of classes" tabindex="0">
<svg class="confusion" width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img"
aria-label="{note}: share of each class by guess">
{"".join(marks)}</svg>
</div>"""


def arrange(confusion: npt.NDArray[np.int64], chosen: Sequence[int]) -> list[int]:
    """Returns labels in an order in which those that are confused stand near each other.

    Starts from the class that is confused most, and goes on with the one that is confused most with the last ones,
    each counting half of the one after it.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    alike = (shares + shares.T)[np.ix_(chosen, chosen)]
    np.fill_diagonal(alike, 0)
    is_left = np.ones(len(chosen), bool)
    pull, order = alike.max(1), []
    for _ in chosen:
        place = int(np.where(is_left, pull, -1).argmax())
        order.append(chosen[place])
        is_left[place] = False
        pull = (pull if len(order) > 1 else 0) / 2 + alike[place]
    return order
