"""Random changes to a padded batch that keep its classes: training only, never inside the model.

Everything runs on the device of the batch, without host syncs, from PyTorch's global generator, which the engine seeds
at each step. Shapes: B drawings, T points.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

WAVES = 2  # of a warp
WAVE_PIXELS = 160  # the shortest wave, about two thirds of the box


class AugmentConfig(BaseModel):
    """How strongly drawings are changed. 0 turns a change off.

    Attributes:
        rotate: largest angle, in radians, either way.
        scale: largest relative change of the width and, independently, of the height.
        shear: largest shear, either way.
        flip: probability of a mirror image (left and right).
        warp: largest displacement by a smooth wave over the whole drawing, in pixels.
        stroke_shift: standard deviation of each stroke's own shift, in pixels.
        stroke_scale: largest relative change of each stroke's own size, about its middle.
        stroke_rotate: largest angle of each stroke about its middle, in radians, either way.
        jitter: standard deviation of noise on each position, in pixels.
        drop_points: probability of losing each point inside a stroke, but a drawing's first.
        drop_strokes: probability of losing each stroke; a drawing keeps at least one.
        prefix: probability that a drawing is cut to a random beginning, so that the model learns to guess early.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: float = Field(0.0, ge=0, le=3.15)
    scale: float = Field(0.0, ge=0, lt=1)
    shear: float = Field(0.0, ge=0, le=1)
    flip: float = Field(0.0, ge=0, le=1)
    warp: float = Field(0.0, ge=0)
    stroke_shift: float = Field(0.0, ge=0)
    stroke_scale: float = Field(0.0, ge=0, lt=1)
    stroke_rotate: float = Field(0.0, ge=0, le=3.15)
    jitter: float = Field(0.0, ge=0)
    drop_points: float = Field(0.0, ge=0, lt=1)
    drop_strokes: float = Field(0.0, ge=0, lt=1)
    prefix: float = Field(0.0, ge=0, le=1)


def augment(points: Tensor, lengths: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Returns changed `(B, T, 3)` float32 points and `(B,)` lengths; nothing moves if every change is off."""
    if config == AugmentConfig():
        return points, lengths
    real = torch.arange(points.shape[1], device=points.device) < lengths[:, None]  # (B, T)
    pen_up = points[..., 2].float()
    stroke = (pen_up.cumsum(1) - pen_up).long()  # (B, T), which stroke a point belongs to
    position = points[..., :2].float().cumsum(1)  # (B, T, 2)
    position = _transform(position, config)
    if config.warp:
        position = position + _wave(position, config.warp)
    if config.stroke_shift or config.stroke_scale or config.stroke_rotate:
        position = _move_strokes(position, stroke, real, config)
    if config.jitter:
        position = position + torch.randn_like(position) * config.jitter
    keep = _choose(pen_up, stroke, real, lengths, config)

    order = (~keep).long().argsort(dim=1, stable=True)  # the kept points first, in their order
    lengths = keep.sum(1)
    kept = torch.arange(points.shape[1], device=points.device) < lengths[:, None]
    position = position.gather(1, order[..., None].expand(-1, -1, 2))
    step = position.diff(dim=1, prepend=torch.zeros_like(position[:, :1]))
    pen_up = pen_up.gather(1, order)
    return torch.cat([step, pen_up[..., None]], dim=2) * kept[..., None], lengths


def _symmetric(limit: float, *shape: int, device: torch.device) -> Tensor:
    """Returns numbers between `-limit` and `limit`."""
    return (torch.rand(*shape, device=device) * 2 - 1) * limit


def _transform(position: Tensor, config: AugmentConfig) -> Tensor:
    """Returns `(B, T, 2)` positions after one linear map for each drawing."""
    if not (config.rotate or config.scale or config.shear or config.flip):
        return position
    batch, device = len(position), position.device
    angle, shear = (_symmetric(limit, batch, device=device) for limit in (config.rotate, config.shear))
    width, height = (1 + _symmetric(config.scale, batch, device=device) for _ in range(2))
    width = torch.where(torch.rand(batch, device=device) < config.flip, -width, width)
    cos, sin = angle.cos(), angle.sin()
    rows = [width * cos, height * (shear * cos - sin), width * sin, height * (shear * sin + cos)]
    return position @ torch.stack(rows, dim=1).view(batch, 2, 2).transpose(1, 2)


def _wave(position: Tensor, limit: float) -> Tensor:
    """Returns `(B, T, 2)` displacements: plane waves of random direction, length, phase and size."""
    batch, device = len(position), position.device
    total = torch.zeros_like(position)
    for _ in range(WAVES):
        direction = _symmetric(1 / WAVE_PIXELS, batch, 2, 1, device=device)
        phase = _symmetric(0.5, batch, 1, device=device)
        size = _symmetric(limit, batch, 1, 2, device=device)
        total += size * torch.sin(2 * math.pi * ((position @ direction)[..., 0] + phase))[..., None]
    return total


def _move_strokes(position: Tensor, stroke: Tensor, real: Tensor, config: AugmentConfig) -> Tensor:
    """Returns `(B, T, 2)` positions, each stroke turned and scaled about its middle, and shifted."""
    batch, steps = stroke.shape
    device = position.device
    of = stroke[..., None].expand(-1, -1, 2)  # (B, T, 2)
    weight = real[..., None].to(position.dtype).expand(-1, -1, 2)
    count = torch.zeros_like(position).scatter_add_(1, of, weight)
    middle = (torch.zeros_like(position).scatter_add_(1, of, position * weight) / count.clamp(min=1)).gather(1, of)
    angle = _symmetric(config.stroke_rotate, batch, steps, device=device).gather(1, stroke)
    size = 1 + _symmetric(config.stroke_scale, batch, steps, device=device).gather(1, stroke)
    shift = (torch.randn(batch, steps, 2, device=device) * config.stroke_shift).gather(1, of)
    x, y = ((position - middle) * size[..., None]).unbind(2)
    cos, sin = angle.cos(), angle.sin()
    return middle + shift + torch.stack([cos * x - sin * y, sin * x + cos * y], dim=2)


def _choose(pen_up: Tensor, stroke: Tensor, real: Tensor, lengths: Tensor, config: AugmentConfig) -> Tensor:
    """Returns which points stay, `(B, T)`; at least one of each drawing."""
    batch, steps = stroke.shape
    device = stroke.device
    step = torch.arange(steps, device=device)
    keep = real
    if config.drop_points:
        # A stroke's last point carries its pen_up and stays; so does a drawing's first.
        inner = (pen_up == 0) & (step > 0)
        keep = keep & ~(inner & (torch.rand(batch, steps, device=device) < config.drop_points))
    if config.drop_strokes:
        lost = torch.rand(batch, steps, device=device) < config.drop_strokes
        survives = keep & ~lost.gather(1, stroke)
        keep = torch.where(survives.any(1, keepdim=True), survives, keep)
    if config.prefix:
        share = torch.where(torch.rand(batch, device=device) < config.prefix, torch.rand(batch, device=device), 1.0)
        shown = (share * lengths).ceil().clamp(min=1)
        beginning = keep & (step < shown[:, None])
        keep = torch.where(beginning.any(1, keepdim=True), beginning, keep)
    return keep
