"""The learner: one step of learning, evaluation sums, and what of both is kept. PyTorch only, no Ray.

A step's randomness is a pure function of (seed, step, rank), so a run resumed at a step goes on as if it had never
stopped, with no generator's state to keep.

Shapes: B drawings of this rank, T points, K classes.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sketchray.augment import augment
from sketchray.batch import Batch, pad
from sketchray.clipping import clip
from sketchray.errors import RunError
from sketchray.model import StrokeClassifier
from sketchray.recipe import TrainConfig, lr_at

SUMS = ("drawings", "loss", "top1", "top5", "map3")
TEMPERATURES = tuple(1.05**step for step in range(-24, 25))  # 0.31 to 3.2: tried when a model is calibrated


def new_sums(device: torch.device | str = "cpu") -> Tensor:
    """Returns zeros for the sums named in `SUMS`: `(5,)` float64, so that adding up loses nothing."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the sums of a batch, `(5,)` float64: drawings, cross-entropy, top-1, top-5 and MAP@3 hits.

    MAP@3 of a drawing is 1, 1/2 or 1/3 if its class is first, second or third. Source: Kaggle's Quick, Draw! challenge.
    """
    loss = F.cross_entropy(logits, labels, reduction="sum")
    own = logits.gather(1, labels[:, None])
    # (B,), 0 is the first guess; equal logits count in the drawing's favour, NaN against it.
    rank = (~(logits <= own)).sum(1)
    hits = [(rank < 1).sum(), (rank < 5).sum(), ((rank < 3) / (rank + 1)).sum()]
    return torch.stack([own.new_tensor(len(labels)), loss, *hits]).double()


def to_metrics(sums: Tensor, prefix: str) -> dict[str, float]:
    """Returns means under flat names, `val_loss` for the prefix `val_`, from sums over all ranks."""
    values = sums.tolist()
    drawings = max(values[0], 1.0)
    return {f"{prefix}{name}": value / drawings for name, value in zip(SUMS[1:], values[1:], strict=True)}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the optimizer; weight decay acts on matrices only."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr)
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """Returns `(K,)` weights, 1 for a class of average size, in inverse proportion to its drawings; 0 for none.

    Source: `class_weight="balanced"` of scikit-learn.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0).float()


class Learner:
    """A model in training, on one rank.

    Args:
        config: what is learned and how.
        num_classes: K.
        total_steps: of the whole run; the schedule spans them.
        device: where it runs.
        rank: of this process; its augmentation and dropout differ from other ranks'.
        wrap: makes the model data parallel; every rank calls it.
        class_counts: drawings of each class, for `class_weights="balanced"`.
        teachers: models of the same classes, whose mean probabilities are part of the target.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        *,
        total_steps: int,
        device: torch.device | None = None,
        rank: int = 0,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        class_counts: Sequence[int] = (),
        teachers: Sequence[StrokeClassifier] = (),
    ) -> None:
        self.config, self.total_steps, self.rank = config, total_steps, rank
        self.device = device or torch.device("cpu")
        torch.manual_seed(config.seed)  # every rank starts from the same weights
        self.model = StrokeClassifier(config.model, num_classes).to(self.device)
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = AveragedModel(self.model, multi_avg_fn=self._mix, use_buffers=True)
        self.optimizer = make_optimizer(self.model, config)
        self.parallel = wrap(self.model)
        self.class_weights: Tensor | None = None
        if config.class_weights == "balanced":
            self.class_weights = balanced_weights(class_counts).to(self.device)
        self.teachers = [teacher.to(self.device).eval() for teacher in teachers]
        self.steps = 0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Empties the sums of the training metrics."""
        self.sums = new_sums(self.device)
        self.clipped = torch.zeros((), device=self.device)
        self.norms = torch.zeros((), device=self.device)
        self.epoch_steps = 0
        self.bad_loss = torch.full((), torch.inf, device=self.device)  # the first step with one, on this rank
        self.bad_norm = torch.full((), torch.inf, device=self.device)  # the same on all ranks

    def step(self, batch: Batch) -> None:
        """Learns from a batch: forward, backward (every rank takes part), clip, update. No host sync."""
        self.model.train()
        torch.manual_seed((self.config.seed << 40) ^ (self.steps << 12) ^ self.rank)
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(_cut(batch, self.config.gradient_accumulation_steps))
        for number, part in enumerate(parts):
            with contextlib.ExitStack() as stack:
                if isinstance(self.parallel, DistributedDataParallel) and number < len(parts) - 1:
                    stack.enter_context(self.parallel.no_sync())  # the ranks share the sum of the parts once
                self._backward(part, len(part) / len(batch))
        config = self.config
        norm, clipped = clip(self.model, norm=config.clip_norm, value=config.clip_value, adaptive=config.clip_adaptive)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.steps, self.total_steps, config)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.clipped += clipped
        self.norms += norm
        self._note(self.bad_norm, norm)
        self.steps += 1
        self.epoch_steps += 1

    def _mix(self, averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        """Moves the averages towards the weights: over the last tenth of the steps so far, `ema_decay` at the most.

        Source: `num_updates` of TensorFlow's ExponentialMovingAverage; without it short runs would keep random weights.
        """
        decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averages, weights, count)  # type: ignore[no-untyped-call]

    def _backward(self, batch: Batch, part: float) -> None:
        """Adds the gradient of a part of a batch, which is that share of it."""
        config, batch = self.config, batch.to(self.device)
        points, lengths = pad(batch.values, batch.offsets, config.model.max_points)
        points, lengths = augment(points, lengths, config.augment)
        targets = self._targets(batch.labels, points, lengths)
        mix = self._draw_mix(len(batch)) if config.mixup else None
        if mix is not None:
            share, other = mix
            targets = share * targets + (1 - share) * targets[other]
        with self._autocast():
            logits = self.parallel(points, lengths, mix).float()
        loss = F.cross_entropy(logits, targets, self.class_weights, reduction="sum")
        # Divided by the drawings, not by their weights, so that ranks and parts add up to the whole batch.
        loss = loss / len(batch)
        (loss * part).backward()  # type: ignore[no-untyped-call]
        self.sums += score(logits.detach(), batch.labels)
        self._note(self.bad_loss, loss.detach())

    @torch.no_grad()
    def _targets(self, labels: Tensor, points: Tensor, lengths: Tensor) -> Tensor:
        """Returns what the probabilities are to be, `(B, K)`: labels, smoothed, and what teachers see in the drawings.

        Source: Beyer et al. 2021, "Knowledge distillation: A good teacher is patient and consistent": a teacher is
        shown the very drawing that is learned, changed and cut as it is.
        """
        config, classes = self.config, self.model.head.out_features
        targets = F.one_hot(labels, classes) * (1 - config.label_smoothing) + config.label_smoothing / classes
        if self.teachers:
            with self._autocast():
                beliefs = torch.stack([teacher(points, lengths).float().softmax(1) for teacher in self.teachers])
            targets = torch.lerp(targets, beliefs.mean(0), config.distillation_weight)
        return targets

    def _draw_mix(self, drawings: int) -> tuple[Tensor, Tensor]:
        """Returns a share of its own for each drawing, the larger one, and which other it is mixed with, `(B,)`.

        Either could be its own, since every drawing is in both places once; the larger one lets train_top1 mean more.
        """
        alpha = torch.full((), self.config.mixup, device=self.device)
        share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()  # checks would sync
        return torch.maximum(share, 1 - share), torch.randperm(drawings, device=self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _note(self, first_bad: Tensor, value: Tensor) -> None:
        """Keeps the number of the first step whose value is not finite, without a host sync."""
        first_bad.copy_(torch.where(value.isfinite(), first_bad, first_bad.clamp(max=self.steps)))

    def check_finite(self) -> None:
        """Raises RunError if a loss or gradient of this epoch was not finite. Every rank takes part; host sync."""
        found = torch.stack([self.bad_loss, self.bad_norm])
        ranks = [found]
        if dist.is_initialized():
            ranks = [torch.empty_like(found) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, found)
        table = torch.stack(ranks).cpu()  # (ranks, 2)
        first = float(table.min())
        if first < math.inf:
            losses = (table[:, 0] == first).nonzero().flatten().tolist()
            what = f"the loss became NaN or infinite in step {first:.0f} on rank {losses[0] if losses else 0}"
            if not losses:
                what = f"the gradient became NaN or infinite in step {first:.0f}, on all ranks"
            config = self.config
            clipping = f"--clip-norm (it is {config.clip_norm:g})" if config.clip_norm else "--clip-norm 1 (it is off)"
            raise RunError(
                f"{what}; try a lower --lr (it is {config.lr:g}) or {clipping}"
                + (" or --precision float32" if config.precision == "bfloat16" else "")
            )

    @property
    def kept(self) -> StrokeClassifier:
        """The model that is validated and kept: the moving average where there is one."""
        kept = self.model if self.average is None else self.average.module
        assert isinstance(kept, StrokeClassifier)
        return kept

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[Batch], confusion: Tensor | None = None, losses: Tensor | None = None
    ) -> Tensor:
        """Returns the sums over this rank's batches, `(5,)` float64 on the CPU; the caller adds up the ranks.

        Args:
            batches: of this rank's part of a split.
            confusion: `(K, K)` int64 on the device, to which drawings are added by true class and first guess.
            losses: `(len(TEMPERATURES),)` float64 on the device, to which the cross-entropy at each is added. The
                model's own temperature is 1 then.
        """
        model = self.kept.eval()
        if losses is not None:
            model.temperature.fill_(1.0)
        sums = new_sums(self.device)
        for batch in batches:
            moved = batch.to(self.device)
            logits = model(*pad(moved.values, moved.offsets, self.config.model.max_points))
            sums += score(logits, moved.labels)
            if confusion is not None:
                pairs = moved.labels * confusion.shape[1] + logits.argmax(1)
                confusion += pairs.bincount(minlength=confusion.numel()).view_as(confusion)
            if losses is not None:
                at_each = [F.cross_entropy(logits / value, moved.labels, reduction="sum") for value in TEMPERATURES]
                losses += torch.stack(at_each)
        return sums.cpu()

    def calibrate(self, losses: Tensor) -> float:
        """Gives the kept model the temperature of the lowest loss, of all ranks, and returns that loss.

        With `config.temperature` it gets that one, and the loss at the nearest that was tried is returned.
        """
        place = int(losses.argmin())
        if self.config.temperature:
            distances = [abs(math.log(value / self.config.temperature)) for value in TEMPERATURES]
            place = distances.index(min(distances))
        self.kept.temperature.fill_(self.config.temperature or TEMPERATURES[place])
        return float(losses[place])

    def state_dict(self) -> dict[str, Any]:
        """Returns what resuming needs besides the kept weights: the optimizer, the position, and the epoch's sums."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "epoch_steps": self.epoch_steps,
            "sums": self.sums.cpu(),
            "clipped": self.clipped.cpu(),
            "norms": self.norms.cpu(),
        }
        if self.average is not None:
            state["weights"] = self.model.state_dict()
            state["averaged"] = self.average.n_averaged.cpu()
        return state

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Goes on from what `kept.state_dict` and `state_dict` returned."""
        self.model.load_state_dict(state.get("weights", weights))
        if self.average is not None:
            self.average.module.load_state_dict(weights)
            self.average.n_averaged.copy_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.epoch_steps = state["steps"], state["epoch_steps"]
        self.sums.copy_(state["sums"])
        self.clipped.copy_(state["clipped"])
        self.norms.copy_(state["norms"])

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Starts from the weights of another model instead of random ones."""
        self.model.load_state_dict(weights)
        if self.average is not None:
            self.average.module.load_state_dict(weights)


def _cut(batch: Batch, parts: int) -> Iterator[Batch]:
    """Yields a batch in parts of like size, as many as have a drawing."""
    for number in range(parts):
        start, stop = number * len(batch) // parts, (number + 1) * len(batch) // parts
        if stop > start:
            yield batch.slice(start, stop)
