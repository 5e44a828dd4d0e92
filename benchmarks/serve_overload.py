"""What a service does with more load than it takes: refuse, and, where it may, grow.

    python benchmarks/serve_overload.py --records $QUICKDRAW_DIR/simplified

It starts a Ray of its own and deploys `serve_config.yaml` on it, on free ports, by `serve deploy`. The load is `wrk`,
with so many connections that it asks ten times what is answered; what is refused is asked again at once. Clients beside
it measure how long an accepted request takes, and a refusal.

Then the same service with `autoscaling_config` gets a little more load than one replica takes.
"""

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import tyro
from serve_clients import REPLICA, Clients, Service, quantile, wait_for
from serve_load import read_records, write_script, wrk

# As docs/serving.md has it, with delays of seconds: Serve's own are 30 s and 10 minutes.
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 16,
    "upscale_delay_s": 5,
    "downscale_delay_s": 20,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Overload, and growth.

    Attributes:
        records: directory of simplified ndjson files.
        checkpoint: the model.
        seconds: of overload.
        connections: of wrk, in overload.
    """

    records: Path
    checkpoint: str = "models/quickdraw-345"
    seconds: float = 120
    connections: int = 400


def overload(service: Service, arguments: Arguments, records: list[str]) -> str:
    """Asks ten times what can be answered, and returns what that does."""
    service.deploy(replicas=1)
    script = write_script(records, service.folder)
    url = f"http://127.0.0.1:{service.port}/v1/classify"
    (replica,) = wait_for(lambda: service.processes(REPLICA), 1)
    wrk(url, script, connections=32, seconds=20)
    with Clients(service.port, records, 1, 0.01) as idle:
        time.sleep(10)
    with Clients(service.port, records, 1, 0.01) as calm:
        calm.done.clear()
        full = wrk(url, script, connections=31, seconds=10)
        calm_done = list(calm.done)
    before = replica.memory_info().rss / 1e6
    with Clients(service.port, records, 8, 0.03) as clients:
        clients.done.clear()  # those of before the load
        load = wrk(url, script, connections=arguments.connections, seconds=arguments.seconds)
        done = list(clients.done)
    after = replica.memory_info().rss / 1e6
    began = time.time()
    with Clients(service.port, records, 1, 0.01) as later:
        time.sleep(10)
    refusals = [one for one in done if one.status == 503]
    accepted = [one for one in done if one.status == 200]
    troubled = [one.ended - began for one in later.done if one.status != 200]
    asked = load.requests_per_s + load.failed / arguments.seconds
    idle_p99, calm_p99 = (quantile([one for one in some if one.status == 200], 99) for some in (idle.done, calm_done))
    return "\n".join(
        (
            f"capacity {full.requests_per_s:.0f}/s; for {arguments.seconds:.0f} s {asked:,.0f}/s were asked",
            f"{load.requests_per_s:.0f}/s of them were answered",
            f"p99 of the accepted {quantile(accepted, 99):.0f} ms (median {quantile(accepted, 50):.0f} ms)",
            f"p99 at full load without refusals {calm_p99:.0f} ms, of one client alone {idle_p99:.0f} ms",
            f"refusals after {quantile(refusals, 50):.0f} ms (median), {quantile(refusals, 99):.0f} ms (p99)",
            f"memory of the replica {before:.0f} MB before, {after:.0f} MB after",
            f"after it {len(troubled)} of {len(later.done)} failed, the last {max(troubled, default=0):.1f} s later",
            f"other answers than 200 and 503: {[one.status for one in done if one.status not in (200, 503)]}",
        )
    )


def grow(service: Service, records: list[str]) -> str:
    """Asks a little more than one replica takes, and returns what becomes of it."""
    deployment = service.application["deployments"][0]
    del deployment["num_replicas"]
    deployment["autoscaling_config"] = AUTOSCALING
    service.deploy()
    wait_for(lambda: service.processes(REPLICA), 1)
    script = write_script(records, service.folder)
    began = time.time()
    seen = [(0.0, 1)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            number = len(service.processes(REPLICA))
            if number != seen[-1][1]:
                seen.append((time.time() - began, number))

    with Clients(service.port, records, 1, 0.1) as clients:
        watcher = threading.Thread(target=watch)
        watcher.start()
        load = wrk(f"http://127.0.0.1:{service.port}/v1/classify", script, connections=40, seconds=60)
        ended = time.time() - began
        while seen[-1][1] > 1 and time.time() - began < ended + 120:
            time.sleep(0.5)
        over.set()
        watcher.join()
    lost = [asked.status for asked in clients.done if asked.failed and asked.status != 503]
    steps = ", ".join(f"{number} after {at:.0f} s" for at, number in seen[1:])
    return (
        f"40 connections for {ended:.0f} s, {load.requests_per_s:.0f}/s answered; replicas: 1, {steps or 'ever'}; "
        f"failed but for 503: {lost}"
    )


def main() -> None:
    """Asks too much, and prints what was seen."""
    arguments = tyro.cli(Arguments)
    records = read_records(arguments.records, 2_048)
    with tempfile.TemporaryDirectory() as folder:
        service = Service(arguments.checkpoint, Path(folder))
        try:
            print(overload(service, arguments, records), flush=True)
            print(grow(service, records))
        finally:
            from ray import serve

            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
