"""Sweeps on Ray Tune: Optuna proposes configurations, ASHA stops the trials that lag.

A trial with one worker trains in its own process; with several it runs Ray Train inside.
"""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import torch
from pydantic import BaseModel, ConfigDict, Field

from sketchray import checkpoint as checkpoints
from sketchray.augment import AugmentConfig
from sketchray.cluster import check_shared, connect, cpus_per_worker, quiet_ray
from sketchray.engine import Learner
from sketchray.errors import RunError
from sketchray.feed import batches
from sketchray.loop import METRIC, Loop, Metrics
from sketchray.model import ModelConfig
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import TrainConfig
from sketchray.runs import make_meta
from sketchray.shards import open_shards
from sketchray.storage import absolute, child, open_filesystem
from sketchray.training import make_trainer

if TYPE_CHECKING:
    import optuna

BEST = "best.json"
PIXELS = ("warp", "stroke_shift", "jitter")  # changes without a limit; the others are shares, probabilities, angles


class SweepConfig(BaseModel):
    """What is searched.

    Attributes:
        num_samples: trials.
        num_epochs: of a trial that is not stopped.
        grace_epochs: that each trial gets before it may be stopped.
        batch_size: of every trial.
        seed: of the search and of every trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_samples: int = Field(20, ge=1)
    num_epochs: int = Field(8, ge=1)
    grace_epochs: int = Field(2, ge=1)
    batch_size: int = Field(256, ge=1)
    seed: int = Field(0, ge=0)


def suggest(trial: "optuna.Trial") -> dict[str, Any]:
    """Proposes the architecture, the clipping and the rates of a trial; every proposal makes a valid configuration."""
    family = trial.suggest_categorical("family", ["rnn", "conv", "conv_rnn"])
    if family != "rnn":
        trial.suggest_int("conv_layers", 1, 4)
        trial.suggest_categorical("conv_width", [48, 64, 96, 128, 192])
        trial.suggest_categorical("conv_kernel", [3, 5, 7])
        trial.suggest_int("conv_stride", 1, 2)
        trial.suggest_categorical("conv_norm", ["none", "batch", "layer"])
    if family != "conv":
        trial.suggest_categorical("cell", ["lstm", "gru"])
        trial.suggest_int("rnn_layers", 1, 3)
        trial.suggest_categorical("rnn_size", [64, 96, 128, 192, 256])
        trial.suggest_categorical("bidirectional", [True, False])
    trial.suggest_categorical("features", ["deltas", "rich"])
    trial.suggest_categorical("pooling", ["last", "mean", "max", "attention", "attention+mean+max"])
    trial.suggest_float("dropout", 0.0, 0.4)
    trial.suggest_float("lr", 3e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True)
    if trial.suggest_categorical("clip", [True, False]):
        trial.suggest_float("clip_norm", 0.1, 10.0, log=True)
    trial.suggest_float("label_smoothing", 0.0, 0.15)
    trial.suggest_float("augmentation", 0.0, 1.5)
    return {}


def to_config(choices: dict[str, Any], sweep: SweepConfig) -> TrainConfig:
    """Returns the training configuration that a trial's choices stand for."""
    layers = choices.get("conv_layers", 0)
    strides = [choices["conv_stride"] if index % 2 else 1 for index in range(layers)]
    model = ModelConfig(
        features=choices["features"],
        conv_channels=(choices.get("conv_width", 1),) * layers,
        conv_kernels=(choices.get("conv_kernel", 1),) * layers,
        conv_strides=tuple(strides),
        conv_norm=choices.get("conv_norm", "none"),
        cell=choices.get("cell", "lstm"),
        rnn_layers=choices.get("rnn_layers", 0),
        rnn_size=choices.get("rnn_size", 1),
        bidirectional=choices.get("bidirectional", False),
        pooling=tuple(choices["pooling"].split("+")),
        dropout=choices["dropout"],
    )
    strength = choices["augmentation"]
    usual = TrainConfig().augment.model_dump()
    return TrainConfig(
        model=model,
        augment=AugmentConfig(
            **{
                name: value * strength if name in PIXELS else min(value * strength, 0.9)
                for name, value in usual.items()
            }
        ),
        num_epochs=sweep.num_epochs,
        batch_size=sweep.batch_size,
        lr=choices["lr"],
        weight_decay=choices["weight_decay"],
        clip_norm=choices.get("clip_norm", 0.0),
        label_smoothing=choices["label_smoothing"],
        seed=sweep.seed,
    )


def _trial(choices: dict[str, Any], *, sweep: SweepConfig, data: str, threads: int) -> None:
    """One trial with one worker, in its own process."""
    import ray.tune

    quiet_ray()
    torch.set_num_threads(threads)
    config = to_config(choices, sweep)
    shards = open_shards(data)
    feed = TrainFeed(shards.rows(config.train_split), config.batch_size, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs, device=device)
    history: list[Metrics] = []
    latest = ray.tune.get_checkpoint()  # there is one when the sweep was resumed
    if latest is not None:
        with latest.as_directory() as directory:
            model, meta = checkpoints.load(directory)
            learner.load_state_dict(model.state_dict(), checkpoints.load_state(directory))
        history = list(meta.history)

    def keep(metrics: Metrics) -> None:
        with tempfile.TemporaryDirectory() as directory:
            meta = make_meta(config, shards, step=learner.steps, epoch=int(metrics["epoch"]), history=history)
            checkpoints.save(Path(directory), learner.kept.state_dict(), meta, learner.state_dict())
            ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint.from_directory(directory))

    Loop(
        learner=learner,
        feed=feed,
        stream=batches(feed, range(learner.steps // feed.steps, config.num_epochs)),
        valid=EvalFeed(shards.rows("valid"), config.batch_size),
        keep=keep,
        history=history,
    ).run()


def _distributed_trial(
    choices: dict[str, Any], *, sweep: SweepConfig, data: str, run: str, num_workers: int, worker: dict[str, float]
) -> None:
    """One trial with several workers: the driver of a Ray Train run that is named by the trial."""
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    quiet_ray()
    trial_id = ray.tune.get_context().get_trial_id()
    config = to_config(choices, sweep)
    trainer = make_trainer(
        config,
        data,
        storage_path=run,
        name=f"train_{trial_id}",
        num_workers=num_workers,
        worker=worker,
        callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call]
    )
    trainer.fit()


def tune(
    sweep: SweepConfig,
    *,
    data: str,
    storage_path: str,
    name: str,
    num_workers: int = 1,
    use_gpu: bool = False,
    max_concurrent_trials: int | None = None,
    time_budget_s: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Searches on the Ray cluster that is connected, and returns the job's JSON: `run`, `checkpoint`, `metrics`, ...

    `best.json` in the sweep's directory holds the best configuration, for `jobs/train.py --config`.

    Args:
        sweep: what is searched.
        data: a directory or URI that `ingest` wrote.
        storage_path, name: the sweep's directory is `storage_path/name`; every node must see it.
        num_workers: processes of each trial.
        use_gpu: one GPU for each worker.
        max_concurrent_trials: at a time; by default as many as the cluster has room for.
        time_budget_s: no trial goes on after so many seconds.
        resume: go on with the sweep of this name.

    Raises:
        DataError: the data set cannot be used.
        RunError: the name is in use, the cluster is too small, or no trial ended well.
    """
    import ray.tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    started = time.perf_counter()
    data, storage_path = absolute(data), absolute(storage_path)
    TrainFeed(open_shards(data).rows("train"), sweep.batch_size, sweep.seed, 0, num_workers)
    cluster = connect()
    most = int((cluster.gpus if use_gpu else cluster.cpus) // max(num_workers, 1))
    if max_concurrent_trials is not None and max_concurrent_trials < 1:
        raise RunError(f"--max-concurrent-trials {max_concurrent_trials}: must be at least 1")
    concurrent = min(max_concurrent_trials or most, most, sweep.num_samples) or 1
    cpus = cpus_per_worker(cluster, num_workers * concurrent, use_gpu=use_gpu)
    worker = {"CPU": cpus, **({"GPU": 1.0} if use_gpu else {})}

    run = child(storage_path, name)
    filesystem, path = open_filesystem(run)
    exists = filesystem.get_file_info(path).type != pafs.FileType.NotFound
    if exists and not resume:
        raise RunError(f"--name {name}: {run} is in use; choose another name, or go on with it by --resume")
    if resume and not exists:
        raise RunError(f"--resume: there is no sweep {run}; leave out --resume to start it")
    check_shared({"--data": [data]}, {"--storage-path": storage_path})

    if num_workers == 1:
        threads = max(1, int(cluster.cpus) // concurrent)
        function = ray.tune.with_parameters(_trial, sweep=sweep, data=data, threads=threads)
        trainable = ray.tune.with_resources(function, worker)
    else:
        function = ray.tune.with_parameters(
            _distributed_trial, sweep=sweep, data=data, run=run, num_workers=num_workers, worker=worker
        )
        trainable = ray.tune.with_resources(function, {"CPU": 0})
    if resume:
        tuner = ray.tune.Tuner.restore(run, trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                search_alg=OptunaSearch(suggest, metric=METRIC, mode="max", seed=sweep.seed),
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    metric=METRIC,
                    mode="max",
                    max_t=sweep.num_epochs,
                    grace_period=min(sweep.grace_epochs, sweep.num_epochs),
                ),
                num_samples=sweep.num_samples,
                max_concurrent_trials=concurrent,
                time_budget_s=time_budget_s,
            ),
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=storage_path,
                checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=METRIC),
                verbose=1,
            ),
        )
    results = tuner.fit()
    ended = [results[index] for index in range(len(results))]
    finished = [result for result in ended if result.metrics and METRIC in result.metrics]
    if not finished:
        reason = next((str(error).strip().splitlines()[-1] for error in results.errors), "none reported an epoch")
        raise RunError(f"{run}: no trial ended well ({reason}); look at {run}/*/error.txt")
    best = checkpoints.best(run)
    meta = checkpoints.read_meta(best)
    with filesystem.open_output_stream(f"{path}/{BEST}") as stream:
        stream.write(TrainConfig.model_validate(meta.config).model_dump_json(indent=1).encode())
    seconds = time.perf_counter() - started
    drawings = sum(result.metrics["step"] for result in finished if result.metrics) * sweep.batch_size
    return {
        "run": run,
        "checkpoint": best,
        "metrics": meta.metrics,
        "drawings_per_s": round(drawings / seconds, 1),
        "trials": len(results),
        "failed": len(results.errors),
        "best_config": child(run, BEST),
        "seconds": round(seconds, 1),
    }
