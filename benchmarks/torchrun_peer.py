"""Training without Ray, as a process or several; benchmarks/train.py starts it and reads what it prints.

    python -m torch.distributed.run --nproc-per-node 2 benchmarks/torchrun_peer.py --data DIR
    python benchmarks/torchrun_peer.py --data DIR

With torchrun: DDP over gloo, and each process reads its own batches from the shards by a thread. Without: one process,
whose batches lie in memory before the clock starts. Both learn by the same `Learner` as `train()`, with the same
batches, and do nothing else: no validation, no checkpoint, no look at the loss.

Progress has the form of jobs/train.py's.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sketchray.batch import Batch
from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.order import TrainFeed
from sketchray.recipe import RECIPES
from sketchray.shards import open_shards


def main() -> None:
    """Trains and prints a line for the first step and for each epoch."""
    parser = argparse.ArgumentParser(description="Training without Ray.")
    parser.add_argument("--data", required=True, help="directory that jobs/ingest.py wrote")
    parser.add_argument("--preset", choices=RECIPES, default="homl")
    parser.add_argument("--num-epochs", type=int, default=2)
    arguments = parser.parse_args()
    # Set by torchrun.
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    if world_size > 1:
        dist.init_process_group("gloo")

    def wrap(model: nn.Module) -> nn.Module:
        # Batch statistics are each rank's own, as in `train()`.
        return DistributedDataParallel(model, forward_sync_buffers=False) if world_size > 1 else model

    config = RECIPES[arguments.preset].model_copy(update={"num_epochs": arguments.num_epochs})
    shards = open_shards(arguments.data)
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed, rank, world_size)
    stream: Iterator[Batch] = batches(feed, range(config.num_epochs))
    if world_size == 1:
        stream = iter(list(stream))
    learner = Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs, rank=rank, wrap=wrap)
    for epoch in range(1, config.num_epochs + 1):
        learner.start_epoch()
        started, waited = time.perf_counter(), 0.0
        for step in range(1, feed.steps + 1):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            learner.step(batch)
            if rank == 0 and epoch == step == 1:
                print(f"epoch 1/{config.num_epochs} step 1/{feed.steps}", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - started
        if rank == 0:
            rate = feed.steps * feed.rank_rows * world_size / seconds
            print(
                f"epoch {epoch}/{config.num_epochs}: {rate:,.0f} drawings/s, waiting for data {waited / seconds:.1%}",
                file=sys.stderr,
                flush=True,
            )
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
