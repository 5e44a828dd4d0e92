"""Training beside its peers: Keras, a plain PyTorch loop, and torchrun, on the same shards and cores in one run.

    python benchmarks/train.py --data DIR --keras-python .venv-tf/bin/python

DIR is what jobs/ingest.py wrote. `--keras-python` is an interpreter of the environment that benchmarks/keras_peer.py
describes; without it there are no rows beside Keras. Each row is measured in turns with its peer, A B A B, and the
table has medians, with the ratios of the single rounds in brackets. `--rows` chooses tables:

`engine`: `Learner` fed from the shards by `feed.batches`, without Ray, beside Keras fed from memory; each is a process
with a thread for each core. The first row is the preset as it is beside the published code as it is, which has batches
of 32; then both have the same batches.
`ray`: jobs/train.py, as a command, beside benchmarks/torchrun_peer.py; the rate is that of the last epoch. Ray's
workers run at the priority of the peer (its default is nice 15).
`accuracy`: seconds from the command jobs/train.py, a worker for each core, to the validation that has the accuracy
aimed at: the start of Ray and validations are counted. Keras's rate is measured before and after; then it trains on as
many drawings as it does in `--accuracy-factor` times our seconds, of which neither start nor validation is counted.
"""

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import ray
import torch
import tyro
from train_peers import Epoch, Keras, run_command

from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.order import SLICES, TrainFeed
from sketchray.recipe import RECIPES
from sketchray.shards import ShardSet, open_shards

HERE = Path(__file__).parent
JOB, TORCHRUN_PEER = HERE.parent / "jobs" / "train.py", HERE / "torchrun_peer.py"
CORES = os.cpu_count() or 1
# Of each preset: Keras's network, its name in the table, the aim, and the drawings of a round for each batch size: a
# few seconds, and whole windows of ours, since only a window has drawings of all lengths.
ENGINE_ROWS = {
    "homl": ("homl", "the book", 2.5, {32: 16_384, 256: 24_576}),
    "seed": ("lstm", "LSTM(256)", 2.0, {32: 4_096, 256: 8_192}),
}
PAIRS = ((256, 32), (256, 256), (32, 32))  # batch sizes of ours and of Keras
EPOCHS = 2  # the first is for warming up


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Training beside its peers.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        rows: tables to measure.
        keras_python: an interpreter with TensorFlow; the rows beside Keras are left out if not given.
        rounds: repetitions of every row and its peer.
        preset: of the rows on Ray.
        accuracy: share of the valid split that the first guess is right for.
        accuracy_preset: recipe that is to reach it.
        accuracy_epochs: of that recipe's schedule.
        accuracy_factor: times our seconds that Keras gets.
    """

    data: str
    rows: tuple[Literal["engine", "ray", "accuracy"], ...] = ("engine", "ray", "accuracy")
    keras_python: str | None = None
    rounds: int = 3
    preset: Literal["base", "conv1d", "homl", "seed", "tutorial"] = "homl"
    accuracy: float = 0.4
    accuracy_preset: Literal["base", "conv1d", "homl", "seed", "tutorial"] = "homl"
    accuracy_epochs: int = 14
    accuracy_factor: float = 5.0


class Engine:
    """Our learner, fed from the shards."""

    def __init__(self, shards: ShardSet, preset: str, batch_size: int) -> None:
        config = RECIPES[preset].model_copy(update={"batch_size": batch_size})
        self.learner = Learner(config, len(shards.classes), total_steps=1_000_000)  # the rate does not matter here
        self.feed = TrainFeed(shards.rows("train"), batch_size, config.seed)
        self.epoch = 0
        self.rate(SLICES * batch_size)  # meets drawings of all lengths; a first time costs more

    def rate(self, drawings: int) -> float:
        """Returns drawings/s from the start of an epoch, reading included; at most an epoch."""
        stream = batches(self.feed, [self.epoch])
        self.epoch += 1
        done = 0
        started = time.perf_counter()
        for batch in islice(stream, max(1, drawings // self.learner.config.batch_size)):
            self.learner.step(batch)
            done += len(batch)
        return done / (time.perf_counter() - started)


def train_job(arguments: Arguments, preset: str, *, workers: int, num_epochs: int) -> tuple[float, list[Epoch]]:
    """Trains by jobs/train.py, which starts Ray and stops it."""
    with tempfile.TemporaryDirectory() as runs:
        flags = ["--data", arguments.data, "--storage-path", runs, "--name", "bench", "--num-workers", str(workers)]
        recipe = ["--preset", preset, "--num-epochs", str(num_epochs)]
        return run_command([sys.executable, str(JOB), *flags, *recipe])


def peer_job(
    arguments: Arguments, preset: str, *, processes: int, more: Sequence[str] = ()
) -> tuple[float, list[Epoch]]:
    """Trains by benchmarks/torchrun_peer.py."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    flags = ["--data", arguments.data, "--preset", preset, "--num-epochs", str(EPOCHS), *more]
    return run_command([sys.executable, *torchrun, str(TORCHRUN_PEER), *flags])


def print_row(what: str, beside: str, ours: list[float], peers: list[float], aim: str, *, form: str = ",.0f") -> None:
    """Prints a row of the table: medians, and the ratio of the medians with those of the rounds."""
    own, other = statistics.median(ours), statistics.median(peers)
    ratios = [a / b for a, b in zip(ours, peers, strict=True)]
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| {what} | {beside} | {own:{form}} | {other:{form}} | {own / other:.2f} ({span}) | {aim} |", flush=True)


def tell(what: str, *values: float) -> None:
    """Shows what a round found."""
    print(what, *(round(value, 3) for value in values), file=sys.stderr, flush=True)


def print_head(title: str, columns: str) -> None:
    """Prints the top of a table."""
    names = [name.strip() for name in columns.split("|")]
    print(f"\n{title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def measure_engine(arguments: Arguments, shards: ShardSet, keras: Keras) -> None:
    """Prints the table beside Keras."""
    print_head("Engine, drawings/s", "what | beside | ours | peer | ratio (rounds) | aim")
    for preset, (network, named, aim, drawings) in ENGINE_ROWS.items():
        engines = {batch_size: Engine(shards, preset, batch_size) for batch_size in drawings}
        for batch_size in drawings:
            keras.rate(network, batch_size, 8 * batch_size)  # traces the graph
        ours: dict[int, list[float]] = {batch_size: [] for batch_size in drawings}
        peers: dict[int, list[float]] = {batch_size: [] for batch_size in drawings}
        for _ in range(arguments.rounds):
            for batch_size, number in drawings.items():
                ours[batch_size].append(engines[batch_size].rate(number))
                peers[batch_size].append(keras.rate(network, batch_size, number))
                tell(f"{preset}, batch {batch_size}: ours, Keras", ours[batch_size][-1], peers[batch_size][-1])
        for own, other in PAIRS:
            print_row(f"`{preset}`, batch {own}", f"Keras, {named}, batch {other}", ours[own], peers[other], f"{aim:g}")


def measure_ray(arguments: Arguments) -> None:
    """Prints the table of jobs/train.py."""
    found: dict[str, list[tuple[float, list[Epoch]]]] = {"job 1": [], "loop": [], "job 2": [], "torchrun": []}
    for _ in range(arguments.rounds):
        found["job 1"].append(train_job(arguments, arguments.preset, workers=1, num_epochs=EPOCHS))
        found["loop"].append(peer_job(arguments, arguments.preset, processes=1))
        found["job 2"].append(train_job(arguments, arguments.preset, workers=2, num_epochs=EPOCHS))
        found["torchrun"].append(peer_job(arguments, arguments.preset, processes=2))
        for name, runs in found.items():
            tell(
                f"{arguments.preset}, {name}: to first step, rate, waiting", runs[-1][0], *astuple(runs[-1][1][-1])[2:]
            )
    rates = {name: [epochs[-1].rate for _, epochs in runs] for name, runs in found.items()}
    starts = {name: [first for first, _ in runs] for name, runs in found.items()}

    print_head(f"On Ray, `{arguments.preset}`", "what | beside | ours | peer | ratio (rounds) | aim")
    print_row("1 worker, drawings/s", "plain loop, batches in memory", rates["job 1"], rates["loop"], "0.95")
    print_row("2 workers, drawings/s", "torchrun, 2 processes", rates["job 2"], rates["torchrun"], "0.97")
    later = statistics.median(starts["job 2"]) - statistics.median(starts["torchrun"])
    aim = f"10 s later, is {later:.1f} s"
    print_row(
        "2 workers, s to first step", "torchrun, 2 processes", starts["job 2"], starts["torchrun"], aim, form=".1f"
    )
    for name in ("job 1", "job 2"):
        waiting = [epochs[-1].waiting for _, epochs in found[name]]
        middle = f"{statistics.median(waiting):.1%} ({min(waiting):.1%} to {max(waiting):.1%})"
        print(f"| waiting for data, {name[-1]} worker(s) | step time | {middle} | | | 2 % |", flush=True)


def measure_accuracy(arguments: Arguments, shards: ShardSet, keras: Keras) -> None:
    """Prints how long both take to an accuracy."""
    preset, factor = arguments.accuracy_preset, arguments.accuracy_factor
    keras.rate("homl", 32, 256)  # traces the graph
    rates = [keras.rate("homl", 32, 16_384)]
    _, epochs = train_job(arguments, preset, workers=CORES, num_epochs=arguments.accuracy_epochs)
    rates.append(keras.rate("homl", 32, 16_384))
    ours = next((epoch for epoch in epochs if epoch.top1 >= arguments.accuracy), epochs[-1])
    tell(f"{preset}: seconds and val_top1; Keras's rates", ours.seconds, ours.top1, *rates)

    rate = statistics.mean(rates)
    total, done, top1 = rate * ours.seconds * factor, 0.0, 0.0
    while done + 32 <= total and top1 < arguments.accuracy:  # it trains whole batches
        drawings = math.ceil(min(total - done, rate * ours.seconds))
        answer = keras.train("homl", 32, drawings, evaluate=True, anew=not done)
        done, top1 = done + answer["drawings"], answer["val_top1"]
        tell("Keras: drawings and val_top1", done, top1)
    print_head(f"Seconds to {arguments.accuracy:.0%} valid top-1", "what | seconds | valid top-1 | drawings")
    number = epochs.index(ours) + 1
    drawings = number * len(shards.rows("train"))
    what = f"`{preset}`, {CORES} workers, {number} of {len(epochs)} epochs"
    print(f"| {what} | {ours.seconds:.0f} | {ours.top1:.1%} | {drawings:,} |")
    taken = f"{done / rate:.0f}, {done / rate / ours.seconds:.1f} times ours"
    print(f"| the book's recipe in Keras, {rate:,.0f}/s | {taken} | {top1:.1%} | {done:,.0f} |", flush=True)


def main() -> None:
    """Measures and prints the tables."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(CORES)
    shards = open_shards(arguments.data)
    with ExitStack() as stack:
        keras = (
            stack.enter_context(Keras(arguments.keras_python, arguments.data, CORES))
            if arguments.keras_python
            else None
        )
        versions = {"torch": torch.__version__, "ray": ray.__version__, **(keras.versions if keras else {})}
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        counts = f"{len(shards.rows('train')):,} drawings, {len(shards.classes)} classes"
        print(f"{CORES} cores, {named}; {counts}; median of {arguments.rounds} rounds")
        if keras is None:
            print("\nWithout --keras-python: the tables beside Keras are left out.")
        if keras is not None and "engine" in arguments.rows:
            measure_engine(arguments, shards, keras)
        if "ray" in arguments.rows:
            measure_ray(arguments)
        if keras is not None and "accuracy" in arguments.rows:
            measure_accuracy(arguments, shards, keras)


if __name__ == "__main__":
    main()
