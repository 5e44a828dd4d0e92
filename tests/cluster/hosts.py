"""Several hosts on one machine, by Linux namespaces: each has its network, processes, /tmp, /run, /dev/shm and home.

The hosts stand on a bridge in a namespace of its own, so the machine's network gets no interface and no address, and
two networks do not meet. All of it lives in processes that the kernel kills with the one that made it: after any end of
that, SIGKILL too, only a folder is left, and the next network removes it. Needs root, iproute2 and util-linux.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
HOME = pwd.getpwuid(os.getuid()).pw_dir  # where sshd goes too, whatever HOME says
TOKEN = "6b1f" * 16
PREFIX = "sketchray-hosts-"

# The first process of a host. It mounts what is private and reaps what is orphaned; its end is the host's end.
INIT = """
set -e
folder=$1 home=$2; shift 2
mount -t tmpfs tmpfs /mnt
mkdir /mnt/shared /mnt/home /mnt/tmp
mount --bind "$folder/../shared" /mnt/shared
mount --bind "$folder/home" /mnt/home
mount --bind "$folder/tmp" /mnt/tmp
mount --bind "$folder/hosts" /etc/hosts
number=0
for path in "$@"; do
  mkdir /mnt/kept$number
  mount --bind "$path" /mnt/kept$number
  number=$((number + 1))
done
mount --bind /mnt/home "$home"
mount --bind /mnt/tmp /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
number=0
for path in "$@"; do
  mkdir -p "$path"
  mount --bind /mnt/kept$number "$path"
  number=$((number + 1))
done
ip link set lo up
echo ready
while :; do sleep 86400 & wait; done
"""
SWITCH = (
    "set -e; ip link add bridge type bridge; ip link set bridge up; echo ready; while :; do sleep 86400 & wait; done"
)
# Of what the machine's environment has, this goes into the hosts.
PASSED = ("LANG", "PATH", "TERM", "TZ")


class Namespace:
    """A process that is the first of its namespaces."""

    def __init__(self, script: str, *arguments: str, kinds: Sequence[str]) -> None:
        # The signal at the death of the parent is that of the thread that starts this, so it must be one that stays.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", *kinds]
        self.process = subprocess.Popen(
            [*command, "bash", "-c", script, "bash", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != b"ready\n":
            raise OSError(self.process.stderr.read().decode().strip() or "no namespaces")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def kill(self) -> None:
        """Kills all processes inside, with SIGKILL, and waits until they are gone."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 20
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)


class Host:
    """One host of a network.

    Attributes:
        name: its host name.
        address: its IP address.
        folder: where its home and its /tmp are, seen from outside.
        environment: what every process of it gets.
    """

    def __init__(self, network: "Network", number: int) -> None:
        self.network, self.number = network, number
        self.name, self.address = f"h{number}", network.address(number)
        self.folder = network.folder / self.name
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        path = f"{BIN}:{passed.get('PATH', os.defpath)}"
        self.environment = {**passed, "PATH": path, "HOME": HOME, "RAY_USAGE_STATS_ENABLED": "0"}
        (self.folder / "home").mkdir(parents=True)
        (self.folder / "tmp").mkdir(mode=0o1777)
        self.boot()

    def boot(self) -> None:
        """Starts it; its files are as it left them."""
        lines = [f"127.0.0.1 localhost\n{self.network.address(n)} h{n}\n" for n in range(1, self.network.size + 1)]
        (self.folder / "hosts").write_text("".join(lines))
        kinds = ("--mount", "--net", "--pid", "--uts", "--ipc", "--mount-proc")
        # What lies inside the folders that become private, and is needed all the same.
        needed = {str(ROOT), str(Path(sys.prefix)), str(Path(sys.base_prefix))}
        self.namespace = Namespace(INIT, str(self.folder), HOME, *sorted(needed), kinds=kinds)
        bridge = self.network.switch
        add = f"ip link add {self.name} type veth peer name eth0 netns {self.namespace.pid}"
        # Without the machine's /proc the other end cannot be named by its process, so only the network is entered.
        _run(["nsenter", f"--net=/proc/{bridge.pid}/ns/net", *add.split()])
        _run(["nsenter", f"--net=/proc/{bridge.pid}/ns/net", *f"ip link set {self.name} master bridge up".split()])
        self.run("hostname", self.name)
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def command(self, *command: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """Returns what runs a command on this host, in the project's directory."""
        given = {**self.environment, **(environment or {})}
        enter = ["nsenter", "--target", str(self.namespace.pid), "--mount", "--net", "--pid", "--uts", "--ipc"]
        return [*enter, f"--wd={ROOT}", "env", "-i", *(f"{name}={value}" for name, value in given.items()), *command]

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; `stdout` has what it said on both streams.

        Raises:
            AssertionError: it failed, and `check` is given.
        """
        # Through a file: a daemon that keeps the output open would hold a pipe for ever.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            done = subprocess.run(
                self.command(*command, environment=environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
            output.seek(0)
            said = output.read()
        assert not check or done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.returncode}\n{said}"
        return subprocess.CompletedProcess(list(command), done.returncode, said)

    def spawn(
        self, *command: str, environment: Mapping[str, str] | None = None, log: str = "log"
    ) -> "subprocess.Popen[bytes]":
        """Starts a command and leaves it running; what it says is in `folder/log`."""
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                self.command(*command, environment=environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Ends the host, as when its power fails."""
        self.namespace.kill()

    def cut(self) -> None:
        """Takes its link down."""
        self._link("down")

    def mend(self) -> None:
        """Takes its link up."""
        self._link("up")

    def _link(self, state: str) -> None:
        _run(["nsenter", f"--net=/proc/{self.network.switch.pid}/ns/net", "ip", "link", "set", self.name, state])

    def start_ray(self, head: "Host | None" = None, *, cpus: int = 1, flags: Sequence[str] = ()) -> None:
        """Starts a Ray node here: a head, or one that joins `head`.

        Each node would take the whole machine's memory for its own.
        """
        sizes = ["--memory", str(1500 << 20), "--object-store-memory", str(150 << 20), "--num-cpus", str(cpus)]
        role = ["--head", "--port=6379", f"--dashboard-host={self.address}"]
        if head is not None:
            role = [f"--address={head.address}:6379"]
        start = ["ray", "start", *role, f"--node-ip-address={self.address}", *sizes, "--disable-usage-stats", *flags]
        for attempt in range(3):  # Ray gives a node that starts 30 s, which a busy machine may exceed
            if self.run(*start, check=attempt == 2, timeout=300).returncode == 0:
                return
            self.run("ray", "stop", "--force", check=False)


class Network:
    """Hosts `h1`, `h2`, ... on one bridge, 10.77.0.0/24. A context manager: in the end all is gone."""

    def __init__(self, size: int) -> None:
        self.size, self.hosts = size, list[Host]()

    def __enter__(self) -> Self:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.lock = (self.folder / "lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        (self.folder / "shared").mkdir()
        try:
            self.switch = Namespace(SWITCH, kinds=("--net", "--pid", "--mount", "--mount-proc"))
            for number in range(1, self.size + 1):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def address(self, number: int) -> str:
        """Returns the address of a host."""
        return f"10.77.0.{number}"

    def close(self) -> None:
        """Ends all hosts, and removes what they wrote."""
        for host in self.hosts:
            host.namespace.process.kill()  # all at once: the kernel takes a second or two to end one
        for host in self.hosts:
            host.kill()
        if hasattr(self, "switch"):
            self.switch.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def give_token(self) -> None:
        """Puts the token into each home, and makes Ray ask for it."""
        for host in self.hosts:
            path = host.folder / "home" / ".ray" / "auth_token"
            path.parent.mkdir(exist_ok=True)
            path.write_text(TOKEN)
            path.chmod(0o600)
            host.environment["RAY_AUTH_MODE"] = "token"

    def start_s3(self, server: Host, *command: str) -> str:
        """Starts an S3 server with a bucket `sketchray` on a host, tells all hosts of it, and returns its URL.

        Args:
            server: where it runs.
            command: that starts it, with the address and the port added; moto's server if there is none.
        """
        port = "9000"
        url = f"http://{server.address}:{port}"
        for host in self.hosts:
            host.environment |= {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        words = [*command, server.address, port] if command else ["moto_server", "-H", server.address, "-p", port]
        server.spawn(*words, log="s3.log")
        ask = ("curl", "--silent", "--fail", "--max-time", "5")
        wait_for(lambda: server.run(*ask, f"{url}/moto-api/data.json", check=False).returncode == 0, "the S3 server")
        server.run(*ask, "-X", "PUT", f"{url}/sketchray")
        return url


def check_namespaces() -> None:
    """Skips the test where this machine makes no namespaces; in CI it fails."""
    try:
        Namespace("echo ready; sleep 1", kinds=("--net", "--pid", "--mount", "--mount-proc")).kill()
    except OSError as error:
        remedy = f"no namespaces here ({error}); run as root, with iproute2 and util-linux"
        pytest.fail(remedy) if os.environ.get("CI") else pytest.skip(remedy)


def wait_for(condition: Callable[[], object], what: str, limit_s: float = 60) -> None:
    """Waits until a condition holds.

    Raises:
        TimeoutError: it does not, in time.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {limit_s:g} s")
        time.sleep(0.2)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _sweep() -> None:
    """Removes the folders of networks whose process is dead: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if time.time() - folder.stat().st_mtime < 60:
            continue  # it may be in the making
        try:
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # it is in use
