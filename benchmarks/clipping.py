"""How the kind and threshold of clipping change accuracy and stability, at a fixed architecture.

    python benchmarks/clipping.py --data DIR --out clipping.jsonl     # trains what is not there yet
    python benchmarks/clipping.py --data DIR --out clipping.jsonl --picture docs/clipping.png

The recipe `homl` (the book's network, one-cycle AdamW) is trained in this process with one thread: first with
`clip_norm` 1 at each of RATES, then with every kind and threshold at the best of them and at three times it. A row is a
JSON line; rows that the file already has are not trained again. `val_top1` is that of the last epoch; a row whose loss
became NaN or infinite has none.
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from sketchray.engine import Learner
from sketchray.errors import RunError
from sketchray.feed import batches
from sketchray.loop import METRIC, Loop
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import RECIPES
from sketchray.shards import ShardSet, open_shards

RATES = (1e-3, 3e-3, 1e-2)
OFF: dict[str, float] = {"clip_norm": 0.0, "clip_value": 0.0, "clip_adaptive": 0.0}
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "none": (0.0,),
    "norm": (0.1, 0.3, 1.0, 3.0),
    "value": (1e-3, 1e-2, 1e-1),
    "adaptive": (0.01, 0.03, 0.1),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Clipping by kind and threshold.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        out: JSON lines, one a trained row; made if it is not there.
        seeds: of weights, order and augmentation.
        num_epochs: of every row.
        picture: file for the picture of what is in `out`.
    """

    data: str
    out: Path
    seeds: tuple[int, ...] = (0, 1)
    num_epochs: int = 6
    picture: Path | None = None


def measure(key: dict[str, Any], num_epochs: int, shards: ShardSet) -> dict[str, Any]:
    """Trains a row, of a `kind`, `threshold`, `lr` and `seed`, and returns its line."""
    kind, threshold, lr, seed = key.values()
    clipping = OFF if kind == "none" else {**OFF, f"clip_{kind}": threshold}
    config = RECIPES["homl"].model_copy(update={**clipping, "lr": lr, "seed": seed, "num_epochs": num_epochs})
    feed = TrainFeed(shards.rows("train"), config.batch_size, seed)
    loop = Loop(
        learner=Learner(config, len(shards.classes), total_steps=feed.steps * num_epochs),
        feed=feed,
        stream=batches(feed, range(num_epochs)),
        valid=EvalFeed(shards.rows("valid"), config.batch_size),
        keep=lambda metrics: None,
        quiet=True,
    )
    try:
        loop.run()
    except RunError as error:
        return {**key, METRIC: None, "error": str(error)}
    clipped = statistics.mean(metrics["clipped_share"] for metrics in loop.history)
    return {**key, METRIC: loop.history[-1][METRIC], "clipped_share": clipped}


def draw(rows: dict[tuple[str, float], dict[float, list[float]]], rates: tuple[float, float], path: Path) -> None:
    """Draws the values of each kind and threshold, at both rates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"{kind} {threshold:g}" if threshold else kind for kind, threshold in rows]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for shift, rate, colour in ((-0.12, rates[0], "tab:blue"), (0.12, rates[1], "tab:orange")):
        for place, by_rate in enumerate(rows.values()):
            values = [100 * value for value in by_rate.get(rate, [])]
            axes.scatter([place + shift] * len(values), values, color=colour, s=18, label=f"lr {rate:g}" * (not place))
            if values:
                axes.plot([place + shift - 0.1, place + shift + 0.1], [statistics.mean(values)] * 2, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_ylabel("valid top-1, %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains, and prints the table."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    shards = open_shards(arguments.data)
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []

    def get(kind: str, threshold: float, lr: float) -> list[dict[str, Any]]:
        found = []
        for seed in arguments.seeds:
            key = {"kind": kind, "threshold": threshold, "lr": lr, "seed": seed}
            line = next((line for line in lines if key.items() <= line.items()), None)
            if line is None:
                line = measure(key, arguments.num_epochs, shards)
                lines.append(line)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(line, file=sys.stderr, flush=True)
            found.append(line)
        return found

    by_rate = {lr: statistics.mean(line[METRIC] or 0.0 for line in get("norm", 1.0, lr)) for lr in RATES}
    best = max(by_rate, key=lambda lr: by_rate[lr])
    rates = best, 3 * best
    tried = ", ".join(f"{lr:g}: {100 * value:.1f} %" for lr, value in by_rate.items())
    print(f"{shards.manifest.splits}, {arguments.num_epochs} epochs, seeds {arguments.seeds}; clip_norm 1 at {tried}\n")
    print(f"| clipping | threshold | lr {rates[0]:g} | steps clipped | lr {rates[1]:g} | steps clipped |")
    print("|---" * 6 + "|")
    rows: dict[tuple[str, float], dict[float, list[float]]] = {}
    for kind, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            cells, values = [], {}
            for lr in rates:
                found = get(kind, threshold, lr)
                good = [line for line in found if line[METRIC] is not None]
                values[lr] = [line[METRIC] for line in good]
                cells.append(", ".join(f"{100 * line[METRIC]:.1f}" if line in good else "NaN" for line in found))
                cells.append(f"{statistics.mean(line['clipped_share'] for line in good):.0%}" if good else "")
            rows[kind, threshold] = values
            print(f"| {kind} | {f'{threshold:g}' if threshold else ''} | {' | '.join(cells)} |")
    if arguments.picture is not None:
        draw(rows, rates, arguments.picture)


if __name__ == "__main__":
    main()
