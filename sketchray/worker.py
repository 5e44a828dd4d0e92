"""What each worker of Ray Train does, and the trainer that starts them.

"Every rank" and "rank 0 only" say who takes part; where all must and one does not, the run hangs.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from sketchray import checkpoint as checkpoints
from sketchray.cluster import node_cpus, quiet_ray
from sketchray.engine import Learner
from sketchray.feed import ray_batches
from sketchray.keeper import Keeper
from sketchray.logbook import Logbook
from sketchray.loop import Loop, Metrics, gather_own, take_own
from sketchray.order import EvalFeed, TrainFeed
from sketchray.origins import initial_weights, load_teachers
from sketchray.owner import Claim
from sketchray.recipe import TrainConfig
from sketchray.runs import make_meta, newest, started_with
from sketchray.shards import open_shards
from sketchray.storage import child, naming, patiently

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)


def _worker(loop: dict[str, Any]) -> None:
    """What Ray Train runs on every rank."""
    with naming(loop["run"]):
        _learn(loop)


def _learn(loop: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device, prepare_model

    quiet_ray()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train tells of each report through a logger outside "ray.train"
    logging.getLogger("sketchray").setLevel(logging.INFO)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, node_cpus() // context.get_local_world_size()))
    config, run = TrainConfig.model_validate(loop["config"]), loop["run"]
    claim: Claim = loop["claim"]
    shards = patiently(lambda: open_shards(loop["data"]), loop["data"])
    origin, teachers = patiently(lambda: started_with(run), run)
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
        teachers=patiently(lambda: load_teachers(teachers, shards.classes), run),
    )
    keeper = None
    if rank == 0:
        claim.take()
        keeper = Keeper(run, claim)
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


def _go_on(learner: Learner, run: str, origin: str | None, classes: Sequence[str]) -> list[Metrics]:
    """Puts the learner where the run stands, and returns the metrics of the epochs so far. Every rank takes part.

    Without a checkpoint it starts from the weights of `origin`, or random ones.

    There is a checkpoint after a failure, and with --resume. Rank 0 chooses it, so that all go on from the same.
    """
    found: list[Any] = [patiently(lambda: newest(run), run) if learner.rank == 0 else None]
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
        learner.start_from(patiently(lambda: initial_weights(origin, learner.config, classes), origin))
    return []


def make_trainer(
    config: TrainConfig,
    data: str,
    *,
    storage_path: str,
    name: str,
    num_workers: int | tuple[int, int],
    worker: dict[str, float],
    claim: Claim,
    checkpoint_every_s: float = 0.0,
    callbacks: Sequence["UserCallback"] = (),
    quiet: bool = False,
) -> "TorchTrainer":
    """Returns the Ray Train run.

    `worker` is what each process reserves, by Ray's resource names; `claim` is the job's, to the run or its sweep.
    After a failure the workers do not start anew by themselves.
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
            "claim": claim,
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
            failure_config=ray.train.FailureConfig(max_failures=0),
            callbacks=list(callbacks),  # type: ignore[arg-type]
        ),
    )
