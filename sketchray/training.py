"""Training on Ray Train: the worker loop, `train`, resuming, the fault policy.

"Every rank" and "rank 0 only" say who takes part; where all must and one does not, the run hangs.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from sketchray import checkpoint as checkpoints
from sketchray.batch import Batch
from sketchray.checkpoint import Meta, library_versions
from sketchray.cluster import DATA_CPUS, connect, cpus_per_worker, quiet_ray, tell_if_busy
from sketchray.engine import Learner, TrainConfig, to_metrics
from sketchray.errors import RunError
from sketchray.feed import EvalFeed, TrainFeed, batches, ray_batches
from sketchray.shards import ShardSet, open_shards
from sketchray.storage import absolute, child, open_filesystem

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

CONFIG = "config.json"  # in the run directory, written before the run starts
CHECK_EVERY = 100  # steps between two looks at whether the loss is finite
PROGRESS_S = 5.0  # seconds between two progress lines
MAX_FAILURES = 3  # worker groups that may die before the run does


def run_epoch(
    learner: Learner, feed: TrainFeed, stream: Iterator[Batch], valid: EvalFeed, epoch: int
) -> dict[str, float]:
    """Trains for an epoch, validates, and returns flat metrics, the same on every rank. Every rank takes part.

    Args:
        learner: the model in training.
        feed: this rank's part of the train split.
        stream: this rank's batches, `feed.steps` for each epoch that is left.
        valid: this rank's part of the valid split.
        epoch: its number, 0 is the first.
    """
    learner.start_epoch()
    started = last = time.perf_counter()
    waited = 0.0
    for _ in range(feed.steps):
        asked = time.perf_counter()
        batch = next(stream)
        now = time.perf_counter()
        waited += now - asked
        learner.step(batch)
        if learner.epoch_steps % CHECK_EVERY == 0:
            learner.check_finite()
        if learner.rank == 0 and (learner.steps == 1 or now - last > PROGRESS_S):
            last = now
            _print_progress(learner, feed, epoch, now - started, waited)
    learner.check_finite()
    seconds = time.perf_counter() - started
    average_buffers(learner.model)
    train_sums = add_ranks(learner.sums)
    valid_sums = add_ranks(learner.evaluate(batches(valid)).to(learner.device))
    metrics = {
        "epoch": epoch + 1.0,
        "step": float(learner.steps),
        **to_metrics(valid_sums, "val_"),
        **to_metrics(train_sums, "train_"),
        "lr": learner.optimizer.param_groups[0]["lr"],
        "clipped_share": float(learner.clipped) / learner.epoch_steps,
        "waiting_share": waited / seconds,
        "drawings_per_s": float(train_sums[0]) / seconds,
    }
    if learner.rank == 0:
        _print(
            f"epoch {epoch + 1}/{learner.config.num_epochs}: val_top1 {metrics['val_top1']:.1%}, "
            f"val_loss {metrics['val_loss']:.3f}, train_top1 {metrics['train_top1']:.1%}, "
            f"{metrics['drawings_per_s']:,.0f} drawings/s, waiting for data {metrics['waiting_share']:.1%}, "
            f"clipped {metrics['clipped_share']:.0%} of steps"
        )
    return metrics


def add_ranks(sums: Tensor) -> Tensor:
    """Returns the sums of all ranks added up, on the CPU. Every rank takes part; one process alone needs no other."""
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums.cpu()


def average_buffers(model: nn.Module) -> None:
    """Gives every rank the mean of the ranks' batch statistics. Every rank takes part."""
    if dist.is_initialized():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(dist.get_world_size())


def make_meta(config: TrainConfig, shards: ShardSet, metrics: dict[str, float]) -> Meta:
    """Returns what a checkpoint says of itself."""
    manifest = shards.manifest
    return Meta(
        model=config.model,
        config=config.model_dump(mode="json"),
        classes=shards.classes,
        epoch=int(metrics["epoch"]),
        step=int(metrics["step"]),
        metrics={name: value for name, value in metrics.items() if name.startswith(("val_", "train_"))},
        data={**manifest.provenance, "splits": manifest.splits},
        licence=str(manifest.provenance["licence"]),
        versions=library_versions(),
    )


def _print_progress(learner: Learner, feed: TrainFeed, epoch: int, seconds: float, waited: float) -> None:
    """Rank 0 only. Host sync."""
    done, steps = learner.epoch_steps, feed.steps
    sums = learner.sums.tolist()
    left = seconds / done * (steps - done + steps * (learner.config.num_epochs - epoch - 1))
    _print(
        f"epoch {epoch + 1}/{learner.config.num_epochs} step {done}/{steps}: "
        f"loss {sums[1] / sums[0]:.3f}, top1 {sums[2] / sums[0]:.1%}, {sums[0] * feed.world_size:,.0f} drawings, "
        f"{sums[0] * feed.world_size / seconds:,.0f} drawings/s, waiting for data {waited / seconds:.1%}, "
        f"{left:,.0f} s left"
    )


def _print(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # not print: Ray Train patches that and would show the line twice
    sys.stderr.flush()


def _worker(loop: dict[str, Any]) -> dict[str, Any]:
    """The loop that Ray Train runs on every rank. Returns `{"stopped": why}` if the run cannot go on."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    quiet_ray()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    config = TrainConfig.model_validate(loop["config"])
    shards = open_shards(loop["data"])
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed, rank, world_size)
    valid = EvalFeed(shards.rows("valid"), config.batch_size, rank, world_size)

    def wrap(model: nn.Module) -> nn.Module:
        # Buffers are averaged once an epoch instead of broadcast at each step.
        return prepare_model(model, parallel_strategy_kwargs={"forward_sync_buffers": False})

    total_steps = feed.steps * config.num_epochs
    learner = Learner(config, len(shards.classes), total_steps=total_steps, device=device, rank=rank, wrap=wrap)
    first_epoch = 0
    latest = ray.train.get_checkpoint()  # there is one after a failure, and with --resume
    if latest is not None:
        with latest.as_directory() as directory:
            model, meta = checkpoints.load(directory)
            learner.load_state_dict(model.state_dict(), checkpoints.load_state(Path(directory)))
        first_epoch = meta.epoch
        if rank == 0:
            _print(f"going on after epoch {meta.epoch}, step {meta.step}")

    stream = ray_batches(feed, range(first_epoch, config.num_epochs))
    for epoch in range(first_epoch, config.num_epochs):
        try:
            metrics = run_epoch(learner, feed, stream, valid, epoch)
        except RunError as error:  # gradients are shared, so every rank sees it in the same step
            return {"stopped": str(error)}
        with tempfile.TemporaryDirectory() as directory:
            saved = None
            if rank == 0:
                meta = make_meta(config, shards, metrics)
                checkpoints.save(Path(directory), learner.model.state_dict(), meta, learner.state_dict())
                saved = ray.train.Checkpoint.from_directory(directory)
            ray.train.report(metrics, checkpoint=saved)  # a barrier
    return {}


def make_trainer(
    config: TrainConfig,
    data: str,
    *,
    storage_path: str,
    name: str,
    num_workers: int | tuple[int, int],
    worker: dict[str, float],
    callbacks: Sequence["UserCallback"] = (),
) -> "TorchTrainer":
    """Returns the Ray Train run; `worker` is what each process reserves, by Ray's resource names."""
    import ray.train
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _worker,  # type: ignore[arg-type]  # its return value is Train V2's, which the stubs of V1 lack
        train_loop_config={"config": config.model_dump(mode="json"), "data": data},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,  # type: ignore[arg-type]  # a pair is Train V2's
            use_gpu="GPU" in worker,
            resources_per_worker=worker,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="val_top1"),
            callbacks=list(callbacks),  # type: ignore[arg-type]
        ),
    )


def train(
    config: TrainConfig,
    *,
    data: str,
    storage_path: str,
    name: str,
    num_workers: int | tuple[int, int] = 1,
    use_gpu: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains on the Ray cluster that is connected, and returns the job's JSON: `run`, `checkpoint`, `metrics`, ...

    Args:
        config: what is learned and how.
        data: a directory or URI that `ingest` wrote.
        storage_path, name: the run's directory is `storage_path/name`; every node must see it.
        num_workers: processes, or (least, most) for a group that shrinks and grows with the cluster.
        use_gpu: one GPU for each worker.
        resume: go on with the run of this name; without it a name in use is refused.

    Raises:
        DataError: the data set cannot be used.
        RunError: the name is in use, the cluster is too small, or training had to stop.
    """
    started = time.perf_counter()
    data, storage_path = absolute(data), absolute(storage_path)
    shards = open_shards(data)
    if not shards.manifest.splits.get("valid"):
        raise RunError(f"{data}: the valid split is empty, so no checkpoint could be called the best; ingest more")
    cluster = connect()
    least, most = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    cpus_per_worker(cluster, least, use_gpu=use_gpu)
    cpus = cpus_per_worker(cluster, most if most <= cluster.cpus else least)
    for world_size in (least, most):
        TrainFeed(shards.rows("train"), config.batch_size, config.seed, 0, world_size)  # checks that it divides
    run = claim_run(config, storage_path, name, resume=resume)
    tell_if_busy(least * cpus + DATA_CPUS, least if use_gpu else 0)

    worker = {"CPU": cpus, **({"GPU": 1.0} if use_gpu else {})}
    trainer = make_trainer(config, data, storage_path=storage_path, name=name, num_workers=num_workers, worker=worker)
    result = trainer.fit()
    stopped = (getattr(result, "return_value", None) or {}).get("stopped")
    if stopped:
        raise RunError(f"{run}: {stopped}")
    best = checkpoints.best(run)
    metrics = checkpoints.read_meta(best).metrics
    latest = result.metrics or {}
    return {
        "run": run,
        "checkpoint": best,
        "metrics": metrics,
        "drawings_per_s": round(latest.get("drawings_per_s", 0.0), 1),
        "num_workers": num_workers,
        "seconds": round(time.perf_counter() - started, 1),
    }


def stored_config(storage_path: str, name: str) -> TrainConfig | None:
    """Returns the configuration of a run, or None if there is no such run."""
    filesystem, path = open_filesystem(child(absolute(storage_path), f"{name}/{CONFIG}"))
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    with filesystem.open_input_file(path) as file:
        try:
            return TrainConfig.model_validate_json(file.read())
        except ValidationError as error:
            raise RunError(f"{storage_path}/{name}/{CONFIG}: not a configuration ({error}); start a new run") from error


def claim_run(config: TrainConfig, storage_path: str, name: str, *, resume: bool) -> str:
    """Returns the run's directory, new or resumed; its configuration is stored there.

    Raises:
        RunError: the name is in use and `resume` is not given, or there is nothing that could be resumed, or the
            configuration differs from the run's, or the directory cannot be written.
    """
    if name in ("", ".", "..") or name != Path(name).name:
        raise RunError(f"--name {name!r}: must be one name, without slashes")
    run = child(storage_path, name)
    filesystem, path = open_filesystem(run)
    stored = stored_config(storage_path, name)
    if resume:
        if stored is None:
            raise RunError(f"--resume: there is no run {run}; leave out --resume to start it")
        differing = _first_difference(stored.model_dump(), config.model_dump())
        if differing:
            where, before, now = differing
            raise RunError(f"--resume: {run} was started with {where}={before}, not {now}; resume it as it was started")
        return run
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        raise RunError(f"--name {name}: {run} is in use; choose another name, or go on with it by --resume")
    try:
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/{CONFIG}") as stream:
            stream.write(config.model_dump_json(indent=1).encode())
    except OSError as error:
        raise RunError(f"--storage-path {storage_path}: cannot write there ({error}); choose another place") from error
    return run


def _first_difference(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    for key, value in before.items():
        if isinstance(value, dict):
            inner = _first_difference(value, now[key], f"{prefix}{key}.")
            if inner:
                return inner
        elif value != now[key]:
            return f"{prefix}{key}", value, now[key]
    return None
