"""Photons of a frame and of other rows as those of one longer exposure, as far as the network trusts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.bands import FLUX_DAMPING
from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.gate import Evidence
from bluesky_symdenoise.denoiser.network import pooled_scale, trusted


@dataclass(frozen=True)
class Pooled:
    """A frame's photons with those of other rows, as one exposure.

    Attributes
    ----------
    every, alone
        With and without those of other rows; exposures in units of `scale`.
    mates
        Mates, in the same units.
    scale
        (batch, 1, 1) how much longer the exposure is than the frame's.
    """

    every: Evidence
    alone: Evidence
    mates: Evidence | None
    scale: Tensor

    @classmethod
    def of(cls, own: Evidence, mates: Evidence | None, lent: Evidence, crew: Crew) -> Pooled:
        """Add what other rows lend."""
        scale = pooled_scale(*(_total(each.exposure, crew) for each in (own, lent)))
        return cls(
            Evidence(own.counts + lent.counts, (own.exposure + lent.exposure) / scale),
            Evidence(own.counts, own.exposure / scale),
            None if mates is None else Evidence(mates.counts, mates.exposure / scale),
            scale,
        )

    def trusting(self, logit: Tensor) -> Evidence:
        """Return the photons that are used, given the network's trust in other rows."""
        counts, exposure = (
            torch.lerp(alone, every, trusted(logit))
            for alone, every in ((self.alone.counts, self.every.counts), (self.alone.exposure, self.every.exposure))
        )
        return Evidence(counts, exposure)

    def gain(self, own: Evidence, used: Evidence, kappa: Tensor, weight: Tensor, crew: Crew) -> Tensor:
        """Return the factor from rates in these units to those with which the frame's counts add up."""

        def expected(part: slice) -> Tensor:
            rate = (used.counts[:, part] + kappa[:, part]) / (used.exposure[:, part] + weight[:, part])
            # 0 / 0 where nothing was measured.
            return torch.where(own.exposure[:, part] > 0, own.exposure[:, part] * rate, 0.0)

        now = _total_of(expected, own.counts, crew) / self.scale
        total = _total(own.counts, crew)
        return ((total + FLUX_DAMPING) / (now + FLUX_DAMPING) / self.scale).float()


def _total(image: Tensor, crew: Crew) -> Tensor:
    """Return the sum of each image, (batch, 1, 1) float64, which does not depend on the number of threads."""
    return _total_of(lambda part: image[:, part], image, crew)


def _total_of(values: Callable[[slice], Tensor], like: Tensor, crew: Crew) -> Tensor:
    parts = [slice(*rows) for rows in crew.rows(*like.shape[1:], step=2)]
    sums = crew.each(lambda part: values(part).sum(dim=(1, 2), keepdim=True, dtype=torch.float64), parts)
    return torch.stack(sums).sum(dim=0)
