"""Random changes to a padded batch that keep its classes: training only, never inside the model.

Everything runs on the device of the batch, without host syncs, from PyTorch's global generator, which the engine seeds
at each step. Shapes: B drawings, T points.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class AugmentConfig(BaseModel):
    """How strongly drawings are changed. 0 turns a change off.

    Attributes:
        rotate: largest angle, in radians, either way.
        scale: largest relative change of the width and, independently, of the height.
        shear: largest shear, either way.
        flip: probability of a mirror image (left and right).
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
    jitter: float = Field(0.0, ge=0)
    drop_points: float = Field(0.0, ge=0, lt=1)
    drop_strokes: float = Field(0.0, ge=0, lt=1)
    prefix: float = Field(0.0, ge=0, le=1)


def augment(points: Tensor, lengths: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Returns changed `(B, T, 3)` float32 points and `(B,)` lengths; nothing moves if every change is off."""
    if config == AugmentConfig():
        return points, lengths
    batch, steps, _ = points.shape
    device = points.device

    def symmetric(limit: float) -> Tensor:
        return (torch.rand(batch, device=device) * 2 - 1) * limit

    real = torch.arange(steps, device=device) < lengths[:, None]  # (B, T)
    position = points[..., :2].float().cumsum(1)  # (B, T, 2)
    if config.rotate or config.scale or config.shear or config.flip:
        angle, shear = symmetric(config.rotate), symmetric(config.shear)
        width, height = 1 + symmetric(config.scale), 1 + symmetric(config.scale)
        width = torch.where(torch.rand(batch, device=device) < config.flip, -width, width)
        cos, sin = angle.cos(), angle.sin()
        rows = [width * cos, height * (shear * cos - sin), width * sin, height * (shear * sin + cos)]
        matrix = torch.stack(rows, dim=1).view(batch, 2, 2)
        position = position @ matrix.transpose(1, 2)
    if config.jitter:
        position = position + torch.randn_like(position) * config.jitter

    pen_up = points[..., 2].float()
    keep = real
    if config.drop_points:
        # A stroke's last point carries its pen_up and stays; so does a drawing's first.
        inner = (pen_up == 0) & (torch.arange(steps, device=device) > 0)
        keep = keep & ~(inner & (torch.rand(batch, steps, device=device) < config.drop_points))
    if config.drop_strokes:
        stroke = (pen_up.cumsum(1) - pen_up).long()  # (B, T), which stroke a point belongs to
        lost = torch.rand(batch, steps, device=device) < config.drop_strokes
        survives = keep & ~lost.gather(1, stroke)
        keep = torch.where(survives.any(1, keepdim=True), survives, keep)
    if config.prefix:
        share = torch.where(torch.rand(batch, device=device) < config.prefix, torch.rand(batch, device=device), 1.0)
        shown = (share * lengths).ceil().clamp(min=1)
        beginning = keep & (torch.arange(steps, device=device) < shown[:, None])
        keep = torch.where(beginning.any(1, keepdim=True), beginning, keep)

    order = (~keep).long().argsort(dim=1, stable=True)  # the kept points first, in their order
    lengths = keep.sum(1)
    kept = torch.arange(steps, device=device) < lengths[:, None]
    position = position.gather(1, order[..., None].expand(-1, -1, 2))
    step = position.diff(dim=1, prepend=torch.zeros_like(position[:, :1]))
    pen_up = pen_up.gather(1, order)
    return torch.cat([step, pen_up[..., None]], dim=2) * kept[..., None], lengths
