"""Tests of pools of rows on a device: `bluesky_symdenoise.physics.neighbours.pools`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.device.windows import windowed
from bluesky_symdenoise.physics.fold import GATE_Z
from bluesky_symdenoise.physics.neighbours.pools import (
    LEAST_POOL,
    LEAST_PRODUCT,
    NEAR,
    REGION,
    REGION_BLOCK,
    REGION_CHANGE,
    SKEWNESS,
)

Pool = tuple[Tensor, Tensor]


class Pools:
    """Sums of rows over blocks, and where each of them is still used.

    Parameters
    ----------
    own_counts, own_exposure
        (1, y, x) sums of the frame.
    counts, exposure
        (row, y, x) sums of the rows where they are used, exposures in units of the frame's.
    block
        Side of the blocks, in pixels.
    windows
        Windows of the tests, in pixels.
    limit
        Score from which on two pools differ.
    """

    def __init__(
        self,
        own_counts: Tensor,
        own_exposure: Tensor,
        counts: Tensor,
        exposure: Tensor,
        *,
        block: int,
        windows: Sequence[float],
        limit: float,
    ) -> None:
        self._own, self._counts, self._exposure = (own_counts, own_exposure), counts, exposure
        self._stay = torch.ones_like(counts)
        self._sigmas, self._limit = [window / block for window in windows], limit

    def _of(self, chosen: Tensor) -> Pool:
        """Return counts and exposure of the pool of some rows, (1, y, x)."""
        kept = self._stay[chosen]
        counts, exposure = ((each[chosen] * kept).sum(dim=0, keepdim=True) for each in (self._counts, self._exposure))
        return counts, exposure

    def _apart(self, one: Pool, other: Pool) -> Tensor:
        return pool_score(one, other, sigmas=self._sigmas)

    def against_own(self) -> None:
        """Leave each row out where it differs from the frame."""
        self._stay *= self._apart(self._own, (self._counts, self._exposure)) <= self._limit

    def against_others(self) -> None:
        """Leave each row out where it differs from the pool of the other rows."""
        if len(self._counts) < 2:
            return
        counts, exposure = self._counts * self._stay, self._exposure * self._stay
        total, whole = (each.sum(dim=0, keepdim=True) for each in (counts, exposure))
        least = LEAST_POOL * exposure.amax()
        for index, stay in enumerate(self._stay):
            part = slice(index, index + 1)
            others = whole - exposure[part]
            others = others * (others > least)
            pool = (total - counts[part]).clamp_(min=0), others
            stay *= self._apart((counts[part], exposure[part]), pool)[0] <= self._limit

    def sides(self, side: NDArray[np.int64]) -> None:
        """Where the rows before and after differ, leave out those that differ more from the frame."""
        if not ((side < 0).any() and (side > 0).any()):
            return
        before, after = self._chosen(side < 0), self._chosen(side > 0)
        differ = self._apart(self._of(before), self._of(after)) > self._limit
        away = [self._apart(self._own, self._of(chosen)) for chosen in (before, after)]
        for chosen, worse in ((before, away[0] > away[1]), (after, away[0] <= away[1])):
            self._stay[chosen] *= ~(differ & worse)

    def far(self, distance: NDArray[np.float64], side: NDArray[np.int64]) -> None:
        """Leave out rows further away on one side where they differ from the nearest ones with the frame."""
        steps = np.unique(distance)
        for nearest in NEAR:
            if nearest >= len(steps):
                return
            limit = steps[nearest]
            counts, exposure = self._of(self._chosen(distance < limit))
            near = counts + self._own[0], exposure + self._own[1]
            for which in np.unique(side):
                far = (distance >= limit) & (side == which)
                if far.any():
                    chosen = self._chosen(far)
                    self._stay[chosen] *= self._apart(near, self._of(chosen)) <= self._limit

    def _chosen(self, rows: NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(rows).to(self._stay.device)

    def staying(self, *, around: bool = False) -> Tensor:
        """Return 1 in blocks where a row may stay, (row, y, x) float32; 0 also around the others if asked for."""
        stay = self._stay > 0
        for dim in (1, 2) if around else ():
            once, last = stay, stay.shape[dim] - 1
            stay = once.clone()
            stay.narrow(dim, 1, last).logical_and_(once.narrow(dim, 0, last))
            stay.narrow(dim, 0, last).logical_and_(once.narrow(dim, 1, last))
        return stay.float()


def pool_score(one: Pool, other: Pool, *, sigmas: Sequence[float]) -> Tensor:
    """Return how strongly two pools differ, (any, y, x); see `bluesky_symdenoise.physics.neighbours.pools`."""
    (y, n), (z, m) = one, other
    both = ((n > 0) & (m > 0)).float()
    share = (n / (n + m).clamp(min=1e-12)).lerp(torch.full_like(n, 0.5), (1 - both).to(n.dtype))
    total = (y + z) * both
    difference = y.mul(both).addcmul_(total, share, value=-1).float()
    variance = (total * share * (1 - share)).float()
    skewed = (SKEWNESS - 2 * SKEWNESS * share).float()
    worst = torch.zeros_like(difference)
    for sigma in sigmas:
        spread = windowed(variance, sigma / np.sqrt(2)).div_(4 * np.pi * sigma**2).sqrt_()
        known = spread > 1e-12
        spread.clamp_(min=1e-12)
        score = windowed(difference, sigma).div_(spread)
        skewness = (skewed / spread).div_(sigma**2).clamp_(-1, 1)
        score.sub_(skewness.mul_(score.square().sub_(1)).div_(6)).abs_().mul_(known)
        worst = torch.maximum(worst, score)
    return worst


def regions_agree(one: Pool, other: Pool) -> Tensor:
    """Return 1 where whole regions have the same rate, (any, y, x) float32, from sums over blocks of `REGION_BLOCK`."""
    sigma = REGION / REGION_BLOCK
    y, n, z, m = (windowed(each.float(), sigma) for each in (*one, *other))
    change = torch.log((y + 0.5) * m + LEAST_PRODUCT).sub_(torch.log((z + 0.5) * n + LEAST_PRODUCT)).abs_()
    return 1 - ((pool_score(one, other, sigmas=(sigma,)) > GATE_Z) & (change > REGION_CHANGE)).float()


def repeated(blocks: Tensor, block: int) -> Tensor:
    """Return values of blocks (any, y, x) as those of their elements."""
    return blocks.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)


def halved(blocks: Tensor) -> Tensor:
    """Return sums over 2 x 2 elements of (any, y, x)."""
    rows = blocks[:, ::2] + blocks[:, 1::2]
    return rows[..., ::2] + rows[..., 1::2]
