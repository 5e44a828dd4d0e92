"""The charts of a sweep's page, in the style of the other pages: marks in SVG, text in HTML."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sketchray.charts import Points, frame, ticks, ticks_to
from sketchray.page import escape
from sketchray.tuning.dimensions import Dimension, Range

STYLE = """
.chart :is(.line, .dot).test { stroke: var(--test) } .chart .line { stroke-width: 1.5 }
.chart :is(.line, .dot).rest { stroke: var(--line) } .chart .line.faint { stroke-width: 1; opacity: .45 }
.chart .line.front { stroke-width: 2.5 } .chart .dot { stroke-width: 7 } .chart .dot.star { stroke-width: 12 }
.chart .axis { stroke: var(--line); stroke-width: 1; fill: none }
.slices { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 0 1.5rem }
.slices .plot { height: 9rem }
.parallel { min-width: 46rem; padding-bottom: 3.5rem } .parallel .plot { margin: 1rem 4rem 0 4rem; height: 20rem }
.parallel .plot .x { font-weight: 600 } .parallel .plot .at { translate: .4rem 50%; background: var(--ground);
  padding: 0 .15rem; font-size: .72rem }
.weights { display: grid; grid-template-columns: max-content 1fr max-content; gap: .35rem .8rem; align-items: center;
  margin: 1rem 0 } .weights dt { overflow-wrap: anywhere } .weights dd { margin: 0; font-variant-numeric: tabular-nums }
.weights .bar { height: .9rem; background: var(--train) }
@media (max-width: 30rem) { .weights { grid-template-columns: minmax(0, 9rem) 1fr max-content; font-size: .85rem } }
"""
LOOKS = {"finished": "test", "stopped": "valid", "timed out": "rest"}  # of a trial that has a value
KEYS = {
    "trained to the end": '<path class="dot test" d="M10 5h0"/>',
    "stopped by ASHA": '<path class="dot valid" d="M10 5h0"/>',
    "the time was over": '<path class="dot rest" d="M10 5h0"/>',
}


@dataclass(frozen=True)
class Tried:
    """A trial that is over, as the page shows it.

    Attributes:
        number: in the study.
        fate: how it ended.
        choices: by name, as it was trained.
        curve: `val_top1` by epoch.
        seconds: that it took.
        parameters: of its model.
        preset: that it is, if it is one.
        reason: why it failed.
        what: the configuration in a few words.
        speed: drawings/s, where they count; else 0.
    """

    number: int
    fate: str
    choices: dict[str, Any]
    curve: dict[int, float]
    seconds: float
    parameters: int
    preset: str
    reason: str
    what: str
    speed: float = 0.0

    @property
    def best(self) -> float:
        """The highest `val_top1`; -1 without an epoch."""
        return max(self.curve.values(), default=-1.0)


def keys_of(trials: Sequence[Tried]) -> dict[str, str]:
    """Returns the legend of the fates that occur."""
    looks = {LOOKS.get(trial.fate) for trial in trials if trial.curve}
    return {name: mark for (name, mark), look in zip(KEYS.items(), LOOKS.values(), strict=True) if look in looks}


def history(trials: Sequence[Tried]) -> str:
    """Returns the chart of what each trial reached, and of the best so far."""
    shown = [trial for trial in trials if trial.curve]
    y_ticks = _shares(shown)
    x_ticks = ticks(0, max(trial.number for trial in trials) or 1, least=1)
    marks: list[str] = []
    steps: list[str] = []
    best = -1.0
    for trial in shown:
        x, y = _place(trial.number, x_ticks), _place(trial.best, y_ticks)
        if trial.best > best:
            steps += [f"{x:.2f} {100 - _place(best, y_ticks):.2f}"] if steps else []
            best = trial.best
            steps.append(f"{x:.2f} {100 - y:.2f}")
        marks.append(_dot(x, y, LOOKS.get(trial.fate, "rest"), _told(trial)))
    steps.append(f"100 {100 - _place(best, y_ticks):.2f}")
    return frame(
        "Best epoch of each trial, and the best so far",
        f'<path class="line train front" d="M{"L".join(steps)}"/>' + "".join(marks),
        label=f"{len(shown)} trials; the best so far rises from {shown[0].best:.1%} to {best:.1%}",
        x="trial",
        x_ticks=[(_place(value, x_ticks), f"{value:g}") for value in x_ticks],
        y_ticks=[(_place(value, y_ticks), f"{value:.0%}") for value in y_ticks],
        keys={"best so far": '<path class="line train front" d="M0 5H20"/>', **keys_of(shown)},
    )


def front(trials: Sequence[Tried], best: Sequence[Tried]) -> str:
    """Returns the chart of accuracy against drawings/s, on a logarithmic axis, with the front as a line."""
    shown = [trial for trial in trials if trial.curve and trial.speed]
    y_ticks = _shares(shown)
    low, high = min(trial.speed for trial in shown), max(trial.speed for trial in shown)
    scale = Scale(Range(low / 1.1, high * 1.1, log=True), [])

    def at(trial: Tried) -> tuple[float, float]:
        return scale.place(trial.speed), _place(trial.best, y_ticks)

    marks = [_dot(*at(trial), LOOKS.get(trial.fate, "rest"), _told(trial)) for trial in shown]
    path = "L".join(f"{x:.2f} {100 - y:.2f}" for x, y in map(at, best))
    return frame(
        "Validation top-1 beside drawings/s",
        f'<path class="line train front" d="M{path}"/>' + "".join(marks),
        label=f"{len(shown)} trials, {len(best)} of them on the front",
        x="drawings/s",
        x_ticks=scale.ticks,
        y_ticks=[(_place(value, y_ticks), f"{value:.0%}") for value in y_ticks],
        keys={"front": '<path class="line train front" d="M0 5H20"/>', **keys_of(shown)},
    )


def learning_curves(trials: Sequence[Tried], num_epochs: int) -> str:
    """Returns the chart of every trial's epochs, coloured by fate, the best one on top."""
    shown = sorted((trial for trial in trials if trial.curve), key=lambda trial: trial.best)
    y_ticks, x_ticks = _shares(shown), ticks_to(max(2, num_epochs))
    marks = []
    for trial in shown:
        look, front = LOOKS.get(trial.fate, "rest"), " front" if trial is shown[-1] else ""
        points: Points = sorted(trial.curve.items())
        path = "L".join(f"{_place(at, x_ticks):.2f} {100 - _place(value, y_ticks):.2f}" for at, value in points)
        line = f'<path class="line {look}{front}" d="M{path}"/>'
        marks.append(f"<g><title>{escape(_told(trial))}</title>{line}</g>")
        last, value = points[-1]
        marks.append(_dot(_place(last, x_ticks), _place(value, y_ticks), look, _told(trial)))
    return frame(
        "Validation top-1 by epoch",
        "".join(marks),
        label=f"{len(shown)} learning curves; the best ends at {shown[-1].best:.1%}",
        x="epoch",
        x_ticks=[(_place(value, x_ticks), f"{value:g}") for value in x_ticks],
        y_ticks=[(_place(value, y_ticks), f"{value:.0%}") for value in y_ticks],
        keys=keys_of(shown),
    )


def slices(trials: Sequence[Tried], dimensions: Mapping[str, Dimension], names: Sequence[str]) -> str:
    """Returns a small chart for each name: what was chosen, and what came of it."""
    charts = []
    shown = [trial for trial in trials if trial.curve]
    y_ticks = _shares(shown)
    for name in names:
        having = [trial for trial in shown if name in trial.choices]
        scale = Scale(dimensions[name], [trial.choices[name] for trial in having])
        marks = [
            _dot(
                scale.place(trial.choices[name]),
                _place(trial.best, y_ticks),
                LOOKS.get(trial.fate, "rest"),
                _told(trial),
            )
            for trial in having
        ]
        charts.append(
            frame(
                name,
                "".join(marks),
                label=f"{name}: {len(having)} trials",
                x="",
                x_ticks=scale.ticks,
                y_ticks=[(_place(value, y_ticks), f"{value:.0%}") for value in (y_ticks[0], y_ticks[-1])],
                keys={},
            )
        )
    return f'<div class="slices">{"".join(charts)}</div>'


def parallel(trials: Sequence[Tried], dimensions: Mapping[str, Dimension], names: Sequence[str]) -> str:
    """Returns parallel coordinates: an axis for each name and one for the result, the best quarter in front."""
    shown = sorted((trial for trial in trials if trial.curve), key=lambda trial: trial.best)
    y_ticks = _shares(shown)
    scales = [
        Scale(dimensions[name], [trial.choices[name] for trial in shown if name in trial.choices]) for name in names
    ]
    ends = [*scales, None]
    marks = "".join(f'<path class="axis" d="M{_across(place, ends):.2f} 0V100"/>' for place in range(len(ends)))
    front = len(shown) - max(1, len(shown) // 4)
    for rank, trial in enumerate(shown):
        places: list[float | None] = [
            scale.place(trial.choices[name]) if name in trial.choices else None
            for name, scale in zip(names, scales, strict=True)
        ]
        places.append(_place(trial.best, y_ticks))
        path = ""
        for number, up in enumerate(places):
            joined = number and places[number - 1] is not None
            if up is not None:
                path += f"{'L' if joined else 'M'}{_across(number, ends):.2f} {100 - up:.2f}"
        look = "train" if rank >= front else "rest faint"
        marks += f'<g><title>{escape(_told(trial))}</title><path class="line {look}" d="{path}"/></g>'
    spans = []
    for number, scale in enumerate(ends):
        left = _across(number, ends)
        title = names[number].removeprefix("model.").removeprefix("augment.") if scale else "val_top1"
        spans.append(f'<span class="x" style="left:{left:.2f}%">{escape(title)}</span>')
        texts = scale.ticks if scale else [(_place(value, y_ticks), f"{value:.0%}") for value in y_ticks]
        spans += [
            f'<span class="at" style="left:{left:.2f}%;bottom:{up:.2f}%">{escape(text)}</span>' for up, text in texts
        ]
    keys = " ".join(
        f'<span class="key"><svg viewBox="0 0 20 10" aria-hidden="true"><path class="line {look}" d="M0 5H20"/></svg>'
        f"{name}</span>"
        for name, look in {"best quarter": "train", "others": "rest"}.items()
    )
    return f"""<div class="wide"><figure class="chart parallel">
<figcaption><strong>Every trial is a line across its choices</strong><div>{keys}</div></figcaption>
<div class="plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"
aria-label="Parallel coordinates of {len(shown)} trials over {escape(", ".join(names))} and val_top1">{marks}</svg>
<div aria-hidden="true">{"".join(spans)}</div></div></figure></div>"""


def weights(importances: Mapping[str, float]) -> str:
    """Returns bars of how much each name matters."""
    most = max(importances.values(), default=1.0) or 1.0
    rows = "".join(
        f'<dt>{escape(name)}</dt><dd><div class="bar" style="width:{100 * share / most:.1f}%"></div></dd>'
        f"<dd>{share:.1%}</dd>"
        for name, share in importances.items()
    )
    return f'<dl class="weights">{rows}</dl>'


class Scale:
    """Where the values of a dimension stand on an axis, 0..100, and its ticks."""

    def __init__(self, dimension: Dimension, chosen: Sequence[Any]) -> None:
        if isinstance(dimension, Range):
            low, high = dimension.low, dimension.high
            self.log = dimension.log
            self.low, self.high = (math.log(low), math.log(high)) if self.log else (low, high)
            self.choices: list[Any] = []
            if self.log:
                powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
                values = [10.0**power for power in powers] or [low, high]
            else:
                values = [
                    value for value in ticks(low, high, least=1 if dimension.whole else 0) if low <= value <= high
                ]
            self.ticks = [(self.place(value), f"{value:g}") for value in values]
        else:
            self.choices = [choice for choice in dimension if choice in chosen] or list(dimension)
            numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in self.choices)
            self.choices.sort(key=(lambda choice: choice) if numbers else str)
            self.ticks = [(self.place(choice), _short(choice)) for choice in self.choices]

    def place(self, value: Any) -> float:
        """Returns where a value stands."""
        if self.choices:
            return 100 * (self.choices.index(value) + 0.5) / len(self.choices)
        at = math.log(value) if self.log else value
        return 100 * (at - self.low) / ((self.high - self.low) or 1.0)


def _short(choice: Any) -> str:
    """Returns a choice as there is room for: `a+mn+mx` for three ways of pooling."""
    parts = str(choice).split("+")
    names = {"attention": "att", "mean": "mn", "max": "mx"} if len(parts) > 1 else {"attention": "att"}
    return "+".join(names.get(part, part) for part in parts)


def _across(number: int, axes: Sequence[Any]) -> float:
    return 100 * number / (len(axes) - 1)


def _shares(trials: Sequence[Tried]) -> list[float]:
    """Returns ticks of the values of some trials."""
    values = [value for trial in trials for value in trial.curve.values()]
    return ticks(min(values), max(values))


def _place(value: float, along: Sequence[float]) -> float:
    return 100 * (value - along[0]) / (along[-1] - along[0])


def _dot(left: float, up: float, look: str, told: str) -> str:
    dot = f'<path class="dot {look}" d="M{left:.2f} {100 - up:.2f}h0">'
    return f"{dot}<title>{escape(told)}</title></path>"


def _told(trial: Tried) -> str:
    return f"trial {trial.number}, {trial.fate}: {trial.best:.1%}; {trial.what}"
