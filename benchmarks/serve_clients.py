"""A service of its own, deployed as a user deploys it, and clients that ask it all the time and take note."""

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from sketchray.cluster import quiet_ray
from sketchray.demo import free_port, isolate_serve

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "serve_config.yaml"
REPLICA, CONTROLLER, HAPROXY = "ray::ServeReplica:sketchray:Classifier", "ray::ServeController", "haproxy"


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

    def __init__(self, checkpoint: str, folder: Path) -> None:
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
        self.application["args"]["checkpoint"] = str(Path(checkpoint).absolute())

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


def wait_for(find: Callable[[], list[psutil.Process]], number: int) -> list[psutil.Process]:
    """Waits until so many processes are found."""
    ends = time.time() + 120
    while len(found := find()) < number and time.time() < ends:
        time.sleep(0.1)
    return found


def quantile(asked: list[Asked], percent: int) -> float:
    """Returns the milliseconds within which so many per cent were answered."""
    return 1000 * statistics.quantiles([one.ended - one.began for one in asked], n=100)[percent - 1]
