"""How a model learns: one step, clipping, the schedule, evaluation sums. PyTorch only, no Ray.

A step's randomness is a pure function of (seed, step, rank), so a run resumed at a step goes on as if it had never
stopped, with no generator's state to keep.

Shapes: B drawings of this rank, T points, K classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sketchray.augment import AugmentConfig, augment
from sketchray.batch import Batch, pad
from sketchray.errors import RunError
from sketchray.model import PRESETS, ModelConfig, StrokeClassifier

SUMS = ("drawings", "loss", "top1", "top5", "map3")


class TrainConfig(BaseModel):
    """What is learned and how; where it runs is said elsewhere.

    Attributes:
        model: the architecture.
        augment: random changes to the training drawings.
        num_epochs: passes over the train split.
        batch_size: drawings a step, over all workers.
        optimizer: `adamw`, `adam` or `sgd` (without momentum).
        lr: the highest learning rate of the schedule.
        schedule: `one_cycle` rises for `warmup` of the steps, then falls along a cosine to `lr` / 10,000;
            `constant` stays at `lr`.
        warmup: share of all steps that the rise takes.
        weight_decay: of matrices; biases and norms have none.
        clip_norm: largest gradient norm; 0 turns clipping off.
        label_smoothing: share of the target spread over all classes.
        seed: of weights, order and augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig(
        rotate=0.2, scale=0.2, shear=0.15, flip=0.5, jitter=1.5, drop_points=0.1, drop_strokes=0.05, prefix=0.1
    )
    num_epochs: int = Field(12, ge=1)
    batch_size: int = Field(256, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(3e-3, gt=0)
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    warmup: float = Field(0.25, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    clip_norm: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.optimizer != "adamw" and self.weight_decay:
            raise ValueError(f"weight_decay={self.weight_decay} is for optimizer=adamw only; set it to 0")
        return self


_PLAIN: dict[str, Any] = {"augment": AugmentConfig(), "label_smoothing": 0.0, "weight_decay": 0.0}
_ADAM: dict[str, Any] = {**_PLAIN, "optimizer": "adam", "schedule": "constant"}

# Named recipes. `seed` and `tutorial` train as published (tutorial in batches of 256, not 8). `homl` is the book's
# network and clipping with one-cycle AdamW: the book's plain SGD at 1e-2 needs many times the epochs (docs/results.md).
RECIPES: dict[str, TrainConfig] = {
    "seed": TrainConfig(model=PRESETS["seed"], lr=1e-3, **_ADAM),
    "homl": TrainConfig(model=PRESETS["homl"], **{**_PLAIN, "weight_decay": 0.01}),
    "tutorial": TrainConfig(model=PRESETS["tutorial"], lr=1e-4, clip_norm=9.0, **_ADAM),
    "conv1d": TrainConfig(model=PRESETS["conv1d"]),
    "base": TrainConfig(model=PRESETS["base"]),
}


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


def lr_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Returns the learning rate of a step (0 is the first).

    Source: the one-cycle policy, Smith and Topin 2017, with PyTorch's start (lr / 25) and end (start / 10,000 here
    lr / 10,000).
    """
    if config.schedule == "constant":
        return config.lr
    peak = config.warmup * total_steps
    if step < peak:
        low, high, way = config.lr / 25, config.lr, 1 - step / peak
    else:
        low, high, way = config.lr / 10_000, config.lr, (step - peak) / max(total_steps - peak, 1)
    return low + (high - low) * (1 + math.cos(math.pi * way)) / 2


class Learner:
    """A model in training, on one rank.

    Args:
        config: what is learned and how.
        num_classes: K.
        total_steps: of the whole run; the schedule spans them.
        device: where it runs.
        rank: of this process; its augmentation and dropout differ from other ranks'.
        wrap: makes the model data parallel; every rank calls it.
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
    ) -> None:
        self.config, self.total_steps, self.rank = config, total_steps, rank
        self.device = device or torch.device("cpu")
        torch.manual_seed(config.seed)  # every rank starts from the same weights
        self.model = StrokeClassifier(config.model, num_classes).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.parallel = wrap(self.model)
        self.steps = 0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Empties the sums of the training metrics."""
        self.model.train()
        self.sums = new_sums(self.device)
        self.clipped = torch.zeros((), device=self.device)
        self.first_bad_step = torch.full((), torch.inf, device=self.device)
        self.epoch_steps = 0

    def step(self, batch: Batch) -> None:
        """Learns from a batch: forward, backward (every rank takes part), clip, update. No host sync."""
        torch.manual_seed((self.config.seed << 40) ^ (self.steps << 12) ^ self.rank)
        batch = batch.to(self.device)
        points, lengths = pad(batch.values, batch.offsets, self.config.model.max_points)
        points, lengths = augment(points, lengths, self.config.augment)
        logits = self.parallel(points, lengths)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self.config.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.steps, self.total_steps, self.config)
        self.optimizer.step()
        self.sums += score(logits.detach(), batch.labels)
        self.clipped += norm > limit
        bad = ~(norm.isfinite() & loss.detach().isfinite())
        self.first_bad_step = torch.where(bad, self.first_bad_step.clamp(max=self.steps), self.first_bad_step)
        self.steps += 1
        self.epoch_steps += 1

    def check_finite(self) -> None:
        """Raises RunError if a loss or gradient of this epoch was not finite. Host sync."""
        first = float(self.first_bad_step)
        if first < math.inf:
            raise RunError(
                f"the loss or its gradient became NaN or infinite in step {first:.0f} on rank {self.rank}; "
                f"try a lower --lr (it is {self.config.lr:g}) or --clip-norm (it is {self.config.clip_norm:g})"
            )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Tensor:
        """Returns the sums over this rank's batches, `(5,)` float64 on the CPU; the caller adds up the ranks."""
        self.model.eval()
        sums = new_sums(self.device)
        for batch in batches:
            moved = batch.to(self.device)
            sums += score(self.model(*pad(moved.values, moved.offsets, self.config.model.max_points)), moved.labels)
        return sums.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Returns what resuming needs besides the weights: the optimizer and the number of steps done."""
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Goes on from what `model.state_dict` and `state_dict` returned."""
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
