"""The model: the whole function from raw points to logits.

One architecture, configured: conv stack (may be empty) -> LSTM or GRU stack (may be empty) -> masked pooling -> linear.
Scaling, features and masking are inside, in float32, so that training, evaluation, ONNX export and serving cannot
disagree. Padding never changes a logit.

Shapes: B drawings, T points (shorter after a stride), F features, C channels, H hidden, K classes.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

Pooling = Literal["last", "mean", "max", "sum", "attention"]


class ModelConfig(BaseModel):
    """The architecture.

    Attributes:
        features: `deltas` are 3 a point (dx, dy, pen_up); `rich` are 10 (see `point_features`).
        max_points: points after these are cut off.
        conv_channels: outputs, one entry a convolution.
        conv_kernels: widths in points, one entry a convolution, odd.
        conv_strides: steps in points, one entry a convolution.
        conv_activation: after each convolution.
        conv_norm: `batch` counts real points only; `layer` normalises each point by itself.
        cell: of the recurrent stack.
        rnn_layers: of the recurrent stack; 0 for none.
        rnn_size: H, for one direction.
        bidirectional: whether a second direction reads from a drawing's end.
        pooling: one or several; their results are concatenated.
        dropout: between recurrent layers and before the linear layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: Literal["deltas", "rich"] = "rich"
    max_points: int = Field(256, ge=1)
    conv_channels: tuple[int, ...] = (128, 192, 256)
    conv_kernels: tuple[int, ...] = (5, 5, 5)
    conv_strides: tuple[int, ...] = (1, 2, 2)
    conv_activation: Literal["relu", "gelu", "linear"] = "gelu"
    conv_norm: Literal["none", "batch", "layer"] = "layer"
    cell: Literal["lstm", "gru"] = "lstm"
    rnn_layers: int = Field(1, ge=0)
    rnn_size: int = Field(256, ge=1)
    bidirectional: bool = True
    pooling: tuple[Pooling, ...] = ("attention", "mean", "max")
    dropout: float = Field(0.4, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        shape = {len(self.conv_channels), len(self.conv_kernels), len(self.conv_strides)}
        if len(shape) != 1:
            raise ValueError(
                f"conv_channels, conv_kernels and conv_strides need one entry a layer each, "
                f"got {len(self.conv_channels)}, {len(self.conv_kernels)} and {len(self.conv_strides)}"
            )
        if any(kernel % 2 == 0 or kernel < 1 for kernel in self.conv_kernels):
            raise ValueError(f"conv_kernels must be odd, so that a layer stays centred, got {self.conv_kernels}")
        if any(number < 1 for number in self.conv_channels + self.conv_strides):
            raise ValueError("conv_channels and conv_strides must be at least 1")
        if not self.conv_channels and not self.rnn_layers:
            raise ValueError("the model needs at least one convolution or one recurrent layer")
        if not self.pooling or len(set(self.pooling)) != len(self.pooling):
            raise ValueError(f"pooling needs one or several different names, got {self.pooling}")
        return self


# Named architectures. Sources: `seed`, the usual answer to the exercise; `homl`, ageron/handson-ml3 chapter 15,
# exercise 9 (its convolutions do not pad at the ends; ours do, so that a drawing of one point has an output);
# `tutorial`, tensorflow/models recurrent_quickdraw. Parameter counts are tested.
PRESETS: dict[str, ModelConfig] = {
    "seed": ModelConfig(
        features="deltas",
        conv_channels=(),
        conv_kernels=(),
        conv_strides=(),
        rnn_layers=1,
        rnn_size=256,
        bidirectional=False,
        pooling=("last",),
        dropout=0.0,
    ),
    "homl": ModelConfig(
        features="deltas",
        max_points=100,
        conv_channels=(32, 64, 128),
        conv_kernels=(5, 5, 3),
        conv_strides=(2, 2, 2),
        conv_activation="relu",
        conv_norm="batch",
        rnn_layers=2,
        rnn_size=128,
        bidirectional=False,
        pooling=("last",),
        dropout=0.0,
    ),
    "tutorial": ModelConfig(
        features="deltas",
        conv_channels=(48, 64, 96),
        conv_kernels=(5, 5, 3),
        conv_strides=(1, 1, 1),
        conv_activation="linear",
        conv_norm="none",
        rnn_layers=3,
        rnn_size=128,
        pooling=("sum",),
        dropout=0.3,
    ),
    "conv1d": ModelConfig(
        conv_channels=(96, 128, 192, 256),
        conv_kernels=(7, 5, 5, 5),
        conv_strides=(1, 2, 1, 2),
        rnn_layers=0,
    ),
    "gru": ModelConfig(cell="gru"),
    "base": ModelConfig(),
}


def real_points(lengths: Tensor, steps: int) -> Tensor:
    """Returns the `(B, T)` mask that is true on the points of each drawing."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def point_features(points: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Returns `(B, T, F)` features that do not change when a drawing is moved or scaled.

    The longer side of a drawing's bounding box is 1. `deltas`: dx, dy, pen_up. `rich` adds: x and y from the centre of
    the box, pen_down (the first point of a stroke), step length, the step's direction (cosine and sine), and the
    length drawn so far.
    """
    pen_up = points[..., 2]
    first = torch.zeros_like(points[:, :1, :2])
    step = torch.cat([first, points[:, 1:, :2]], dim=1)  # where a drawing lies is not part of it
    position = step.cumsum(1)
    far = torch.finfo(position.dtype).max
    low = position.masked_fill(~mask[..., None], far).amin(1, keepdim=True)  # (B, 1, 2)
    high = position.masked_fill(~mask[..., None], -far).amax(1, keepdim=True)
    side = (high - low).amax(-1, keepdim=True).clamp(min=1e-6)  # (B, 1, 1)
    step = step / side
    if kind == "deltas":
        features = [step, pen_up[..., None]]
    else:
        position = (position - (low + high) / 2) / side
        # (B, T). The root has no gradient at 0; a step of one pixel is 1.5e-5 squared.
        length = step.square().sum(-1).clamp(min=1e-8).sqrt()
        pen_down = torch.cat([torch.ones_like(pen_up[:, :1]), pen_up[:, :-1]], dim=1)
        drawn = (length * (1 - pen_down)).cumsum(1)
        others = [pen_up, pen_down, length, step[..., 0] / length, step[..., 1] / length, drawn / 4]
        features = [position, step, torch.stack(others, dim=-1)]
    return torch.cat(features, dim=-1) * mask[..., None]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics count real points only, so that padding does not dilute them."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Returns `(B, C, T)` normalised by channel; `mask` is `(B, T)`."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        mean, var = self.running_mean, self.running_var
        if self.training:
            weight = mask[:, None].to(x.dtype)
            count = weight.sum()
            mean = (x * weight).sum((0, 2)) / count
            var = ((x - mean[:, None]).square() * weight).sum((0, 2)) / count
            with torch.no_grad():
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight / (var + self.eps).sqrt()
        return (x - mean[:, None]) * scale[:, None] + self.bias[:, None]


class ConvLayer(nn.Module):
    """Convolution, normalisation, activation. Its output at a real point sees zeros past the drawing's end."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, kernel, stride=stride, padding=kernel // 2)
        norms: dict[str, type[nn.Module]] = {"none": nn.Identity, "batch": MaskedBatchNorm, "layer": nn.LayerNorm}
        activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "linear": nn.Identity}
        self.norm = norms[config.conv_norm](channels)
        self.activation = activations[config.conv_activation]()
        self.stride = stride

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(B, T', C)` and the new lengths, `ceil(length / stride)`."""
        x = self.conv(x.transpose(1, 2))  # (B, C, T')
        lengths = (lengths + self.stride - 1) // self.stride
        mask = real_points(lengths, x.shape[2])
        if isinstance(self.norm, MaskedBatchNorm):
            x = self.norm(x, mask).transpose(1, 2)
        else:
            x = self.norm(x.transpose(1, 2))
        return self.activation(x) * mask[..., None], lengths


class RecurrentLayer(nn.Module):
    """One LSTM or GRU layer. The backward one reads each drawing reversed within its own length."""

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        cell: type[nn.LSTM | nn.GRU] = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.ahead = cell(inputs, config.rnn_size, batch_first=True)
        self.back = cell(inputs, config.rnn_size, batch_first=True) if config.bidirectional else None

    def forward(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """Returns `(B, T, H)`, or `(B, T, 2H)` if bidirectional, zero on padding."""
        ahead: Tensor = self.ahead(x)[0]
        if self.back is None:
            return ahead * mask[..., None]
        step = torch.arange(x.shape[1], device=x.device)
        mirror = torch.where(mask, lengths[:, None] - 1 - step, step)[..., None]  # (B, T, 1), its own inverse
        back = self.back(x.gather(1, mirror.expand(-1, -1, x.shape[2])))[0]
        back = back.gather(1, mirror.expand(-1, -1, back.shape[2]))
        return torch.cat([ahead, back], dim=2) * mask[..., None]


class Pool(nn.Module):
    """Makes one vector of the real points, in one or several ways side by side."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.kinds = config.pooling
        self.channels = channels * len(self.kinds)
        self.one_way = channels // 2 if config.rnn_layers and config.bidirectional else 0
        self.score = nn.Linear(channels, 1, bias=False) if "attention" in self.kinds else None

    def forward(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """Returns `(B, C * kinds)` from `(B, T, C)`."""
        pooled = []
        for kind in self.kinds:
            if kind == "last":
                last = x.gather(1, (lengths - 1)[:, None, None].expand(-1, -1, x.shape[2]))[:, 0]
                if self.one_way:  # the backward layer ends on the first point
                    last = torch.cat([last[:, : self.one_way], x[:, 0, self.one_way :]], dim=1)
                pooled.append(last)
            elif kind == "max":
                pooled.append(x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(1))
            elif kind == "attention":
                assert self.score is not None
                score = self.score(x)[..., 0].masked_fill(~mask, torch.finfo(x.dtype).min)
                pooled.append((score.softmax(1)[..., None] * x).sum(1))
            else:
                total = x.sum(1)  # padding is zero
                pooled.append(total if kind == "sum" else total / lengths[:, None])
        return torch.cat(pooled, dim=1)


class StrokeClassifier(nn.Module):
    """Raw points of drawings to logits, as `ModelConfig` says.

    Attributes:
        temperature: what logits are divided by, outside of training, so that probabilities mean what they say; it
            changes no guess. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """

    temperature: Tensor

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        channels = {"deltas": 3, "rich": 10}[config.features]
        convs, rnns = [], []
        for width, kernel, stride in zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True):
            convs.append(ConvLayer(channels, width, kernel, stride, config))
            channels = width
        for _ in range(config.rnn_layers):
            rnns.append(RecurrentLayer(channels, config))
            channels = config.rnn_size * (2 if config.bidirectional else 1)
        self.convs, self.rnns = nn.ModuleList(convs), nn.ModuleList(rnns)
        self.pool = Pool(channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.pool.channels, num_classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, points: Tensor, lengths: Tensor, mix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Returns `(B, K)` logits.

        Args:
            points: `(B, T, 3)` `(dx, dy, pen_up)` in pixels, any number type; what lies past a length is ignored.
            lengths: `(B,)`, 1 at least.
            mix: for training: a share, and `(B,)` the drawing that each is mixed with; its pooled vector is then that
                share of its own and the rest of the other's. Source: Verma et al. 2019, "Manifold mixup".
        """
        points = points[:, : self.config.max_points].float()  # (B, T, 3)
        lengths = lengths.clamp(max=self.config.max_points)
        mask = real_points(lengths, points.shape[1])
        x = point_features(points, mask, self.config.features)  # (B, T, F)
        for conv in self.convs:
            x, lengths = conv(x, lengths)
        mask = real_points(lengths, x.shape[1])
        for index, rnn in enumerate(self.rnns):
            x = rnn(self.dropout(x) if index else x, lengths, mask)
        pooled = self.pool(x, lengths, mask)
        if mix is not None:
            share, other = mix
            pooled = share * pooled + (1 - share) * pooled[other]
        logits: Tensor = self.head(self.dropout(pooled))
        return logits if self.training else logits / self.temperature
