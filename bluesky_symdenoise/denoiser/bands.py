"""Application of the network to a whole frame: in bands if it is large, by views, and keeping the frame's total."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.network import MULTIPLE, PriorNet

#: Extra rows on either side of a band, which are thrown away; more than the network's receptive field.
HALO = 256
#: Number of steps towards the total counts of the frame, and counts that damp them.
FLUX_ITERATIONS, FLUX_DAMPING = 3, 1000.0

Prior = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def as_tensor(image: NDArray[np.float64], device: torch.device) -> Tensor:
    """Return (1, 1, y, x) float32 on the device, padded with zeros, the value of an unmeasured pixel."""
    height, width = image.shape
    padded = np.zeros((1, 1, height + -height % MULTIPLE, width + -width % MULTIPLE), np.float32)
    padded[0, 0, :height, :width] = image
    return torch.from_numpy(padded).to(device)


def banded_prior(net: PriorNet, per_pixel: Tensor, per_block: Tensor, *, band_pixels: int) -> tuple[Tensor, Tensor]:
    """Return the network's output; large frames are processed in bands whose overlap exceeds its receptive field."""
    height, width = per_pixel.shape[2:]
    if height * width <= band_pixels:
        ratio, log_kappa, _ = net(per_pixel, per_block)
        return ratio, log_kappa
    band = max(MULTIPLE, HALO, band_pixels // width // MULTIPLE * MULTIPLE - 2 * HALO)
    outputs = []
    for start in range(0, height, band):
        stop = min(height, start + band)
        first, last = max(0, start - HALO), min(height, stop + HALO)
        *parts, _ = net(per_pixel[:, :, first:last], per_block[:, :, first // 2 : last // 2])
        outputs.append([part[:, :, start - first : stop - first] for part in parts])
    ratio, log_kappa = (torch.cat(parts, dim=2) for parts in zip(*outputs, strict=True))
    return ratio, log_kappa


def flux_kept(total: Tensor, n: Tensor, shape: Tensor, own_n: Tensor, kappa: Tensor, prior_mean: Tensor) -> Tensor:
    """Return the prior mean times the one factor that makes the frame's expected counts add up to its counts.

    The network's bias is a fraction of a percent of the total, which the frame itself knows better; the factor is
    damped if a frame has not many more than a thousand counts.
    """
    for _ in range(FLUX_ITERATIONS):
        expected = (n * shape / (own_n + kappa / prior_mean)).sum(dtype=torch.float64)
        prior_mean = prior_mean * ((total + FLUX_DAMPING) / (expected + FLUX_DAMPING)).float()
    return prior_mean


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
