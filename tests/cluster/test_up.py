"""`ray up`, a job and `ray down` with deploy/cluster-local.yaml, over SSH, on hosts without Ray."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hosts import BIN, ROOT, TOKEN, Host, Network, check_namespaces, wait_for
from submitting import ask, submit

pytestmark = pytest.mark.timeout(900)
INSTALL = "~/venv/bin/pip install"
SIZES = " --memory=1500000000 --object-store-memory=150000000"  # each would take the machine's


@pytest.fixture
def machines() -> Iterator[list[Host]]:
    """Three hosts with SSH servers, and one to start the cluster from, which has the key to them and the token."""
    check_namespaces()
    with Network(4) as network:
        *machines, launcher = network.hosts
        for host in network.hosts:
            ssh = host.folder / "home" / ".ssh"
            ssh.mkdir(mode=0o700)
        key = launcher.folder / "home" / ".ssh" / "sketchray_cluster"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        for host in machines:
            allowed = host.folder / "home" / ".ssh" / "authorized_keys"
            allowed.write_text(key.with_suffix(".pub").read_text())
            allowed.chmod(0o600)
            (host.folder / "home" / "venv").symlink_to(BIN.parent)  # what `pip install` would make, without its network
            host.run("mkdir", "-p", "/run/sshd")
            host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/sshd/key")
            host.spawn("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", "/run/sshd/key", log="sshd.log")
        token = launcher.folder / "home" / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text(TOKEN)
        launcher.environment["RAY_AUTH_MODE"] = "token"
        yield network.hosts


def configure(machines: list[Host], launcher: Host) -> str:
    """Writes the cluster's file with the addresses of these machines, and returns its path on the launcher."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "cluster-local.yaml").read_text())
    config["provider"] |= {"head_ip": machines[0].address, "worker_ips": [host.address for host in machines[1:]]}
    config["auth"]["ssh_user"] = "root"
    installs = [command for command in config["setup_commands"] if command.startswith(INSTALL)]
    assert len(installs) == 1
    config["setup_commands"].remove(installs[0])
    for role in ("head", "worker"):
        commands = config[f"{role}_start_ray_commands"]
        commands[1] = commands[1].rstrip() + SIZES
    (launcher.folder / "tmp" / "cluster.yaml").write_text(yaml.safe_dump(config))
    return "/tmp/cluster.yaml"


def test_ray_up_then_a_job_then_ray_down(machines: list[Host]) -> None:
    *nodes, launcher = machines
    head, *workers = nodes
    path = configure(nodes, launcher)
    launcher.run("ray", "up", "--yes", path, timeout=300)

    launcher.spawn("ray", "dashboard", path, log="dashboard.log")
    url = "http://127.0.0.1:8265"
    wait_for(lambda: ask(launcher, f"{url}/api/jobs/")[0] == 200, "the dashboard, over SSH")
    assert ask(launcher, f"{url}/api/jobs/", token=None)[0] == 401
    assert not reaches(launcher, f"http://{head.address}:8265")  # it listens on loopback only

    def joined() -> bool:
        return all(worker.address in launcher.run("ray", "exec", path, "ray list nodes").stdout for worker in workers)

    wait_for(joined, "the workers", 180)
    flags = ["--format", "doodles", "--per-class", "20", "--num-shards", "4", "--out", "/mnt/shared/data"]
    submitted = submit(launcher, "127.0.0.1", "python", "jobs/ingest.py", *flags)
    assert submitted.result["drawings"] == 200
    assert (launcher.network.folder / "shared" / "data" / "manifest.json").exists()

    launcher.run("ray", "down", "--yes", path, timeout=200)
    assert not runs_ray(head)
    # Nobody stops the workers: they end by themselves when they have missed the head for a minute.
    wait_for(lambda: not any(runs_ray(worker) for worker in workers), "the end of the workers", 240)


def reaches(host: Host, url: str) -> bool:
    """Whether anything answers at a URL."""
    return host.run("curl", "--silent", "--max-time", "5", url, check=False).returncode == 0


def runs_ray(host: Host) -> bool:
    """Whether a host has a process of Ray."""
    return "raylet" in host.run("ps", "-eo", "args").stdout
