"""One trial: a run like any other, in a directory of its own inside the sweep's.

With one worker it trains in the process of its trial, an epoch at a time, and the process takes the next trial when it
is done. With several it is the driver of a Ray Train run.
"""

import logging
from typing import Any

import torch
from ray.tune import Trainable

from sketchray import checkpoint as checkpoints
from sketchray.cluster import node_cpus, quiet_ray
from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.keeper import Keeper
from sketchray.loop import Loop, Metrics
from sketchray.order import EvalFeed, TrainFeed
from sketchray.owner import Claim
from sketchray.recipe import TrainConfig
from sketchray.runs import claim_run, make_meta, newest, stored_config
from sketchray.shards import ShardSet, open_shards
from sketchray.storage import child, patiently
from sketchray.worker import make_trainer


class OneWorkerTrial(Trainable):
    """A trial in this process; `reuse_actors` gives it one configuration after the other."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], *, data: str, claim: Claim, threads: int
    ) -> None:
        """Opens the drawings, once for all trials of this process, and begins the first.

        Args:
            config: what the search proposed: `config`, `directory`, and up to which epoch it has `told` the study.
            data: directory or URI of the shards.
            claim: the job's, to the sweep.
            threads: of PyTorch, at most.
        """
        quiet_ray()
        logging.getLogger("sketchray").setLevel(logging.WARNING)
        torch.set_num_threads(min(threads, node_cpus()))
        self.claim, self.shards = claim, patiently(lambda: open_shards(data), data)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Ends the trial; its last checkpoint is stored by then."""
        self.keeper.close()

    def _begin(self, proposal: dict[str, Any]) -> None:
        config = TrainConfig.model_validate(proposal["config"])
        directory = child(self.claim.run, proposal["directory"])
        prepare(config, self.claim.run, proposal["directory"])
        self.keeper = Keeper(directory, self.claim)
        self.loop = make_loop(config, self.shards, directory, self.keeper)
        self.epochs = self.loop.epochs()
        # A checkpoint is there before the study hears of its epoch, so a kill between the two is made good here.
        self.untold = [metrics for metrics in self.loop.history if metrics["epoch"] > proposal["told"]]

    def step(self) -> dict[str, Any]:
        """Trains an epoch and returns its metrics; of a trial that was cut off, first those that nobody heard of."""
        metrics = self.untold.pop(0) if self.untold else next(self.epochs, None)
        # Without another epoch it was cut off behind its last one.
        return {**(metrics or self.loop.history[-1]), "done": self.loop.is_over and not self.untold}


def make_loop(config: TrainConfig, shards: ShardSet, directory: str, keeper: Keeper) -> Loop:
    """Returns the loop of a trial in this process, from its latest checkpoint if it was cut off."""
    feed = TrainFeed(shards.rows(config.train_split), config.batch_size, config.seed)
    learner = Learner(
        config,
        len(shards.classes),
        total_steps=feed.steps * config.num_epochs,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        class_counts=[shards.manifest.class_counts[name] for name in shards.classes],
    )
    history: list[Metrics] = []
    found = patiently(lambda: newest(directory), directory)
    if found is not None:
        weights, state, meta = found
        learner.load_state_dict(weights, state)
        history = list(meta.history)

    def keep(metrics: Metrics) -> None:
        meta = make_meta(config, shards, step=learner.steps, epoch=int(metrics["epoch"]), history=history)
        contents = checkpoints.pack(learner.kept.state_dict(), meta, learner.state_dict())
        keeper.keep(learner.steps, contents, wait=True)

    return Loop(
        learner=learner,
        feed=feed,
        stream=batches(feed, range(learner.steps // feed.steps, config.num_epochs)),
        valid=EvalFeed(shards.rows("valid"), config.batch_size),
        keep=keep,
        history=history,
        quiet=True,
    )


def train_with_workers(
    proposal: dict[str, Any], *, data: str, claim: Claim, num_workers: int, worker: dict[str, float]
) -> None:
    """A trial with several workers: the driver of a Ray Train run, which tells Ray Tune of each epoch."""
    from ray.tune.integration.ray_train import TuneReportCallback

    quiet_ray()
    config = TrainConfig.model_validate(proposal["config"])
    prepare(config, claim.run, proposal["directory"])
    make_trainer(
        config,
        data,
        storage_path=claim.run,
        name=proposal["directory"],
        num_workers=num_workers,
        worker=worker,
        claim=claim,
        callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call]
        quiet=True,
    ).fit()


def prepare(config: TrainConfig, run: str, directory: str) -> None:
    """Writes what a trial trains into its directory, unless it goes on."""
    if patiently(lambda: stored_config(run, directory), child(run, directory)) is None:
        claim_run(config, run, directory, resume=False)
