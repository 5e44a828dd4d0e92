"""The driver of a sweep, the whole of it in one function."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sketchray import checkpoint as checkpoints
from sketchray.cluster import check_shared, connect, tell_if_busy
from sketchray.errors import RunError
from sketchray.loop import METRIC
from sketchray.order import TrainFeed
from sketchray.owner import Claim, claim
from sketchray.recipe import TrainConfig
from sketchray.runs import keep_best
from sketchray.shards import ShardSet, open_shards
from sketchray.storage import absolute, child, patiently
from sketchray.tuning.dimensions import values
from sketchray.tuning.page import render
from sketchray.tuning.plan import DRIVER_CPUS, SweepConfig, claim_sweep, share_out, stored_sweep
from sketchray.tuning.scoreboard import Scoreboard
from sketchray.tuning.space import Space
from sketchray.tuning.study import FAILED, SPEED, STOPPED, ended, front_of, open_study, prepare

if TYPE_CHECKING:
    import optuna

BEST, FRONT, PAGE = "best.json", "pareto.json", "sweep.html"


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
        RunError: the name is in use, the cluster is too small, no trial ended well, or another job resumed the sweep
            meanwhile.
        StorageError: a storage is full, forbidden, or does not answer.
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
    run = claim_sweep(started_with, storage_path, name, resume=resume)
    own = claim(run)
    if optuna_storage is None:
        own.take()  # before the journal is mended
    study, publish = open_study(
        run,
        name,
        url=optuna_storage,
        seed=sweep.seed,
        sampler=sweep.sampler,
        resume=resume,
        pareto=sweep.pareto,
    )
    own.take()
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
            shards,
            data=data,
            own=own,
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
    shards: ShardSet,
    *,
    data: str,
    own: Claim,
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

    from sketchray.tuning.pareto import FrontASHA, Speedometer
    from sketchray.tuning.search import Bookkeeper, EpochASHA, StudySearch, past_trials
    from sketchray.tuning.trial import OneWorkerTrial, train_with_workers

    over = ended(study)

    def check_and_publish() -> None:
        own.check()
        publish()

    search = StudySearch(
        study,
        space,
        lambda: patiently(check_and_publish, own.run),
        Speedometer(shards) if sweep.pareto else None,
        lambda: patiently(own.check, own.run),
    )
    scheduler: Any = None  # first in, first out
    stopped: set[int] = set()
    if sweep.scheduler == "asha":
        asha = sweep.num_epochs, sweep.grace_epochs, sweep.reduction_factor, past_trials(study)
        scheduler = FrontASHA(*asha, speeds=search.speeds) if sweep.pareto else EpochASHA(*asha)
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
        lambda directory: patiently(lambda: keep_best(child(own.run, directory)), own.run),
    )
    trainable: Any
    if num_workers == 1:
        trainable = ray.tune.with_parameters(OneWorkerTrial, data=data, claim=own, threads=threads)
        trainable = ray.tune.with_resources(trainable, worker)
    else:
        trainable = ray.tune.with_parameters(
            train_with_workers, data=data, claim=own, num_workers=num_workers, worker=worker
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
            storage_path=own.run,
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
    best = patiently(lambda: checkpoints.best(run), run)
    meta = patiently(lambda: checkpoints.read_meta(best), best)
    files = {
        BEST: TrainConfig.model_validate(meta.config).model_dump_json(indent=1),
        PAGE: render(study, sweep, space, study.study_name),
    }
    if sweep.pareto:
        files[FRONT] = json.dumps([_member(trial, run) for trial in front_of(study)], indent=1)
    patiently(lambda: checkpoints.write(run, {name: content.encode() for name, content in files.items()}), run)
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
        **({"pareto": child(run, FRONT)} if sweep.pareto else {}),
        "seconds": round(seconds, 1),
    }


def _member(trial: "optuna.trial.FrozenTrial", run: str) -> dict[str, Any]:
    """Returns what `pareto.json` says of a trial of the front."""
    notes = trial.user_attrs
    return {
        "trial": trial.number,
        METRIC: max(trial.intermediate_values.values()),
        SPEED: notes[SPEED],
        "parameters": notes["parameters"],
        "checkpoint": patiently(lambda: checkpoints.best(child(run, notes["directory"])), run),
        "config": notes["config"],
    }
