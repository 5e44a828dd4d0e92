"""What a run loses when a host dies: a real fault, on hosts of their own.

    python benchmarks/chaos_cluster.py --data DIR

The hosts are namespaces on this machine (tests/cluster/hosts.py; root, Debian's iproute2 and curl): a head that runs no
training, two workers of two CPUs, and one beside the cluster with an S3 server. A run has a worker on each host and its
storage in the bucket; it is compared with an undisturbed one. Seconds are from the fault to the first step after it.
"""

import json
import re
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))
from hosts import Host, Network, wait_for  # noqa: E402  # it is beside the tests
from submitting import ask  # noqa: E402

S3_PORT, LIMIT_S = 9000, 900
STEP = r"epoch \d+/\d+ step \d+/\d+"


def main(data: str, preset: str = "homl", num_epochs: int = 3, batch_size: int = 64) -> None:
    """Breaks a run, and prints a table.

    Args:
        data: directory that jobs/ingest.py wrote.
        preset: network and recipe.
        num_epochs: of each run.
        batch_size: of each run.
    """
    flags = ["--preset", preset, "--num-epochs", str(num_epochs), "--batch-size", str(batch_size)]
    with Network(4) as network:
        shutil.copytree(data, network.folder / "shared" / "data")
        chaos = Chaos(network, flags)
        chaos.start()
        chaos.undisturbed = chaos.submit("undisturbed").end()
        line = chaos.host_dies()
    print(f"{preset}, {num_epochs} epochs, batch {batch_size}")
    print("| fault | what happened | done again | seconds until it went on |\n|---|---|---|---|")
    print(line)


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
            if pattern != r"^error: " and (error := self.find(r"^error: .*", after)):
                raise RuntimeError(f"{self.name}: {error[1][0]}")
            time.sleep(0.02)
        last = "\n".join(line for _, line in self.lines[-10:])
        raise TimeoutError(f"{self.name}: no line like {pattern!r} in {limit_s} s\n{last}")

    def middle(self) -> None:
        """Waits for a step inside an epoch after the first."""
        self.wait(r"epoch ([2-9]|\d\d)/\d+ step ([3-9]|\d\d)")

    def went_on(self, fault: float) -> float:
        """Returns the seconds from a fault to the first step after it."""
        going_on, _ = self.wait("going on after", fault)
        return self.wait(STEP, going_on)[0] - fault

    def end(self) -> dict[str, float]:
        """Waits for the end, and returns the metrics."""
        _, match = self.wait(r'^\{"run".*')
        self.ended.set()
        return dict(json.loads(match[0])["metrics"])


class Chaos:
    """The hosts, and what breaks them."""

    def __init__(self, network: Network, flags: list[str]) -> None:
        self.flags, self.undisturbed = flags, dict[str, float]()
        self.head, *self.workers, self.beside = network.hosts
        network.give_token()
        for host in network.hosts:
            host.environment |= {
                "AWS_ENDPOINT_URL": f"http://{self.beside.address}:{S3_PORT}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
            }

    def start(self) -> None:
        """Starts the storage and the cluster."""
        self.beside.spawn("moto_server", "-H", self.beside.address, "-p", str(S3_PORT), log="s3.log")
        url = f"http://{self.beside.address}:{S3_PORT}"
        wait_for(lambda: ask(self.beside, f"{url}/moto-api/data.json", token=None)[0] == 200, "the S3 server")
        self.beside.run("curl", "--silent", "--fail", "-X", "PUT", f"{url}/sketchray")
        self.head.start_ray(cpus=0)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.join, self.workers))

    def join(self, worker: Host) -> None:
        """Starts a worker's node."""
        worker.start_ray(self.head, cpus=2)

    def submit(self, name: str) -> Job:
        """Submits a run, and follows its log."""
        command = ["--data", "/mnt/shared/data", "--storage-path", "s3://sketchray/runs", "--name", name]
        command += ["--num-workers", "2", "--checkpoint-every-s", "1", *self.flags]
        submission = ["ray", "job", "submit", "--address", f"http://{self.head.address}:8265", "--no-wait"]
        submission += ["--working-dir", ".", "--submission-id", name, "--", "python", "jobs/train.py"]
        self.beside.run(*submission, *command, timeout=200)
        wait_for(lambda: list(self.head.folder.glob(f"tmp/ray/session_2*/logs/job-driver-{name}.log")), "a log")
        return Job(self.head, name)

    def stored_at(self, run: str) -> float:
        """Returns when the last whole checkpoint of a run was stored, to a second."""
        url = f"http://{self.beside.address}:{S3_PORT}/sketchray?list-type=2&prefix=runs/{run}/checkpoint_"
        listing = ask(self.beside, url, token=None)[1]
        found = re.findall(r"<Key>[^<]*meta.json</Key><LastModified>([^<]*)<", listing)
        return max(datetime.fromisoformat(moment).timestamp() for moment in found)

    def compare(self, metrics: dict[str, float]) -> str:
        """Says how a run ended beside the undisturbed one."""
        if metrics == self.undisturbed:
            return "ends the same"
        pairs = (
            f"{name} {metrics[name]:.6f}, undisturbed {self.undisturbed[name]:.6f}" for name in ("val_loss", "val_top1")
        )
        return "ends with " + "; ".join(pairs)

    def host_dies(self) -> str:
        """A worker host that dies."""
        job = self.submit("host")
        job.middle()
        fault, lost = time.time(), time.time() - self.stored_at("host")
        self.workers[1].kill()
        seconds = job.went_on(fault)
        ended = self.compare(job.end())
        return row("a worker host dies", f"both workers start anew on the other host, {ended}", lost, seconds)


def row(fault: str, happened: str, lost_s: float, seconds: float) -> str:
    """Returns a line of the table; when a checkpoint was stored is known to a second."""
    return f"| {fault} | {happened} | {max(lost_s, 0):.0f} s of learning | {seconds:.1f} |"


if __name__ == "__main__":
    tyro.cli(main)
