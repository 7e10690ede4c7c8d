"""Photons of a frame and of other rows as those of one longer exposure, as far as the network trusts them."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.bands import FLUX_DAMPING
from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.gate import Evidence
from bluesky_symdenoise.denoiser.network import trusted


def pooled(own: Evidence, lent: Evidence) -> Evidence:
    """Return the photons of a frame and of other rows together."""
    return Evidence(own.counts + lent.counts, own.exposure + lent.exposure)


def trusting(own: Evidence, lent: Evidence, logit: Tensor) -> Evidence:
    """Return the photons that are used, given the network's trust in other rows."""
    share = trusted(logit)
    return Evidence(torch.addcmul(own.counts, share, lent.counts), torch.addcmul(own.exposure, share, lent.exposure))


def total_kept(own: Evidence, used: Evidence, kappa: Tensor, weight: Tensor, crew: Crew) -> Tensor:
    """Return the factor with which a frame's expected counts add up to its own counts, (batch, 1, 1).

    Parameters
    ----------
    own, used
        Counts and exposures without and with those of other rows.
    kappa, weight
        Shape of the prior, and the exposure that it is worth.
    """

    def sums(part: slice) -> Tensor:
        rate = (used.counts[:, part] + kappa[:, part]) / (used.exposure[:, part] + weight[:, part])
        exposure = own.exposure[:, part]
        # 0 / 0 where nothing was measured.
        expected = torch.where(exposure > 0, exposure * rate, 0.0)
        both = torch.stack([own.counts[:, part], expected])
        return both.sum(dim=(2, 3), keepdim=True, dtype=torch.float64)

    parts = [slice(*rows) for rows in crew.rows(*own.counts.shape[1:], step=2)]
    counted, expected = torch.stack(crew.each(sums, parts)).sum(dim=0)
    return ((counted + FLUX_DAMPING) / (expected + FLUX_DAMPING)).float()
