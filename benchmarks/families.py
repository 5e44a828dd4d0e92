"""The presets side by side: accuracy, parameters, drawings/s in training and in classifying; a table and a picture.

    python benchmarks/families.py --data DIR --checkpoints runs/base runs/gru runs/conv1d --picture docs/families.png

DIR is what jobs/ingest.py wrote; the accuracy is that on its test split. Rates are of this process, in rounds that
take every model in turn (A B C A B C), each on the same drawings in batches of like lengths; the table has medians. The
first rate is the engine's, by the checkpoint's own recipe; the second that of the model alone, in batches of 256.
"""

import os
import statistics
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import tyro

from sketchray import checkpoint as checkpoints
from sketchray.batch import Batch, pad
from sketchray.engine import Learner, score, to_metrics
from sketchray.feed import batches
from sketchray.model import StrokeClassifier
from sketchray.order import SLICES, EvalFeed, TrainFeed
from sketchray.recipe import TrainConfig
from sketchray.shards import open_shards


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The presets side by side.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        checkpoints: checkpoints, or runs (the best of each).
        picture: file for the picture.
        rounds: of the rates.
        threads: of PyTorch.
    """

    data: str
    checkpoints: tuple[str, ...]
    picture: Path | None = None
    rounds: int = 5
    threads: int = os.cpu_count() or 1


@dataclass(kw_only=True)
class Family:
    """A trained model and what was measured of it."""

    name: str
    model: StrokeClassifier
    learner: Learner
    top1: float
    top5: float
    training: list[float]
    classifying: list[float]

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@torch.inference_mode()
def accuracy(model: StrokeClassifier, feed: EvalFeed) -> dict[str, float]:
    """Returns the metrics on a split."""
    sums = sum(score(run_model(model, batch), batch.labels) for batch in batches(feed))
    assert isinstance(sums, torch.Tensor)
    return to_metrics(sums, "")


def run_model(model: StrokeClassifier, batch: Batch) -> torch.Tensor:
    """Returns the logits of a batch."""
    logits: torch.Tensor = model(*pad(batch.values, batch.offsets, model.config.max_points))
    return logits


def rate_of_training(learner: Learner, some: list[Batch]) -> float:
    """Returns drawings/s."""
    started = time.perf_counter()
    for batch in some:
        learner.step(batch)
    return sum(map(len, some)) / (time.perf_counter() - started)


@torch.inference_mode()
def rate_of_classifying(model: StrokeClassifier, some: list[Batch]) -> float:
    """Returns drawings/s."""
    started = time.perf_counter()
    for batch in some:
        run_model(model, batch)
    return sum(map(len, some)) / (time.perf_counter() - started)


def draw(families: list[Family], path: Path) -> None:
    """Draws accuracy against throughput; the area of a disc is the number of parameters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for family in families:
        place = statistics.median(family.classifying), 100 * family.top1
        label = f"{family.name}: {family.parameters / 1e6:.2f} M parameters"
        axes.scatter(*place, s=family.parameters / 6_000, alpha=0.6, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15)
    key = axes.legend(loc="lower left")
    for handle in key.legend_handles:
        handle.set_sizes([40])
    axes.set_xlabel("classified drawings/s, batches of 256")
    axes.set_ylabel("test top-1, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, and prints the table."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(arguments.threads)
    shards = open_shards(arguments.data)
    families = []
    for uri in arguments.checkpoints:
        model, meta = checkpoints.load(checkpoints.best(uri))
        config = TrainConfig.model_validate(meta.config)
        metrics = accuracy(model.eval(), EvalFeed(shards.rows("test")))
        learner = Learner(config, len(shards.classes), total_steps=10**6)
        name = Path(uri).name
        families.append(
            Family(
                name=name,
                model=model,
                learner=learner,
                top1=metrics["top1"],
                top5=metrics["top5"],
                training=[],
                classifying=[],
            )
        )
    # A whole window, since only that has drawings of all lengths.
    some = list(islice(batches(TrainFeed(shards.rows("train"), 256, 0)), SLICES))
    for _ in range(arguments.rounds):
        for family in families:
            family.training.append(rate_of_training(family.learner, some))
            family.classifying.append(rate_of_classifying(family.model, some))
    print(
        f"{arguments.threads} threads, torch {torch.__version__}; {shards.manifest.splits['test']:,} test drawings of "
        f"{len(shards.classes)} classes; median of {arguments.rounds} rounds\n"
    )
    print("| preset | parameters | precision | top-1 | top-5 | trained drawings/s | classified drawings/s |")
    print("|---|---|---|---|---|---|---|")
    for family in sorted(families, key=lambda family: -family.top1):
        print(
            f"| `{family.name}` | {family.parameters:,} | {family.learner.config.precision} | {100 * family.top1:.1f} "
            f"| {100 * family.top5:.1f} | {statistics.median(family.training):,.0f} "
            f"| {statistics.median(family.classifying):,.0f} |"
        )
    if arguments.picture is not None:
        draw(families, arguments.picture)


if __name__ == "__main__":
    main()
