"""The data card: one HTML page about an ingested set, without scripts, that loads nothing and is safe to open.

Names of classes and what is quarantined come from whoever made the source: all of it is escaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sketchray.census import LENGTH_BIN, SIDE, Statistics, to_path
from sketchray.page import NUMBER, OPEN_CLASSES, TEXT, escape, make_page, plural, show, table
from sketchray.shards import SPLITS

STYLE = """
.classes { width: 100% } .classes th[scope=row] { min-width: 8rem } .classes :is(th, td) { padding: .2rem .5rem }
td.bar { width: 30%; min-width: 7rem; vertical-align: middle } td.bar svg { display: block; width: 100%; height: .8rem }
.key svg { width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem }
.histogram { margin: 1rem 0; padding-top: .2rem } .histogram > svg { display: block; width: 100%; height: 10rem;
  fill: var(--train); border-bottom: 1px solid var(--line); border-top: 1px dashed var(--line) }
.ticks { position: relative; height: 1.5rem; font-size: .85rem } .ticks span { position: absolute; translate: -50% }
.gallery figure:target { outline: 2px solid var(--link); outline-offset: .3rem }
"""

ABOUT_REAL = """<p>Drawings of <a href="https://github.com/googlecreativelab/quickdraw-dataset">The Quick, Draw!
Dataset</a>, made available by Google, Inc. under the
<a href="https://creativecommons.org/licenses/by/4.0/">Creative Commons Attribution 4.0 International licence</a>.
Changed by sketchray: equal drawings of a class are written once, the order is shuffled, raw drawings are simplified as
the published ones are, and only points, class, key, split and <i>recognized</i> are kept.</p>"""
ABOUT_SYNTHETIC = """<p class="note"><strong>Synthetic doodles.</strong> A program generated these drawings. No person
drew them and they are no part of Quick, Draw!: they stand in for it in demonstrations and tests.</p>"""
ABOUT_OTHER = """<p class="note"><strong>Of unknown origin.</strong> No class is one of Quick, Draw!'s. Who made these
drawings, and under which licence, is not recorded here: see where they came from.</p>"""
CITE_REAL = """<p>Name the data set, Google and the licence, as above, and for research the paper:</p>
<p>David Ha and Douglas Eck. A Neural Representation of Sketch Drawings. 2017.
<a href="https://arxiv.org/abs/1704.03477">arXiv:1704.03477</a>.</p>"""
CITE_SYNTHETIC = "<p>Call them sketchray's generated doodles, with the seed given above.</p>"
CITE_OTHER = "<p>As their source says.</p>"
LIMITS_REAL = """<ul>
<li>A class is what the player was asked to draw, not what the drawing shows. <i>Recognized</i> says
whether the game's own model guessed it.</li>
<li>Players had 20 seconds and were not chosen to represent anyone; countries and tastes are uneven.</li>
<li>Google moderated the drawings. Some may still offend.</li>
<li>Points have no times: how fast a line was drawn is lost.</li>
<li>Only exactly equal drawings are dropped. Nearly equal ones, and drawings of one person, may be in two splits.</li>
</ul>"""
LIMITS_OTHER = "<ul><li>Only exactly equal drawings are dropped: nearly equal ones may be in two splits.</li></ul>"
LIMITS_SYNTHETIC = """<ul>
<li>They are far easier and more alike than drawings by people: a score on them says nothing of a score on those.</li>
</ul>"""


def render(
    statistics: Statistics,
    *,
    classes: Sequence[str],
    provenance: Mapping[str, str | int | bool],
    duplicates: int,
    quarantine: Mapping[str, int],
    examples: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the page. The same arguments, the same bytes.

    Args:
        statistics: of the whole set.
        classes: names, in label order.
        provenance: of the manifest; where `synthetic` is true, the drawings are called doodles; where it has an
            `attribution`, they are Google's.
        duplicates: equal drawings that were dropped.
        quarantine: records that were no drawings, by kind of reason.
        examples: some of them: `source`, `line` and `reason`.
    """
    synthetic = bool(provenance.get("synthetic"))
    if synthetic:
        cite, limits = CITE_SYNTHETIC, LIMITS_SYNTHETIC
    elif provenance.get("attribution"):
        cite, limits = CITE_REAL, LIMITS_REAL
    else:
        cite, limits = CITE_OTHER, LIMITS_OTHER
    total = sum(map(sum, statistics.drawings))
    bad = sum(quarantine.values())
    what = f"{total:,} {'synthetic doodles' if synthetic else 'drawings'} of {plural(len(classes), 'class', 'classes')}"
    where = ": each is in <code>quarantine.ndjson</code>" if bad else ""
    shown = [(str(record["source"]), f"{record['line']:,}", str(record["reason"])) for record in examples]
    rows = [(key.removeprefix("num_"), show(value)) for key, value in sorted(provenance.items()) if value != ""]
    content = f"""{table("Totals", {}, _totals(statistics, duplicates, bad))}
<h2>How long they are</h2>
<div class="two">
{_histogram("Points", _bins(statistics.lengths, LENGTH_BIN), every=10)}
{_histogram("Strokes", _bins(statistics.strokes, 1), every=4)}
</div>
<h2>Classes</h2>
{_class_table(statistics, classes)}
<h2>What they look like</h2>
<p>The first drawings of each class in the order of the shuffle, which is by a hash: nobody chose them. Lines
are simplified a little.</p>
<div class="gallery">
{_gallery(statistics, classes)}
</div>
<h2>What was left out</h2>
<p>{plural(duplicates, "drawing")} dropped, each equal to another one of its class, point for point.</p>
<p>{plural(bad, "record")} in quarantine, not readable as a drawing or not wanted{where}.</p>
{table("By reason", {"reason": TEXT, "records": NUMBER}, _by_count(quarantine)) if bad else ""}
{table("The first of them", {"source": TEXT, "line": NUMBER, "reason": TEXT}, shown) if shown else ""}
<h2>Where they come from</h2>
{table("Provenance", {}, rows)}
<h2>How to cite</h2>
{cite}
<h2>Known limits</h2>
{limits}"""
    return make_page(f"Data card: {what}", about(provenance), content, style=STYLE)


def about(provenance: Mapping[str, Any]) -> str:
    """Returns whose drawings these are and under which licence, as a manifest's provenance has it."""
    if provenance.get("synthetic"):
        return ABOUT_SYNTHETIC
    return ABOUT_REAL if provenance.get("attribution") else ABOUT_OTHER


def _totals(statistics: Statistics, duplicates: int, bad: int) -> list[tuple[str, str]]:
    total = sum(map(sum, statistics.drawings))
    splits = np.sum(statistics.drawings, axis=0).tolist()
    recognized = np.sum(statistics.recognized, axis=0).tolist()
    points = sum(statistics.points)
    known = f" of the {sum(recognized[:2]):,} of which it is known" if sum(recognized[:2]) and recognized[2] else ""
    return [
        ("drawings", f"{total:,}"),
        *((name, f"{number:,} ({number / max(total, 1):.1%})") for name, number in zip(SPLITS, splits, strict=True)),
        ("points", f"{points:,} ({points / max(total, 1):.1f} a drawing)"),
        ("recognized by the game", f"{_recognized(recognized)}{known}"),
        ("duplicates dropped", f"{duplicates:,}"),
        ("records in quarantine", f"{bad:,}"),
    ]


def _recognized(counts: Sequence[int]) -> str:
    missed, recognized, _ = counts
    return f"{recognized / (missed + recognized):.1%}" if missed + recognized else "unknown"


def _class_table(statistics: Statistics, classes: Sequence[str]) -> str:
    most = max(map(sum, statistics.drawings), default=0)
    rows = []
    for index, name in enumerate(classes):
        counts = statistics.drawings[index]
        cells = [
            f"{sum(counts):,}",
            *(f"{count:,}" for count in counts),
            f"{statistics.points[index] / max(sum(counts), 1):.1f}",
            f"{statistics.shortest[index]:,} to {statistics.longest[index]:,}",
            _recognized(statistics.recognized[index]),
        ]
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        bars = "".join(
            f'<rect class="{split}" x="{sum(counts[:place])}" width="{count}" height="1"/>'
            for place, (split, count) in enumerate(zip(SPLITS, counts, strict=True))
        )
        bar = f'<svg viewBox="0 0 {max(most, 1)} 1" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
        link = f'<a href="#class-{index}">{escape(name)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th><td class="bar">{bar}</td>{numbers}</tr>')
    heads = ("drawings", *SPLITS, "mean points", "from, to", "recognized")
    head = "".join(f'<th scope="col" class="n">{text}</th>' for text in heads)
    key = "".join(
        f'<svg viewBox="0 0 1 1" aria-hidden="true"><rect class="{split}" width="1" height="1"/></svg>{split}'
        for split in SPLITS
    )
    return f"""<details{" open" if len(classes) <= OPEN_CLASSES else ""}>
<summary>Drawings of each class and split</summary>
<div class="wide" role="region" aria-label="Drawings of each class and split" tabindex="0">
<table class="classes"><caption class="key">The bars:{key}</caption>
<thead><tr><th scope="col">class</th><th scope="col">share of the largest</th>{head}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table>
</div>
</details>"""


def _gallery(statistics: Statistics, classes: Sequence[str]) -> str:
    figures = []
    for index, (name, shown) in enumerate(zip(classes, statistics.gallery, strict=True)):
        pictures = "".join(
            f'<svg viewBox="-5 -5 {SIDE + 10} {SIDE + 10}"><path d="{to_path(picture)}"/></svg>' for _, picture in shown
        )
        label = f"{plural(len(shown), 'drawing')} of {escape(name)}"
        figures.append(
            f'<figure id="class-{index}"><div class="pictures" role="img" aria-label="{label}">{pictures}</div>'
            f"<figcaption>{escape(name)}</figcaption></figure>"
        )
    return "\n".join(figures)


def _bins(counts: Sequence[int], width: int) -> list[tuple[str, int]]:
    """Returns the name and the count of each bin."""
    starts = range(1, 1 + width * len(counts), width)
    names = [f"{start} to {start + width - 1}" if width > 1 else f"{start}" for start in starts[:-1]]
    return list(zip([*names, f"{starts[-1]} or more"], counts, strict=True))


def _histogram(unit: str, bins: Sequence[tuple[str, int]], *, every: int) -> str:
    """Returns a histogram: bars in SVG, so that they stretch, and text in HTML, so that it does not."""
    number = len(bins)
    most_name, most = max(bins, key=lambda pair: pair[1])
    heights = [100 * count / max(most, 1) for _, count in bins]
    bars = "".join(
        f'<rect x="{index}.05" y="{100 - height:.2f}" width=".9" height="{height:.2f}">'
        f"<title>{name}: {count:,}</title></rect>"
        for index, ((name, count), height) in enumerate(zip(bins, heights, strict=True))
        if count
    )
    last = f'<span style="left:100%;translate:-100%">{bins[-1][0].split()[0]}+</span>'
    ticks = "".join(
        f'<span style="left:{100 * (index + 0.5) / number:.1f}%">{bins[index][0].split()[0]}</span>'
        for index in range(0, number - 1, every)
    )
    counts = [(name, f"{count:,}") for name, count in bins if count]
    label = f"Histogram of {unit.lower()} a drawing; the most common: {most_name}, {most:,} drawings"
    return f"""<div><h3>{unit} a drawing</h3>
<div class="histogram"><span>{most:,} drawings</span>
<svg viewBox="0 0 {number} 100" preserveAspectRatio="none" role="img" aria-label="{label}">{bars}</svg>
<div class="ticks" aria-hidden="true">{ticks}{last}</div></div>
<details><summary>The numbers</summary>
{table(f"{unit} a drawing", {unit.lower(): TEXT, "drawings": NUMBER}, counts)}
</details></div>"""


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
