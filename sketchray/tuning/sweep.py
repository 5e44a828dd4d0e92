"""The driver of a sweep: what it is, whether the cluster has room for it, and the whole of it in one function."""

import argparse
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from sketchray import checkpoint as checkpoints
from sketchray.cluster import DATA_CPUS, Cluster, check_shared, connect, cpus_per_worker, tell_if_busy
from sketchray.errors import RunError
from sketchray.order import TrainFeed
from sketchray.recipe import TrainConfig
from sketchray.runs import claim_directory, first_difference, keep_best
from sketchray.shards import open_shards
from sketchray.storage import absolute, child, open_filesystem
from sketchray.tuning.dimensions import values
from sketchray.tuning.page import render
from sketchray.tuning.scoreboard import Scoreboard
from sketchray.tuning.space import Space
from sketchray.tuning.study import FAILED, STOPPED, ended, open_study, prepare

if TYPE_CHECKING:
    import optuna

BEST, PAGE, SWEEP = "best.json", "sweep.html", "sweep.json"
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


def _claim(started_with: dict[str, Any], storage_path: str, name: str, *, resume: bool) -> str:
    """Returns the sweep's directory, new or resumed; a sweep may be resumed with another number of trials only."""
    if not resume:
        return claim_directory(storage_path, name, {SWEEP: json.dumps(started_with, indent=1)})
    run, stored = child(storage_path, name), stored_sweep(storage_path, name)
    if stored is None:
        raise RunError(f"--resume: there is no sweep {run}; leave out --resume to start it")
    stored["sweep"]["num_samples"] = started_with["sweep"]["num_samples"]
    differing = first_difference(stored["sweep"], started_with["sweep"])
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


def tune(
    sweep: SweepConfig,
    *,
    data: str,
    storage_path: str,
    name: str,
    space: Mapping[str, Any] | None = None,
    fix: Sequence[str] = (),
    num_workers: int = 1,
    use_gpu: bool = False,
    max_concurrent_trials: int | None = None,
    time_budget_s: float | None = None,
    optuna_storage: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Searches on the Ray cluster that is connected, and returns the job's JSON: `run`, `checkpoint`, `metrics`, ...

    `best.json` in the sweep's directory holds the best configuration, for `jobs/train.py --config`; `sweep.html` shows
    what was tried.

    Args:
        sweep: how is searched.
        data: a directory or URI that `ingest` wrote.
        storage_path, name: the sweep's directory is `storage_path/name`; every node must see it.
        space: other choices or ranges for names of the space.
        fix: `name=value` each.
        num_workers: processes of each trial.
        use_gpu: one GPU for each worker.
        max_concurrent_trials: at a time; by default as many as the cluster has room for.
        time_budget_s: no trial goes on after so many seconds.
        optuna_storage: URL of Optuna's storage; by default a journal in the sweep's directory.
        resume: go on with the sweep of this name.

    Raises:
        DataError: the data set cannot be used.
        RunError: the name is in use, the cluster is too small, or no trial ended well.
        ValueError: the space is not possible.
    """
    started = time.perf_counter()
    data, storage_path = absolute(data), absolute(storage_path)
    shards = open_shards(data)
    if not shards.manifest.splits.get("valid"):
        raise RunError(f"{data}: the valid split is empty, so no trial could be judged; ingest more")
    stored = stored_sweep(storage_path, name) if resume else None
    if stored is not None:  # what is not said again is as it was
        space, fix = space or stored["space"], fix or stored["fix"]
    bounds = Space(
        num_classes=len(shards.classes),
        num_epochs=sweep.num_epochs,
        seed=sweep.seed,
        max_params=sweep.max_params,
        overrides=space,
        fix=fix,
    )
    for batch_size in values(bounds.dimensions["batch_size"]):
        TrainFeed(shards.rows("train"), batch_size, sweep.seed, 0, num_workers)  # says what cannot be
    cluster = connect()
    concurrent, worker = share_out(cluster, num_workers, max_concurrent_trials, sweep.num_samples, use_gpu=use_gpu)
    check_shared({"--data": [data]}, {"--storage-path": storage_path})
    started_with = {
        "sweep": sweep.model_dump(mode="json"),
        "space": dict(space or {}),
        "fix": list(fix),
        "journal": optuna_storage is None,
    }
    run = _claim(started_with, storage_path, name, resume=resume)
    study, publish = open_study(run, name, url=optuna_storage, seed=sweep.seed, sampler=sweep.sampler, resume=resume)
    prepare(study, bounds, presets=sweep.presets)
    publish()
    tell_if_busy(concurrent * num_workers * worker["CPU"], concurrent * num_workers * worker.get("GPU", 0.0))
    drawings = 0.0
    if len(ended(study)) < sweep.num_samples:
        epochs = _search(
            sweep,
            study,
            bounds,
            publish,
            data=data,
            run=run,
            num_workers=num_workers,
            worker=worker,
            concurrent=concurrent,
            threads=max(1, int(cluster.cpus) // concurrent),
            time_budget_s=time_budget_s,
        )
        drawings = float(epochs * shards.manifest.splits["train"])
    return _conclude(study, sweep, bounds, run, started=started, drawings=drawings)


def _search(
    sweep: SweepConfig,
    study: "optuna.Study",
    space: Space,
    publish: Any,
    *,
    data: str,
    run: str,
    num_workers: int,
    worker: dict[str, float],
    concurrent: int,
    threads: int,
    time_budget_s: float | None,
) -> int:
    """Runs the trials that are left on Ray Tune, and returns how many epochs they trained."""
    # The scoreboard says it all; and an interrupt ends the job, which --resume goes on with.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
    import ray.tune

    from sketchray.tuning.search import Bookkeeper, EpochASHA, StudySearch, past_trials
    from sketchray.tuning.trial import OneWorkerTrial, train_with_workers

    over = ended(study)
    search = StudySearch(study, space, publish)
    scheduler: Any = None  # first in, first out
    stopped: set[int] = set()
    if sweep.scheduler == "asha":
        scheduler = EpochASHA(sweep.num_epochs, sweep.grace_epochs, sweep.reduction_factor, past_trials(study))
        stopped = scheduler.stopped
    board = Scoreboard(
        num_samples=sweep.num_samples,
        num_epochs=sweep.num_epochs,
        concurrent=concurrent,
        before=dict(Counter(str(trial.user_attrs.get("fate")) for trial in over)),
        best_before=max((max(trial.intermediate_values.values()) for trial in past_trials(study)), default=None),
        time_budget_s=time_budget_s,
    )
    keeper = Bookkeeper(
        search,
        stopped,
        lambda last: board.show(search.entries.values(), last=last),
        lambda directory: keep_best(child(run, directory)),
    )
    trainable: Any
    if num_workers == 1:
        trainable = ray.tune.with_parameters(OneWorkerTrial, data=data, run=run, threads=threads)
        trainable = ray.tune.with_resources(trainable, worker)
    else:
        trainable = ray.tune.with_parameters(
            train_with_workers, data=data, run=run, num_workers=num_workers, worker=worker
        )
        trainable = ray.tune.with_resources(trainable, {"CPU": DRIVER_CPUS})
    ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=sweep.num_samples - len(over),
            max_concurrent_trials=concurrent,
            time_budget_s=time_budget_s,
            reuse_actors=num_workers == 1,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=run,
            callbacks=[keeper],
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # a trial keeps its own
            verbose=0,
        ),
    ).fit()
    keeper.close()
    board.show(search.entries.values(), last=True)
    return sum(entry.epochs for entry in search.entries.values())


def _conclude(
    study: "optuna.Study", sweep: SweepConfig, space: Space, run: str, *, started: float, drawings: float
) -> dict[str, Any]:
    """Writes `best.json` and `sweep.html`, and returns the job's JSON."""
    over = ended(study)
    fates = Counter(str(trial.user_attrs.get("fate")) for trial in over)
    if not any(trial.intermediate_values for trial in over):
        reason = next((trial.user_attrs["reason"] for trial in over if trial.user_attrs.get("reason")), "no time")
        raise RunError(f"{run}: no trial ended an epoch ({reason}); narrow the space, or give it more time")
    best = checkpoints.best(run)
    meta = checkpoints.read_meta(best)
    files = {
        BEST: TrainConfig.model_validate(meta.config).model_dump_json(indent=1),
        PAGE: render(study, sweep, space, study.study_name),
    }
    checkpoints.write(run, {name: content.encode() for name, content in files.items()})
    seconds = time.perf_counter() - started
    return {
        "run": run,
        "checkpoint": best,
        "metrics": meta.metrics,
        "drawings_per_s": round(drawings / seconds, 1),
        "trials": len(over),
        "stopped": fates[STOPPED],
        "failed": fates[FAILED],
        "best_config": child(run, BEST),
        "page": child(run, PAGE),
        "seconds": round(seconds, 1),
    }
