"""How fast two workers on two hosts learn, beside one: a core of this machine for each host.

    python benchmarks/two_hosts.py --data DIR --mbit 0 1000 100

The hosts are namespaces (tests/cluster/hosts.py; root, Debian's iproute2 and curl). The head and the storage take what
they need of both cores. With a rate the network of each host is held to it (Linux's `tbf`), else it is the memory's.
"""

import json
import os
import shutil
import subprocess

import psutil
import tyro
from chaos_cluster_jobs import RUNS, Cluster
from hosts import Host, Network


def main(
    data: str, mbit: tuple[int, ...] = (0,), preset: str = "base", batch_size: int = 128, num_epochs: int = 2
) -> None:
    """Trains on one host and on two, and prints a table.

    Args:
        data: directory that jobs/ingest.py wrote.
        mbit: rates of the hosts' network in Mbit/s; 0 leaves it as it is.
        preset: network and recipe.
        batch_size: of each worker.
        num_epochs: of each run; the last one counts.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    with Network(4) as network:
        shutil.copytree(data, network.folder / "shared" / "data")
        cluster = Cluster(network)
        cluster.start(redis=False)
        for worker, core in zip(cluster.workers, cores, strict=True):
            pin(worker, core)

        def learn(name: str, workers: int) -> float:
            flags = ["--data", "/mnt/shared/data", "--storage-path", RUNS, "--name", name, "--preset", preset]
            flags += ["--num-workers", str(workers), "--batch-size", str(batch_size * workers)]
            job = cluster.submit(name, "python", "jobs/train.py", *flags, "--num-epochs", str(num_epochs))
            rate = float(json.loads(job.wait(r'^\{"run".*')[1][0])["drawings_per_s"])
            job.ended.set()
            return rate

        alone = learn("alone", 1)
        print(f"{preset}, {batch_size} drawings a worker and step\n")
        print("| workers | network | drawings/s | a step | of twice one |\n|---|---|---|---|---|")
        print(f"| 1 | | {alone:,.0f} | {batch_size / alone * 1000:,.0f} ms | |", flush=True)
        for rate in mbit:
            for worker in cluster.workers:
                worker.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)
                if rate:
                    limit = f"tbf rate {rate}mbit burst 256kb latency 100ms"
                    worker.run("tc", "qdisc", "add", "dev", "eth0", "root", *limit.split())
            both = learn(f"both-{rate}", 2)
            name = f"{rate:,} Mbit/s" if rate else "memory"
            step = 2 * batch_size / both * 1000
            print(f"| 2 | {name} | {both:,.0f} | {step:,.0f} ms | {both / alone / 2:.0%} |", flush=True)


def pin(host: Host, core: int) -> None:
    """Leaves a host's processes, and all that they will start, one core."""
    for process in psutil.Process(host.namespace.pid).children(recursive=True):
        subprocess.run(
            ["taskset", "--all-tasks", "--cpu-list", "--pid", str(core), str(process.pid)],
            check=False,
            capture_output=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
