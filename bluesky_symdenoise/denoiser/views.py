"""Average of the network's output over turned and mirrored views of a frame."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

Prior = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def averaged(prior: Prior, per_pixel: Tensor, per_block: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Return the output of ``prior`` or, with 8 views, its mean over quarter turns and their mirror images.

    Prior means and logarithms of shapes are averaged.

    Returns
    -------
    tuple of Tensor
        Log of the prior's mean over the local mean, and log of its shape; (batch, 1, y, x) each.
    """
    if views == 1:
        return prior(per_pixel, per_block)
    mean, log_kappa = torch.zeros(()), torch.zeros(())
    for turns, mirrored in product(range(4), (False, True)):

        def turned(image: Tensor, turns: int = turns, mirrored: bool = mirrored) -> Tensor:
            image = torch.rot90(image, turns, (2, 3))
            return (image.flip(2) if mirrored else image).contiguous()

        def back(image: Tensor, turns: int = turns, mirrored: bool = mirrored) -> Tensor:
            return torch.rot90(image.flip(2) if mirrored else image, -turns, (2, 3))

        ratio, shape = prior(turned(per_pixel), turned(per_block))
        mean, log_kappa = mean + torch.exp(back(ratio)) / views, log_kappa + back(shape) / views
    return torch.log(mean), log_kappa
