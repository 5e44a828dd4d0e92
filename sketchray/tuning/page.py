"""The page of a sweep, `sweep.html`: what was tried, what came of it, what mattered. One file that loads nothing."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sketchray import charts
from sketchray.page import NUMBER, TEXT, escape, make_page, plural, table
from sketchray.recipe import TrainConfig
from sketchray.report import STYLE as REPORT_STYLE
from sketchray.tuning import pictures
from sketchray.tuning.pictures import Tried
from sketchray.tuning.space import Space, choices_of, propose
from sketchray.tuning.study import FAILED, SPEED, ended, front_of
from sketchray.tuning.summary import summary

if TYPE_CHECKING:
    import optuna

    from sketchray.tuning.plan import SweepConfig

SHOWN = 12  # names with a slice, and importances
AXES = 6  # of the parallel coordinates, beside the result
TABLE = 60  # trials in the table, the best first


def render(study: "optuna.Study", sweep: "SweepConfig", space: Space, name: str) -> str:
    """Returns the page of the trials that are over, at least one of which has an epoch."""
    trials = _read(study)
    shown = [trial for trial in trials if trial.curve]
    importances = weigh(shown, space, sweep.grace_epochs)
    names = list(importances)[:SHOWN]
    best = max(shown, key=lambda trial: trial.best)
    mattered = "<p>Too few trials to tell.</p>"
    if names:
        mattered = f"""<p>How much each choice tells the better trials from the others (PED-ANOVA, Watanabe et al.
2023), by <code>val_top1</code> after {plural(sweep.grace_epochs, "epoch")}, which every trial had the chance to
reach. With few trials these are hints.</p>
{pictures.weights({key: importances[key] for key in names})}
<h2>Choice by choice</h2>
{pictures.slices(trials, space.dimensions, names)}
<h2>Together</h2>
{pictures.parallel(trials, space.dimensions, names[:AXES])}"""
    content = f"""{_figures(trials, sweep)}
<h2>How it went</h2>
<div class="two">
{pictures.history(trials)}
{pictures.learning_curves(trials, sweep.num_epochs)}
</div>
{_front(study, trials) if sweep.pareto else ""}
<h2>What early stopping saved</h2>
{_saved(trials, sweep)}
<h2>What mattered</h2>
{mattered}
<h2>The trials</h2>
{_table(trials, sweep)}
<details open><summary>The best configuration: trial {best.number}, {best.best:.1%}</summary>
{table("As <code>best.json</code> has it", {}, [(key, _text(value)) for key, value in best.choices.items()])}
</details>
{_failures(trials)}"""
    about = (
        f"<p>{escape(best.what)}: {best.best:.1%} of the valid split, the best of {plural(len(trials), 'trial')}.</p>"
    )
    style = REPORT_STYLE + charts.STYLE + pictures.STYLE
    return make_page(f"Sweep: {name}", about, content, style=style)


def _read(study: "optuna.Study") -> list[Tried]:
    trials = []
    for trial in ended(study):
        notes = trial.user_attrs
        config = TrainConfig.model_validate(notes["config"])
        trials.append(
            Tried(
                number=trial.number,
                fate=str(notes["fate"]),
                choices=_asked(choices_of(config)),
                curve={int(epoch): value for epoch, value in trial.intermediate_values.items()},
                seconds=float(notes["seconds"]),
                parameters=int(notes["parameters"]),
                preset=str(notes.get("preset", "")),
                reason=str(notes.get("reason", "")),
                what=summary(notes["config"], notes.get("preset")),
                speed=float(notes.get(SPEED, 0.0)),
            )
        )
    return trials


def _asked(choices: Mapping[str, object]) -> dict[str, object]:
    """Returns only what `propose` asked for."""
    asked = {}

    def pick(name: str) -> object:
        asked[name] = choices[name]
        return choices[name]

    propose(pick)
    return asked


def weigh(trials: Sequence[Tried], space: Space, epoch: int) -> dict[str, float]:
    """Returns how much each name that has choices matters for the value after an epoch, the most first."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from sketchray.tuning.dimensions import Range

    past = optuna.create_study(direction="maximize")
    for trial in trials:
        if epoch not in trial.curve:
            continue
        kinds: dict[str, optuna.distributions.BaseDistribution] = {}
        for name, value in trial.choices.items():
            dimension = space.dimensions[name]
            if not isinstance(dimension, Range):
                kinds[name] = CategoricalDistribution(tuple(dict.fromkeys((*dimension, value))))
            elif dimension.whole:
                kinds[name] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
            else:
                kinds[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        params = {name: trial.choices[name] for name in kinds}
        past.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=trial.curve[epoch]))
    if len({trial.value for trial in past.trials}) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few trials; the page says so
        importances = optuna.importance.get_param_importances(past)
    return {name: share for name, share in importances.items() if share > 0}


def _figures(trials: Sequence[Tried], sweep: "SweepConfig") -> str:
    fates = Counter(trial.fate for trial in trials)
    best = max(trial.best for trial in trials)
    figures = [
        (f"{best:.1%}", "best val_top1", "of the whole valid split"),
        (f"{len(trials):,}", "trials", ", ".join(f"{count} {fate}" for fate, count in fates.items())),
        (f"{sum(len(trial.curve) for trial in trials):,}", "epochs trained", f"{sweep.num_epochs} a trial at most"),
        (_time(sum(trial.seconds for trial in trials)), "of trials", "added up over processes"),
    ]
    return (
        '<dl class="figures">'
        + "".join(
            f"<div><dt>{what}</dt><dd>{figure}<small>{escape(note)}</small></dd></div>"
            for figure, what, note in figures
        )
        + "</dl>"
    )


def _front(study: "optuna.Study", trials: Sequence[Tried]) -> str:
    """Returns accuracy beside speed, and the trials that no other beats in both."""
    by_number = {trial.number: trial for trial in trials}
    front = [by_number[trial.number] for trial in front_of(study)]
    rows = [
        (str(trial.number), f"{trial.best:.1%}", f"{trial.speed:,.0f}", f"{trial.parameters:,}", trial.what)
        for trial in front
    ]
    head = {"trial": TEXT, "val_top1": NUMBER, "drawings/s": NUMBER, "parameters": NUMBER, "configuration": TEXT}
    return f"""<h2>Accuracy beside speed</h2>
<p>Drawings/s of one CPU, by ONNX Runtime in batches of 32, measured before training. No trial is better than these
in both, and none was stopped but for others that are at least as fast. <code>pareto.json</code> has them.</p>
{pictures.front(trials, front)}
{table("The Pareto front", head, rows)}"""


def _saved(trials: Sequence[Tried], sweep: "SweepConfig") -> str:
    """Returns what the trials would have taken without early stopping, by the rate of each."""
    stopped = [trial for trial in trials if trial.fate == "stopped" and trial.curve]
    if not stopped:
        return "<p>Nothing: no trial was stopped early.</p>"
    left = sum(sweep.num_epochs - max(trial.curve) for trial in stopped)
    done = sum(len(trial.curve) for trial in trials)
    seconds = sum(trial.seconds / max(trial.curve) * (sweep.num_epochs - max(trial.curve)) for trial in stopped)
    spent = sum(trial.seconds for trial in trials)
    best = max(trial.best for trial in stopped)
    rows = [
        (f"after epoch {epoch}", f"{count:,}", f"{count * (sweep.num_epochs - epoch):,}")
        for epoch, count in sorted(Counter(max(trial.curve) for trial in stopped).items())
    ]
    return f"""<p>{plural(left, "epoch")} of {left + done:,} ({left / (left + done):.0%}) were not trained, about
{_time(seconds)} of {_time(spent + seconds)} by the rate of each trial. The best one that was stopped stood at
{best:.1%}.</p>
{table("Trials that were stopped", {"when": TEXT, "trials": NUMBER, "epochs saved": NUMBER}, rows)}"""


def _table(trials: Sequence[Tried], sweep: "SweepConfig") -> str:
    order = sorted(trials, key=lambda trial: trial.best, reverse=True)[:TABLE]
    rows = [
        (
            str(trial.number),
            f"{trial.best:.1%}" if trial.curve else "",
            f"{max(trial.curve, default=0)}/{sweep.num_epochs}",
            trial.fate,
            f"{trial.parameters:,}",
            _time(trial.seconds),
            trial.what,
        )
        for trial in order
    ]
    head = {
        "trial": TEXT,
        "val_top1": NUMBER,
        "epochs": NUMBER,
        "fate": TEXT,
        "parameters": NUMBER,
        "time": NUMBER,
        "configuration": TEXT,
    }
    return f"""<details open><summary>{plural(len(rows), "trial")}, the best first</summary>
{table("val_top1 is that of the best epoch", head, rows)}
</details>"""


def _failures(trials: Sequence[Tried]) -> str:
    rows = [(str(trial.number), trial.reason) for trial in trials if trial.fate == FAILED]
    if not rows:
        return ""
    return f"<h2>What failed</h2>\n{table('Why', {'trial': TEXT, 'reason': TEXT}, rows)}"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
