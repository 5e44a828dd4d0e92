"""Training throughput on Ray beside a plain PyTorch loop on the same drawings, in one run.

    python benchmarks/train.py --data DIR --preset homl

The peer is the same network, optimizer and batches as tensors in memory, in this process, with as many threads as the
machine has cores. Rows are interleaved, round after round; the table has the medians.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import tyro
from torch.nn import functional as F

from sketchray.batch import Batch, pad
from sketchray.cluster import quiet_ray
from sketchray.engine import RECIPES, Learner, TrainConfig
from sketchray.feed import TrainFeed, batches
from sketchray.shards import open_shards
from sketchray.training import train

JOB = Path(__file__).parents[1] / "jobs" / "train.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Training throughput on Ray beside a plain PyTorch loop.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        preset: network and recipe.
        rounds: repetitions of every row.
    """

    data: str
    preset: str = "homl"
    rounds: int = 3


def plain_loop(config: TrainConfig, stream: list[Batch], num_classes: int) -> float:
    """Returns drawings/s of a loop written out, without augmentation, over batches in memory."""
    model = Learner(config, num_classes, total_steps=1).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    started = time.perf_counter()
    for batch in stream:
        loss = F.cross_entropy(model(*pad(batch.values, batch.offsets, config.model.max_points)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return sum(map(len, stream)) / (time.perf_counter() - started)


def on_ray(config: TrainConfig, data: str, workers: int) -> float:
    """Returns drawings/s of the last of two epochs of `train`."""
    with tempfile.TemporaryDirectory() as runs:
        result = train(config, data=data, storage_path=runs, name="bench", num_workers=workers)
        return float(result["drawings_per_s"])


def seconds_to_first_step(config: TrainConfig, data: str, preset: str) -> float:
    """Returns the time from the command to the line that reports the first step, in a Ray cluster of its own."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, str(JOB), "--data", data, "--storage-path", runs, "--name", "first"]
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, "--preset", preset, "--num-epochs", "1"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "RAY_ADDRESS": "local"},
        ) as job:
            assert job.stderr is not None
            for line in job.stderr:
                if " step 1/" in line:
                    break
            seconds = time.perf_counter() - started
            job.terminate()
            job.stderr.read()
    return seconds


def main() -> None:
    """Measures and prints the table."""
    arguments = tyro.cli(Arguments)
    quiet_ray()
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    config = RECIPES[arguments.preset].model_copy(update={"num_epochs": 2})
    shards = open_shards(arguments.data)
    stream = list(batches(TrainFeed(shards.rows("train"), config.batch_size, config.seed)))
    starts = [seconds_to_first_step(config, arguments.data, arguments.preset) for _ in range(arguments.rounds)]
    ray.init(address="local", log_to_driver=False)
    rates: dict[str, list[float]] = {"plain PyTorch loop": [], "train(), 1 worker": [], "train(), 2 workers": []}
    for _ in range(arguments.rounds):
        rates["plain PyTorch loop"].append(plain_loop(config, stream, len(shards.classes)))
        for workers in (1, 2):
            name = f"train(), {workers} worker{'s' if workers > 1 else ''}"
            rates[name].append(on_ray(config, arguments.data, workers))
        print({name: round(values[-1]) for name, values in rates.items()}, file=sys.stderr, flush=True)
    ray.shutdown()
    versions = f"torch {torch.__version__}, ray {ray.__version__}"
    print(f"{arguments.preset}, batch {config.batch_size}, {cores} cores, {versions}")
    peer = statistics.median(rates["plain PyTorch loop"])
    for name, values in rates.items():
        middle = statistics.median(values)
        print(
            f"{name:<22}{middle:>8,.0f} drawings/s  {middle / peer:5.2f}   ({min(values):,.0f} to {max(values):,.0f})"
        )
    print(f"command to first step {statistics.median(starts):>8.1f} s  ({min(starts):.1f} to {max(starts):.1f})")


if __name__ == "__main__":
    main()
