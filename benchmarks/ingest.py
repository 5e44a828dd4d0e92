"""Ingest beside its peers, on the same cores in one run, and its memory as the data grow.

    python benchmarks/ingest.py --source DIR --tensorflow-python .venv-tf/bin/python

DIR holds simplified ndjson files, one class each. A copy is every drawing of them, most coordinates moved by a pixel,
under keys of its own. The peers are those of benchmarks/ingest_peers.py: a loop over json.loads and NumPy that writes
the same shards, and the tutorial's script, which needs an interpreter with TensorFlow.

`ingest()` is the function on a Ray that has ingested a few doodles before; `jobs/ingest.py` is the whole command, which
starts Ray and stops it.
Workers run at the priority of the peers (Ray's default is nice 15). Memory is the sum of proportional set sizes of all
processes (driver, Ray's daemons, workers), so that what they share counts once; the object store is what of it is
shared memory. It is sampled in a run of its own, since that takes time.
"""

import json
import os
import shutil
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
JOB = HERE.parent / "jobs" / "ingest.py"
SAMPLE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Ingest beside its peers.

    Attributes:
        source: directory of simplified ndjson files.
        copies: sizes to time, in multiples of the source.
        memory_copies: sizes at which memory is sampled.
        rounds: repetitions; rows are interleaved, and the table has medians.
        cores: that all rows run on.
        tensorflow_python: an interpreter with TensorFlow, for the tutorial's script; it is left out if not given.
        work: directory for the copies and what is written; the system's for temporary files if not given.
    """

    source: Path
    copies: tuple[int, ...] = (1, 16)
    memory_copies: tuple[int, ...] = (1, 4, 16)
    rounds: int = 3
    cores: tuple[int, ...] = (0, 1)
    tensorflow_python: str | None = None
    work: Path | None = None


def write_copies(source: Path, folder: Path, copies: int) -> None:
    """Writes the files of `source` with every drawing `copies` (up to 90) times, the first time as it is.

    A copy has other last digits in its drawings, where all of them keep a number in 0..255, and other first digits in
    its keys. So all bytes stay where they are.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for path in sorted(source.glob("*.ndjson")):
        text = np.frombuffer(path.read_bytes(), np.uint8)
        digit, opening = (text >= ord("0")) & (text <= ord("9")), text == ord("[")
        step = np.zeros(len(text), np.int8)
        step[np.flatnonzero(opening[:-2] & opening[1:-1] & opening[2:])] = 1
        step[text == ord("\n")] = -1
        last = np.flatnonzero((step.cumsum() > 0)[:-1] & digit[:-1] & ~digit[1:])
        last = last[~((text[last - 2] == ord("2")) & (text[last - 1] == ord("5")))]
        lines = path.read_bytes().splitlines(keepends=True)
        starts = np.cumsum([0, *map(len, lines[:-1])])
        keys = starts + [line.index(b'"key_id":"') + len(b'"key_id":"') for line in lines]
        with (folder / path.name).open("wb") as file:
            file.write(text.tobytes())
            for copy in range(10, 9 + copies):
                other = text.copy()
                other[last] = np.clip(other[last] + rng.integers(-1, 2, len(last), np.int8), ord("0"), ord("9"))
                other[keys], other[keys + 1] = f"{copy}".encode()
                file.write(other.tobytes())


def run_ours(source: Path, out: Path, *, num_cpus: int, watched: bool) -> dict[str, float]:
    """Ingests on a Ray that has ingested; returns drawings and seconds, and peaks of memory in MiB if it is watched."""
    import ray

    from sketchray.cluster import quiet_ray
    from sketchray.ingest import ingest
    from sketchray.sources import open_source

    quiet_ray()
    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False)
    for _ in range(2):  # or the time would be that of imports, which the peers' leave out
        ingest(open_source(None, "doodles", per_class=100), f"{out}-warm")
        shutil.rmtree(f"{out}-warm")
    peaks = Peaks() if watched else None
    started = time.perf_counter()
    result = ingest(open_source(str(source)), str(out))
    seconds = time.perf_counter() - started
    return {"drawings": result["drawings"], "seconds": seconds, **(peaks.stop() if peaks else {})}


class Peaks:
    """Samples the memory of this process and all that it has started."""

    def __init__(self) -> None:
        self.highest: dict[str, float] = {"total": 0.0, "driver": 0.0, "worker": 0.0, "store": 0.0}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> dict[str, float]:
        """Returns the highest sizes seen, in MiB: of all processes, the driver, one worker, the object store."""
        self.done.set()
        self.thread.join()
        return self.highest

    def _watch(self) -> None:
        while not self.done.wait(SAMPLE_S):
            pss, shared = {}, 0.0
            for pid in _tree(os.getpid()):
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                    is_worker = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
                except OSError:  # it has ended
                    continue
                kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
                pss[pid, is_worker] = kib["Pss"] / 1024
                shared += kib["Pss_Shmem"] / 1024
            now = {
                "total": sum(pss.values()),
                "driver": pss[os.getpid(), False],
                "worker": max((size for (_, is_worker), size in pss.items() if is_worker), default=0.0),
                "store": shared,
            }
            self.highest = {name: max(size, now[name]) for name, size in self.highest.items()}


def _tree(root: int) -> set[int]:
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


def parse_alone(source: Path) -> dict[str, float]:
    """Returns how long our reader takes in this process."""
    from sketchray.sources import open_source

    opened = open_source(str(source))
    started = time.perf_counter()
    drawings = sum(len(block.table) for part in range(len(opened.parts)) for block in opened.read(part))
    return {"drawings": drawings, "parse_seconds": time.perf_counter() - started}


def call(command: list[str], cores: tuple[int, ...]) -> dict[str, float]:
    """Runs a command on some cores; returns the JSON of its last line, and how long it took."""
    started = time.perf_counter()
    done = subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_worker_niceness": "0"},
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "command_s": time.perf_counter() - started}


def time_rows(arguments: Arguments, work: Path, copies: int) -> None:
    """Times every row, round after round, and prints their medians."""
    source, all_cores, one_core = work / f"in-{copies}", arguments.cores, arguments.cores[:1]
    peers = {"loop": sys.executable}
    if arguments.tensorflow_python is not None:
        peers["tutorial"] = arguments.tensorflow_python
    rows: dict[str, list[tuple[float, float]]] = {}
    for number in range(arguments.rounds):
        out = str(work / f"out-{copies}-{number}")
        read = call([sys.executable, __file__, "parse", str(source)], one_core)
        steady = call([sys.executable, __file__, "ours", str(source), out, str(len(all_cores))], all_cores)
        whole = call([sys.executable, str(JOB), "--source", str(source), "--out", f"{out}-job"], all_cores)
        found = {
            "reader alone, 1 core": (read["drawings"], read["parse_seconds"]),
            "ingest()": (steady["drawings"], steady["seconds"]),
            "jobs/ingest.py": (whole["drawings"], whole["command_s"]),
        }
        for name, python in peers.items():
            flags = ["--peer", name, "--source", str(source), "--out", f"{out}-{name}"]
            peer = call([python, str(HERE / "ingest_peers.py"), *flags], all_cores)
            found[f"{name}, parsing alone"] = (peer["drawings"], peer["parse_seconds"])
            found[name] = (peer["drawings"], peer["seconds"])
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
        print(copies, {name: round(seconds, 2) for name, (_, seconds) in found.items()}, file=sys.stderr, flush=True)
    for name, runs in rows.items():
        times = [seconds for _, seconds in runs]
        drawings, middle = runs[0][0], statistics.median(times)
        span = f"{min(times):.1f} to {max(times):.1f}"
        print(f"| {drawings:,.0f} | {name} | {middle:.1f} ({span}) | {drawings / middle:,.0f} |", flush=True)


def main() -> None:
    """Measures, or is one of the processes that are measured."""
    match sys.argv[1:]:
        case ["ours" | "watched" as kind, source, out, num_cpus]:
            done = run_ours(Path(source), Path(out), num_cpus=int(num_cpus), watched=kind == "watched")
            print(json.dumps(done))
        case ["parse", source]:
            print(json.dumps(parse_alone(Path(source))))
        case _:
            arguments = tyro.cli(Arguments)
            with tempfile.TemporaryDirectory(dir=arguments.work) as work:
                measure(arguments, Path(work))


def measure(arguments: Arguments, work: Path) -> None:
    """Prints the tables of time and of memory."""
    import ray

    for copies in {*arguments.copies, *arguments.memory_copies}:
        write_copies(arguments.source, work / f"in-{copies}", copies)
    versions = f"Python {sys.version.split()[0]}, pyarrow {pa.__version__}, Ray {ray.__version__}"
    print(f"{len(arguments.cores)} cores, {_cpu()}, {versions}; median of {arguments.rounds}")
    print("\n| drawings | what | seconds | drawings/s |\n|---|---|---|---|", flush=True)
    for copies in arguments.copies:
        time_rows(arguments, work, copies)
    print("\n| drawings | seconds | peak MiB, all | driver | a worker | object store |\n|---|---|---|---|---|---|")
    for copies in arguments.memory_copies:
        command = [sys.executable, __file__, "watched", str(work / f"in-{copies}"), str(work / f"out-{copies}-watched")]
        found: dict[str, Any] = call([*command, str(len(arguments.cores))], arguments.cores)
        sizes = " | ".join(f"{found[name]:,.0f}" for name in ("total", "driver", "worker", "store"))
        print(f"| {found['drawings']:,} | {found['seconds']:.1f} | {sizes} |", flush=True)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


if __name__ == "__main__":
    main()
