"""The HTML report of an evaluation, with its pictures."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from sketchray.errors import DataError

matplotlib.use("Agg")  # no display on a cluster

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

CONFUSED_PAIRS = 20
LABELLED_CLASSES = 40  # with more, the confusion picture has no room for names
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100% } details { margin: 1rem 0 }
"""


def write_report(directory: str, result: dict[str, Any], classes: list[str], confusion: npt.NDArray[np.int64]) -> Path:
    """Writes `report.html`, one file with its pictures inside, and returns its path.

    Args:
        directory: made if it is not there.
        result: the JSON of jobs/evaluate.py.
        classes: of the model.
        confusion: `(K, K)` drawings by true class (rows) and first guess (columns).

    Raises:
        DataError: the directory cannot be written.
    """
    drawings = confusion.sum(1)
    right = np.diag(confusion)
    order = np.lexsort((np.arange(len(classes)), right / np.maximum(drawings, 1)))
    per_class = [
        (
            classes[index],
            f"{drawings[index]:,}",
            f"{right[index] / drawings[index]:.1%}",
            _top_wrong(index, classes, confusion),
        )
        for index in order
        if drawings[index]
    ]
    wrong = confusion - np.diag(right)
    pairs = [
        (classes[truth], classes[guess], f"{wrong[truth, guess]:,}", f"{wrong[truth, guess] / drawings[truth]:.1%}")
        for truth, guess in zip(
            *np.unravel_index(np.argsort(-wrong, axis=None)[:CONFUSED_PAIRS], wrong.shape), strict=True
        )
        if wrong[truth, guess]
    ]
    early = [(f"{percent} %", f"{share:.1%}") for percent, share in result["early"].items()]
    summary = [(name, f"{result[name]:.1%}") for name in ("top1", "top5", "map3")]
    summary += [("loss", f"{result['loss']:.3f}"), ("drawings", f"{result['drawings']:,}")]
    content = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sketchray: {html.escape(result["split"])} split</title>
<style>{STYLE}</style></head><body>
<h1>The {html.escape(result["split"])} split</h1>
{_table(("metric", "value"), summary)}
<h2>How early it guesses</h2>
{_image(_early_figure(result["early"]), "Top-1 against the share of points shown")}
{_table(("points shown", "top-1"), early)}
<h2>What it confuses</h2>
{_table(("drawn", "guessed", "drawings", "of the class"), pairs)}
{_image(_confusion_figure(classes, confusion), "Guesses by true class")}
<details><summary>Every class, the hardest first</summary>
{_table(("class", "drawings", "top-1", "most often taken for"), per_class)}
</details></body></html>
"""
    path = Path(directory) / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    except OSError as error:
        raise DataError(f"--report {directory}: cannot write there ({error}); choose another directory") from error
    return path


def _top_wrong(index: int, classes: list[str], confusion: npt.NDArray[np.int64]) -> str:
    row = confusion[index].copy()
    row[index] = 0
    return classes[int(row.argmax())] if row.any() else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        kinds = ["" if not value[:1].isdigit() else ' class="n"' for value in row]
        return "".join(f"<{tag}{kind}>{html.escape(value)}</{tag}>" for kind, value in zip(kinds, row, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>\n{body}\n</table>"


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'


def _early_figure(early: dict[str, float]) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3))
    shown = [int(percent) for percent in early]
    axes.plot(shown, [100 * share for share in early.values()], marker="o")
    axes.set(xlabel="points shown, %", ylabel="top-1, %", ylim=(0, 100), xticks=shown)
    axes.grid(alpha=0.3)
    return figure


def _confusion_figure(classes: list[str], confusion: npt.NDArray[np.int64]) -> Figure:
    present = np.flatnonzero(confusion.sum(1))
    shares = confusion[np.ix_(present, present)] / confusion[present].sum(1, keepdims=True)
    figure, axes = plt.subplots(figsize=(9, 8))
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(present) <= LABELLED_CLASSES:
        names = [classes[index] for index in present]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="guessed", ylabel="drawn")
    figure.colorbar(picture, ax=axes, label="share of the class")
    return figure
