"""The service beside its peers: same model, same cores, same load, in turns within one run.

    python benchmarks/serve.py --records $QUICKDRAW_DIR/simplified

`--records` is a directory of simplified ndjson files; the load is `wrk` (Debian's package), which sends real records.
Each server is a process with one thread for the model (benchmarks/serve_peers.py). `--litserve-python` is an
interpreter that has LitServe beside sketchray (benchmarks/litserve_peer.py); without it there is no such row. All run
while each is measured in turn, and tables have medians, with the ratios of the single rounds in brackets. `--rows`
chooses tables:

`requests`: answers a second at 32 connections, and how long one takes at one connection.
`batch`: drawings a second of the batch endpoint, beside a loop over the same records in this process.
`backends`: milliseconds of CPU that each backend takes for 1, 8 and 32 drawings.
`budget`: where the microseconds of CPU of a request go that comes alone.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import httpx
import psutil
import torch
import tyro
from pydantic_core import to_json
from serve_load import Load, read_records, write_script, wrk

from sketchray.demo import free_port
from sketchray.predictor import Predictor
from sketchray.service import Settings
from sketchray.service.records import Query, parse, predict, to_body, to_query
from sketchray.strokes import from_record

PEERS, LITSERVE = (Path(__file__).with_name(name) for name in ("serve_peers.py", "litserve_peer.py"))
IN_BATCH = 2_048  # lines of the batch; each batch of the loop beside it is of 256
BACKENDS = ("onnx", "torch")
PROCESSES = ("haproxy", "ray::ServeReplica:sketchray")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The service beside its peers.

    Attributes:
        records: directory of simplified ndjson files.
        checkpoint: the model.
        rows: tables to measure.
        rounds: repetitions of each measurement.
        seconds: of each run of wrk.
        litserve_python: an interpreter with LitServe and sketchray.
    """

    records: Path
    checkpoint: str = "models/quickdraw-345"
    rows: tuple[Literal["requests", "batch", "backends", "budget"], ...] = ("requests", "batch", "backends", "budget")
    rounds: int = 5
    seconds: float = 4
    litserve_python: str | None = None


@contextmanager
def serving(arguments: Arguments, kind: str, backend: str) -> Iterator[str]:
    """Yields the URL of a server that answers."""
    own = [sys.executable, str(PEERS), kind]
    port = free_port()
    command = [str(arguments.litserve_python), str(LITSERVE)] if kind == "litserve" else own
    command += ["--port", str(port), "--checkpoint", arguments.checkpoint]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--backend", backend], env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1/classify"
    try:
        while not answers(url):
            assert process.poll() is None, f"{kind} does not start"
            time.sleep(0.5)
        yield url
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        for child in psutil.wait_procs([process, *children], timeout=60)[1]:  # LitServe leaves some
            child.kill()


def answers(url: str) -> bool:
    """Tells whether a server classifies."""
    try:
        return httpx.post(url, json={"drawing": [[[0, 9], [0, 9]]]}, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def beside(ours: list[float], peers: list[float]) -> str:
    """Returns the ratio of the medians, and those of the rounds."""
    ratios = [a / b for a, b in zip(ours, peers, strict=True)]
    return f"{statistics.median(ours) / statistics.median(peers):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def requests(arguments: Arguments, script: Path) -> None:
    """Prints what each server answers a second, and how long an answer takes."""
    kinds = {
        "ours": ("ours", "onnx"),
        "ours, torch": ("ours", "torch"),
        "FastAPI and uvicorn, torch": ("fastapi", "torch"),
        "FastAPI and uvicorn, onnx": ("fastapi", "onnx"),
        "Serve's default proxy": ("default-proxy", "onnx"),
    }
    if arguments.litserve_python:
        kinds["LitServe, onnx"] = ("litserve", "onnx")
    full: dict[str, list[Load]] = {name: [] for name in kinds}
    alone: dict[str, list[Load]] = {name: [] for name in kinds}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(serving(arguments, *kind)) for name, kind in kinds.items()}
        for url in urls.values():
            wrk(url, script, connections=32, seconds=1)
        for number in range(arguments.rounds):
            for name, url in urls.items():
                full[name].append(wrk(url, script, connections=32, seconds=arguments.seconds))
                alone[name].append(wrk(url, script, connections=1, seconds=arguments.seconds))
                tell(number, name, full[name][-1], alone[name][-1])
    print("\n| server | requests/s at 32 connections | ours / it (rounds) | failed |\n|---|---|---|---|")
    for name, loads in full.items():
        rates = [load.requests_per_s for load in loads]
        ratio = beside([load.requests_per_s for load in full["ours"]], rates)
        print(f"| {name} | {statistics.median(rates):,.0f} | {ratio} | {sum(load.failed for load in loads)} |")
    print("\n| server | p50 at 1 connection, ms | ours / it | p99, ms | ours / it |\n|---|---|---|---|---|")
    for name, loads in alone.items():
        cells = []
        for share in ("p50_us", "p99_us"):
            times = [getattr(load, share) for load in loads]
            ratio = beside([getattr(load, share) for load in alone["ours"]], times)
            cells.append(f"{statistics.median(times) / 1000:.2f} | {ratio}")
        print(f"| {name} | {' | '.join(cells)} |")


def batch(arguments: Arguments, records: list[str]) -> None:
    """Prints what the batch endpoint answers a second, beside a loop in this process."""
    lines = list(islice(cycle(records), IN_BATCH))
    body = "\n".join(lines).encode()
    predictor = Predictor.load(arguments.checkpoint, "onnx")
    rates: dict[str, list[float]] = {"endpoint": [], "loop": []}
    with serving(arguments, "ours", "onnx") as url:
        for number in range(arguments.rounds + 1):
            started = time.perf_counter()
            answer = httpx.post(f"{url}/batch", content=body, timeout=300)
            endpoint_s = time.perf_counter() - started
            assert answer.text.count("predictions") == IN_BATCH
            started = time.perf_counter()
            for start in range(0, IN_BATCH, 256):
                drawings = [from_record(json.loads(line)["drawing"]) for line in lines[start : start + 256]]
                predictor.predict(drawings)
            loop_s = time.perf_counter() - started
            if number:  # the first is for warming up
                rates["endpoint"].append(IN_BATCH / endpoint_s)
                rates["loop"].append(IN_BATCH / loop_s)
                tell(number, "batch", IN_BATCH / endpoint_s, IN_BATCH / loop_s)
    endpoint, loop = (statistics.median(found) for found in rates.values())
    print("\n| | drawings/s | beside the loop (rounds) |\n|---|---|---|")
    print(f"| batch endpoint, {IN_BATCH:,} lines | {endpoint:,.0f} | {beside(rates['endpoint'], rates['loop'])} |")
    print(f"| json.loads, from_record and Predictor.predict in a loop | {loop:,.0f} | |")


def backends(arguments: Arguments, records: list[str]) -> None:
    """Prints milliseconds for some drawings together, for each backend."""
    predictors = {name: Predictor.load(arguments.checkpoint, name) for name in BACKENDS}
    drawings = [from_record(json.loads(record)["drawing"]) for record in records[:256]]
    sizes = (1, 8, 32)
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in BACKENDS for size in sizes}
    for number in range(arguments.rounds + 1):
        for (name, size), found in times.items():
            parts = [drawings[start : start + size] for start in range(0, len(drawings), size)]
            milliseconds = 1000 * timed(
                lambda parts=parts, name=name: [predictors[name].logits(part) for part in parts]
            )
            if number:
                found.append(milliseconds / len(parts))
    print("\n| drawings together | onnx, ms | torch, ms | onnx / torch (rounds) |\n|---|---|---|---|")
    for size in sizes:
        onnx, other = times["onnx", size], times["torch", size]
        print(f"| {size} | {statistics.median(onnx):.2f} | {statistics.median(other):.2f} | {beside(onnx, other)} |")


def budget(arguments: Arguments, records: list[str], script: Path) -> None:
    """Prints where the processor time of a request goes that comes alone."""
    settings = Settings(checkpoint=arguments.checkpoint)
    predictor = Predictor.load(arguments.checkpoint, "onnx")
    bodies = [record.encode() for record in records[:256]]
    parsed = [parse(body, settings) for body in bodies]
    queries: list[Query] = [to_query(record, settings) for record in parsed]
    found = [predict(predictor, [query])[0] for query in queries]
    steps: dict[str, Callable[[], object]] = {
        "JSON to a checked record": lambda: [parse(body, settings) for body in bodies],
        "record to points": lambda: [to_query(record, settings) for record in parsed],
        "model, first guesses": lambda: [predict(predictor, [query]) for query in queries],
        "answer to JSON": lambda: [to_json(to_body(guesses)) for guesses in found],
    }
    times: dict[str, list[float]] = {name: [] for name in (*PROCESSES, *steps)}
    with serving(arguments, "ours", "onnx") as url:
        wrk(url, script, connections=1, seconds=1)
        for _ in range(arguments.rounds):
            before = {name: cpu_s(name) for name in PROCESSES}
            load = wrk(url, script, connections=1, seconds=arguments.seconds)
            for name in PROCESSES:
                times[name].append(1e6 * (cpu_s(name) - before[name]) / (load.requests_per_s * arguments.seconds))
            for name, step in steps.items():
                times[name].append(1e6 * timed(step) / len(bodies))
    medians = {name: statistics.median(values) for name, values in times.items()}
    haproxy, replica = (medians.pop(name) for name in PROCESSES)
    print("\n| part of a request | microseconds of CPU |\n|---|---|")
    for name, microseconds in medians.items():
        print(f"| {name} | {microseconds:,.0f} |")
    print(f"| uvicorn, Serve, FastAPI, keys and limits, two threads | {replica - sum(medians.values()):,.0f} |")
    print(f"| the replica | {replica:,.0f} |\n| HAProxy | {haproxy:,.0f} |")


def cpu_s(name: str) -> float:
    """Returns the seconds of CPU that a child of this process has had."""
    children = psutil.Process().children(recursive=True)
    (found,) = [child for child in children if (child.cmdline() or [""])[0].split("/")[-1].startswith(name)]
    return sum(found.cpu_times()[:2])


def timed(step: Callable[[], object]) -> float:
    """Returns the seconds of CPU that a step takes; it has one thread, and what else runs does not count."""
    started = time.process_time()
    step()
    return time.process_time() - started


def tell(number: int, *found: object) -> None:
    """Shows what a round found."""
    print(number, *found, file=sys.stderr, flush=True)


def main() -> None:
    """Measures, and prints the tables."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    records = read_records(arguments.records, 2_048)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, PyTorch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        script = write_script(records, Path(folder))
        for row in arguments.rows:
            match row:
                case "requests":
                    requests(arguments, script)
                case "batch":
                    batch(arguments, records)
                case "backends":
                    backends(arguments, records)
                case "budget":
                    budget(arguments, records, script)


if __name__ == "__main__":
    main()
