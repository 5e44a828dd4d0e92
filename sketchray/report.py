"""The report of an evaluation: one HTML file with its pictures inside."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sketchray import charts, mistakes
from sketchray.card import about
from sketchray.charts import BAR_KEYS, bars, lines, ticks, ticks_to
from sketchray.checkpoint import library_versions
from sketchray.errors import DataError
from sketchray.outcomes import BINS, Evaluation, Tally
from sketchray.page import NUMBER, OPEN_CLASSES, TEXT, escape, make_page, plural, show, table

STYLE = """
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 1.5rem 0 }
.figures div { background: var(--soft); padding: .6rem .9rem; break-inside: avoid } .figures dt { font-size: .85rem }
.figures dd { margin: 0; font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.figures small { display: block; font-size: .8rem }
.subject td { overflow-wrap: anywhere }
.sortable th button { all: unset; cursor: pointer } .sortable th button:focus-visible { outline: 2px solid var(--link) }
.sortable th button::after { content: " \\2195"; color: var(--line) }
.sortable [aria-sort=ascending] button::after { content: " \\2191"; color: inherit }
.sortable [aria-sort=descending] button::after { content: " \\2193"; color: inherit }
@media print { .sortable th button::after { content: "" } h2 { margin-top: 1.5rem; break-after: avoid }
  h2 + p { break-after: avoid } .two { grid-template-columns: 1fr 1fr }
  .figures { grid-template-columns: repeat(5, 1fr) } }
"""
SCRIPT = """
for (const table of document.querySelectorAll(".sortable table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const isNumber = head.className === "n", button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    const value = (row) => {
      const text = row.cells[column].textContent;
      return isNumber ? parseFloat(text.replaceAll(",", "") || "-1") : text;
    };
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => (isNumber ? a - b : a.localeCompare(b));
      const rows = [...table.tBodies[0].rows].sort((a, b) => sign * compare(value(a), value(b)));
      table.tBodies[0].append(...rows);
    };
  });
}
"""


def write_report(directory: str, evaluation: Evaluation) -> Path:
    """Writes `report.html`, one file with its pictures inside, and returns its path.

    Args:
        directory: made if it is not there.
        evaluation: what `evaluate` returned.

    Raises:
        DataError: the directory cannot be written, or the data set went away.
    """
    content = render(evaluation)
    path = Path(directory) / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--report {directory}: cannot write there ({error}); choose another directory") from error
    return path


def render(evaluation: Evaluation) -> str:
    """Returns the page; reads the drawings that it shows."""
    result, tally, meta = evaluation.result, evaluation.tally, evaluation.meta
    provenance = evaluation.shards.manifest.provenance
    number = int((tally.confusion.sum(1) > 0).sum())
    title = (
        f"Evaluation: {plural(result['drawings'], 'drawing')} of {plural(number, 'class', 'classes')}, "
        f"{'all splits' if result['split'] == 'all' else result['split'] + ' split'}"
    )
    is_own = meta.data == {**provenance, "splits": evaluation.shards.manifest.splits}
    seen = ""
    if result["split"] in ("train", "all") and is_own:
        seen = '<p class="note">The model was trained on drawings of this split: the figures say little of others.</p>'
    content = f"""{_figures(evaluation)}
<details class="subject" open><summary>What was evaluated</summary>
{table("Checkpoint, data and versions", {}, _subject(evaluation))}
</details>
<details><summary>How it was trained</summary>
{table("Configuration", {}, _flat(meta.config)) if meta.config else "<p>The checkpoint does not say.</p>"}
</details>
<h2>How it learned</h2>
{_curves(meta.history)}
<h2>What its probabilities mean</h2>
{_calibration(tally)}
<h2>How early it guesses</h2>
{_early(result["early"])}
{mistakes.render(evaluation)}
<h2>Each class</h2>
{_classes(tally, meta.classes)}"""
    style = STYLE + charts.STYLE + mistakes.STYLE
    return make_page(title, about(provenance) + seen, content, style=style, script=SCRIPT)


def _figures(evaluation: Evaluation) -> str:
    result = evaluation.result
    low, high = interval(result["top1"], result["drawings"])
    known = len(evaluation.meta.classes)
    figures = [
        ("top-1", f"{result['top1']:.1%}", f"95% interval {low:.1%} to {high:.1%}"),
        ("top-5", f"{result['top5']:.1%}", f"chance: {min(5 / known, 1):.1%}"),
        ("MAP@3", f"{result['map3']:.1%}", "1, 1/2 or 1/3 for rank 1, 2 or 3"),
        ("loss", f"{result['loss']:.3f}", f"chance: {math.log(known):.3f}"),
        ("calibration error (ECE)", f"{result['ece']:.1%}", f"{BINS} bins, first guess"),
    ]
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in figures)
    return f'<dl class="figures">{tiles}</dl>'


def interval(share: float, number: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of `number` drawings. Source: Wilson 1927."""
    z = 1.96
    middle = share + z * z / (2 * number)
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return (middle - half) / (1 + z * z / number), (middle + half) / (1 + z * z / number)


def _subject(evaluation: Evaluation) -> list[tuple[str, str]]:
    result, meta, shards = evaluation.result, evaluation.meta, evaluation.shards
    return [
        ("checkpoint", f"{evaluation.checkpoint} (version {evaluation.version})"),
        ("trained for", f"{plural(meta.epoch, 'epoch')}, {plural(meta.step, 'step')}"),
        ("trained on", _source(meta.data)),
        ("knows", plural(len(meta.classes), "class", "classes")),
        ("data", shards.uri),
        ("made from", _source({**shards.manifest.provenance, "splits": shards.manifest.splits})),
        ("split", f"{result['split']}: {result['drawings']:,} drawings"),
        ("licence of the data", show(shards.manifest.provenance.get("licence", "unknown"))),
        ("written with", ", ".join(f"{name} {version}" for name, version in sorted(meta.versions.items()))),
        ("evaluated with", ", ".join(f"{name} {version}" for name, version in sorted(library_versions().items()))),
    ]


def _source(data: Mapping[str, Any]) -> str:
    """Returns where drawings come from, if that is known, and how many there are of each split."""
    facts = [str(data[key]) for key in ("source", "format") if data.get(key)]
    facts += [f"{count:,} {name}" for name, count in data.get("splits", {}).items()]
    return ", ".join(facts) or "unknown"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", show(value)


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    """Returns the charts of what the checkpoint remembers of its epochs."""
    if not history:
        return "<p>The checkpoint does not say: it has no history of its epochs.</p>"

    def chart(
        title: str, names: Mapping[str, str], show: charts.Format, *, low: float | None = 0.0, high: float | None = None
    ) -> str:
        series = {name: points for name, key in names.items() if (points := _points(history, key))}
        if not series:
            return ""
        values = [value for points in series.values() for _, value in points]
        y_ticks = ticks(min(values) if low is None else low, high or max(values))
        x_ticks = ticks_to(max(2, *(int(entry["epoch"]) for entry in history)))
        return lines(title, series, x="epoch", x_ticks=x_ticks, y_ticks=y_ticks, show=show)

    both = {"train": "train_{}", "valid": "val_{}"}
    pictures = [
        chart("Loss", {name: key.format("loss") for name, key in both.items()}, "{:.4g}".format, low=None),
        chart("Top-1", {name: key.format("top1") for name, key in both.items()}, "{:.0%}".format, high=1.0),
        chart("Learning rate at the end of the epoch", {"learning rate": "lr"}, "{:.3g}".format),
        chart("Steps whose gradient was clipped", {"clipped": "clipped_share"}, "{:.0%}".format, high=1.0),
    ]
    last = history[-1]
    rate = f" The last one was trained at {last['drawings_per_s']:,.0f} drawings/s." if "drawings_per_s" in last else ""
    return f"""<p>{plural(len(history), "epoch")}.{rate} Figures of the train split are means over an epoch, of
drawings as augmented and with dropout; those of the valid split are of its end.</p>
<div class="two">
{chr(10).join(pictures)}
</div>"""


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(entry["epoch"], entry[key]) for entry in history if key in entry and math.isfinite(entry[key])]


def _calibration(tally: Tally) -> str:
    drawings, probability, right = tally.bins.T
    total = drawings.sum()
    bias = (probability.sum() - right.sum()) / total
    mean, accuracy = probability / np.maximum(drawings, 1), right / np.maximum(drawings, 1)
    names = [f"{number / BINS:.1%} to {(number + 1) / BINS:.1%}" for number in range(BINS)]
    told = [
        f"{name}: {accuracy[number]:.1%} right of {plural(int(drawings[number]), 'drawing')}"
        for number, name in enumerate(names)
    ]
    rows = [
        (name, f"{drawings[number]:,.0f}", f"{mean[number]:.1%}", f"{accuracy[number]:.1%}")
        for number, name in enumerate(names)
        if drawings[number]
    ]
    head = {"probability": TEXT, "drawings": NUMBER, "mean probability": NUMBER, "right": NUMBER}
    quarters = [(25.0 * place, f"{place / 4:.0%}") for place in range(5)]
    counts = ticks(0, drawings.max(), least=1)
    return f"""<p>On average the first guess is given {probability.sum() / total:.1%} and is right in {
        right.sum() / total:.1%}:
{"too sure" if bias > 0 else "not sure enough"} by {abs(bias):.1%}. Bin by bin the two differ by {
        tally.ece:.1%} on average (ECE).</p>
<div class="two">
{
        bars(
            "Right, by the probability of the first guess",
            accuracy.tolist(),
            told,
            goals=[float(value) if count else None for value, count in zip(mean, drawings, strict=True)],
            x="probability of the first guess",
            x_ticks=quarters,
            y_ticks=quarters,
            keys=BAR_KEYS,
        )
    }
{
        bars(
            "Drawings, by the probability of the first guess",
            (drawings / counts[-1]).tolist(),
            told,
            x="probability of the first guess",
            x_ticks=quarters,
            y_ticks=[(100 * count / counts[-1], f"{count:,.0f}") for count in counts],
        )
    }
</div>
<details><summary>The numbers</summary>
{table("By the probability of the first guess", head, rows)}
</details>"""


def _early(early: Mapping[str, float]) -> str:
    shown = [(float(percent), share) for percent, share in early.items()]
    rows = [(f"{percent}%", f"{share:.1%}") for percent, share in early.items()]
    return f"""<div class="two">
{
        lines(
            "Top-1 while the drawing is made",
            {"top-1": shown},
            x="% of the points shown",
            x_ticks=[0, 25, 50, 75, 100],
            y_ticks=ticks(0, 1),
            show="{:.0%}".format,
        )
    }
{table("Top-1 after a part of the points", {"points shown": TEXT, "top-1": NUMBER}, rows)}
</div>"""


def _classes(tally: Tally, classes: Sequence[str]) -> str:
    drawings, guessed, right = tally.confusion.sum(1), tally.confusion.sum(0), np.diag(tally.confusion)
    wrong = tally.confusion - np.diag(right)
    top1 = right / np.maximum(drawings, 1)
    rows = []
    for index in np.argsort(top1, kind="stable").tolist():
        if not drawings[index]:
            continue
        most = int(wrong[index].argmax())
        taken = wrong[index, most]
        rows.append(
            (
                classes[index],
                f"{drawings[index]:,}",
                f"{top1[index]:.1%}",
                f"{right[index] / guessed[index]:.1%}" if guessed[index] else "",
                classes[most] if taken else "",
                f"{taken / drawings[index]:.1%}" if taken else "",
            )
        )
    head = {
        "class": TEXT,
        "drawings": NUMBER,
        "top-1": NUMBER,
        "right when guessed": NUMBER,
        "most often taken for": TEXT,
        "of the class": NUMBER,
    }
    absent = [classes[index] for index in np.flatnonzero(drawings == 0).tolist()]
    note = f"<p>Known, but not in this split: {escape(', '.join(absent))}.</p>" if absent else ""
    return f"""<details class="sortable"{" open" if len(rows) <= OPEN_CLASSES else ""}>
<summary>{plural(len(rows), "class", "classes")}, the hardest first</summary>
{table("Click on the head of a column to sort by it", head, rows)}
</details>
{note}"""
