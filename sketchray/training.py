"""Training on Ray Train: `train`, resuming, the fault policy."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sketchray import checkpoint as checkpoints
from sketchray.cluster import DATA_CPUS, check_shared, connect, cpus_per_worker, tell_if_busy
from sketchray.errors import Error, RunError, StorageError, find_error, first_line, named_line
from sketchray.order import TrainFeed
from sketchray.origins import initial_weights, load_teachers
from sketchray.owner import claim
from sketchray.recipe import TrainConfig
from sketchray.runs import check_data, claim_run, last_checkpoint, stored_checkpoints
from sketchray.shards import ShardSet, open_shards
from sketchray.storage import absolute, naming, patiently
from sketchray.worker import make_trainer

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a row, without a checkpoint between them


def _fit(make: "Callable[[], TorchTrainer]", run: str) -> None:
    """Trains to the end, in as many worker groups as it takes.

    Ray Train would start the workers anew after any failure, an error of ours too, which comes back; and it counts
    failures over the whole run, however long it is. Here `MAX_FAILURES` are counted without a checkpoint between them.

    Raises:
        Error: what a worker raised.
        RunError: the workers died too often.
        StorageError: the storage is full, must not be written to, or does not answer.
    """
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    failures, before = 0, last_checkpoint(run)
    while True:
        try:
            with naming(run):
                make().fit()
            return
        except (TrainingFailedError, RayActorError) as error:  # the second where Ray Train's controller dies
            known = find_error(error)
            refused = isinstance(known, StorageError)  # then it need not be asked again
            latest = None if refused else patiently(lambda: last_checkpoint(run), run)
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
        StorageError: a storage is full, forbidden, or does not answer.
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
    own = claim(run)
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
            claim=own,
        )

    _fit(make, run)
    best, metas = patiently(lambda: (checkpoints.best(run), stored_checkpoints(run)), run)
    latest = next(iter(metas.values()))
    return {
        "run": run,
        "checkpoint": best,
        "metrics": patiently(lambda: checkpoints.read_meta(best), best).metrics,
        "drawings_per_s": round(latest.history[-1]["drawings_per_s"], 1),
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
