"""The hosts themselves: apart from each other and from this machine, and gone after any end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import Network, check_namespaces, wait_for

pytestmark = pytest.mark.timeout(300)
MAKE = "import sys, time; from hosts import Network\nwith Network(1) as n: print(n.folder, flush=True); time.sleep(600)"


def test_hosts_reach_each_other_and_share_neither_files_nor_processes() -> None:
    check_namespaces()
    with Network(2) as network:
        first, second = network.hosts
        for place in ("/tmp", "/dev/shm", "/run", "~"):
            first.run("bash", "-c", f"echo here > {place}/mine")
            assert second.run("bash", "-c", f"test -e {place}/mine", check=False).returncode == 1
        assert first.run("hostname").stdout == "h1\n"
        serve = "import http.server as s; s.HTTPServer(('', 8000), s.SimpleHTTPRequestHandler).serve_forever()"
        first.spawn("python", "-c", serve)
        fetch = ("curl", "--silent", "--fail", "--max-time", "2", "http://h1:8000/README.md")
        wait_for(lambda: "# sketchray" in second.run(*fetch, check=False).stdout, "the file of another host")
        assert "serve_forever" in first.run("ps", "-eo", "args").stdout
        assert "serve_forever" not in second.run("ps", "-eo", "args").stdout

        first.cut()
        assert second.run(*fetch, check=False).returncode != 0
        first.mend()
        wait_for(lambda: second.run(*fetch, check=False).returncode == 0, "the mended link")
        first.kill()
        assert second.run(*fetch, check=False).returncode != 0
        first.boot()
        assert first.run("cat", "/tmp/mine").stdout == "here\n"
    assert not network.folder.exists()


def test_a_test_that_is_killed_leaves_a_folder_that_the_next_one_removes() -> None:
    check_namespaces()
    maker = subprocess.Popen([sys.executable, "-c", MAKE], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    folder = Path(maker.stdout.readline().strip())
    assert inside(folder) != []
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    wait_for(lambda: inside(folder) == [], "the end of the hosts' processes")
    os.utime(folder, (0, 0))  # a young one may be in the making
    with Network(1):
        assert not folder.exists()


def inside(folder: Path) -> list[int]:
    """The processes that keep a network's hosts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue  # it has ended
        if str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found
