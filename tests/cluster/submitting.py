"""Jobs that a host submits to the cluster, and what Ray's dashboard says of them."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml
from hosts import ROOT, TOKEN, Host

LIMIT_S = 500.0  # for one job


@dataclass(frozen=True)
class Submitted:
    """What `ray job submit` ended with.

    Attributes:
        status: its exit status.
        said: all that it printed.
    """

    status: int
    said: str

    @property
    def result(self) -> dict[str, Any]:
        """The job's JSON line."""
        lines = [line for line in self.said.splitlines() if line.startswith("{")]
        assert self.status == 0, self.said
        assert lines, self.said
        return dict(json.loads(lines[-1]))

    @property
    def error(self) -> str:
        """The job's line that tells of an error."""
        lines = {line for line in self.said.splitlines() if line.startswith("error: ")}  # Ray shows the log twice
        assert self.status == 1, self.said
        assert len(lines) == 1, self.said
        return lines.pop()


def submit(
    client: Host, head: str, *command: str, environment: Mapping[str, str] | None = None, limit_s: float = LIMIT_S
) -> Submitted:
    """Submits a job of the project from a host to the dashboard at an address, and waits for its end."""
    address = ["--address", f"http://{head}:8265"]
    words = ["ray", "job", "submit", *address, "--working-dir", ".", "--", *command]
    for _ in range(10):
        done = client.run(*words, environment=environment, timeout=limit_s, check=False)
        if "No available agent to submit job" not in done.stdout:  # of a node that has just started, or is very busy
            break
        time.sleep(3)
    return Submitted(done.returncode, done.stdout)


def deploy(client: Host, head: str, checkpoint: str, key: str) -> None:
    """Deploys the service from a host to the dashboard at an address: a replica and an ingress on each of two nodes."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["proxy_location"] = "EveryNode"
    config["http_options"]["host"] = "0.0.0.0"
    (application,) = config["applications"]
    application["args"]["checkpoint"] = checkpoint
    application["runtime_env"] = {"env_vars": {"SKETCHRAY_API_KEYS": key}}
    application["deployments"][0] |= {"num_replicas": 2, "max_replicas_per_node": 1}
    (client.folder / "tmp" / "serve.yaml").write_text(yaml.safe_dump(config))
    client.run("serve", "deploy", "/tmp/serve.yaml", "--address", f"http://{head}:8265")


def ask(client: Host, url: str, *, token: str | None = TOKEN, flags: tuple[str, ...] = ()) -> tuple[int, str]:
    """Returns status and body of an HTTP answer; status 0 if there was none."""
    header = ["-H", f"Authorization: Bearer {token}"] if token is not None else []
    curl = ["curl", "--silent", "--max-time", "20", "-w", "\n%{http_code}", *header, *flags, url]
    body, _, status = client.run(*curl, check=False).stdout.rpartition("\n")
    return int(status), body


def places(client: Host, head: Host, name: str) -> set[str]:
    """Returns the addresses of the nodes on which actors of a class are or were."""
    rows = _rows(client, head, "actors", f"&filter_keys=class_name&filter_predicates=%3D&filter_values={quote(name)}")
    nodes = {row["node_id"]: row["node_ip"] for row in _rows(client, head, "nodes", "")}
    return {nodes[row["node_id"]] for row in rows if row["node_id"] in nodes}


def task_places(client: Host, head: Host, prefix: str) -> set[str]:
    """Returns the addresses of the nodes on which tasks ran whose names begin so."""
    nodes = {row["node_id"]: row["node_ip"] for row in _rows(client, head, "nodes", "")}
    rows = (row for row in _rows(client, head, "tasks", "") if row["name"].startswith(prefix))
    return {nodes[row["node_id"]] for row in rows if row["node_id"] in nodes}


def _rows(client: Host, head: Host, kind: str, query: str) -> list[dict[str, Any]]:
    status, body = ask(client, f"http://{head.address}:8265/api/v0/{kind}?detail=1&limit=1000{query}")
    assert status == 200, body
    return list(json.loads(body)["data"]["result"]["result"])
