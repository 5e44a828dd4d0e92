"""The plan of a sweep: what it is, what it was started with, and whether the cluster has room for it."""

import argparse
import contextlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from sketchray.cluster import DATA_CPUS, Cluster, cpus_per_worker
from sketchray.errors import RunError
from sketchray.runs import claim_directory, first_difference
from sketchray.storage import absolute, child, open_filesystem

SWEEP = "sweep.json"
DRIVER_CPUS = 0.01  # of a trial with several workers; Ray Tune wants it to reserve something, and it only waits


class SweepConfig(BaseModel):
    """How is searched.

    Attributes:
        num_samples: trials.
        num_epochs: of a trial that is not stopped.
        grace_epochs: that each trial gets before it may be stopped.
        reduction_factor: one trial in so many goes on at each rung of ASHA.
        max_params: of a model; a proposal that is larger is made smaller.
        sampler: `tpe` learns from the trials before, `random` does not.
        scheduler: `asha` stops the trials that lag, `none` lets all train to the end.
        presets: whether the named presets are tried first, those that the space has.
        pareto: whether the drawings/s that a model serves are a second objective; `pareto.json` is the front.
        seed: of the search and of every trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_samples: int = Field(20, ge=1)
    num_epochs: int = Field(8, ge=1)
    grace_epochs: int = Field(1, ge=1)
    reduction_factor: int = Field(3, ge=2)
    max_params: int = Field(2_500_000, ge=1)
    sampler: Literal["tpe", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    presets: bool = True
    pareto: bool = False
    seed: int = Field(0, ge=0)


def stored_sweep(storage_path: str, name: str) -> dict[str, Any] | None:
    """Returns what a sweep was started with: `sweep`, `space`, `fix`; None if there is no such sweep."""
    filesystem, path = open_filesystem(child(absolute(storage_path), f"{name}/{SWEEP}"))
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    with filesystem.open_input_file(path) as file:
        stored: dict[str, Any] = json.loads(file.read())
    return stored


def sweep_defaults(arguments: Sequence[str]) -> dict[str, SweepConfig]:
    """Returns what the flags of a sweep start from: those of the sweep that is resumed, or none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--storage-path")
    parser.add_argument("--name")
    parser.add_argument("--resume", action="store_true")
    with contextlib.suppress(argparse.ArgumentError):  # the full parser says what is wrong
        known, _ = parser.parse_known_args(list(arguments))
        if known.resume and known.storage_path and known.name:
            stored = stored_sweep(known.storage_path, known.name)
            if stored is not None:
                return {"sweep": SweepConfig.model_validate(stored["sweep"])}
    return {}


def claim_sweep(started_with: dict[str, Any], storage_path: str, name: str, *, resume: bool) -> str:
    """Returns the sweep's directory, new or resumed; a sweep may be resumed with another number of trials only."""
    if not resume:
        return claim_directory(storage_path, name, {SWEEP: json.dumps(started_with, indent=1)})
    run, stored = child(storage_path, name), stored_sweep(storage_path, name)
    if stored is None:
        raise RunError(f"--resume: there is no sweep {run}; leave out --resume to start it")
    asked = started_with["sweep"]
    was = SweepConfig.model_validate(stored["sweep"]).model_dump(mode="json")  # an older one has fewer fields
    differing = first_difference({**was, "num_samples": asked["num_samples"]}, asked)
    for key in ("space", "fix", "journal"):
        if stored[key] != started_with[key]:
            differing = key, stored[key], started_with[key]
    if differing:
        where, before, now = differing
        raise RunError(f"--resume: {run} was started with {where}={before}, not {now}; resume it as it was started")
    return run


def share_out(
    cluster: Cluster, num_workers: int, asked: int | None, num_samples: int, *, use_gpu: bool = False
) -> tuple[int, dict[str, float]]:
    """Returns how many trials run at a time, and what each of their workers reserves, by Ray's resource names.

    A trial of one worker reads its drawings itself; several read them by Ray Data, for which a whole CPU stays free,
    and have a driver.

    Raises:
        RunError: that could never be scheduled; the message has the sum.
    """
    if asked is not None and asked < 1:
        raise RunError(f"--max-concurrent-trials {asked}: must be at least 1")
    cpus_per_worker(cluster, num_workers, use_gpu=use_gpu)
    kind, has = ("GPUs", cluster.gpus) if use_gpu else ("CPUs", cluster.cpus)
    most = int(has // num_workers)
    if asked is not None and asked > most:
        others = f", {DATA_CPUS:g} CPU for Ray Data and {asked} drivers" if num_workers > 1 else ""
        raise RunError(
            f"--max-concurrent-trials {asked}: {asked} trials x {num_workers} workers = {asked * num_workers} {kind}"
            f"{others} are more than the cluster's {has:g} {kind}; ask for at most {most}, or add nodes"
        )
    concurrent = max(1, min(asked or most, num_samples))
    beside = DATA_CPUS + concurrent * DRIVER_CPUS if num_workers > 1 else 0.0
    cpus = (cluster.cpus - beside) / (num_workers * concurrent)
    cpus = min(1.0, int(cpus * 1000) / 1000)  # rounded down, so that the sum stays within the cluster
    return concurrent, {"CPU": cpus, **({"GPU": 1.0} if use_gpu else {})}
