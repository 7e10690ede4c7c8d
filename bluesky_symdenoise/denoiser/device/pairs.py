"""The pair test of `bluesky_symdenoise.physics.fold` on a device: block sums, and scores in Gaussian windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.frame import Held
from bluesky_symdenoise.denoiser.device.windows import windowed
from bluesky_symdenoise.physics.fold import BLOCK, SPOT_BLOCK, SPOT_WINDOW, WINDOWS

#: The window w has unit sum; the sum of w^2 v is the window of its sigma over this times the sum of w^2.
ROOT = math.sqrt(2)
#: Least product of two shares that are compared: terms of the test, which are divided by it, stay finite in float32.
LEAST = 1e-30
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

    def task(part: tuple[int, int]) -> None:
        first, last = part
        two, four = terms(*pair(first, last))
        here = slice(first // SPOT_BLOCK, last // SPOT_BLOCK)
        for target, rows in zip(fine, two, strict=True):
            target[:, here] = summed_columns(rows, SPOT_BLOCK)
        pooled = slice(first // BLOCK, last // BLOCK)
        coarse[:2, :, pooled] = _pooled(fine[:, :, here])
        for target, rows in zip(coarse[2:], four, strict=True):
            target[:, pooled] = summed_columns(rows, BLOCK)

    like.crew.each(task, like.crew.rows(height, width, step=BLOCK))
    return PairSums(like.shape, *fine, *coarse)


def _whole_terms(a: Tensor, n: Tensor, b: Tensor, m: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return sums over rows of 2 and of 4 of the terms, for shares of 1/2 and whole numbers of counts."""
    a, b = a * m, b * n
    total, twice_d = a + b, a - b
    # 1 where there is no pair, where the other factor is 0.
    inverse = total.clamp(min=1).reciprocal_()
    chi = twice_d.square().mul_(inverse).sub_(total.clamp(max=1))
    two = summed_rows(twice_d, SPOT_BLOCK).mul_(0.5), summed_rows(total, SPOT_BLOCK).mul_(0.25)
    return two, (summed_rows(chi, BLOCK), summed_rows(inverse, BLOCK).mul_(-2).add_(2 * BLOCK))


def _terms(a: Tensor, n: Tensor, b: Tensor, m: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the same for any exposures."""
    # Equal exposures must have the product 1/4 to the last digit, which gives single counts no variance of X2. Else,
    # 1 - share and a - total * share would lose the digits that float32 has for exposures a thousand times apart, and
    # all of them from 10^7 times on; a * rest - b * share would be wrong by the share's rounding, the same in many
    # pixels.
    exposure = (n + m).clamp_(min=LEAST)
    product = (n / exposure).mul_(m / exposure)
    both = (product > LEAST).to(product.dtype)
    total = (a + b).mul_(both)
    difference = (a * m).sub_(b * n).div_(exposure).mul_(both)
    variance = total * product
    seen = total.sign()
    inverse = seen / (total + (1 - seen))
    per_product = both / (product + (1 - both))
    chi = difference.square().mul_(inverse).mul_(per_product).sub_(seen)
    chi_variance = (per_product - 6).mul_(inverse).add_(seen, alpha=2).clamp_(min=0)
    two = summed_rows(difference, SPOT_BLOCK), summed_rows(variance, SPOT_BLOCK)
    return two, (summed_rows(chi, BLOCK), summed_rows(chi_variance, BLOCK))


def summed_rows(image: Tensor, block: int) -> Tensor:
    """Return sums over so many rows of (batch, rows, x)."""
    batch, rows, width = image.shape
    return image.view(batch, rows // block, block, width).sum(dim=2)


def summed_columns(rows: Tensor, block: int) -> Tensor:
    """Return sums over so many columns."""
    total = rows[..., ::block] + rows[..., 1::block]
    for index in range(2, block):
        total += rows[..., index::block]
    return total


def _pooled(image: Tensor) -> Tensor:
    """Return sums over 2 x 2 elements of (..., y, x)."""
    rows = image[..., ::2, :] + image[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def tested(sums: PairSums, crew: Crew, *, spot_z: float) -> tuple[Tensor, Tensor]:
    """Return `score` and `spots`."""
    done = crew.each(lambda window: windowed(*window), [*_score_windows(sums), *_spot_windows(sums)])
    return _score(done[:-2]), _spots(sums, done[-2], done[-1], spot_z)


def score(sums: PairSums, crew: Crew) -> Tensor:
    """Return `symmetry_score` of each block of 4 x 4 pixels, (batch, y, x)."""
    return _score(crew.each(lambda window: windowed(*window), _score_windows(sums)))


def _score_windows(sums: PairSums) -> list[tuple[Tensor, float]]:
    """Return sums and the windows that they are needed in: values and their variances, for each window."""
    values = torch.cat([sums.difference, sums.chi])
    variances = torch.cat([sums.variance, sums.chi_variance])
    sigmas = [window / BLOCK for window in WINDOWS]
    return [each for sigma in sigmas for each in ((values, sigma), (variances, sigma / ROOT))]


def _score(done: Sequence[Tensor]) -> Tensor:
    worst: Tensor | None = None
    for window, values, variances in zip(WINDOWS, done[::2], done[1::2], strict=True):
        scale = variances.div_(4 * np.pi * (window / BLOCK) ** 2).sqrt_()
        difference, chi = values.div_(scale).masked_fill_(scale <= 1e-12, 0.0).chunk(2)
        here = torch.maximum(difference.abs_(), chi)
        worst = here if worst is None else torch.maximum(worst, here)
    assert worst is not None
    return worst


def _spot_windows(sums: PairSums) -> list[tuple[Tensor, float]]:
    """Return sums over blocks of 2 x 2 pixels and the windows that they are needed in."""
    sigma = SPOT_WINDOW / SPOT_BLOCK
    return [(sums.spot_difference, sigma), (sums.spot_variance, sigma / ROOT)]


def _spots(sums: PairSums, difference: Tensor, variance: Tensor, spot_z: float) -> Tensor:
    """Return where blocks of 2 x 2 pixels are within one block of a spot that mates do not share, (batch, y, x)."""
    spread = variance.div_(4 * np.pi * (SPOT_WINDOW / SPOT_BLOCK) ** 2)
    # Squares save a root and a division.
    spot = (difference.square_() > spot_z**2 * spread) & (spread > 1e-24)
    # No block beyond the frame's edge is a spot.
    height, width = (-(-size // SPOT_BLOCK) for size in sums.shape)
    spot[:, height:], spot[:, :, width:] = False, False
    for dim in (1, 2):
        once, last = spot, spot.shape[dim] - 1
        spot = once.clone()
        spot.narrow(dim, 1, last).logical_or_(once.narrow(dim, 0, last))
        spot.narrow(dim, 0, last).logical_or_(once.narrow(dim, 1, last))
    return spot
