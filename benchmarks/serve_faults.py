"""What requests a service loses to each fault, on real processes, under load.

    python benchmarks/serve_faults.py --records ../shared/data/quickdraw/simplified

It starts a Ray of its own and deploys `serve_config.yaml` on it, on free ports, by `serve deploy`. Clients ask all the
time; one whose request fails (an answer of 5xx, a broken connection, or none within 10 s) asks once more, and what
fails then is counted again. "Trouble" is the time from the fault to the end of the last failed request.

Overload is `wrk` with so many connections that it asks ten times what is answered; what is refused is asked again at
once. Beside it the clients measure how long an accepted request takes, and a refusal.
"""

import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
import tyro
import yaml
from serve_load import read_records, write_script, wrk

from sketchray import checkpoint as checkpoints
from sketchray.cluster import quiet_ray
from sketchray.demo import free_port, isolate_serve

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "serve_config.yaml"
REPLICA, CONTROLLER, HAPROXY = "ray::ServeReplica:sketchray:Classifier", "ray::ServeController", "haproxy"
Fault = Literal["replica", "only", "hang", "haproxy", "controller", "version", "broken", "old", "overload"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What requests a service loses to each fault.

    Attributes:
        records: directory of simplified ndjson files.
        checkpoint: the model.
        faults: which ones.
        clients: that ask all the time, one request after the other.
        pause_s: of a client after each answer.
        overload_s: how long that lasts.
        overload_connections: of wrk.
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
        "overload",
    )
    clients: int = 8
    pause_s: float = 0.03
    overload_s: float = 120
    overload_connections: int = 1000


@dataclass
class Asked:
    """A request: when it was asked and answered, its status (0: none came), and the version that answered."""

    began: float
    ended: float
    status: int
    version: str
    again: bool

    @property
    def failed(self) -> bool:
        return self.status == 0 or self.status >= 500


@dataclass
class Clients:
    """Ask until they are stopped; each repeats a failed request once."""

    port: int
    records: list[str]
    number: int
    pause_s: float
    done: list[Asked] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Clients":
        self.threads = [threading.Thread(target=self.ask, args=(index,)) for index in range(self.number)]
        for thread in self.threads:
            thread.start()
        time.sleep(2)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def ask(self, index: int) -> None:
        """Asks, one request after the other."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self.stopped.is_set():
            index += self.number
            body = self.records[index % len(self.records)]
            if self.post(connection, body, again=False).failed:
                self.post(connection, body, again=True)
            self.stopped.wait(self.pause_s)

    def post(self, connection: http.client.HTTPConnection, body: str, *, again: bool) -> Asked:
        """Asks once, and takes note."""
        began = time.time()
        status, version = 0, ""
        try:
            connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            status, version = answer.status, answer.headers.get("X-Model-Version", "")
        except (OSError, http.client.HTTPException):
            connection.close()
        asked = Asked(began, time.time(), status, version, again)
        self.done.append(asked)
        return asked


class Service:
    """`serve_config.yaml`, deployed on a Ray of its own by `serve deploy`."""

    def __init__(self, arguments: Arguments, folder: Path) -> None:
        self.folder = folder
        isolate_serve()
        quiet_ray()
        self.dashboard = f"http://127.0.0.1:{(port := free_port())}"
        ray.init(address="local", num_cpus=5, include_dashboard=True, dashboard_port=port, log_to_driver=False)
        self.config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        self.port = self.config["http_options"]["port"] = free_port()
        ports = {name: os.environ[name] for name in os.environ if name.startswith("RAY_SERVE_") and "PORT" in name}
        self.config["controller_options"]["runtime_env"]["env_vars"] |= ports
        self.application = self.config["applications"][0]
        self.application["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        self.application["args"]["checkpoint"] = str(Path(arguments.checkpoint).absolute())

    def deploy(self, *, replicas: int | None = None, checkpoint: str | None = None) -> str:
        """Deploys the config with changes, waits for what becomes of it, and returns its status or the error."""
        if replicas is not None:
            self.application["deployments"][0]["num_replicas"] = replicas
        config = json.loads(json.dumps(self.config))
        if checkpoint is not None:
            config["applications"][0]["args"]["checkpoint"] = checkpoint
        path = self.folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [str(Path(sys.executable).with_name("serve")), "deploy", str(path), "--address", self.dashboard]
        subprocess.run(command, check=True, capture_output=True)
        time.sleep(2)
        return self.settled()

    def settled(self) -> str:
        """Waits until the application runs or has failed, and returns which."""
        from ray import serve

        while True:
            application = serve.status().applications.get("sketchray")
            if application is not None and application.status.value in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
                return f"{application.status.value}: {application.message}"
            time.sleep(0.2)

    def processes(self, name: str) -> list[psutil.Process]:
        """Returns the processes of this Ray whose command begins with a name, the oldest first."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                command = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if command and (command[0].startswith(name) or Path(command[0]).name == name):
                found.append(process)
        return sorted(found, key=lambda process: process.create_time())


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


def wait_for(find: Callable[[], list[psutil.Process]], number: int) -> list[psutil.Process]:
    """Waits until so many processes are found."""
    ends = time.time() + 120
    while len(found := find()) < number and time.time() < ends:
        time.sleep(0.1)
    return found


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
    with Clients(service.port, records, arguments.clients, arguments.pause_s) as clients:
        clients.done.clear()  # those of before the load
        load = wrk(url, script, connections=arguments.overload_connections, seconds=arguments.overload_s)
        done = list(clients.done)
    after = replica.memory_info().rss / 1e6
    began = time.time()
    with Clients(service.port, records, 1, 0.01) as later:
        time.sleep(10)
    refusals = [one for one in done if one.status == 503]
    accepted = [one for one in done if one.status == 200]
    troubled = [one.ended - began for one in later.done if one.status != 200]
    asked = load.requests_per_s + load.failed / arguments.overload_s
    idle_p99, calm_p99 = (quantile([one for one in some if one.status == 200], 99) for some in (idle.done, calm_done))
    return "\n".join(
        (
            f"capacity {full.requests_per_s:.0f}/s; for {arguments.overload_s:.0f} s {asked:,.0f}/s were asked",
            f"{load.requests_per_s:.0f}/s of them were answered",
            f"p99 of the accepted {quantile(accepted, 99):.0f} ms (median {quantile(accepted, 50):.0f} ms)",
            f"p99 at full load without refusals {calm_p99:.0f} ms, of one client alone {idle_p99:.0f} ms",
            f"refusals after {quantile(refusals, 50):.0f} ms (median), {quantile(refusals, 99):.0f} ms (p99)",
            f"memory of the replica {before:.0f} MB before, {after:.0f} MB after",
            f"after it {len(troubled)} of {len(later.done)} failed, the last {max(troubled, default=0):.1f} s later",
            f"other answers than 200 and 503: {[one.status for one in done if one.status not in (200, 503)]}",
        )
    )


def quantile(asked: list[Asked], percent: int) -> float:
    """Returns the milliseconds within which so many per cent were answered."""
    return 1000 * statistics.quantiles([one.ended - one.began for one in asked], n=100)[percent - 1]


def main() -> None:
    """Breaks the service, and prints the table."""
    arguments = tyro.cli(Arguments)
    records = read_records(arguments.records, 2_048)
    rows, more = [], ""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(arguments, Path(folder))
        try:
            for fault in arguments.faults:
                if fault == "overload":
                    more = overload(service, arguments, records)
                elif fault in ("version", "broken", "old"):
                    rows.append(renew(service, arguments, records, fault))
                else:
                    rows.append(strike(service, arguments, records, fault))
                print(rows[-1] if rows else more, file=sys.stderr, flush=True)
        finally:
            from ray import serve

            serve.shutdown()
            ray.shutdown()
    print("| fault | what happened | requests | failed | failed when sent again | trouble |\n|---|---|---|---|---|---|")
    print(*rows, sep="\n")
    print(more)


if __name__ == "__main__":
    main()
