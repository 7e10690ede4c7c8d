"""The pair test of `bluesky_symdenoise.physics.fold` on a device: block sums, and scores in Gaussian windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.device.frame import Held
from bluesky_symdenoise.denoiser.device.rows import rows_at_a_time
from bluesky_symdenoise.denoiser.device.windows import windowed
from bluesky_symdenoise.physics.fold import BLOCK, SPOT_BLOCK, SPOT_WINDOW, SPOT_Z, WINDOWS

#: Counts and exposures (batch, rows, x) of some rows, and of their mates.
Pair = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class PairSums:
    """Sums of `pair_statistics` over blocks, (batch, y, x).

    Attributes
    ----------
    shape
        (y, x) of the frames before they were padded.
    spot_difference, spot_variance
        Sums of D and of its variance over blocks of 2 x 2 pixels.
    difference, variance, chi, chi_variance
        Sums of D, of its variance, of X2 - 1 and of its variance over blocks of 4 x 4 pixels.
    """

    shape: tuple[int, int]
    spot_difference: Tensor
    spot_variance: Tensor
    difference: Tensor
    variance: Tensor
    chi: Tensor
    chi_variance: Tensor


def pair_sums(pair: Callable[[int, int], Pair], like: Held, *, halves: bool) -> PairSums:
    """Return the block sums of a frame and its mates.

    Parameters
    ----------
    pair
        Returns counts and exposures, own and mates', of the rows from a first to before a last one.
    like
        The frames.
    halves
        Whether all shares are 1/2 and all counts whole numbers, so that fewer operations are needed.
    """
    batch, height, width = like.size
    terms = _whole_terms if halves else _terms
    fine = like.counts.new_empty((2, batch, height // SPOT_BLOCK, width // SPOT_BLOCK))
    coarse = like.counts.new_empty((4, batch, height // BLOCK, width // BLOCK))
    for first, last in rows_at_a_time(height, width, like.device, step=BLOCK):
        two, four = terms(*pair(first, last))
        for index, rows in enumerate(two):
            fine[index, :, first // SPOT_BLOCK : last // SPOT_BLOCK] = _columns(rows, SPOT_BLOCK)
        coarse[:2, :, first // BLOCK : last // BLOCK] = _pooled(fine[:, :, first // SPOT_BLOCK : last // SPOT_BLOCK])
        for index, rows in enumerate(four, start=2):
            coarse[index, :, first // BLOCK : last // BLOCK] = _columns(rows, BLOCK)
    return PairSums(like.shape, *fine, *coarse)


def _whole_terms(a: Tensor, n: Tensor, b: Tensor, m: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return sums over rows of 2 and of 4 of the terms, for shares of 1/2 and whole numbers of counts."""
    a, b = a * m, b * n
    total, twice_d = a + b, a - b
    # 1 where there is no pair, where the other factor is 0.
    inverse = total.clamp(min=1).reciprocal_()
    chi = twice_d.square().mul_(inverse).sub_(total.clamp(max=1))
    two = _rows(twice_d, SPOT_BLOCK).mul_(0.5), _rows(total, SPOT_BLOCK).mul_(0.25)
    return two, (_rows(chi, BLOCK), _rows(inverse, BLOCK).mul_(-2).add_(2 * BLOCK))


def _terms(a: Tensor, n: Tensor, b: Tensor, m: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the same for any exposures."""
    # Exposures that differ by more than float precision cannot be compared: their shares are 0 and 1.
    share = (n / (n + m)).nan_to_num_(nan=0.0)
    product = share * (1 - share)
    both = product.sign()
    total = (a + b).mul_(both)
    difference = (a - total * share).mul_(both)
    variance = total * product
    seen = total.sign()
    inverse = seen / (total + (1 - seen))
    per_product = both / (product + (1 - both))
    chi = difference.square().mul_(inverse).mul_(per_product).sub_(seen)
    chi_variance = (per_product - 6).mul_(inverse).add_(seen, alpha=2).clamp_(min=0)
    two = _rows(difference, SPOT_BLOCK), _rows(variance, SPOT_BLOCK)
    return two, (_rows(chi, BLOCK), _rows(chi_variance, BLOCK))


def _rows(image: Tensor, block: int) -> Tensor:
    """Return sums over so many rows of (batch, rows, x)."""
    batch, rows, width = image.shape
    return image.view(batch, rows // block, block, width).sum(dim=2)


def _columns(rows: Tensor, block: int) -> Tensor:
    """Return sums over so many columns."""
    total = rows[..., ::block] + rows[..., 1::block]
    for index in range(2, block):
        total += rows[..., index::block]
    return total


def _pooled(image: Tensor) -> Tensor:
    """Return sums over 2 x 2 elements of (..., y, x)."""
    rows = image[..., ::2, :] + image[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def score(sums: PairSums) -> Tensor:
    """Return `symmetry_score` of each block of 4 x 4 pixels, (batch, y, x)."""
    worst = torch.zeros_like(sums.difference)
    for window in WINDOWS:
        sigma = window / BLOCK
        values = windowed(torch.cat([sums.difference, sums.chi]), sigma)
        scale = _spread(torch.cat([sums.variance, sums.chi_variance]), sigma).sqrt_()
        difference, chi = values.div_(scale).masked_fill_(scale <= 1e-12, 0.0).chunk(2)
        worst = torch.maximum(torch.maximum(worst, difference.abs_()), chi)
    return worst


def spots(sums: PairSums) -> Tensor:
    """Return where blocks of 2 x 2 pixels are within one block of a spot that mates do not share, (batch, y, x)."""
    sigma = SPOT_WINDOW / SPOT_BLOCK
    spread = _spread(sums.spot_variance, sigma)
    # Squares save a root and a division.
    square = windowed(sums.spot_difference, sigma).square_()
    spot = (square > SPOT_Z**2 * spread) & (spread > 1e-24)
    # No block beyond the frame's edge is a spot.
    height, width = (-(-size // SPOT_BLOCK) for size in sums.shape)
    spot[:, height:], spot[:, :, width:] = False, False
    for dim in (1, 2):
        once, last = spot, spot.shape[dim] - 1
        spot = once.clone()
        spot.narrow(dim, 1, last).logical_or_(once.narrow(dim, 0, last))
        spot.narrow(dim, 0, last).logical_or_(once.narrow(dim, 1, last))
    return spot


def _spread(variance: Tensor, sigma: float) -> Tensor:
    """Return the variance of windowed sums.

    The window w has unit sum; the sum of w^2 v is the window of sigma/sqrt(2) times the sum of w^2.
    """
    return windowed(variance, sigma / float(np.sqrt(2))).div_(4 * np.pi * sigma**2)
