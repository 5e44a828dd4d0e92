"""What runs and a service lose when hosts, links, the storage or the head fail: real faults, on hosts of their own.

    python benchmarks/chaos_cluster.py --data DIR --faults host link short driver s3 elastic store head

The hosts are namespaces on this machine (tests/cluster/hosts.py; root, Debian's iproute2, curl and redis-server): a
head that runs no training, two workers of two CPUs, and one beside the cluster with an S3 server. A run has a worker on
each host and its storage in the bucket; it is compared with an undisturbed one. Seconds are from the fault, or from the
command that goes on, to the first step after it. What a fault breaks is mended before the next.
"""

import json
import re
import shutil
import sys
import threading
import time

import tyro
from chaos_cluster_jobs import DATA, LIMIT_S, ROOT, RUNS, Cluster, Job, asking
from hosts import Host, Network, wait_for
from submitting import ask, deploy

KEY = "a-key"
SMALL_BYTES = 80 << 20  # Ray takes no smaller store than 75 MiB
SMALL_STORE = ("--object-store-memory", str(SMALL_BYTES))


def main(
    data: str,
    faults: tuple[str, ...] = ("host", "link", "short", "driver", "s3", "elastic", "store", "head"),
    preset: str = "homl",
    num_epochs: int = 3,
    batch_size: int = 64,
) -> None:
    """Breaks what is named, one after the other, and prints a table.

    Args:
        data: directory that jobs/ingest.py wrote.
        faults: which ones.
        preset: network and recipe.
        num_epochs: of each run.
        batch_size: of each run.
    """
    flags = ["--preset", preset, "--num-epochs", str(num_epochs), "--batch-size", str(batch_size)]
    rows = []
    with Network(4) as network:
        shutil.copytree(data, network.folder / "shared" / "data")
        cluster = Cluster(network)
        cluster.start(redis="head" in faults)
        chaos = Chaos(cluster, flags)
        if set(faults) - {"elastic", "head"}:
            chaos.undisturbed = chaos.train("undisturbed").end()
        known = {
            "host": chaos.host_dies,
            "link": chaos.link_fails,
            "short": chaos.link_fails_shortly,
            "driver": chaos.driver_dies,
            "s3": chaos.s3_refuses,
            "elastic": chaos.group_shrinks,
            "store": chaos.store_is_full,
            "head": chaos.head_dies,
        }
        for fault in faults:
            rows.append(known[fault]())
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"{preset}, {num_epochs} epochs, batch {batch_size}")
    print("| fault | what happened | done again | seconds until it went on |\n|---|---|---|---|")
    print(*rows, sep="\n")


class Chaos:
    """What breaks a cluster; each fault returns a line of the table."""

    def __init__(self, cluster: Cluster, flags: list[str]) -> None:
        self.cluster, self.flags, self.undisturbed = cluster, flags, dict[str, float]()

    def train(self, name: str, *flags: str, job: str | None = None) -> Job:
        """Submits a run, or what goes on with one."""
        command = ["--data", "/mnt/shared/data", "--storage-path", RUNS, "--name", name, "--checkpoint-every-s", "1"]
        command += [*([] if "--num-workers" in flags else ["--num-workers", "2"])]
        command += [*([] if "--resume" in flags else self.flags), *flags]
        return self.cluster.submit(job or name, "python", "jobs/train.py", *command)

    def compare(self, metrics: dict[str, float]) -> str:
        """Says how a run ended beside the undisturbed one."""
        if metrics == self.undisturbed:
            return "ends the same"
        pairs = (
            f"{name} {metrics[name]:.6f}, undisturbed {self.undisturbed[name]:.6f}" for name in ("val_loss", "val_top1")
        )
        return "ends with " + "; ".join(pairs)

    def break_middle(self, name: str, *flags: str) -> tuple[Job, float, float]:
        """Starts a run and waits for its middle; returns it, the moment, and the seconds since its last checkpoint."""
        job = self.train(name, *flags)
        job.middle()
        now = time.time()
        return job, now, now - self.cluster.stored_at(name)

    def host_dies(self) -> str:
        """A worker host that dies."""
        job, fault, lost = self.break_middle("host")
        victim = self.cluster.workers[1]
        victim.kill()
        seconds, rank = job.went_on(fault), job.rank_on(victim)
        ended = self.compare(job.end())
        self.cluster.restart(victim)
        return row(
            f"a worker host dies, that of rank {rank}",
            f"both workers start anew on the other host, {ended}",
            lost,
            seconds,
        )

    def link_fails(self) -> str:
        """A worker host that is cut off for a minute, and returns."""
        victim = self.cluster.workers[1]
        job, fault, lost = self.break_middle("link")
        victim.cut()
        timer = threading.Timer(60, victim.mend)
        timer.start()
        seconds, rank = job.went_on(fault), job.rank_on(victim)
        ended = self.compare(job.end())
        timer.join()
        wait_for(lambda: not runs_ray(victim), "the end of the node that was given up", 120)
        back = time.time() - fault
        self.cluster.restart(victim)
        happened = (
            f"both workers start anew on the other host, {ended}; Ray on the host that was cut off ended by itself "
            f"(within {back:.0f} s of the fault), and `ray start` brought it back"
        )
        return row(f"the link of a worker host, that of rank {rank}, is down for 60 s", happened, lost, seconds)

    def link_fails_shortly(self) -> str:
        """A worker host that is cut off for five seconds."""
        victim = self.cluster.workers[1]
        job, fault, lost = self.break_middle("short")
        victim.cut()
        time.sleep(5)
        victim.mend()
        ended = self.compare(job.end())
        if job.count("a worker died"):
            return row("the link is down for 5 s", f"both workers start anew, {ended}", lost, job.went_on(fault))
        return row("the link is down for 5 s", f"the step waits, then goes on; {ended}", 0, None)

    def driver_dies(self) -> str:
        """The job's own process is killed."""
        job, _, lost = self.break_middle("driver")
        self.cluster.head.run("bash", "-c", "kill -9 $(ps -eo pid,args | awk '/[j]obs\\/train.py/ {print $1}')")
        job.ended.set()
        wait_for(lambda: self.cluster.cpus()[0] == 0, "the end of the workers", 120)
        started = time.time()
        again = self.train("driver", "--resume", job="driver-again")
        seconds = again.went_on(started)
        return row("SIGKILL of the job's driver", f"`--resume` goes on, {self.compare(again.end())}", lost, seconds)

    def s3_refuses(self) -> str:
        """The storage, which has the drawings too, refuses for half a minute."""
        copy = "import sys, pyarrow.fs as fs; to, path = fs.FileSystem.from_uri(sys.argv[2])"
        copy += "; fs.copy_files(sys.argv[1], path, destination_filesystem=to)"
        self.cluster.beside.run("python", "-c", copy, "/mnt/shared/data", DATA)
        job, fault, lost = self.break_middle("s3", "--data", DATA)
        self.cluster.refuse.touch()
        time.sleep(30)
        self.cluster.refuse.unlink()
        ended = self.compare(job.end())
        left_out, again = job.count("no checkpoint"), job.count("trying again")
        happened = f"checkpoints left out: {left_out}; asked again: {again} times; {ended}"
        if job.count("a worker died"):
            happened, seconds = f"{happened}; both workers start anew", job.went_on(fault)
            return row("the S3 server answers 503 for 30 s", happened, lost, seconds)
        return row("the S3 server answers 503 for 30 s", f"{happened}; no worker dies", 0, None)

    def group_shrinks(self) -> str:
        """A group of three workers at the most, two of which have room on a host; one host dies and returns.

        The run is long, and stopped when the group has grown.
        """
        victim = self.cluster.workers[1]
        job, fault, lost = self.break_middle(
            "elastic", "--num-workers", "1:3", "--num-epochs", "2000", "--batch-size", "96"
        )
        victim.kill()
        seconds = job.went_on(fault)
        self.cluster.restart(victim)
        back = time.time()
        grown = job.went_on(back)
        sizes = [
            int(match[1])
            for _, line in job.lines
            if (match := re.search(r"Attempting to start training worker group of size (\d)", line))
        ]
        self.cluster.stop(job)
        happened = (
            f"goes on with fewer, and with more {grown:.0f} s after the host is back; groups of "
            f"{', '.join(map(str, sizes))} workers were tried"
        )
        return row("a worker host of `--num-workers 1:3` dies, and returns", happened, lost, seconds)

    def store_is_full(self) -> str:
        """Another job fills the workers' object stores, which are small, while an ingest runs and then a training."""
        for worker in self.cluster.workers:
            self.cluster.restart(worker, SMALL_STORE)
        empty = self.ingest("empty")
        holder = self.cluster.submit("holder", "python", str(ROOT / "benchmarks" / "fill_store.py"))
        put = int(holder.wait(r"^full: (\d+)")[1][1])
        full = self.ingest("full")
        same = self.cluster.stored("empty") == self.cluster.stored("full")
        ended = self.compare(self.train("full-stores").end())
        held = self.cluster.store()
        self.cluster.stop(holder)
        for worker in self.cluster.workers:
            self.cluster.restart(worker)
        happened = (
            f"another job holds {put >> 20} MiB in two stores of {SMALL_BYTES >> 20} MiB each ({held} used with the "
            f"head's, as `ray status` says); an ingest writes {'the same' if same else 'OTHER'} bytes, at "
            f"{full:,.0f} drawings/s instead of {empty:,.0f}; a run {ended}"
        )
        return row("the workers' object stores are full", happened, 0, None)

    def ingest(self, name: str) -> float:
        """Ingests generated doodles into the bucket; returns the drawings per second."""
        flags = ["--format", "doodles", "--per-class", "3000", "--num-shards", "8", "--out", f"s3://sketchray/{name}"]
        job = self.cluster.submit(name, "python", "jobs/ingest.py", *flags)
        rate = float(json.loads(job.wait(r'^\{"out".*')[1][0])["drawings_per_s"])
        job.ended.set()
        return rate

    def head_dies(self) -> str:
        """The head dies while replicas answer, and starts anew with what Redis kept."""
        head, beside = self.cluster.head, self.cluster.beside
        self.train("served").end()
        deploy(beside, head.address, f"{RUNS}/served", KEY)
        url = f"http://{self.cluster.workers[0].address}:8000"
        wait_for(lambda: ask(beside, f"{url}/healthz", token=None)[0] == 200, "the service", LIMIT_S)
        wait_for(lambda: "RUNNING" in self.service(), "the application", LIMIT_S)
        with asking(beside, f"{url}/v1/classify", KEY) as answers:
            time.sleep(10)
            fault = time.time()
            head.kill()
            time.sleep(20)
            head.boot()
            head.start_ray(cpus=0)
            back = time.time()
            wait_for(lambda: "RUNNING" in self.service(), "the controller", LIMIT_S)
            running = time.time()
            time.sleep(10)
        after = [status for at, status in answers if at > fault]
        failed = sum(status != 200 for status in after)
        happened = (
            f"without a head for {back - fault:.0f} s; of {len(after)} requests to another host's ingress since then "
            f"{failed} failed; the controller answered {running - back:.0f} s after the head"
        )
        return row("the head dies, with GCS fault tolerance, while replicas answer", happened, 0, None)

    def service(self) -> str:
        """Returns what `serve status` says of the applications; nothing where it cannot be asked."""
        said = self.cluster.beside.run("serve", "status", "--address", self.cluster.dashboard, check=False).stdout
        return said.partition("applications:")[2]


def runs_ray(host: Host) -> bool:
    """Whether a host has a process of Ray."""
    return "raylet" in host.run("ps", "-eo", "args").stdout


def row(fault: str, happened: str, lost_s: float, seconds: float | None) -> str:
    """Returns a line of the table; when a checkpoint was stored is known to a second."""
    lost = f"{max(lost_s, 0):.0f} s of learning" if lost_s else "nothing"
    return f"| {fault} | {happened} | {lost} | {'' if seconds is None else f'{seconds:.1f}'} |"


if __name__ == "__main__":
    tyro.cli(main)
