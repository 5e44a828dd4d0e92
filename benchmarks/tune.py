"""What a sweep is worth: three searches with the same budget of CPU seconds, and their winner beside the presets.

    python benchmarks/tune.py --data DIR --out tune.jsonl                          # searches what is not there yet
    python benchmarks/tune.py --data DIR --out tune.jsonl --picture docs/tuning.png

DIR is what jobs/ingest.py wrote. A search is the one of jobs/tune.py (its space, study and ASHA) without presets, one
trial after the other in this process with one thread, until its CPU seconds are spent: training and validation count,
what else runs on the machine does not. A search is a JSON line; those that the file already has are not made again. The
winner, which has the highest `val_top1` of all searches with TPE and ASHA, is trained anew, and two presets beside it.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from optuna.trial import TrialState

from sketchray.engine import Learner, to_metrics
from sketchray.errors import RunError
from sketchray.feed import batches
from sketchray.loop import METRIC, Loop
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.shards import ShardSet, open_shards
from sketchray.tuning.search import EpochASHA, StudySearch
from sketchray.tuning.space import Space
from sketchray.tuning.study import open_study

SEARCHES = {
    "random, all to the end": ("random", False),
    "random + ASHA": ("random", True),
    "TPE + ASHA": ("tpe", True),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Three searches with the same budget.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        out: JSON lines, one a search; made if it is not there.
        budget_s: CPU seconds of a search.
        seeds: of the searches.
        num_epochs: of a trial that is not stopped.
        max_params: of a model.
        final_epochs: of the winner and the presets; 0 trains none.
        picture: file for the picture of what is in `out`.
    """

    data: str
    out: Path
    budget_s: float = 300.0
    seeds: tuple[int, ...] = (0, 1, 2)
    num_epochs: int = 6
    max_params: int = 100_000
    final_epochs: int = 12
    picture: Path | None = None


def make_loop(config: TrainConfig, shards: ShardSet) -> Loop:
    """Returns the loop of a run that keeps nothing."""
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
    learner = Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs)
    return Loop(
        learner=learner,
        feed=feed,
        stream=batches(feed, range(config.num_epochs)),
        valid=EvalFeed(shards.rows("valid"), config.batch_size),
        keep=lambda metrics: None,
        quiet=True,
    )


@dataclass(kw_only=True)
class Search:
    """A search: its proposals, its early stopping, and where it stands.

    Attributes:
        proposals: of the study.
        asha: what stops trials, if anything does.
        spent: CPU seconds.
        best: the highest `val_top1`, of `config`.
        curve: (spent, best) after each epoch.
    """

    proposals: StudySearch
    asha: EpochASHA | None
    spent: float = 0.0
    best: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    curve: list[tuple[float, float]] = field(default_factory=list)

    def try_one(self, shards: ShardSet) -> None:
        """Trains a trial and tells the study."""
        proposal = self.proposals.suggest("next")
        trial = self.proposals.asked[proposal["number"]]
        known: Any = type("Trial", (), {"trial_id": str(trial.number), "config": proposal})
        if self.asha is not None:
            self.asha.on_trial_add(None, known)  # type: ignore[arg-type]
        best, action = 0.0, "CONTINUE"
        before = time.process_time()
        try:
            for metrics in make_loop(TrainConfig.model_validate(proposal["config"]), shards).epochs():
                self.spent, before = self.spent + time.process_time() - before, time.process_time()
                trial.report(metrics[METRIC], int(metrics["epoch"]))
                best = max(best, metrics[METRIC])
                if best > self.best:
                    self.best, self.config = best, proposal["config"]
                self.curve.append((round(self.spent, 2), self.best))
                if self.asha is not None:
                    action = self.asha.on_trial_result(None, known, metrics)
                if action == "STOP":
                    self.proposals.study.tell(trial, state=TrialState.PRUNED)
                    return
        except RunError:  # its loss is not finite
            self.spent += time.process_time() - before
            self.proposals.study.tell(trial, state=TrialState.FAIL)
            return
        self.proposals.study.tell(trial, best)


def search(name: str, seed: int, arguments: Arguments, shards: ShardSet) -> dict[str, Any]:
    """Searches until the budget is spent, and returns the line."""
    sampler, stops = SEARCHES[name]
    space = Space(
        num_classes=len(shards.classes),
        num_epochs=arguments.num_epochs,
        seed=seed,
        max_params=arguments.max_params,
    )
    trials = 0
    with tempfile.TemporaryDirectory() as run:
        study, publish = open_study(run, name, url=None, seed=seed, sampler=sampler, resume=False)
        asha = EpochASHA(arguments.num_epochs, 1, 3) if stops else None
        found = Search(proposals=StudySearch(study, space, publish), asha=asha)
        while found.spent < arguments.budget_s:
            trials += 1
            found.try_one(shards)
    print(f"{name}, seed {seed}: {found.best:.1%} in {trials} trials", file=sys.stderr, flush=True)
    line = {"search": name, "seed": seed, "best": found.best, "trials": trials}
    return {**line, "curve": found.curve, "config": found.config}


def retrain(name: str, config: TrainConfig, arguments: Arguments, shards: ShardSet) -> dict[str, Any]:
    """Trains a configuration to the end, and returns what its last epoch is worth on the test split."""
    config = config.model_copy(update={"num_epochs": arguments.final_epochs})
    used = time.process_time()
    loop = make_loop(config, shards)
    loop.run()
    test = to_metrics(loop.learner.evaluate(batches(EvalFeed(shards.rows("test")))), "")
    parameters = sum(parameter.numel() for parameter in loop.learner.model.parameters())
    line = {"final": name, "parameters": parameters, "valid": loop.history[-1][METRIC], "test": test["top1"]}
    return {**line, "cpu_s": round(time.process_time() - used, 1), "config": config.model_dump(mode="json")}


def reached(curve: list[list[float]], goal: float) -> float | None:
    """Returns the seconds after which a search had a value."""
    return next((seconds for seconds, best in curve if best >= goal), None)


def best_at(curve: list[list[float]], seconds: float) -> float:
    """Returns what a search had found by then."""
    return max((best for at, best in curve if at <= seconds), default=0.0)


def draw(lines: list[dict[str, Any]], budget_s: float, path: Path) -> None:
    """Draws the best so far against CPU seconds: a thin line a seed, and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    grid = [budget_s * step / 200 for step in range(201)]
    for colour, name in zip(("tab:gray", "tab:orange", "tab:blue"), SEARCHES, strict=True):
        group = [line["curve"] for line in lines if line.get("search") == name]
        rows = [[100 * best_at(curve, at) for at in grid] for curve in group]
        for row in rows:
            axes.plot(grid, row, color=colour, alpha=0.3, linewidth=1)
        axes.plot(grid, [statistics.mean(column) for column in zip(*rows, strict=True)], color=colour, label=name)
    axes.set_xlabel("CPU seconds of training")
    axes.set_ylabel("best valid top-1 so far, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Searches, and prints the tables."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    shards = open_shards(arguments.data)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []

    def write(line: dict[str, Any]) -> None:
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")

    for seed in arguments.seeds:
        for name in SEARCHES:
            if not any(line.get("search") == name and line["seed"] == seed for line in read()):
                write(search(name, seed, arguments, shards))
    searches = [line for line in read() if "search" in line]
    if arguments.final_epochs:
        winner = max((line for line in searches if line["search"] == "TPE + ASHA"), key=lambda line: line["best"])
        finals = {
            "winner": TrainConfig.model_validate(winner["config"]),
            **{name: RECIPES[name] for name in ("base", "homl")},
        }
        for name, config in finals.items():
            if not any(line.get("final") == name for line in read()):
                write(retrain(name, config, arguments, shards))

    print(
        f"{shards.manifest.splits}, {len(shards.classes)} classes, {arguments.budget_s:g} CPU s a search, one thread\n"
    )
    print("| search | seeds | trials | best valid top-1 | mean | CPU s to the mean of the first |\n" + "|---" * 6 + "|")
    plain = [line["best"] for line in searches if line["search"] == next(iter(SEARCHES))]
    for name in SEARCHES:
        group = [line for line in searches if line["search"] == name]
        took = [reached(line["curve"], statistics.mean(plain)) for line in group]
        each = ", ".join(f"{100 * line['best']:.1f}" for line in group)
        times = ", ".join("never" if seconds is None else f"{seconds:.0f}" for seconds in took)
        mean = 100 * statistics.mean(line["best"] for line in group)
        trials = ", ".join(str(line["trials"]) for line in group)
        print(f"| {name} | {len(group)} | {trials} | {each} | {mean:.1f} | {times} |")
    trained = [line for line in read() if "final" in line]
    if trained:
        print(
            f"\n| {arguments.final_epochs} epochs | parameters | CPU s | valid top-1 | test top-1 |\n"
            + "|---" * 5
            + "|"
        )
    for line in trained:
        print(
            f"| {line['final']} | {line['parameters']:,} | {line['cpu_s']:.0f} | {100 * line['valid']:.1f} "
            f"| {100 * line['test']:.1f} |"
        )
    if arguments.picture is not None:
        draw(searches, arguments.budget_s, arguments.picture)


if __name__ == "__main__":
    main()
