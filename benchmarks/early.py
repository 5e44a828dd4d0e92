"""What beginnings tell: the network of `base`, trained on nothing else.

    python benchmarks/early.py --data DIR

DIR is what jobs/ingest.py wrote. A model for each length learns beginnings of that length only, and so may guess from a
beginning how long the whole drawing is; the last one learns beginnings of all lengths, and no whole drawing. The
presets, which learn both, are to be compared with the two.
"""

import os
from dataclasses import dataclass

import torch
import tyro

from sketchray.engine import Learner, to_metrics
from sketchray.feed import batches
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.shards import ShardSet, open_shards


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What beginnings tell.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        percents: of the points: a model for each, which learns and is asked this beginning only.
        any_length: the model that learns beginnings of random lengths, and is asked all of `percents`.
        num_epochs: of each model.
        threads: of PyTorch.
    """

    data: str
    percents: tuple[int, ...] = (25, 50)
    any_length: bool = True
    num_epochs: int = 20
    threads: int = os.cpu_count() or 1


def learn(shards: ShardSet, config: TrainConfig, percent: int) -> Learner:
    """Returns the model that learned the first `percent` of each drawing's points."""
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
    learner = Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs)
    for batch in batches(feed, range(config.num_epochs)):
        if learner.epoch_steps == feed.steps:
            learner.check_finite()
            learner.start_epoch()
        learner.step(batch.prefix(percent / 100))
    learner.check_finite()
    return learner


def print_row(learner: Learner, shards: ShardSet, learned: str, percent: int) -> None:
    """Prints what a model makes of the first `percent` of the points."""
    valid, test = (
        to_metrics(learner.evaluate(batch.prefix(percent / 100) for batch in batches(EvalFeed(shards.rows(split)))), "")
        for split in ("valid", "test")
    )
    row = f"| {percent} % | {learned} | {valid['top1']:.1%} | {test['top1']:.1%} | {test['top5']:.1%} |"
    print(row, flush=True)


def main() -> None:
    """Trains and prints the table."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(arguments.threads)
    shards = open_shards(arguments.data)
    base = RECIPES["base"].model_dump()

    def configure(prefix: float) -> TrainConfig:
        augment = {**base["augment"], "prefix": prefix}
        changes = {"augment": augment, "precision": "bfloat16", "num_epochs": arguments.num_epochs}
        return TrainConfig.model_validate({**base, **changes})

    print(f"`base`, {arguments.num_epochs} epochs, {shards.manifest.splits}, torch {torch.__version__}")
    print("\n| asked | learned | valid top-1 | test top-1 | test top-5 |\n|---|---|---|---|---|")
    for percent in arguments.percents:
        print_row(learn(shards, configure(0.0), percent), shards, "the same", percent)
    if arguments.any_length:
        learner = learn(shards, configure(1.0), 100)
        for percent in (*arguments.percents, 100):
            print_row(learner, shards, "beginnings of any length", percent)


if __name__ == "__main__":
    main()
