"""The recipe: what is learned and how, as one configuration; named recipes; the learning rate of each step."""

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sketchray.augment import AugmentConfig
from sketchray.model import PRESETS, ModelConfig


class TrainConfig(BaseModel):
    """What is learned and how; where it runs is said elsewhere.

    Attributes:
        model: the architecture.
        augment: random changes to the training drawings.
        train_split: what is learned from. `all` is for a recipe that is settled: the `val_` metrics are then of
            drawings that were learned.
        num_epochs: passes over it.
        batch_size: drawings an update, over all workers.
        gradient_accumulation_steps: parts in which a worker takes its share of a batch, one after the other: less
            memory, the same update (but for batch norm, whose statistics are then of a part).
        precision: of the forward and backward pass in training; weights, features and evaluation are float32.
        optimizer: `adamw`, `adam` or `sgd` (without momentum).
        lr: the highest learning rate of the schedule.
        schedule: `one_cycle` rises along a cosine for `warmup` of the steps, then falls along one to `lr` / 10,000;
            `cosine` rises linearly for `warmup` of the steps, then falls along a cosine to 0; `constant` stays at `lr`.
        warmup: share of all steps that the rise takes.
        weight_decay: of matrices; biases and norms have none.
        clip_norm: largest norm of the whole gradient; 0 turns it off.
        clip_value: largest size of each number of the gradient; 0 turns it off.
        clip_adaptive: largest norm of a unit's gradient, as a share of the norm of its weights; 0 turns it off.
        ema_decay: of the moving average of the weights that is validated and kept; less in the first steps; 0 keeps the
            last weights.
        label_smoothing: share of the target spread over all classes.
        mixup: parameter of the beta distribution from which a batch's share of mixing is drawn; 0 mixes nothing.
        distillation_weight: share of the loss that is the cross-entropy with what the teachers believe, where there are
            any.
        temperature: of the probabilities; 0 chooses the one of the lowest `val_loss`. With `train_split=all` give the
            one that the same recipe got on the train split.
        class_weights: `balanced` weighs each class by the inverse of its share of the drawings.
        patience: epochs without a better `val_top1` after which training stops; 0 never stops early.
        seed: of weights, order and augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig(
        rotate=0.2,
        scale=0.2,
        shear=0.15,
        flip=0.5,
        warp=5.0,
        stroke_shift=3.0,
        stroke_scale=0.1,
        stroke_rotate=0.1,
        jitter=1.5,
        drop_points=0.1,
        drop_strokes=0.05,
        prefix=0.35,
    )
    train_split: Literal["train", "all"] = "train"
    num_epochs: int = Field(12, ge=1)
    batch_size: int = Field(256, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(3e-3, gt=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = Field(0.25, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    clip_norm: float = Field(1.0, ge=0)
    clip_value: float = Field(0.0, ge=0)
    clip_adaptive: float = Field(0.0, ge=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0)
    distillation_weight: float = Field(0.7, ge=0, le=1)
    temperature: float = Field(0.0, ge=0)
    class_weights: Literal["none", "balanced"] = "none"
    patience: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.optimizer != "adamw" and self.weight_decay:
            raise ValueError(f"weight_decay={self.weight_decay} is for optimizer=adamw only; set it to 0")
        return self


_PLAIN: dict[str, Any] = {
    "augment": AugmentConfig(),
    "label_smoothing": 0.0,
    "weight_decay": 0.0,
    "ema_decay": 0.0,
}
_OURS: dict[str, Any] = {"num_epochs": 36, "weight_decay": 0.1, "mixup": 0.4}
_ADAM: dict[str, Any] = {**_PLAIN, "optimizer": "adam", "schedule": "constant"}

# Named recipes. `seed` and `tutorial` train as published (tutorial in batches of 256, not 8). `homl` is the book's
# network and clipping with one-cycle AdamW: the book's plain SGD at 1e-2 needs many times the epochs (docs/results.md).
# `student` is for `--teachers`, which bear more change of the drawings than labels do.
RECIPES: dict[str, TrainConfig] = {
    "seed": TrainConfig(model=PRESETS["seed"], lr=1e-3, **_ADAM),
    "homl": TrainConfig(model=PRESETS["homl"], **{**_PLAIN, "weight_decay": 0.01}),
    "tutorial": TrainConfig(model=PRESETS["tutorial"], lr=1e-4, clip_norm=9.0, **_ADAM),
    "conv1d": TrainConfig(model=PRESETS["conv1d"], **_OURS),
    "gru": TrainConfig(model=PRESETS["gru"], **_OURS),
    "base": TrainConfig(model=PRESETS["base"], **_OURS),
    "student": TrainConfig(
        model=PRESETS["base"].model_copy(update={"dropout": 0.3}),
        augment=AugmentConfig(
            rotate=0.25,
            scale=0.25,
            shear=0.2,
            flip=0.5,
            warp=8.0,
            stroke_shift=4.0,
            stroke_scale=0.15,
            stroke_rotate=0.15,
            jitter=2.0,
            drop_points=0.15,
            drop_strokes=0.08,
            prefix=0.5,
        ),
        **{**_OURS, "num_epochs": 44},
    ),
}


def lr_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Returns the learning rate of a step (0 is the first).

    Source: the one-cycle policy, Smith and Topin 2017, with PyTorch's start (lr / 25) and end (start / 10,000 here
    lr / 10,000); linear warm-up before a cosine, Goyal et al. 2017 and Loshchilov and Hutter 2016.
    """
    if config.schedule == "constant":
        return config.lr
    peak = config.warmup * total_steps
    one_cycle = config.schedule == "one_cycle"
    if step < peak:
        if not one_cycle:
            return config.lr * (step + 1) / (peak + 1)
        low, way = config.lr / 25, 1 - step / peak
    else:
        low, way = config.lr / 10_000 if one_cycle else 0.0, (step - peak) / max(total_steps - peak, 1)
    return low + (config.lr - low) * (1 + math.cos(math.pi * way)) / 2
