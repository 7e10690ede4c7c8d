"""The posterior of a frame as algorithm 6 computes it, with numpy up to the mates: what others are tested by."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_symdenoise.denoiser.bands import as_tensor, averaged, banded_prior, flux_kept
from bluesky_symdenoise.denoiser.choices import Choices
from bluesky_symdenoise.denoiser.features import features
from bluesky_symdenoise.denoiser.network import PriorNet, prior
from bluesky_symdenoise.denoiser.sums import agreeing
from bluesky_symdenoise.physics.fold import gated_mates
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.symmetry import Symmetry


def law_posterior(
    net: PriorNet,
    frame: Frame,
    symmetry: Symmetry,
    choices: Choices,
) -> NDArray[np.float32]:
    """Return expected counts and standard deviation, (2, y, x).

    Parameters
    ----------
    net
        The network, on its device.
    """
    device = next(net.parameters()).device
    mates = gated_mates(frame, symmetry)
    y, n, mate_y, mate_n = (
        as_tensor(image, device) for image in (frame.counts, frame.exposure, mates.counts, mates.exposure)
    )
    per_pixel, per_block, mean = features(y, n, mate_y, mate_n)
    ratio, log_kappa = averaged(
        partial(banded_prior, net, band_pixels=choices.part_pixels), per_pixel, per_block, choices.views
    )
    own_y, own_n = net.own(y, n)
    mean, kappa = prior(ratio, log_kappa, mean, own_y, own_n)
    shape = own_y + kappa
    mean = flux_kept(y.sum(dtype=torch.float64), n, shape, own_n, kappa, mean)
    if choices.agree:
        mean = agreeing(y, n, own_y, own_n, kappa, mean, choices.ring)
    rate = own_n + kappa / mean
    # A pixel seen only by its mates is returned at the median exposure, which is 1.
    exposure = torch.where(n > 0, n, 1.0)
    result = torch.cat([shape / rate, torch.sqrt(shape) / rate], dim=1) * exposure
    result = torch.where((n + mate_n) > 0, result, torch.nan)
    height, width = frame.counts.shape
    out: NDArray[np.float32] = result[0, :, :height, :width].cpu().numpy()
    return out
