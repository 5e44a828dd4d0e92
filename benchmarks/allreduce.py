"""What the all-reduce of DDP takes of a step: the same steps with it and without, in turns. No Ray.

    python -m torch.distributed.run --nproc-per-node 2 benchmarks/allreduce.py --data DIR

Processes on one machine, over gloo, learn by the `Learner` that `train()` uses, from batches in memory. Without it each
process learns for itself, so the difference is what is not hidden behind the backward pass, waiting for each other
included. Beside it the sum of as many numbers as the model has, alone.
"""

import argparse
import itertools
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.order import TrainFeed
from sketchray.recipe import RECIPES
from sketchray.shards import open_shards

ROUNDS, STEPS = 7, 8


def main() -> None:
    """Measures each preset, and prints a row."""
    parser = argparse.ArgumentParser(description="The share of the all-reduce.")
    parser.add_argument("--data", required=True, help="directory that jobs/ingest.py wrote")
    parser.add_argument("--presets", choices=RECIPES, nargs="+", default=["base", "homl"])
    parser.add_argument("--batch-size", type=int, default=128, help="of each process")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    shards = open_shards(arguments.data)
    if rank == 0:
        print(f"{world_size} processes, batches of {arguments.batch_size} each, torch {torch.__version__}\n")
        print("| preset | MB a step | step, ms | without all-reduce, ms | share (rounds) | all-reduce alone, ms |")
        print("|---" * 6 + "|")
    for preset in arguments.presets:
        config = RECIPES[preset].model_copy(update={"batch_size": arguments.batch_size * world_size})
        feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed, rank, world_size)
        ready = itertools.cycle(list(itertools.islice(batches(feed, range(1)), STEPS)))
        learner = Learner(config, len(shards.classes), total_steps=10_000, rank=rank, wrap=wrap)
        parallel = learner.parallel
        assert isinstance(parallel, DistributedDataParallel)
        learner.start_epoch()

        def block(learner: Learner = learner, ready: "itertools.cycle[object]" = ready) -> float:
            dist.barrier()
            began = time.perf_counter()
            for _ in range(STEPS):
                learner.step(next(ready))  # type: ignore[arg-type]
            return (time.perf_counter() - began) / STEPS * 1000

        block()
        pairs = []
        for _ in range(ROUNDS):
            taken = []
            for together in (True, False):
                parallel.require_backward_grad_sync = together  # as `no_sync` does
                taken.append(block())
            pairs.append(taken)
        numbers = torch.zeros(sum(parameter.numel() for parameter in parallel.parameters()))
        alone = []
        for _ in range(ROUNDS):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(numbers)
            alone.append((time.perf_counter() - began) * 1000)
        if rank == 0:
            shares = [1 - without / with_it for with_it, without in pairs]
            with_it, without = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"| {preset} | {numbers.numel() * 4 / 1e6:.2f} | {with_it:.0f} | {without:.0f} "
                f"| {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}) "
                f"| {statistics.median(alone):.1f} |",
                flush=True,
            )
    dist.destroy_process_group()


def wrap(model: nn.Module) -> nn.Module:
    """Returns the model as `train()` wraps it."""
    return DistributedDataParallel(model, forward_sync_buffers=False)


if __name__ == "__main__":
    main()
