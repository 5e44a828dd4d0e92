"""What a run loses to each fault, on real processes: every run beside an undisturbed one with the same flags.

    python benchmarks/chaos.py --data DIR

It starts a Ray cluster of its own and runs jobs/train.py on it, two workers each. "Done again" is the time since the
last whole checkpoint; a run "ends the same" if its weights and the metrics of all its epochs are those of the
undisturbed one, bit for bit. Seconds are from the fault, or from the command that goes on, to the first step of
learning after it. The full disk is a small tmpfs, which needs root.
"""

import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import tyro
from chaos_jobs import STEP_END, Job, workers
from safetensors.torch import load_file

from sketchray import checkpoint as checkpoints
from sketchray.cluster import quiet_ray
from sketchray.demo import free_port
from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.keeper import Keeper
from sketchray.loop import gather_own
from sketchray.order import TrainFeed
from sketchray.recipe import RECIPES
from sketchray.runs import make_meta
from sketchray.shards import open_shards

JOB = Path(__file__).parents[1] / "jobs" / "train.py"
BLOCK = 20  # steps between two measurements of what a checkpoint costs
SPEED = ("drawings_per_s", "waiting_share")  # what differs between runs that learn the same


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a run loses to each fault.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        preset: network and recipe.
        num_epochs: of each run.
        batch_size: of each run.
        checkpoint_every_s: seconds between two checkpoints in the middle of an epoch.
        elastic_epochs: of the run whose group shrinks and grows; Ray looks for new nodes once a minute.
        faults: which ones; all if none is named. `cost` is what a checkpoint costs.
        rounds: of measuring that.
    """

    data: str
    preset: str = "base"
    num_epochs: int = 3
    batch_size: int = 32
    checkpoint_every_s: float = 1.0
    elastic_epochs: int = 40
    faults: tuple[str, ...] = ()
    rounds: int = 10


@dataclass
class Row:
    """A line of the table."""

    fault: str
    happened: str
    lost: str
    seconds: float | None

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        return f"| {self.fault} | {self.happened} | {self.lost} | {seconds} |"


class Chaos:
    """The runs, and what breaks them."""

    def __init__(self, arguments: Arguments, folder: Path, address: str) -> None:
        self.arguments, self.folder, self.address = arguments, folder, address

    def start(self, name: str, *flags: str, storage: Path | None = None, resume: bool = False) -> Job:
        """Starts a run of two workers, or goes on with one."""
        given, storage = self.arguments, storage or self.folder
        command = [sys.executable, str(JOB), "--data", given.data, "--storage-path", str(storage), "--name", name]
        command += ["--num-workers", "2", "--checkpoint-every-s", str(given.checkpoint_every_s)]
        if resume:
            command += ["--resume"]
        else:
            command += ["--preset", given.preset, "--num-epochs", str(given.num_epochs)]
            command += ["--batch-size", str(given.batch_size)]
        return Job(storage / name, [*command, *flags], self.address)

    def compare(self, run: Path) -> str:
        """Says whether a run ended as the undisturbed one."""
        ends = [max(path.glob("checkpoint_*")) for path in (run, self.folder / "undisturbed")]
        weights = [load_file(end / "model.safetensors") for end in ends]
        histories = [
            [{key: value for key, value in metrics.items() if key not in SPEED} for metrics in meta.history]
            for meta in (checkpoints.read_meta(str(end)) for end in ends)
        ]
        same = all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
        return "ends the same" if same and histories[0] == histories[1] else "ENDS DIFFERENTLY"

    def resumed(self, job: Job, fault: str, lost_s: float, happened: str = "") -> Row:
        """Goes on with a run that ended."""
        started = time.time()
        again = self.start(job.run.name, storage=job.run.parent, resume=True)
        seconds = again.went_on(started)
        step = again.wait(lambda: again.find(r"step (\d+)$"))[1][1]
        passed = again.find(r"passed over: \S*/(checkpoint_\S*) (.*)")
        error = again.end()
        assert not error, error
        told = f"says that it passes over {passed[1][1].rstrip(':')}; " if passed else ""
        happened += f"--resume {told}goes on from step {step}, {self.compare(job.run)}"
        return Row(fault, happened, f"{lost_s:.1f} s of learning", seconds)

    def killed_worker(self, rank: int) -> Row:
        """SIGKILL of one of two workers."""
        job = self.start(f"worker{rank}")
        fault = job.middle()
        lost = fault - job.stored_at()
        os.kill(workers()[rank], signal.SIGKILL)
        seconds = job.went_on(fault)
        error = job.end()
        assert not error, error
        happened = f"both workers start anew and go on, {self.compare(job.run)}"
        return Row(f"SIGKILL of the worker of rank {rank} in mid-epoch", happened, f"{lost:.1f} s of learning", seconds)

    def killed_driver(self) -> Row:
        """SIGKILL of the job."""
        job = self.start("driver")
        lost = job.middle() - job.stored_at()
        job.process.kill()
        job.end()
        return self.resumed(job, "SIGKILL of the job in mid-epoch", lost)

    def torn_upload(self) -> Row:
        """SIGKILL of a worker that has stored half a checkpoint, and of the job."""
        for number in range(10):
            job = self.start(f"torn{number}")
            job.middle()

            def torn(run: Path = job.run) -> list[Path]:
                return [path for path in run.glob("checkpoint_*") if not (path / "meta.json").exists()]

            job.wait(torn)
            os.kill(workers()[0], signal.SIGKILL)
            job.process.kill()
            job.end()
            if torn():
                return self.resumed(job, "SIGKILL while a checkpoint is stored", time.time() - job.stored_at())
        raise RuntimeError("ten kills came too late to tear a checkpoint")

    def damaged(self, name: str, damage: Callable[[bytes], bytes], fault: str) -> Row:
        """Damage to a file of the newest checkpoint of a run that was killed."""
        job = self.start(f"damaged_{name.partition('.')[0]}")
        job.middle()
        job.process.kill()
        job.end()
        newest = max(path.parent for path in job.run.glob("checkpoint_*/meta.json"))
        (newest / name).write_bytes(damage((newest / name).read_bytes()))
        before = max(path for path in job.run.glob("checkpoint_*/meta.json") if path.parent != newest)
        lost = newest.stat().st_mtime - before.stat().st_mtime
        return self.resumed(job, fault, lost)

    def full_disk(self) -> Row:
        """A disk with room for two checkpoints."""
        disk = self.folder / "disk"
        disk.mkdir()
        one = sum(path.stat().st_size for path in max((self.folder / "undisturbed").glob("checkpoint_*")).iterdir())
        mount("-t", "tmpfs", "-o", f"size={one * 5 // 2}", "tmpfs", str(disk))
        try:
            job = self.start("full", storage=disk)
            error = job.end()
            died = sum("a worker died" in line for _, line in job.lines)
            stopped = max(at for at, line in job.lines if STEP_END.search(line))
            assert error, "the disk was not full"
            lost = stopped - job.stored_at()
            mount("-o", "remount,size=1g", str(disk))
            told = f"stops after {died + 1} group of workers: `{error.replace(str(self.folder), '')}`; with room, "
            return self.resumed(job, "a full disk", lost, told)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def nan(self) -> Row:
        """A learning rate at which the loss overflows."""
        flags = ["--optimizer", "sgd", "--weight-decay", "0", "--clip-norm", "0", "--lr", "1e30"]
        job = self.start("nan", *flags)
        error = job.end().replace(str(self.folder), "")
        died = sum("a worker died" in line for _, line in job.lines)
        return Row("a loss that becomes NaN", f"stops after {died + 1} group of workers: `{error}`", "nothing", None)


def cost(arguments: Arguments, folder: Path) -> str:
    """Returns what a checkpoint in the middle of an epoch costs: steps with one stored meanwhile, beside steps without.

    Blocks of steps alternate, in this process, without Ray; the one that stores has the whole of it to bear.
    """
    config = RECIPES[arguments.preset]
    shards = open_shards(arguments.data)
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
    learner = Learner(config, len(shards.classes), total_steps=10_000)
    keeper = Keeper(str(folder))
    stream = itertools.chain.from_iterable(batches(feed, [epoch]) for epoch in itertools.count())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    saves = []
    for block in range(2 * arguments.rounds + 2):
        started = time.perf_counter()
        if block % 2:
            meta = make_meta(config, shards, step=learner.steps, epoch=0, history=[])
            state = {**learner.state_dict(), "ranks": gather_own(learner)}
            contents = checkpoints.pack(learner.kept.state_dict(), meta, state)
            keeper.keep(learner.steps, contents, wait=False)
            saves.append(time.perf_counter() - started)
        for batch in itertools.islice(stream, BLOCK):
            learner.step(batch)
        if block >= 2:  # the first two warm up
            seconds[bool(block % 2)].append(time.perf_counter() - started)
    stores = []
    for _ in range(arguments.rounds):  # alone, which is the most that it can take from the steps
        started = time.perf_counter()
        keeper.keep(learner.steps, contents, wait=True)
        stores.append(time.perf_counter() - started)
    keeper.close()
    pairs = [after - before for before, after in zip(seconds[False], seconds[True], strict=True)]
    save, store = statistics.median(saves), statistics.median(stores)
    return (
        f"one checkpoint of {arguments.preset} ({sum(map(len, contents.values())) / 1e6:.1f} MB): {save:.3f} s in the "
        f"foreground and {store:.3f} s in the background, so at most {(save + store) / 600:.3%} at one each 600 s, "
        f"{(save + store) / 60:.2%} at one each 60 s. {BLOCK} steps take {statistics.median(seconds[False]):.2f} s "
        f"without one, and {statistics.median(pairs):+.2f} s with ({min(pairs):+.2f} to {max(pairs):+.2f})"
    )


def mount(*arguments: str) -> None:
    """Mounts, which needs root."""
    subprocess.run(["mount", *arguments], check=True)


def flip(content: bytes) -> bytes:
    """Returns the content with a bit flipped in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def elastic(arguments: Arguments, folder: Path) -> Row:
    """A group of one or two workers, on a node of two CPUs that goes away and returns; one CPU is left meanwhile."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": free_port()})
    node = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    flags = ["--num-workers", "1:2", "--num-epochs", str(arguments.elastic_epochs)]
    try:
        chaos = Chaos(arguments, folder, cluster.address)
        scores = []
        for name in ("undisturbed elastic", "elastic"):
            job = chaos.start(name, *flags)
            if name == "elastic":
                fault = job.middle()
                lost = fault - job.stored_at()
                cluster.remove_node(node, allow_graceful=False)
                shrunk = job.went_on(fault)
                back = time.time()
                cluster.add_node(num_cpus=2)
                grown = job.went_on(back)
            error = job.end()
            assert not error, error
            history = checkpoints.read_meta(str(max(job.run.glob("checkpoint_*")))).history
            scores.append(f"{history[-1]['val_top1']:.1%}")
    finally:
        ray.shutdown()
        cluster.shutdown()
    happened = (
        f"goes on with one worker, and with two {grown:.0f} s after the node is back; "
        f"valid top-1 {scores[1]}, undisturbed {scores[0]}"
    )
    return Row("the node of both of 1:2 workers goes away, and returns", happened, f"{lost:.1f} s of learning", shrunk)


def main() -> None:
    """Breaks runs, and prints the table."""
    arguments = tyro.cli(Arguments)
    quiet_ray()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = ray.init(address="local", num_cpus=2, log_to_driver=False, dashboard_port=free_port())
        chaos = Chaos(arguments, folder, context.address_info["address"])
        faults: dict[str, Callable[[], Row]] = {
            "worker0": lambda: chaos.killed_worker(0),
            "worker1": lambda: chaos.killed_worker(1),
            "driver": chaos.killed_driver,
            "torn": chaos.torn_upload,
            "weights": lambda: chaos.damaged("model.safetensors", flip, "a bit of the newest weights flips"),
            "state": lambda: chaos.damaged("state.pt", flip, "a bit of the newest state.pt flips"),
            "meta": lambda: chaos.damaged(
                "meta.json", lambda text: text[: len(text) // 2], "the newest meta.json is cut"
            ),
            "disk": chaos.full_disk,
            "nan": chaos.nan,
        }
        rows = []
        if not arguments.faults or set(arguments.faults) & set(faults):
            error = chaos.start("undisturbed").end()
            assert not error, error
        for fault in arguments.faults or faults:
            if fault in faults:
                rows.append(faults[fault]())
                print(rows[-1], file=sys.stderr, flush=True)
        ray.shutdown()
        if not arguments.faults or "cost" in arguments.faults:
            print(cost(arguments, folder / "cost"))
        if not arguments.faults or "elastic" in arguments.faults:
            rows.append(elastic(arguments, folder))
            print(rows[-1], file=sys.stderr, flush=True)
    if not rows:
        return
    print(f"{arguments.preset}, {arguments.num_epochs} epochs, batch {arguments.batch_size}, ray {ray.__version__}")
    print("| fault | what happened | done again | seconds until it went on |\n|---|---|---|---|")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
