"""Drawings of different lengths as tensors: values and offsets, padded where the model runs.

Shapes: B drawings, T points of the longest drawing, N points of all drawings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Drawings of different lengths, laid end to end.

    Attributes:
        values: `(N, 3)` int16, the points of all drawings.
        offsets: `(B + 1,)` int64 on the CPU; drawing b is `values[offsets[b]:offsets[b + 1]]`. It stays on the host so
            that slicing and padding never wait for the device.
        labels: `(B,)` int64 class indices.
    """

    values: Tensor
    offsets: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def slice(self, start: int, stop: int) -> "Batch":
        """Returns the drawings `start..stop` as views."""
        offsets = self.offsets[start : stop + 1]
        values = self.values[int(offsets[0]) : int(offsets[-1])]
        return Batch(values, offsets - offsets[0], self.labels[start:stop])

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with values and labels on `device`."""
        if device.type == "cpu":
            return self
        values = self.values.pin_memory().to(device, non_blocking=True)
        return Batch(values, self.offsets, self.labels.pin_memory().to(device, non_blocking=True))

    def prefix(self, fraction: float) -> "Batch":
        """Returns the first `ceil(fraction * length)` points of each drawing: what had been drawn by then."""
        lengths = self.offsets.diff()
        kept = torch.ceil(lengths * fraction).long().clamp(min=1)
        drawing = torch.repeat_interleave(torch.arange(len(self)), lengths)
        position = torch.arange(int(self.offsets[-1])) - self.offsets[drawing]
        mask = (position < kept[drawing]).to(self.values.device)
        return Batch(self.values[mask], torch.cat([kept.new_zeros(1), kept.cumsum(0)]), self.labels)


def pad(values: Tensor, offsets: Tensor, max_points: int) -> tuple[Tensor, Tensor]:
    """Returns `(B, T, 3)` points, zero past the end of each drawing, and `(B,)` lengths, both where `values` is.

    T is the longest length, `max_points` at most; points past that are cut off.
    """
    lengths = offsets.diff().clamp(max=max_points)
    step = torch.arange(int(lengths.max()), device=values.device)  # (T,)
    lengths = lengths.to(values.device, non_blocking=True)
    starts = offsets[:-1].to(values.device, non_blocking=True)
    inside = step < lengths[:, None]  # (B, T)
    index = torch.where(inside, starts[:, None] + step, 0)
    return values[index] * inside[..., None], lengths
