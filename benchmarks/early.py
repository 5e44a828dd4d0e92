"""What a beginning tells at most: the network of `base`, trained on beginnings of one length only, and judged on these.

    python benchmarks/early.py --data DIR

DIR is what jobs/ingest.py wrote. A model that is shown beginnings of all lengths, as the presets are, can hardly know
more of a quarter of a drawing than one that has never seen anything else.
"""

import os
import time
from dataclasses import dataclass

import torch
import tyro

from sketchray.engine import Learner, to_metrics
from sketchray.feed import batches
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.shards import open_shards


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a beginning tells at most.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        percents: of the points, of which each model sees only the first.
        num_epochs: of each model.
        threads: of PyTorch.
    """

    data: str
    percents: tuple[int, ...] = (25, 50)
    num_epochs: int = 20
    threads: int = os.cpu_count() or 1


def main() -> None:
    """Trains and prints the table."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(arguments.threads)
    shards = open_shards(arguments.data)
    base = RECIPES["base"].model_dump()
    changes = {"augment": {**base["augment"], "prefix": 0.0}, "precision": "bfloat16"}
    config = TrainConfig.model_validate({**base, **changes, "num_epochs": arguments.num_epochs})
    print(
        f"`base` on beginnings only, {arguments.num_epochs} epochs, {shards.manifest.splits}, torch {torch.__version__}"
    )
    print("\n| of the points | valid top-1 | test top-1 | test top-5 | CPU s |\n|---|---|---|---|---|")
    for percent in arguments.percents:
        feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
        learner = Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs)
        used = time.process_time()
        for batch in batches(feed, range(config.num_epochs)):
            if learner.epoch_steps == feed.steps:
                learner.check_finite()
                learner.start_epoch()
            learner.step(batch.prefix(percent / 100))
        used = time.process_time() - used
        valid, test = (
            to_metrics(
                learner.evaluate(batch.prefix(percent / 100) for batch in batches(EvalFeed(shards.rows(split)))), ""
            )
            for split in ("valid", "test")
        )
        print(
            f"| {percent} % | {valid['top1']:.1%} | {test['top1']:.1%} | {test['top5']:.1%} | {used:,.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
