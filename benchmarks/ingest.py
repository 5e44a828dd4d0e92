"""Ingest beside its peers, on the same cores in one run, and its memory as the data grow.

    python benchmarks/ingest.py --source DIR --copies 1 16
    python benchmarks/ingest.py --source DIR --copies 1 4 16 --rounds 1 --no-peers    # the memory curve

DIR holds simplified ndjson files, one class each. A copy is every drawing of them, shaken by a pixel or two, with a key
of its own. The peers are those of benchmarks/ingest_peers.py: a loop over json.loads and NumPy that writes the same
shards, and the tutorial's script, which needs `--tensorflow-python`, an interpreter with TensorFlow.

`seconds` of ours are those of the ingest on a Ray that runs; to start it takes some more, see `start`. Memory is the
sum of proportional set sizes of the driver, Ray's daemons, its workers and the object store, sampled every 0.1 s.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Ingest beside its peers.

    Attributes:
        source: directory of simplified ndjson files.
        copies: sizes to measure, in multiples of the source.
        rounds: repetitions; rows are interleaved, and the table has medians.
        cores: that all rows run on.
        peers: whether the peers run.
        tensorflow_python: an interpreter with TensorFlow, for the tutorial's script.
        work: directory for the copies and what is written; a temporary one if not given.
    """

    source: Path
    copies: tuple[int, ...] = (1, 16)
    rounds: int = 3
    cores: tuple[int, ...] = (0, 1)
    peers: bool = True
    tensorflow_python: str | None = None
    work: Path | None = None


def copy_shaken(source: Path, folder: Path, copies: int) -> None:
    """Writes the files of `source` with every drawing `copies` times, each time a little different."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key = 0
    for path in sorted(source.glob("*.ndjson")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        with open(folder / path.name, "w") as file:
            for _ in range(copies):
                for record in records:
                    drawing = [
                        np.clip(np.array(stroke) + rng.integers(-2, 3, (2, len(stroke[0]))), 0, 255).tolist()
                        for stroke in record["drawing"]
                    ]
                    key += 1
                    fields = {"word": record["word"], "key_id": str(key), "drawing": drawing}
                    file.write(json.dumps(fields, separators=(",", ":")) + "\n")


def run_ours(source: Path, out: Path, num_cpus: int) -> dict[str, float]:
    """Ingests, and returns seconds and peak memory."""
    started = time.perf_counter()
    import ray

    from sketchray.cluster import quiet_ray
    from sketchray.ingest import ingest
    from sketchray.sources import open_source

    quiet_ray()
    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False)
    ray.get([ray.remote(lambda: time.sleep(1)).remote() for _ in range(num_cpus)])  # the first workers are there
    ready = time.perf_counter()
    peak = Peak()
    result = ingest(open_source(str(source)), str(out))
    seconds = time.perf_counter() - ready
    return {
        "drawings": result["drawings"],
        "seconds": seconds,
        "start_s": ready - started,
        "peak_mib": peak.stop(),
    }


class Peak:
    """Samples the memory of this process and all that it has started."""

    def __init__(self) -> None:
        self.highest = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.done.wait(0.1):
            self.highest = max(self.highest, sum(map(pss_kib, tree(os.getpid()))) / 1024)

    def stop(self) -> float:
        """Returns the highest sum seen, in MiB."""
        self.done.set()
        self.thread.join()
        return self.highest


def tree(root: int) -> set[int]:
    """Returns a process and its descendants; Ray's daemons are among them."""
    parent = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = {root}
    while more := {pid for pid, above in parent.items() if above in found} - found:
        found |= more
    return found


def pss_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def parse_alone(source: Path) -> dict[str, float]:
    """Returns drawings/s of our reader in this process."""
    from sketchray.sources import open_source

    opened = open_source(str(source))
    started = time.perf_counter()
    drawings = sum(len(block.table) for part in range(len(opened.parts)) for block in opened.read(part))
    return {"drawings": drawings, "parse_seconds": time.perf_counter() - started}


def call(command: list[str], cores: tuple[int, ...]) -> dict[str, Any]:
    """Runs a command on some cores, and returns the JSON of its last line."""
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    done = subprocess.run(pinned, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(arguments: Arguments, work: Path) -> None:
    """Runs every row of every size, round after round, and prints the tables."""
    peers = {"loop": sys.executable} if arguments.peers else {}
    if arguments.peers and arguments.tensorflow_python is not None:
        peers["tutorial"] = arguments.tensorflow_python
    print(f"{len(arguments.cores)} cores, {cpu_model()}, Python {sys.version.split()[0]}, pyarrow {pa.__version__}")
    print("\n| drawings | row | seconds | drawings/s | parse alone, one core | start | peak memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for copies in arguments.copies:
        source = work / f"in-{copies}"
        copy_shaken(arguments.source, source, copies)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *peers)}
        for number in range(arguments.rounds):
            out = work / f"out-{copies}-{number}"
            ours = [sys.executable, __file__, "ours", str(source), str(out), str(len(arguments.cores))]
            parse = call([sys.executable, __file__, "parse", str(source)], arguments.cores[:1])
            rows["ours"].append({**parse, **call(ours, arguments.cores)})
            for name, python in peers.items():
                flags = ["--peer", name, "--source", str(source), "--out", f"{out}-{name}"]
                rows[name].append(call([python, str(HERE / "ingest_peers.py"), *flags], arguments.cores))
        for name, runs in rows.items():
            median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rate, parse_rate = (median["drawings"] / median[key] for key in ("seconds", "parse_seconds"))
            start = f"{median['start_s']:.1f} s" if "start_s" in median else ""
            peak = f"{median['peak_mib']:,.0f} MiB" if "peak_mib" in median else ""
            print(
                f"| {median['drawings']:,.0f} | {name} | {median['seconds']:.1f} | {rate:,.0f} | {parse_rate:,.0f} "
                f"| {start} | {peak} |",
                flush=True,
            )


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def main() -> None:
    """Measures, or is one of the processes that are measured."""
    match sys.argv[1:]:
        case ["ours", source, out, num_cpus]:
            print(json.dumps(run_ours(Path(source), Path(out), int(num_cpus))))
        case ["parse", source]:
            print(json.dumps(parse_alone(Path(source))))
        case _:
            arguments = tyro.cli(Arguments)
            with tempfile.TemporaryDirectory(dir=arguments.work) as work:
                measure(arguments, Path(work))


if __name__ == "__main__":
    main()
