"""Small charts for the HTML pages: marks in SVG, so that they stretch, and text in HTML, so that it does not.

Coordinates of a chart are 0..100 from the left and 0..100 from the bottom.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from sketchray.page import escape

TICKS = 5  # at most, on an axis, or one more
STYLE = """
.chart { margin: 1rem 0 0; padding-bottom: 3.2rem; break-inside: avoid; align-self: end }
.chart figcaption { margin-bottom: .6rem }
.chart .key { font-size: .85rem; white-space: nowrap; margin-right: 1rem }
.chart .key svg { width: 1.4rem; height: .7rem; margin-right: .3rem; overflow: visible }
.plot { position: relative; height: 13rem; margin: 0 .8rem 0 3.4rem; font-size: .8rem }
.plot > svg { width: 100%; height: 100%; overflow: visible; display: block }
.plot span { position: absolute; line-height: 1; white-space: nowrap }
.plot .y { right: calc(100% + .5rem); translate: 0 50% } .plot .x { top: calc(100% + .5rem); translate: -50% }
.plot .what { top: calc(100% + 1.7rem); left: 0; right: 0; text-align: center }
.chart path, .chart rect { vector-effect: non-scaling-stroke }
.chart .grid { stroke: var(--line); stroke-width: .5; opacity: .5 }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.chart .dot { stroke-width: 6; stroke-linecap: round }
.chart :is(.line, .dot).train { stroke: var(--train) } .chart :is(.line, .dot).valid { stroke: var(--valid) }
.chart .dashed { stroke-dasharray: 5 4 } .chart .goal { stroke: var(--valid); stroke-width: 3 }
@media print { .plot { height: 9rem } }
"""

BAR_KEYS = {
    "right": '<rect class="train" width="20" height="10"/>',
    "mean probability, where it should end": '<path class="goal" d="M0 5H20"/>',
}

Points = Sequence[tuple[float, float]]
Format = Callable[[float], str]


def ticks(low: float, high: float, *, least: float = 0.0) -> list[float]:
    """Returns round numbers that span a range, in steps of 1, 2 or 5 times a power of ten, and of `least` or more."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / TICKS))
    step = max(least, next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= TICKS))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def ticks_to(last: int) -> list[float]:
    """Returns 1, round whole numbers, and `last`, which is 2 or more."""
    inner = ticks(1, last, least=1)
    half = (inner[1] - inner[0]) / 2
    return [1, *(tick for tick in inner if 1 + half <= tick <= last - half), last]


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    x: str,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    show: Format,
) -> str:
    """Returns a line chart.

    Args:
        title: text.
        series: points by name; the first is dashed where there are two.
        x: what lies along it.
        x_ticks, y_ticks: in order; the first and the last are the ends of the axes.
        show: writes a value of y.
    """
    looks = ["valid"] if len(series) == 1 else ["train dashed", "valid"]
    marks = []
    for look, (name, points) in zip(looks, series.items(), strict=True):
        places = [(_place(at, x_ticks), _place(value, y_ticks)) for at, value in points]
        path = "L".join(f"{left:.2f} {100 - up:.2f}" for left, up in places)
        marks.append(f'<path class="line {look}" d="M{path}"/>')
        for (left, up), (at, value) in zip(places, points, strict=True):
            told = f"{name}, {x} {at:g}: {show(value)}"
            dot = f'<path class="dot {look.split()[0]}" d="M{left:.2f} {100 - up:.2f}h0">'
            marks.append(f"{dot}<title>{escape(told)}</title></path>")
    keys = {name: f'<path class="line {look}" d="M0 5H20"/>' for look, name in zip(looks, series, strict=True)}
    ends = "; ".join(f"{name} {show(points[0][1])} to {show(points[-1][1])}" for name, points in series.items())
    return frame(
        title,
        "".join(marks),
        label=f"{title} by {x}: {ends}",
        x=x,
        x_ticks=[(_place(value, x_ticks), f"{value:g}") for value in x_ticks],
        y_ticks=[(_place(value, y_ticks), show(value)) for value in y_ticks],
        keys=keys if len(keys) > 1 else {},
    )


def bars(
    title: str,
    heights: Sequence[float],
    told: Sequence[str],
    *,
    x: str,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    goals: Sequence[float | None] = (),
    keys: Mapping[str, str] | None = None,
) -> str:
    """Returns a bar chart: bars of equal width, side by side.

    Args:
        title: text.
        heights: of the bars, 0..1.
        told: what a bar says when it is pointed at.
        x: what lies along it.
        x_ticks, y_ticks: places, 0..100, and texts.
        goals: where each bar should end, 0..1, if it has to.
        keys: as for `frame`.
    """
    width = 100 / len(heights)
    marks = []
    for number, (height, text) in enumerate(zip(heights, told, strict=True)):
        left, up = width * (number + 0.04), 100 * height
        bar = f'<rect class="train" x="{left:.2f}" y="{100 - up:.2f}" width="{0.92 * width:.2f}" height="{up:.2f}"/>'
        goal = goals[number] if goals else None
        if goal is not None:
            bar += f'<path class="goal" d="M{left:.2f} {100 - 100 * goal:.2f}h{0.92 * width:.2f}"/>'
        marks.append(f"<g><title>{escape(text)}</title>{bar}</g>")
    return frame(
        title,
        "".join(marks),
        label=f"{title}, {len(heights)} bars",
        x=x,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        keys=keys or {},
    )


def frame(
    title: str,
    marks: str,
    *,
    label: str,
    x: str,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    keys: Mapping[str, str],
) -> str:
    """Returns a chart around `marks`, SVG on a grid of 100 x 100.

    Args:
        title: text.
        marks: in the coordinates of SVG: 0 is at the top.
        label: says what is seen, for those who do not see it.
        x: what lies along it.
        x_ticks, y_ticks: places and texts.
        keys: a mark of 20 x 10 for each name of the legend.
    """
    grid = "".join(f"M0 {100 - place:.2f}H100" for place, _ in y_ticks)
    spans = [f'<span class="x" style="left:{place:.2f}%">{escape(text)}</span>' for place, text in x_ticks]
    spans += [f'<span class="y" style="bottom:{place:.2f}%">{escape(text)}</span>' for place, text in y_ticks]
    legend = " ".join(
        f'<span class="key"><svg viewBox="0 0 20 10" aria-hidden="true">{mark}</svg>{escape(name)}</span>'
        for name, mark in keys.items()
    )
    legend = legend and f"<div>{legend}</div>"
    return f"""<figure class="chart"><figcaption><strong>{escape(title)}</strong>{legend}</figcaption>
<div class="plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">
<path class="grid" d="{grid}"/>{marks}</svg>
<div aria-hidden="true">{"".join(spans)}<span class="what">{escape(x)}</span></div></div></figure>"""


def _place(value: float, along: Sequence[float]) -> float:
    """Returns where a value stands, 0..100."""
    return 100 * (value - along[0]) / (along[-1] - along[0])
