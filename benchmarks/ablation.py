"""What carries the accuracy: the recipe `base` in bfloat16, changed in one thing at a time, at the same budget.

    python benchmarks/ablation.py --data DIR --out docs/ablation.jsonl            # trains what is not there yet
    python benchmarks/ablation.py --data DIR --out docs/ablation.jsonl --plot docs/ablation.png

Each row is trained by the engine in this process, without Ray, on the train split, and judged on the valid split; the
test split is not touched. A row is one JSON line; rows that the file already has are not trained again, so a run that
was stopped goes on, and two may run side by side with different `--rows`. The table goes to stdout.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

from sketchray.augment import AugmentConfig, augment
from sketchray.batch import pad
from sketchray.engine import Learner, new_sums, score, to_metrics
from sketchray.feed import batches
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.shards import ShardSet, open_shards

VIEWS = 8  # of a drawing, in test-time augmentation
TTA = AugmentConfig(rotate=0.1, scale=0.1, shear=0.05, flip=0.5)


def model(**changes: Any) -> dict[str, Any]:
    """A change of the architecture."""
    return {"model": changes}


def convs(*layers: tuple[int, int, int]) -> dict[str, Any]:
    """A conv stack of (channels, kernel, stride)."""
    channels, kernels, strides = zip(*layers, strict=True) if layers else ((), (), ())
    return model(conv_channels=channels, conv_kernels=kernels, conv_strides=strides)


def augmentation(**changes: float) -> dict[str, Any]:
    """A change of the augmentation."""
    return {"augment": changes}


ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "features: deltas only": model(features="deltas"),
    "pooling: last": model(pooling=("last",)),
    "pooling: mean": model(pooling=("mean",)),
    "pooling: max": model(pooling=("max",)),
    "pooling: attention": model(pooling=("attention",)),
    "one direction, size 512": model(bidirectional=False, rnn_size=512),
    "GRU": model(cell="gru"),
    "rnn size 128": model(rnn_size=128),
    "rnn size 384": model(rnn_size=384),
    "no rnn": model(rnn_layers=0),
    "2 rnn layers of 192": model(rnn_layers=2, rnn_size=192),
    "no convolutions": convs(),
    "stride 1": convs((128, 5, 1), (192, 5, 1), (256, 5, 1)),
    "stride 2": convs((128, 5, 1), (192, 5, 2), (256, 5, 1)),
    "stride 8": convs((128, 5, 2), (192, 5, 2), (256, 5, 2)),
    "kernels of 3": convs((128, 3, 1), (192, 3, 2), (256, 3, 2)),
    "kernels of 9": convs((128, 9, 1), (192, 9, 2), (256, 9, 2)),
    "2 convolutions": convs((128, 5, 2), (256, 5, 2)),
    "half the channels": convs((64, 5, 1), (96, 5, 2), (128, 5, 2)),
    "batch norm": model(conv_norm="batch"),
    "no norm": model(conv_norm="none"),
    "no dropout": model(dropout=0.0),
    "dropout 0.3": model(dropout=0.3),
    "no augmentation": {"augment": dict.fromkeys(AugmentConfig.model_fields, 0.0)},
    **{f"no {name.replace('_', ' ')}": augmentation(**{name: 0.0}) for name in AugmentConfig.model_fields},
    "prefix 0.5": augmentation(prefix=0.5),
    "augmentation of `student`": {"augment": RECIPES["student"].augment.model_dump()},
    "no label smoothing": {"label_smoothing": 0.0},
    "no moving average": {"ema_decay": 0.0},
    "batch 128": {"batch_size": 128},
    "batch 512": {"batch_size": 512},
    "lr 1e-3": {"lr": 1e-3},
    "lr 6e-3": {"lr": 6e-3},
    "no mixup": {"mixup": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.02": {"weight_decay": 0.02},
    "cosine, warm-up 5 %": {"schedule": "cosine", "warmup": 0.05},
    "constant rate": {"schedule": "constant"},
    "no clipping": {"clip_norm": 0.0},
    "adaptive clipping 0.02": {"clip_norm": 0.0, "clip_adaptive": 0.02},
    "float32": {"precision": "float32"},
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Ablation of the recipe `base`.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        out: JSON lines, one a trained row; made if it is not there.
        rows: names, or beginnings of names, of the rows to train; all if none are given.
        seeds: of weights, order and augmentation; every row is trained with each.
        num_epochs: of every row.
        threads: of PyTorch.
        plot: file for the picture of what is in `out`; trains nothing.
    """

    data: str
    out: Path
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    num_epochs: int = 8
    threads: int = os.cpu_count() or 1
    plot: Path | None = None


def configure(name: str, num_epochs: int, seed: int) -> TrainConfig:
    """Returns the configuration of a row."""
    merged = RECIPES["base"].model_dump()
    for key, value in {"precision": "bfloat16", **ROWS[name], "num_epochs": num_epochs, "seed": seed}.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
    return TrainConfig.model_validate(merged)


def learn(config: TrainConfig, shards: ShardSet, share: float = 1.0) -> Learner:
    """Returns what learned the train split's drawings, or of each the first `share` of its points."""
    feed = TrainFeed(shards.rows(config.train_split), config.batch_size, config.seed)
    learner = Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs)
    for batch in batches(feed, range(config.num_epochs)):
        if learner.epoch_steps == feed.steps:
            learner.check_finite()
            learner.start_epoch()
        learner.step(batch if share == 1 else batch.prefix(share))
    learner.check_finite()
    return learner


def measure(name: str, config: TrainConfig, shards: ShardSet) -> dict[str, Any]:
    """Trains a row and returns its line."""
    started, used = time.perf_counter(), time.process_time()
    learner = learn(config, shards)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - used
    valid = EvalFeed(shards.rows("valid"))
    line = {
        "row": name,
        "seed": config.seed,
        "num_epochs": config.num_epochs,
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        **to_metrics(learner.sums, "train_"),
        **to_metrics(learner.evaluate(batches(valid)), "val_"),
        "clipped_share": float(learner.clipped) / learner.epoch_steps,
        "early": {
            percent: to_metrics(learner.evaluate(shown(valid, percent / 100)), "")["top1"] for percent in (25, 50, 75)
        },
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "drawings_per_cpu_s": round(config.num_epochs * float(learner.sums[0]) / cpu_s, 1),
    }
    if name == "base":
        line["tta_top1"] = test_time(learner, valid)
    return line


def shown(valid: EvalFeed, share: float) -> Iterable[Any]:
    """Yields the valid split's batches, of each drawing its beginning."""
    return (batch.prefix(share) for batch in batches(valid))


@torch.no_grad()
def test_time(learner: Learner, valid: EvalFeed) -> float:
    """Returns top-1 of the mean probability over the drawing itself and changed copies of it."""
    torch.manual_seed(0)
    net, sums = learner.kept.eval(), new_sums()
    for batch in batches(valid):
        points, lengths = pad(batch.values, batch.offsets, net.config.max_points)
        total = net(points, lengths).softmax(1)
        for _ in range(VIEWS - 1):
            total += net(*augment(points, lengths, TTA)).softmax(1)
        sums += score(total.log(), batch.labels)
    return to_metrics(sums, "")["top1"]


def read(out: Path) -> list[dict[str, Any]]:
    """Returns the lines of rows that are still in the table."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return [line for line in lines if line["row"] in ROWS]


class Row(NamedTuple):
    """A row of the table: means over its seeds, and half of what they differ by; `early` after 25, 50, 75 %."""

    name: str
    seeds: int
    top1: float
    difference: float
    half: float
    early: list[float]
    parameters: int
    rate: float


def table(lines: list[dict[str, Any]]) -> list[Row]:
    """Returns `base`, and the changes, the worst first."""
    by_row: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for line in lines:
        by_row[line["row"]].append(line)
    base = statistics.mean(line["val_top1"] for line in by_row["base"])
    found = []
    for name, group in by_row.items():
        if group:
            values = [line["val_top1"] for line in group]
            mean = statistics.mean(values)
            rate = statistics.median(line["drawings_per_cpu_s"] for line in group)
            half = (max(values) - min(values)) / 2
            early = [statistics.mean(line["early"][key] for line in group) for key in ("25", "50", "75")]
            found.append(Row(name, len(group), mean, mean - base, half, early, group[0]["parameters"], rate))
    return [found[0], *sorted(found[1:], key=lambda row: row.difference)]


def draw(rows: list[Row], noise: float, path: Path) -> None:
    """Draws the differences from `base` as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    changes = [row for row in rows if row.name != "base"]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.26 * len(changes)), layout="constrained")
    names = [row.name for row in changes]
    differences = [100 * row.difference for row in changes]
    colours = ["#b4463c" if value < 0 else "#3c7ab4" for value in differences]
    axes.barh(names, differences, color=colours, xerr=[100 * row.half for row in changes], ecolor="#555", capsize=2)
    axes.axvspan(-100 * noise, 100 * noise, color="#999", alpha=0.25, label="two standard errors of a difference")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("valid top-1, percentage points from `base`")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains what is missing, and prints the table."""
    arguments = tyro.cli(Arguments)
    shards = open_shards(arguments.data)
    torch.set_num_threads(arguments.threads)
    chosen = [name for name in ROWS if not arguments.rows or name.startswith(arguments.rows)]
    if arguments.plot is None:
        for seed in arguments.seeds:
            for name in chosen:
                done = {(line["row"], line["seed"], line["num_epochs"]) for line in read(arguments.out)}
                if (name, seed, arguments.num_epochs) not in done:
                    line = measure(name, configure(name, arguments.num_epochs, seed), shards)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(f"{name}, seed {seed}: {line['val_top1']:.2%}", file=sys.stderr, flush=True)
    lines = [line for line in read(arguments.out) if line["num_epochs"] == arguments.num_epochs]
    if not any(line["row"] == "base" for line in lines):
        sys.exit("no row `base` of so many epochs, beside which the others could stand")
    rows = table(lines)
    drawings = shards.manifest.splits["valid"]
    # Two models of this accuracy disagree on about a fifth of the drawings.
    noise = 2 * (0.2 / drawings) ** 0.5
    print(f"{arguments.num_epochs} epochs, {shards.manifest.splits}, torch {torch.__version__}")
    print(f"a difference below {noise:.1%} is within two standard errors of {drawings:,} drawings\n")
    print("| change | seeds | valid top-1 | difference | after 25 / 50 / 75 % | parameters | drawings/CPU s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        spread = f" ± {100 * row.half:.1f}" if row.seeds > 1 else ""
        early = " / ".join(f"{100 * share:.1f}" for share in row.early)
        print(
            f"| {row.name} | {row.seeds} | {100 * row.top1:.1f}{spread} | {100 * row.difference:+.1f} | {early} | "
            f"{row.parameters:,} | {row.rate:,.0f} |"
        )
    views = [line for line in lines if "tta_top1" in line]
    if views:
        gain = statistics.mean(line["tta_top1"] - line["val_top1"] for line in views)
        print(f"\nTest-time augmentation, mean of {VIEWS} views: {100 * gain:+.1f} points, at {VIEWS} times the cost.")
    if arguments.plot is not None:
        draw(rows, noise, arguments.plot)


if __name__ == "__main__":
    main()
