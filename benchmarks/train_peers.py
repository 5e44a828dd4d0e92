"""The processes that benchmarks/train.py starts: the Keras peer, and commands whose progress it reads."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERAS_PEER = Path(__file__).parent / "keras_peer.py"
FIRST_STEP = re.compile(r"epoch 1/\d+ step 1/")
EPOCH = re.compile(r"epoch (\d+)/(\d+): (?:val_top1 ([\d.]+)%)?.*?([\d,]+) drawings/s, waiting for data ([\d.]+)%")


class Keras:
    """The Keras peer, which waits while it is not asked."""

    def __init__(self, python: str, data: str, threads: int) -> None:
        command = [python, str(KERAS_PEER), "--data", data, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.versions = self._read()

    def train(self, network: str, batch_size: int, drawings: int, **more: bool) -> dict[str, float]:
        """Trains on; `more` may be `evaluate` and `anew`. Returns `drawings`, `seconds`, perhaps `val_top1`."""
        request = {"network": network, "batch_size": batch_size, "drawings": drawings, **more}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def rate(self, network: str, batch_size: int, drawings: int) -> float:
        """Returns drawings/s."""
        answer = self.train(network, batch_size, drawings)
        return answer["drawings"] / answer["seconds"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the Keras peer ended with status {self.process.wait()}; run it by hand: {KERAS_PEER}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Keras":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Epoch:
    """What a training command said of an epoch.

    Attributes:
        seconds: since the command was given.
        top1: of the valid split, a share; 0 if it was not validated.
        rate: drawings/s.
        waiting: share of the time that was spent waiting for data.
    """

    seconds: float
    top1: float
    rate: float
    waiting: float


def run_command(command: list[str]) -> tuple[float, list[Epoch]]:
    """Runs a training command; returns the seconds to its first step, and its epochs."""
    log: list[str] = []
    epochs: list[Epoch] = []
    first, last = 0.0, "?"
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_worker_niceness": "0"},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            seconds = time.perf_counter() - started
            if not first and FIRST_STEP.search(line):
                first = seconds
            elif found := EPOCH.search(line):
                last = found[2]
                share, rate, waiting = float(found[3] or 0) / 100, float(found[4].replace(",", "")), float(found[5])
                epochs.append(Epoch(seconds, share, rate, waiting / 100))
    if process.returncode or not first or str(len(epochs)) != last:
        sys.exit(
            f"{''.join(log)}\n{' '.join(command)}: status {process.returncode}, {len(epochs)} of {last} epochs seen"
        )
    return first, epochs
