"""Training jobs as processes, for benchmarks/chaos.py: their lines as they come, their workers, when they go on."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STEP, STEP_END = r"epoch \d+/\d+ step \d+/\d+", re.compile(r"epoch \d+/\d+: val_top1")
LIMIT_S = 900  # for anything that is waited for


class Job:
    """A training job that runs as a process; its lines are read as they come, with the time."""

    def __init__(self, run: Path, command: list[str], address: str) -> None:
        self.run, self.lines = run, list[tuple[float, str]]()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": address, "RAY_DEDUP_LOGS": "0"},
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.time(), line.rstrip()))

    def find(self, pattern: str, after: float = 0.0) -> "tuple[float, re.Match[str]] | None":
        """Returns the first line after a moment in which the pattern is found, and when it came."""
        found = ((at, re.search(pattern, line)) for at, line in list(self.lines) if at > after)
        return next(((at, match) for at, match in found if match), None)

    def end(self) -> str:
        """Waits for the end; returns the line of an error that ended it, or nothing."""
        self.process.wait(LIMIT_S)
        self.reader.join()
        if self.process.returncode == 0:
            return ""
        return next((line for _, line in reversed(self.lines) if line.startswith("error:")), "no error line")

    def wait(self, condition: Callable[[], T | None]) -> T:
        """Returns the first value of a condition that is true, which is asked again and again while the job runs."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            found = condition()
            if found:
                return found
            if ended:
                raise RuntimeError(f"{self.run} ended too early: {self.end()}")
            time.sleep(0.002)
        raise TimeoutError(f"{self.run}: nothing came in {LIMIT_S} s")

    def middle(self) -> float:
        """Waits for a checkpoint of the middle of the second epoch, and for half a second more; returns the time."""

        def stored() -> bool:
            metas = [path.read_text() for path in self.run.glob("checkpoint_*/meta.json")]
            return any('"epoch": 1,' in meta and '"metrics": {}' in meta for meta in metas)

        self.wait(stored)
        time.sleep(0.5)
        return time.time()

    def stored_at(self) -> float:
        """Returns when the last whole checkpoint was stored."""
        return max(path.stat().st_mtime for path in self.run.glob("checkpoint_*/meta.json"))

    def went_on(self, fault: float) -> float:
        """Returns the seconds from a fault to the first step after it."""
        going_on, _ = self.wait(lambda: self.find("going on after", fault))
        return self.wait(lambda: self.find(STEP, going_on))[0] - fault


def workers() -> list[int]:
    """Returns the process ids of the training workers below this process; that of rank 0, which logs, is first."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], check=True, capture_output=True, text=True).stdout
    lines = [line.split(None, 2) for line in table.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in lines}

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    def logs(pid: int) -> bool:
        return any("tensorboard" in os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.exists())

    named = [int(pid) for pid, _, *args in lines if args and args[0].startswith("ray::RayTrainWorker")]
    return sorted(filter(is_ours, named), key=lambda pid: not logs(pid))
