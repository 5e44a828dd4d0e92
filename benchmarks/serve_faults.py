"""What requests a service loses to each fault, on real processes, under load.

    python benchmarks/serve_faults.py --records $QUICKDRAW_DIR/simplified

It starts a Ray of its own and deploys `serve_config.yaml` on it, on free ports, by `serve deploy`. Clients ask all the
time; one whose request fails (an answer of 5xx, a broken connection, or none within 10 s) asks once more, and what
fails then is counted again. "Trouble" is the time from the fault to the end of the last failed request.
"""

import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ray
import tyro
from serve_clients import CONTROLLER, HAPROXY, REPLICA, Asked, Clients, Service, wait_for
from serve_load import read_records

from sketchray import checkpoint as checkpoints

Fault = Literal["replica", "only", "hang", "haproxy", "controller", "version", "broken", "old"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What requests a service loses to each fault.

    Attributes:
        records: directory of simplified ndjson files.
        checkpoint: the model.
        faults: which ones.
        clients: that ask all the time, one request after the other.
        pause_s: of a client after each answer.
    """

    records: Path
    checkpoint: str = "models/quickdraw-345"
    faults: tuple[Fault, ...] = (
        "replica",
        "only",
        "hang",
        "haproxy",
        "controller",
        "version",
        "broken",
        "old",
    )
    clients: int = 8
    pause_s: float = 0.03


def row(name: str, happened: str, asked: list[Asked], fault: float) -> str:
    """Returns a line of the table."""
    failed = [one for one in asked if one.failed]
    twice = sum(one.again for one in failed)
    trouble = f"{max(0.0, max(one.ended for one in failed) - fault):.1f} s" if failed else "none"
    return f"| {name} | {happened} | {len(asked)} | {len(failed) - twice} | {twice} | {trouble} |"


def strike(service: Service, arguments: Arguments, records: list[str], fault: Fault) -> str:
    """Breaks something under load, and returns the line of the table."""
    names: dict[str, tuple[str, str, int, signal.Signals]] = {
        "replica": ("SIGKILL of one of two replicas", REPLICA, 2, signal.SIGKILL),
        "only": ("SIGKILL of the only replica", REPLICA, 1, signal.SIGKILL),
        "hang": ("one of two replicas hangs (SIGSTOP)", REPLICA, 2, signal.SIGSTOP),
        "haproxy": ("SIGKILL of HAProxy", HAPROXY, 2, signal.SIGKILL),
        "controller": ("SIGKILL of Serve's controller", CONTROLLER, 2, signal.SIGKILL),
    }
    name, target, replicas, sent = names[fault]
    service.deploy(replicas=replicas)
    wait_for(lambda: service.processes(target), replicas if target == REPLICA else 1)
    with Clients(service.port, records, arguments.clients, arguments.pause_s) as clients:
        victim = service.processes(target)[-1]  # an older HAProxy is one that ends
        began = time.time()
        victim.send_signal(sent)
        time.sleep(5)
        wait_for(
            lambda: [one for one in service.processes(target) if one.pid != victim.pid],
            replicas if target == REPLICA else 1,
        )
        happened = f"another runs after {time.time() - began:.0f} s"
        time.sleep(10)
    if sent == signal.SIGSTOP and victim.is_running():
        victim.kill()
    return row(name, happened, clients.done, began)


def renew(service: Service, arguments: Arguments, records: list[str], fault: Fault) -> str:
    """Deploys another checkpoint under load: a good one, a damaged one, or one of an older format."""
    place = service.folder / fault
    place.mkdir()
    model, meta = checkpoints.load(arguments.checkpoint)
    checkpoints.save(place, model.state_dict(), meta.model_copy(update={"licence": "another", "files": {}}))
    if fault == "broken":
        weights = place / checkpoints.WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1])
    if fault == "old":
        content = json.loads((place / checkpoints.META).read_text())
        (place / checkpoints.META).write_text(json.dumps({**content, "format_version": 1}))
    service.deploy(replicas=1)
    with Clients(service.port, records, arguments.clients, arguments.pause_s) as clients:
        began = time.time()
        status = service.deploy(checkpoint=str(place))
        taken = time.time() - began
        time.sleep(10)
    versions = {asked.version for asked in clients.done if asked.status == 200}
    last = max(clients.done, key=lambda asked: asked.began).version
    first = min(clients.done, key=lambda asked: asked.began).version
    word = {"version": "a new version", "broken": "a damaged checkpoint", "old": "a checkpoint of format 1"}[fault]
    outcome = "answered by the new one" if last != first else "the old one answers"
    print(fault, status[-600:], file=sys.stderr)
    return row(
        f"`serve deploy` of {word}", f"{status.split(':')[0]} after {taken:.0f} s; {outcome}", clients.done, began
    ) + ("" if len(versions) == 1 + (fault == "version") else f" versions {versions}")


def main() -> None:
    """Breaks the service, and prints the table."""
    arguments = tyro.cli(Arguments)
    records = read_records(arguments.records, 2_048)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        service = Service(arguments.checkpoint, Path(folder))
        try:
            for fault in arguments.faults:
                if fault in ("version", "broken", "old"):
                    rows.append(renew(service, arguments, records, fault))
                else:
                    rows.append(strike(service, arguments, records, fault))
                print(rows[-1], file=sys.stderr, flush=True)
        finally:
            from ray import serve

            serve.shutdown()
            ray.shutdown()
    print("| fault | what happened | requests | failed | failed when sent again | trouble |\n|---|---|---|---|---|---|")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
