"""How fast every preset learns on one GPU, and what of the time is arithmetic. Needs no Ray.

    python benchmarks/gpu.py --data DIR
    python benchmarks/gpu.py --data DIR --device cpu --presets homl --batch-sizes 64 --seconds 1

DIR is what jobs/ingest.py wrote. PyTorch, NumPy, pyarrow, safetensors and pydantic are enough. For each preset and
batch size, in bfloat16, the table has drawings/s with the epoch's batches on the GPU from the start (`resident`), with
batches read from the shards and sent there (`fed`), measured in turns over whole epochs, and two shares: of the
resident rate, and of the arithmetic limit, which is the rate of a large bfloat16 matrix product measured in this run.
Multiply-adds are counted as run, padding included; a backward pass counts as two forward passes.

Then the profile of the preset's best batch size, with the share of the time in which a kernel runs.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sketchray.batch import Batch, pad
from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.order import TrainFeed
from sketchray.recipe import RECIPES
from sketchray.shards import ShardSet, open_shards

PASSES = 3  # forward, and a backward pass with as much arithmetic for the weights and again for the inputs
PROFILED_STEPS = 20
GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3}


class Resident(Batch):
    """A batch that is on the device already."""

    def to(self, device: torch.device) -> "Resident":
        return self

    def slice(self, start: int, stop: int) -> "Resident":
        part = super().slice(start, stop)
        return Resident(part.values, part.offsets, part.labels)


def finish(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, seconds: float) -> float:
    """Returns floating-point operations a second of a square bfloat16 matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        matrix @ matrix
    finish(device)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            matrix @ matrix
        finish(device)
        done += 10
    return done * 2 * size**3 / (time.perf_counter() - started)


def multiply_adds(learner: Learner, batch: Batch) -> int:
    """Returns those of a forward pass in convolutions, recurrent and linear layers; the rest is small beside them."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        nonlocal total
        if isinstance(module, nn.Conv1d):
            total += output.numel() * module.in_channels // module.groups * module.kernel_size[0]
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.LSTM | nn.GRU):
            steps = inputs[0].shape[0] * inputs[0].shape[1]
            sizes = (module.input_size + module.hidden_size) * module.hidden_size
            assert module.num_layers == 1
            assert not module.bidirectional
            total += steps * GATES[type(module)] * sizes

    hooks = [module.register_forward_hook(count) for module in learner.model.modules()]
    with torch.no_grad():
        learner.model(*pad(batch.values, batch.offsets, learner.config.model.max_points))
    for hook in hooks:
        hook.remove()
    return total


def rate(learner: Learner, stream: Iterable[Batch]) -> float:
    """Returns drawings/s; the first batch only starts the stream."""
    stream = iter(stream)
    learner.step(next(stream))
    finish(learner.device)
    done, started = 0, time.perf_counter()
    for batch in stream:
        learner.step(batch)
        done += len(batch)
    finish(learner.device)
    return done / (time.perf_counter() - started)


def measure(
    arguments: argparse.Namespace, shards: ShardSet, preset: str, batch_size: int, limit: float
) -> tuple[float, Learner, list[Resident]]:
    """Prints a row of the table; returns the fed rate, and what the profile needs."""
    device = torch.device(arguments.device)
    config = RECIPES[preset].model_copy(update={"batch_size": batch_size, "precision": "bfloat16"})
    learner = Learner(config, len(shards.classes), total_steps=1_000_000, device=device)
    feed = TrainFeed(shards.rows("train"), batch_size, config.seed)
    epoch = itertools.islice(batches(feed), arguments.max_batches)
    kept = [Resident(batch.values.to(device), batch.offsets, batch.labels.to(device)) for batch in epoch]
    cut = config.model.max_points
    lengths = [batch.offsets.diff().clamp(max=cut) for batch in kept]
    padded = sum(int(length.max()) * len(length) for length in lengths)
    drawings = sum(map(len, kept))
    operations = 2 * PASSES * sum(multiply_adds(learner, batch) for batch in kept) / drawings
    # An epoch for warming up; the time of another says how many make a measurement.
    started = time.perf_counter()
    rate(learner, [*kept, *kept])
    epochs = math.ceil(arguments.seconds / (time.perf_counter() - started) * 2)

    resident, fed = [], []
    for _ in range(arguments.rounds):
        resident.append(rate(learner, itertools.chain(kept[:1], *[kept] * epochs)))
        stream = batches(feed, range(math.ceil((len(kept) * epochs + 1) / feed.steps)))
        fed.append(rate(learner, itertools.islice(stream, len(kept) * epochs + 1)))
    own, most = statistics.median(fed), statistics.median(resident)
    padding = 1 - sum(int(length.sum()) for length in lengths) / padded
    print(
        f"| `{preset}` | {batch_size:,} | {padding:.0%} | {own:,.0f} | {most:,.0f} | {own / most:.2f} "
        f"| {operations / 1e6:,.0f} | {own * operations / limit:.1%} |",
        flush=True,
    )
    return own, learner, kept


def print_profile(learner: Learner, kept: list[Resident]) -> None:
    """Prints where the time of some steps goes."""
    on_gpu = learner.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        started = time.perf_counter()
        for batch in itertools.islice(itertools.cycle(kept), PROFILED_STEPS):
            learner.step(batch)
        finish(learner.device)
        seconds = time.perf_counter() - started
    averages = profiled.key_averages()
    if on_gpu:
        busy = sum(event.self_device_time_total for event in averages) / 1e6  # no two kernels of a stream overlap
        print(f"a kernel runs in {busy / seconds:.0%} of the time")
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(averages.table(sort_by=order, row_limit=15, max_name_column_width=60), flush=True)


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description="How fast every preset learns on one GPU.")
    parser.add_argument("--data", required=True, help="directory that jobs/ingest.py wrote")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement, or an epoch if that takes longer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batches", type=int, help="of an epoch; all if not given")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    shards = open_shards(arguments.data)
    limit = matmul_rate(device, arguments.seconds)
    print(f"{name}, torch {torch.__version__}, {len(shards.rows('train')):,} drawings, {len(shards.classes)} classes")
    print(f"bfloat16 matrix product: {limit / 1e12:,.2f} TFLOP/s; median of {arguments.rounds} rounds\n")
    columns = ("preset", "batch", "padding", "fed, drawings/s", "resident", "fed to resident", "MFLOP a drawing")
    print(f"| {' | '.join(columns)} | of the limit |\n|{'---|' * (len(columns) + 1)}")
    best: dict[str, tuple[float, Learner, list[Resident]]] = {}
    for preset, batch_size in itertools.product(arguments.presets, arguments.batch_sizes):
        try:
            found = measure(arguments, shards, preset, batch_size, limit)
        except torch.OutOfMemoryError:
            print(f"| `{preset}` | {batch_size:,} | | out of memory | | | | |", flush=True)
            continue
        best[preset] = max(best.get(preset, found), found, key=lambda row: row[0])
    for preset, (own, learner, kept) in best.items():
        print(f"\n`{preset}`, batch {learner.config.batch_size:,}, {own:,.0f} drawings/s")
        print_profile(learner, kept)


if __name__ == "__main__":
    main()
