"""A cluster and its jobs, for benchmarks/chaos_cluster.py: hosts, storage, submissions, logs as they come."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))
from hosts import Host, Network, wait_for  # noqa: E402  # it is beside the tests
from submitting import ask  # noqa: E402

LIMIT_S = 600
STEP = r"epoch \d+/\d+ step \d+/\d+"
RUNS, DATA = "s3://sketchray/runs", "s3://sketchray/drawings"


class Job:
    """A submitted job; the lines of its log are read as they come, with the time."""

    def __init__(self, head: Host, name: str) -> None:
        self.name, self.lines = name, list[tuple[float, str]]()
        (self.log,) = head.folder.glob(f"tmp/ray/session_2*/logs/job-driver-{name}.log")
        self.ended = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with self.log.open() as file:
            line = ""
            while not self.ended.is_set():
                line += file.readline()
                if line.endswith("\n"):
                    self.lines.append((time.time(), line.rstrip()))
                    line = ""
                else:
                    time.sleep(0.02)

    def find(self, pattern: str, after: float = 0.0) -> "tuple[float, re.Match[str]] | None":
        """Returns the first line after a moment in which the pattern is found, and when it came."""
        found = ((at, re.search(pattern, line)) for at, line in list(self.lines) if at > after)
        return next(((at, match) for at, match in found if match), None)

    def wait(self, pattern: str, after: float = 0.0, limit_s: float = LIMIT_S) -> "tuple[float, re.Match[str]]":
        """Waits for such a line."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            found = self.find(pattern, after)
            if found:
                return found
            if error := self.find(r"^error: .*", after):
                raise RuntimeError(f"{self.name}: {error[1][0]}")
            time.sleep(0.02)
        last = "\n".join(line for _, line in self.lines[-10:])
        raise TimeoutError(f"{self.name}: no line like {pattern!r} in {limit_s} s\n{last}")

    def middle(self) -> None:
        """Waits for a step after the first epoch, and for a second and a half more."""
        self.wait(r"epoch ([2-9]|\d\d)/\d+ step ")
        time.sleep(1.5)

    def rank_on(self, host: Host) -> int:
        """Returns the rank that a host has, of two hosts with a rank each."""
        _, match = self.wait(rf"ip=([\d.]+)\).*{STEP}")
        return int(match[1] != host.address)

    def went_on(self, fault: float) -> float:
        """Returns the seconds from a fault to the first step after it."""
        going_on, _ = self.wait("going on after", fault)
        return self.wait(STEP, going_on)[0] - fault

    def count(self, pattern: str) -> int:
        """Returns how many lines have the pattern."""
        return sum(re.search(pattern, line) is not None for _, line in self.lines)

    def end(self) -> dict[str, float]:
        """Waits for the end of a training, and returns the metrics."""
        _, match = self.wait(r'^\{"run".*')
        self.ended.set()
        return dict(json.loads(match[0])["metrics"])


class Cluster:
    """A head that runs no training, two workers of two CPUs, and beside them a host with the storage.

    Attributes:
        dashboard: URL of the head's dashboard, which takes jobs.
        bucket: URL of the storage's bucket.
        refuse: while this file is there, the storage answers 503.
    """

    def __init__(self, network: Network) -> None:
        self.head, *self.workers, self.beside = network.hosts
        self.dashboard = f"http://{self.head.address}:8265"
        self.refuse = self.beside.folder / "tmp" / "refuse"
        self.network = network
        network.give_token()
        for host in network.hosts:
            host.environment["OMP_WAIT_POLICY"] = "PASSIVE"  # the hosts share the cores: threads that wait yield theirs

    def start(self, *, redis: bool) -> None:
        """Starts the storage and the nodes; with Redis, the head's state outlives it."""
        script = str(ROOT / "benchmarks" / "flaky_s3.py")
        self.bucket = self.network.start_s3(self.beside, "python", script, "/tmp/refuse") + "/sketchray"
        if redis:
            address = self.beside.address
            self.beside.spawn("redis-server", "--bind", address, "--protected-mode", "no", "--dir", "/tmp", log="redis")
            self.head.environment["RAY_REDIS_ADDRESS"] = f"{address}:6379"
        self.head.start_ray(cpus=0)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.join, self.workers))

    def join(self, worker: Host, flags: Sequence[str] = ()) -> None:
        """Starts a worker's node."""
        worker.start_ray(self.head, cpus=2, flags=flags)

    def restart(self, worker: Host, flags: Sequence[str] = ()) -> None:
        """Boots a worker that is down, or that is killed now, starts its node, and waits until the old one is gone."""
        if worker.namespace.process.poll() is None:
            worker.run("ray", "stop", "--force", check=False)  # so that the head hears of it
            worker.kill()
        worker.boot()
        self.join(worker, flags)
        wait_for(lambda: self.cpus()[1] == 4, "the end of the node that was", 180)

    def submit(self, name: str, *command: str) -> Job:
        """Submits a job, and follows its log."""
        submission = ["ray", "job", "submit", "--address", self.dashboard, "--no-wait", "--working-dir", "."]
        for _ in range(20):
            said = self.beside.run(*submission, "--submission-id", name, "--", *command, timeout=200, check=False)
            if said.returncode == 0:
                break
            if "No available agent" not in said.stdout:  # of a head that has just started
                raise RuntimeError(f"{name}: {said.stdout}")
            time.sleep(3)
        wait_for(lambda: list(self.head.folder.glob(f"tmp/ray/session_2*/logs/job-driver-{name}.log")), "a log")
        return Job(self.head, name)

    def stop(self, job: Job) -> None:
        """Stops a job."""
        self.beside.run("ray", "job", "stop", "--address", self.dashboard, job.name)
        job.ended.set()

    def stored_at(self, run: str) -> float:
        """Returns when the last whole checkpoint of a run was stored, to a second."""
        url = f"{self.bucket}?list-type=2&prefix=runs/{run}/checkpoint_"
        listing = ask(self.beside, url, token=None)[1]
        found = re.findall(r"<Key>[^<]*meta.json</Key><LastModified>([^<]*)<", listing)
        return max(datetime.fromisoformat(moment).timestamp() for moment in found)

    def stored(self, path: str) -> dict[str, str]:
        """Returns size and checksum of all that lies below a path of the bucket, by key."""
        url = f"{self.bucket}?list-type=2&prefix={path}/"
        listing = ask(self.beside, url, token=None)[1]
        return dict(re.findall(r"<Key>[^<]*/([^/<]+)</Key>.*?<ETag>([^<]*)<", listing, re.DOTALL))

    def cpus(self) -> tuple[float, float]:
        """Returns the CPUs that are reserved, and all there are."""
        ((used, most),) = re.findall(r"([\d.]+)/([\d.]+) CPU", self.head.run("ray", "status").stdout)
        return float(used), float(most)

    def store(self) -> str:
        """Returns how full the object stores are together."""
        ((used, most),) = re.findall(r"(\S+)/(\S+) object_store_memory", self.head.run("ray", "status").stdout)
        return f"{used} of {most}"


@contextmanager
def asking(client: Host, url: str, key: str) -> Iterator[list[tuple[float, int]]]:
    """Asks for a classification ten times a second, and notes when and with what status each was answered."""
    answers: list[tuple[float, int]] = []
    stop = threading.Event()
    record = json.dumps({"drawing": [[[0, 100, 200], [0, 50, 0]]], "top_k": 1})
    flags = ("-d", record, "-H", "content-type: application/json")

    def run() -> None:
        while not stop.is_set():
            asked = time.time()
            answers.append((asked, ask(client, url, token=key, flags=flags)[0]))
            time.sleep(0.1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()
