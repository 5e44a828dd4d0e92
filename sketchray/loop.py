"""The training loop: epochs of steps, validation, progress, and when to keep a checkpoint. No Ray.

"Every rank" and "rank 0 only" say who takes part; where all must and one does not, the run hangs.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sketchray.batch import Batch
from sketchray.engine import SUMS, TEMPERATURES, Learner, to_metrics
from sketchray.feed import batches
from sketchray.logbook import Logbook
from sketchray.order import EvalFeed, TrainFeed

CHECK_EVERY = 20  # steps between two looks at whether the loss is finite and a checkpoint is due
PROGRESS_S = 5.0  # seconds between two progress lines
METRIC = "val_top1"

Metrics = dict[str, float]


@dataclass(kw_only=True)
class Loop:
    """A run's loop on one rank.

    Attributes:
        learner: the model in training.
        feed: this rank's part of the train split.
        stream: this rank's batches, from the learner's position to the end of the last epoch.
        valid: this rank's part of the valid split.
        keep: keeps a checkpoint; every rank calls it, with the metrics of an epoch, or none in the middle of one.
        history: metrics of the epochs so far.
        checkpoint_every_s: seconds between two checkpoints in the middle of an epoch; 0 keeps none.
        logbook: of rank 0, where there is one.
        quiet: shows no progress.
    """

    learner: Learner
    feed: TrainFeed
    stream: Iterator[Batch]
    valid: EvalFeed
    keep: Callable[[Metrics], None]
    history: list[Metrics] = field(default_factory=list)
    checkpoint_every_s: float = 0.0
    logbook: Logbook | None = None
    quiet: bool = False

    def run(self) -> None:
        """Trains to the last epoch, or until patience runs out. Every rank takes part."""
        for _ in self.epochs():
            pass

    def epochs(self) -> Iterator[Metrics]:
        """Yields the metrics of each epoch as it ends, when its checkpoint is kept. Every rank takes part."""
        steps = self.feed.steps
        self._kept_at = time.perf_counter()
        while not self.is_over:
            if self.learner.epoch_steps in (0, steps):
                self.learner.start_epoch()
            metrics = self._epoch(self.learner.steps // steps)
            self.history.append(metrics)
            self.keep(metrics)
            self._kept_at = time.perf_counter()
            yield metrics

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or patience ran out."""
        config = self.learner.config
        done = self.learner.steps >= self.feed.steps * config.num_epochs
        return done or out_of_patience(self.history, config.patience)

    def _epoch(self, epoch: int) -> Metrics:
        """Trains to the end of an epoch, validates, and returns flat metrics, the same on every rank."""
        learner, feed = self.learner, self.feed
        self._started, self._waited, self._done, last = time.perf_counter(), 0.0, 0, -math.inf
        while learner.epoch_steps < feed.steps:
            asked = time.perf_counter()
            batch = next(self.stream)
            now = time.perf_counter()
            self._waited += now - asked
            learner.step(batch)
            self._done += 1
            if learner.rank == 0 and now - last > PROGRESS_S:
                last = now
                self._tell(epoch)
            if learner.epoch_steps % CHECK_EVERY == 0 and learner.epoch_steps < feed.steps:
                learner.check_finite()
                if self._is_due():
                    self.keep({})
                    self._kept_at = time.perf_counter()
        learner.check_finite()
        seconds = time.perf_counter() - self._started
        average_buffers(learner.model)
        if learner.average is not None:
            average_buffers(learner.kept)
        number = learner.model.head.out_features
        confusion = torch.zeros(number, number, dtype=torch.long, device=learner.device)
        losses = torch.zeros(len(TEMPERATURES), dtype=torch.float64, device=learner.device)
        valid_sums = add_ranks(learner.evaluate(batches(self.valid), confusion, losses).to(learner.device))
        valid_sums[SUMS.index("loss")] = learner.calibrate(add_ranks(losses))
        metrics = {
            "epoch": epoch + 1.0,
            "step": float(learner.steps),
            **to_metrics(valid_sums, "val_"),
            **to_metrics(add_ranks(learner.sums), "train_"),
            "temperature": float(learner.kept.temperature),
            "lr": learner.optimizer.param_groups[0]["lr"],
            "grad_norm": float(learner.norms) / learner.epoch_steps,
            "clipped_share": float(learner.clipped) / learner.epoch_steps,
            "waiting_share": self._waited / seconds,
            "drawings_per_s": self._done * feed.rank_rows * feed.world_size / seconds,
        }
        add_ranks(confusion)
        if learner.rank == 0 and not self.quiet:
            _print(
                f"epoch {epoch + 1}/{learner.config.num_epochs}: val_top1 {metrics['val_top1']:.1%}, "
                f"val_loss {metrics['val_loss']:.3f}, train_top1 {metrics['train_top1']:.1%}, "
                f"{metrics['drawings_per_s']:,.0f} drawings/s, waiting for data {metrics['waiting_share']:.1%}, "
                f"clipped {metrics['clipped_share']:.0%} of steps"
            )
        if self.logbook is not None:
            self.logbook.write_epoch(metrics, confusion.cpu(), learner.kept, self.valid)
        return metrics

    def _is_due(self) -> bool:
        """Returns whether a checkpoint is due, as rank 0's clock says. Every rank takes part; host sync."""
        if not self.checkpoint_every_s:
            return False
        due = torch.tensor(float(time.perf_counter() - self._kept_at >= self.checkpoint_every_s))
        if dist.is_initialized():
            due = due.to(self.learner.device)
            dist.broadcast(due, 0)
        return bool(due)

    def _tell(self, epoch: int) -> None:
        """Shows the progress. Rank 0 only; host sync."""
        learner, steps = self.learner, self.feed.steps
        sums, seconds = learner.sums.tolist(), time.perf_counter() - self._started
        rate = self._done * self.feed.rank_rows * self.feed.world_size / seconds
        left = seconds / self._done * (steps * learner.config.num_epochs - learner.steps)
        loss, top1 = sums[1] / sums[0], sums[2] / sums[0]
        if not self.quiet:
            _print(
                f"epoch {epoch + 1}/{learner.config.num_epochs} step {learner.epoch_steps}/{steps}: "
                f"loss {loss:.3f}, top1 {top1:.1%}, {rate:,.0f} drawings/s, "
                f"waiting for data {self._waited / seconds:.1%}, {left:,.0f} s left"
            )
        if self.logbook is not None:
            self.logbook.write_progress(
                learner.steps,
                {
                    "loss": loss,
                    "top1": top1,
                    "lr": learner.optimizer.param_groups[0]["lr"],
                    "grad_norm": float(learner.norms) / learner.epoch_steps,
                    "clipped_share": float(learner.clipped) / learner.epoch_steps,
                    "drawings_per_s": rate,
                    "waiting_share": self._waited / seconds,
                },
            )


def out_of_patience(history: list[Metrics], patience: int) -> bool:
    """Returns whether the best epoch lies `patience` epochs or more back; never for 0."""
    values = [metrics[METRIC] for metrics in history]
    return bool(patience and values and len(values) - 1 - values.index(max(values)) >= patience)


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


def _own(learner: Learner) -> list[Tensor]:
    """Returns what differs from rank to rank until the end of an epoch: the sums and the batch statistics."""
    models = [learner.model] if learner.kept is learner.model else [learner.model, learner.kept]
    return [learner.sums, *(buffer for model in models for buffer in model.buffers())]


def gather_own(learner: Learner) -> list[list[Tensor]]:
    """Returns what differs from rank to rank, of all ranks, on the CPU. Every rank takes part; host sync."""
    own = [tensor.cpu() for tensor in _own(learner)]
    if not dist.is_initialized():
        return [own]
    ranks: list[list[Tensor]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, own)
    return ranks


def take_own(learner: Learner, ranks: list[list[Tensor]]) -> None:
    """Gives this rank what `gather_own` found on it; after a group of another size, its share of the whole."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if len(ranks) == world_size:
        own = ranks[learner.rank]
    else:
        own = [torch.stack(tensors).double().mean(0) for tensors in zip(*ranks, strict=True)]
        own[0] *= len(ranks) / world_size  # sums, not means
    for tensor, value in zip(_own(learner), own, strict=True):
        tensor.copy_(value)


def _print(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # not print: Ray Train patches that and would show the line twice
    sys.stderr.flush()
