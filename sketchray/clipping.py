"""Gradient clipping: by value, adaptive, by norm, in that order; each may be off."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

LEAST_NORM = 1e-3  # of a unit's weights, so that one that starts at zero can learn. Source: Brock et al. 2021


def clip(model: nn.Module, *, norm: float, value: float, adaptive: float) -> tuple[Tensor, Tensor]:
    """Clips the gradients in place. No host sync.

    Args:
        model: its last linear layer, `head`, is left out of adaptive clipping, as Brock et al. do.
        norm: largest norm of the whole gradient; 0 is off.
        value: largest size of each number; 0 is off.
        adaptive: largest norm of a unit's gradient as a share of that of its weights; 0 is off.

    Returns:
        The norm of the whole gradient before any clipping, `()`, and whether anything was clipped, `()` bool.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    before = nn.utils.get_total_norm(gradients)
    clipped = before > (norm or math.inf)
    if value:
        largest = torch.stack([gradient.abs().amax() for gradient in gradients]).amax()
        clipped = clipped | (largest > value)
        nn.utils.clip_grad_value_(parameters, value)
    if adaptive:
        head = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("head.")}
        units = clip_adaptive((parameter for parameter in parameters if id(parameter) not in head), adaptive)
        clipped = clipped | units
    if norm:
        after = nn.utils.get_total_norm(gradients) if value or adaptive else before
        nn.utils.clip_grads_with_norm_(parameters, norm, after)
    return before, clipped


def clip_adaptive(parameters: Iterable[Tensor], share: float) -> Tensor:
    """Clips each unit's gradient to a share of the norm of its weights; returns whether any was, `()` bool.

    A unit is a row of a matrix, an output channel of a convolution, or a whole bias.

    Source: adaptive gradient clipping, Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without
    Normalization", equation 3.
    """
    clipped = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        dims = tuple(range(1, parameter.ndim)) or (0,)
        weight = parameter.detach().norm(dim=dims, keepdim=True).clamp(min=LEAST_NORM)
        size = gradient.norm(dim=dims, keepdim=True)
        factor = (share * weight / size.clamp(min=1e-12)).clamp(max=1.0)
        gradient.mul_(factor)
        clipped.append((factor < 1).any())
    return torch.stack(clipped).any()
