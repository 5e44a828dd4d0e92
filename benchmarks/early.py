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
from ablation import learn, shown

from sketchray.engine import Learner, to_metrics
from sketchray.order import EvalFeed
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.shards import ShardSet, open_shards


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What beginnings tell.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        percents: of the points: a model for each, which learns and is asked this beginning only. One more learns
            beginnings of any length, and is asked all of them.
        num_epochs: of each model.
        threads: of PyTorch.
    """

    data: str
    percents: tuple[int, ...] = (25, 50)
    num_epochs: int = 20
    threads: int = os.cpu_count() or 1


def print_row(learner: Learner, shards: ShardSet, learned: str, percent: int) -> None:
    """Prints what a model makes of the first `percent` of the points."""
    valid, test = (
        to_metrics(learner.evaluate(shown(EvalFeed(shards.rows(split)), percent / 100)), "")
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
        print_row(learn(configure(0.0), shards, percent / 100), shards, "the same", percent)
    learner = learn(configure(1.0), shards)
    for percent in (*arguments.percents, 100):
        print_row(learner, shards, "beginnings of any length", percent)


if __name__ == "__main__":
    main()
