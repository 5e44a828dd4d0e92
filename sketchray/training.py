"""Training on Ray Train: what each worker does, `train`, resuming, the fault policy.

"Every rank" and "rank 0 only" say who takes part; where all must and one does not, the run hangs.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from sketchray import checkpoint as checkpoints
from sketchray.cluster import DATA_CPUS, check_shared, connect, cpus_per_worker, quiet_ray, tell_if_busy
from sketchray.engine import Learner
from sketchray.errors import Error, RunError, find_error, first_line, named_line
from sketchray.feed import ray_batches
from sketchray.keeper import Keeper, owner_of, raise_if_full, take_over
from sketchray.logbook import Logbook
from sketchray.loop import Loop, Metrics, gather_own, take_own
from sketchray.order import EvalFeed, TrainFeed
from sketchray.origins import initial_weights, load_teachers
from sketchray.recipe import TrainConfig
from sketchray.runs import (
    check_data,
    claim_run,
    last_checkpoint,
    make_meta,
    newest,
    started_with,
)
from sketchray.shards import ShardSet, open_shards
from sketchray.storage import absolute, child

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a row, without a checkpoint between them


def _worker(loop: dict[str, Any]) -> None:
    """What Ray Train runs on every rank."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    quiet_ray()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train tells of each report through a logger outside "ray.train"
    logging.getLogger("sketchray").setLevel(logging.INFO)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    config, run = TrainConfig.model_validate(loop["config"]), loop["run"]
    shards = open_shards(loop["data"])
    origin, teachers = started_with(run)
    feed = TrainFeed(shards.rows(config.train_split), config.batch_size, config.seed, rank, world_size)

    def wrap(model: nn.Module) -> nn.Module:
        # Buffers are averaged once an epoch instead of broadcast at each step.
        return prepare_model(model, parallel_strategy_kwargs={"forward_sync_buffers": False})

    learner = Learner(
        config,
        len(shards.classes),
        total_steps=feed.steps * config.num_epochs,
        device=device,
        rank=rank,
        wrap=wrap,
        class_counts=[shards.manifest.class_counts[name] for name in shards.classes],
        teachers=load_teachers(teachers, shards.classes),
    )
    keeper = None
    if rank == 0:
        mark, before = loop["owner"]
        if mark:
            take_over(run, mark, before)
        keeper = Keeper(run, mark)
    history = _go_on(learner, run, origin, shards.classes)
    first_epoch, skip = divmod(learner.steps, feed.steps)

    def keep(metrics: Metrics) -> None:
        state = {**learner.state_dict(), "ranks": gather_own(learner)}
        if keeper is not None:
            epoch = learner.steps // feed.steps
            meta = make_meta(config, shards, step=learner.steps, epoch=epoch, history=running.history)
            contents = checkpoints.pack(learner.kept.state_dict(), meta, state)
            keeper.keep(learner.steps, contents, wait=bool(metrics))
        if metrics:
            ray.train.report(metrics)  # a barrier

    try:
        with contextlib.ExitStack() as stack:
            logbook = None
            if keeper is not None:
                stack.callback(keeper.close)
                logbook = stack.enter_context(contextlib.closing(Logbook(run, shards.classes, learner.steps)))
            running = Loop(
                learner=learner,
                feed=feed,
                stream=ray_batches(feed, range(first_epoch, config.num_epochs), skip=skip),
                valid=EvalFeed(shards.rows("valid"), config.batch_size, rank, world_size),
                keep=keep,
                history=history,
                checkpoint_every_s=loop["checkpoint_every_s"],
                logbook=logbook,
                quiet=loop["quiet"],
            )
            running.run()
    except OSError as error:
        raise_if_full(run, error)
        raise


def _go_on(learner: Learner, run: str, origin: str | None, classes: Sequence[str]) -> list[Metrics]:
    """Puts the learner where the run stands, and returns the metrics of the epochs so far. Every rank takes part.

    Without a checkpoint it starts from the weights of `origin`, or random ones.

    There is a checkpoint after a failure, and with --resume. Rank 0 chooses it, so that all go on from the same.
    """
    found: list[Any] = [newest(run) if learner.rank == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found, 0)
    if found[0] is not None:
        weights, state, meta = found[0]
        learner.load_state_dict(weights, state)
        take_own(learner, state["ranks"])
        if learner.rank == 0:
            logger.info("going on after epoch %d, step %d", meta.epoch, meta.step)
        return list(meta.history)
    if origin is not None:
        learner.start_from(initial_weights(origin, learner.config, classes))
    return []


def make_trainer(
    config: TrainConfig,
    data: str,
    *,
    storage_path: str,
    name: str,
    num_workers: int | tuple[int, int],
    worker: dict[str, float],
    checkpoint_every_s: float = 0.0,
    owner: tuple[str, str] = ("", ""),
    max_failures: int = MAX_FAILURES,
    callbacks: Sequence["UserCallback"] = (),
    quiet: bool = False,
) -> "TorchTrainer":
    """Returns the Ray Train run.

    `worker` is what each process reserves, by Ray's resource names; `owner` the job's mark and the one that it found,
    or nothing where no other job can have the run.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "data": data,
            "run": child(storage_path, name),
            "checkpoint_every_s": checkpoint_every_s,
            "owner": owner,
            "quiet": quiet,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,  # type: ignore[arg-type]  # a pair is Train V2's
            use_gpu="GPU" in worker,
            resources_per_worker=worker,
            # GPUs of one machine are the closest; without them each worker does best with a machine's cores to itself.
            placement_strategy="PACK" if "GPU" in worker else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),  # type: ignore[arg-type]
        ),
    )


def _fit(make: "Callable[[], TorchTrainer]", run: str) -> None:
    """Trains to the end, in as many worker groups as it takes.

    Ray Train would start the workers anew after any failure, an error of ours too, which comes back; and it counts
    failures over the whole run, however long it is. Here `MAX_FAILURES` are counted without a checkpoint between them.

    Raises:
        Error: what a worker raised.
        RunError: the workers died too often, or the storage is full.
    """
    from ray.train import TrainingFailedError

    failures, before = 0, last_checkpoint(run)
    while True:
        try:
            make().fit()
            return
        except OSError as error:
            raise_if_full(run, error)
            raise
        except TrainingFailedError as error:
            known, latest = find_error(error), last_checkpoint(run)
            rest = f"; its last checkpoint is {latest}" if latest else ""
            if isinstance(known, Error):
                what = first_line(known)
                raise type(known)(f"{what if run in what else f'{run}: {what}'}{rest}") from error
            failures, before = failures + 1 if latest == before else 1, latest
            reason = _reason(error)
            if failures > MAX_FAILURES:
                raise RunError(
                    f"{run}: its workers died {failures} times in a row ({reason}); look at Ray's logs, and go on with "
                    f"--resume{rest}"
                ) from error
            logger.warning("a worker died (%s); going on from %s", reason, latest or "the beginning")


def _reason(error: BaseException) -> str:
    """Returns in a line what stopped a group of workers: what the first of them met, without what Ray wraps it in."""
    failures = getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}
    first = failures[min(failures)]
    while (cause := getattr(first, "cause", None) or first.__cause__) is not None:
        first = cause
    return named_line(first)


def train(
    config: TrainConfig,
    *,
    data: str,
    storage_path: str,
    name: str,
    num_workers: int | tuple[int, int] = 1,
    use_gpu: bool = False,
    from_checkpoint: str | None = None,
    teachers: Sequence[str] = (),
    checkpoint_every_s: float = 0.0,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains on the Ray cluster that is connected, and returns the job's JSON: `run`, `checkpoint`, `metrics`, ...

    Args:
        config: what is learned and how.
        data: a directory or URI that `ingest` wrote.
        storage_path, name: the run's directory is `storage_path/name`; every node must see it.
        num_workers: processes, or (least, most) for a group that shrinks and grows with the cluster.
        use_gpu: one GPU for each worker.
        from_checkpoint: weights to start from, of a checkpoint or a run's best; other classes get a new head. A run
            that is resumed has its own.
        teachers: checkpoints, or runs (the best of each), whose mean probabilities are part of what is learned; of the
            same classes, of any architecture. A run that is resumed has its own.
        checkpoint_every_s: seconds between two checkpoints in the middle of an epoch; 0 keeps those of epochs only.
        resume: go on with the run of this name.

    Raises:
        CheckpointError: `from_checkpoint` is none, or of another architecture, or a teacher of other classes.
        DataError: the data set cannot be used.
        RunError: the name is in use, the cluster is too small, a node does not see the same, or training had to stop,
            as where another job resumed the run meanwhile.
    """
    started = time.perf_counter()
    data, storage_path = absolute(data), absolute(storage_path)
    shards = open_shards(data)
    if not shards.manifest.splits.get("valid"):
        raise RunError(f"{data}: the valid split is empty, so no checkpoint could be called the best; ingest more")
    if from_checkpoint is not None and not resume:
        from_checkpoint = checkpoints.best(absolute(from_checkpoint))
        initial_weights(from_checkpoint, config, shards.classes)  # checks that it fits
    if not resume:
        teachers = [checkpoints.best(absolute(uri)) for uri in teachers]
        load_teachers(teachers, shards.classes)  # checks that they fit
    cluster = connect()
    least, most = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    cpus_per_worker(cluster, least, use_gpu=use_gpu)
    cpus = cpus_per_worker(cluster, most if most <= cluster.cpus else least)
    check_sizes(shards, config, least, most)
    starts = [from_checkpoint] if from_checkpoint is not None and not resume else []
    read = {"--data": [data], "--from-checkpoint": starts, "--teachers": [] if resume else teachers}
    check_shared(read, {"--storage-path": storage_path})
    run = claim_run(config, storage_path, name, resume=resume, from_checkpoint=from_checkpoint, teachers=list(teachers))
    if resume:
        check_data(run, shards)
    owner = uuid.uuid4().hex, owner_of(run)
    tell_if_busy(least * cpus + DATA_CPUS, least if use_gpu else 0)

    def make() -> "TorchTrainer":
        return make_trainer(
            config,
            data,
            storage_path=storage_path,
            name=name,
            num_workers=num_workers,
            worker={"CPU": cpus, **({"GPU": 1.0} if use_gpu else {})},
            checkpoint_every_s=checkpoint_every_s,
            owner=owner,
            max_failures=0,
        )

    _fit(make, run)
    best, latest = checkpoints.best(run), last_checkpoint(run)
    assert latest is not None
    return {
        "run": run,
        "checkpoint": best,
        "metrics": checkpoints.read_meta(best).metrics,
        "drawings_per_s": round(checkpoints.read_meta(latest).history[-1]["drawings_per_s"], 1),
        "num_workers": num_workers,
        "seconds": round(time.perf_counter() - started, 1),
    }


def check_sizes(shards: ShardSet, config: TrainConfig, least: int, most: int) -> None:
    """Checks that a group may have any of these numbers of workers, and that an epoch has as many steps with each.

    Raises:
        RunError: it may not, or it has not.
    """
    if least > most:
        raise RunError(f"--num-workers {least}:{most}: the least comes first")
    rows = shards.rows(config.train_split)
    steps = {size: TrainFeed(rows, config.batch_size, config.seed, 0, size).steps for size in range(least, most + 1)}
    if len(set(steps.values())) > 1:
        raise RunError(
            f"--num-workers {least}:{most}: an epoch has {steps[least]} steps with {least} workers, but "
            f"{steps[most]} with {most}; choose another --batch-size"
        )
