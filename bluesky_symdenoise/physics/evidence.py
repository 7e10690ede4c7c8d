"""Tests of symmetry: sums over pairs that pool over frames, and the smallest asymmetry that they could see."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import block_sum, mated, pair_terms
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import Operation, first_of_pair

Floats = NDArray[np.float64]

#: Side, in pixels, of the tiles whose sums are stored.
TILE = 4
#: Radial width in pixels, and number of azimuths, of the cells that make up polar windows.
CELL, AZIMUTHS = 8.0, 32
#: Cells, by radius and azimuth, of the windows that are searched for arcs.
ARCS = ((2, 2), (3, 4), (3, 5), (3, 6), (4, 8))
#: Cells, by radius and azimuth, of the regions that are reported.
REGION = (4, 2)
RING, SECTORS = CELL * REGION[0], AZIMUTHS // REGION[1]
#: Probability that a symmetric pattern is called asymmetric, over all regions of an operation.
FALSE_ALARM = 0.01
#: Probability that the smallest visible asymmetry is detected.
POWER = 0.95
#: Factor by which blocks of pixels grow, and fewest blocks along each side for which they are searched.
BLOCKS, SMALL = 4, 8
#: Sides, in pixels, of the blocks in which spots are searched.
SPOT_BLOCKS = (4, 8, 16)
#: Fewest counts of the pairs of a block for which its own tail probability is computed.
FEWEST = 25.0
#: Side, in pixels, of the block of one frame whose statistical error is compared with an undetected asymmetry.
RESOLUTION = 4


@dataclass(frozen=True)
class PairSums:
    """Evidence of frames about one operation: sums that no longer need the frames, and add up over frames and runs.

    Each pair counts once. Conditional on its sum n, D = a - n p has mean 0, variance V = n p q and fourth cumulant
    K = n p q (1 - 6 p q); X2 = D^2/V has mean 1.

    Attributes
    ----------
    operation, beam_center, shape
        Operation that was tested, its centre (y, x), and the shape of the frames.
    frames
        Number of frames in the sums.
    difference, variance, fourth
        Sums of D, V and K in tiles of 4 x 4 pixels.
    chi
        Sums of X2 - 1, of its variance and of its third central moment over all pairs.
    """

    operation: Operation
    beam_center: tuple[float, float]
    shape: tuple[int, int]
    frames: int
    difference: Floats
    variance: Floats
    fourth: Floats
    chi: Floats

    def __add__(self, other: PairSums) -> PairSums:
        """Return the sums of both.

        Raises
        ------
        SymDenoiseError
            If they are of different operations, centres or shapes.
        """
        mine, others = ((s.operation, s.beam_center, s.shape) for s in (self, other))
        if mine != others:
            raise SymDenoiseError(
                f"pair sums of {others}",
                rule=f"they cannot be added to those of {mine}",
                remedy="pool frames of one shape under one operation about one centre",
            )
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[3:]}
        return replace(self, **sums)


def pair_sums(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> PairSums:
    """Return the sums of one frame; add those of others to pool them."""
    half = first_of_pair(frame.counts.shape, operation, beam_center)
    one = Frame(frame.counts, np.where(half, frame.exposure, 0.0), frame.reference)
    difference, variance, chi, chi_variance, fourth = pair_terms(one, mated(frame, operation, beam_center))
    # Third moment: E(X2 - 1)^3 = 8 - 24/n + 16/n^2 for n counts shared evenly, whose variance is 2 - 2/n.
    third = np.where(chi_variance > 0, 8 - 12 * (2 - chi_variance) + 4 * (2 - chi_variance) ** 2, 0.0)
    return PairSums(
        operation=operation,
        beam_center=beam_center,
        shape=(frame.counts.shape[0], frame.counts.shape[1]),
        frames=1,
        difference=block_sum(difference, TILE),
        variance=block_sum(variance, TILE),
        fourth=block_sum(fourth, TILE),
        chi=np.array([chi.sum(), chi_variance.sum(), third.sum()]),
    )


@dataclass(frozen=True)
class Asymmetry:
    """Result of testing the pairs of one operation.

    Attributes
    ----------
    operation, beam_center, frames
        Operation that was tested, its centre, and the number of frames.
    p_value
        Probability that a symmetric pattern differs from itself as much; uniform under symmetry.
    score
        (ring, sector) standard scores of the difference of a region from its mate; NaN where no pair was seen.
        Rings are 32 pixels wide; sector k of 16 starts at azimuth atan2(y, x) = 22.5 k degrees.
    difference
        (ring, sector) difference of the rates of a region and its mate, over their mean.
    smallest
        (ring, sector) smallest such difference that would be seen, infinite with too few counts. Nominally with 95 %
        probability; ``symdenoise bench symmetry`` measures how often (87 to 90 % where it was run).
    unseen
        (ring, sector) relative error that an unseen difference leaves in the fold: half of `smallest`.
    noise
        (ring, sector) relative statistical error of 4 x 4 pixels of one folded frame.
    rejected
        (ring, sector) True where a region differs from its mate; one false alarm in 100 tests of a whole frame.
    foldable
        (ring, sector) True where the mates may be used: no difference, and an unseen one is below the noise.
    """

    operation: Operation
    beam_center: tuple[float, float]
    frames: int
    p_value: float
    score: Floats
    difference: Floats
    smallest: Floats
    unseen: Floats
    noise: Floats
    rejected: NDArray[np.bool_]
    foldable: NDArray[np.bool_]

    def on_pixels(self, values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
        """Return values by (ring, sector) as an image (y, x)."""
        y, x = np.indices(shape, dtype=np.float64)
        image: NDArray[Any] = values.ravel()[_polar(y - self.beam_center[0], x - self.beam_center[1], RING, SECTORS)]
        return image


def asymmetry(sums: PairSums) -> Asymmetry:
    """Test equal rates of mates, and report what the test could have seen.

    The p-value combines tests at all scales, from pixels to half of the frame, by the Cauchy combination
    (Liu and Xie, J. Am. Stat. Assoc. 115, 393, 2020): the sum of D^2/V over pixels, tiles, and ever larger blocks,
    with its mean, variance and third moment given the pair sums; and the most different block, and arc, by its
    binomial tail.
    The smallest visible difference of a region is z/sqrt(V), with z the sum of the quantiles of false alarm and power.
    """
    difference, variance, pairs = (
        cells.reshape(-1, REGION[0], SECTORS, REGION[1]).sum(axis=(1, 3)) for cells in _cells(sums)
    )
    tested = variance > 0
    number = max(1, int(tested.sum()) // 2)
    quantile = -float(special.ndtri(-np.expm1(np.log1p(-FALSE_ALARM) / number) / 2))
    root = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(tested, difference / root, np.nan)
        relative = np.where(tested, difference / variance, np.nan)
        needed = quantile + float(special.ndtri(POWER))
        # Non-negative rates differ by at most twice their mean.
        smallest = np.where(2 * root > needed, needed / root, np.inf)
        # V is a quarter of the pairs' counts; a block of 4 x 4 pixels in one folded frame has the counts of 16 pairs.
        noise = np.where(tested, 0.5 / np.sqrt(variance / pairs * RESOLUTION**2 / sums.frames), np.inf)
    rejected = tested & (_two_sided(difference, variance) < -np.expm1(np.log1p(-FALSE_ALARM) / number))
    return Asymmetry(
        operation=sums.operation,
        beam_center=sums.beam_center,
        frames=sums.frames,
        p_value=_p_value(sums),
        score=score,
        difference=relative,
        smallest=smallest,
        unseen=smallest / 2,
        noise=noise,
        rejected=rejected,
        foldable=tested & ~rejected & (smallest / 2 <= noise),
    )


def _polar(dy: NDArray[Any], dx: NDArray[Any], ring: float, sectors: int) -> NDArray[np.int64]:
    """Return the flat index (ring, sector) of positions about the centre."""
    sector = np.floor(np.arctan2(dy, dx) / (2 * np.pi) * sectors).astype(np.int64) % sectors
    index: NDArray[np.int64] = (np.hypot(dy, dx) // ring).astype(np.int64) * sectors + sector
    return index


def _cells(sums: PairSums) -> tuple[Floats, Floats, Floats]:
    """Return sums of D and V, and the number of pairs, by polar cell, and with the other sign for its mate."""
    y, x = (TILE * np.arange(size) + (TILE - 1) / 2 for size in sums.difference.shape)
    dy, dx = np.meshgrid(y - sums.beam_center[0], x - sums.beam_center[1], indexing="ij")
    here = _polar(dy, dx, CELL, AZIMUTHS)
    reach = [max(center + 0.5, size - center) for center, size in zip(sums.beam_center, sums.shape, strict=True)]
    size = (int(np.hypot(reach[0], reach[1]) // RING) + 1) * REGION[0] * AZIMUTHS
    to_y, to_x = sums.operation.moved(dy, dx)
    # On a tilted detector a mate may be anywhere, or off the detector.
    somewhere = np.hypot(to_y, to_x) < size * CELL
    there = _polar(np.where(somewhere, to_y, size * CELL), np.where(somewhere, to_x, 0.0), CELL, AZIMUTHS)

    def summed(at: NDArray[np.int64], values: Floats) -> Floats:
        # Tiles that extend beyond the frame's edge may lie further out; any pairs there are left out.
        return np.asarray(np.bincount(at.ravel(), values.ravel(), size)[:size].reshape(-1, AZIMUTHS))

    half = block_sum(first_of_pair(sums.shape, sums.operation, sums.beam_center).astype(np.float64), TILE)
    pairs = np.where(sums.variance > 0, half, 0.0)
    return (
        summed(here, sums.difference) - summed(there, sums.difference),
        summed(here, sums.variance) + summed(there, sums.variance),
        summed(here, pairs) + summed(there, pairs),
    )


def _windowed(cells: Floats, rings: int, azimuths: int) -> Floats:
    """Return sums over all windows of a number of cells, around the circle."""
    around = np.concatenate([cells, cells[:, : azimuths - 1]], axis=1)
    total = np.pad(around, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return np.asarray(
        total[rings:, azimuths:] - total[:-rings, azimuths:] - total[rings:, :-azimuths] + total[:-rings, :-azimuths]
    )


def differing_blocks(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> NDArray[np.bool_]:
    """Return where (y, x) blocks of 4 to 16 pixels differ from their mates, and four pixels around: spots and gaps.

    One false alarm in 100 tests of a whole frame, shared by the sizes of blocks.
    """
    height, width = frame.counts.shape
    out = np.zeros((height, width), bool)
    pixel_difference, pixel_variance, *_ = pair_terms(frame, mated(frame, operation, beam_center))
    for block in SPOT_BLOCKS:
        difference, variance = block_sum(pixel_difference, block), block_sum(pixel_variance, block)
        many = 4 * variance >= FEWEST
        # Each pair belongs to two blocks.
        limit = -np.expm1(2 * np.log1p(-FALSE_ALARM / len(SPOT_BLOCKS)) / max(2, many.sum()))
        # The binomial tail is slow to compute: do it only for blocks that might exceed the limit.
        beyond = many & (difference**2 > 9 * variance)
        beyond[beyond] = _two_sided(difference[beyond], variance[beyond]) < limit
        out |= beyond.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    around: NDArray[np.bool_] = ndimage.maximum_filter(out, size=1 + 2 * TILE, mode="constant")
    return around


def _two_sided(difference: Floats, variance: Floats) -> Floats:
    """Return the two-sided mid-p of D: that of a fair binomial of 4 V counts, exact for equal exposures."""
    n = 4 * variance
    more = n / 2 + np.minimum(np.abs(difference), n / 2)
    # betainc(a, b, 1/2) with real arguments interpolates the binomial tail.
    at_least = special.betainc(np.maximum(more, 1e-9), n - more + 1, 0.5)
    beyond = np.where(more < n, special.betainc(more + 1, np.maximum(n - more, 1e-9), 0.5), 0.0)
    return np.where(n > 0, np.minimum(at_least + beyond, 1.0), 1.0)


def _tail(value: float, variance: float, third: float) -> float:
    """Return P(sum >= value) of the shifted Gamma distribution with mean 0 and these moments."""
    if variance <= 0:
        return 1.0
    if third < 1e-3 * variance**1.5:
        return float(special.ndtr(-value / np.sqrt(variance)))
    shape, scale = 4 * variance**3 / third**2, third / (2 * variance)
    return float(special.gammaincc(shape, max(shape + value / scale, 0.0)))


def _most_different(difference: Floats, variance: Floats, places: float) -> list[float]:
    """Return P of the smallest `_two_sided` among a number of places; none if all have too few counts."""
    many = 4 * variance >= FEWEST
    if not many.any():
        return []
    d, v = difference[many], variance[many]
    # The binomial tail is slow to compute: do it only for the blocks with the largest standard scores.
    most = np.argsort(d**2 / v)[-32:]
    worst = min(float(_two_sided(d[most], v[most]).min()), 1 - 1e-12)
    return [float(-np.expm1(places * many.sum() * np.log1p(-worst)))]


def _p_value(sums: PairSums) -> float:
    """Combine the tests of all scales into one."""
    chi, chi_variance, chi_third = (float(total) for total in sums.chi)
    tests = [_tail(chi, chi_variance, chi_third)] if chi_variance > 0 else []
    difference, variance, fourth = sums.difference, sums.variance, sums.fourth
    while True:
        seen = variance > 0
        if not seen.any():
            return 1.0
        d, v = difference[seen], variance[seen]
        kurtosis = fourth[seen] / v**2
        spread, third = np.maximum(2 + kurtosis, 0).sum(), (8 + 12 * kurtosis + 4 * kurtosis**2).sum()
        tests.append(_tail(float((d**2 / v - 1).sum()), float(spread), float(third)))
        if max(variance.shape) == 1:
            break
        if max(variance.shape) > SMALL:
            tests += _most_different(difference, variance, 1)
        difference, variance, fourth = (block_sum(image, BLOCKS) for image in (difference, variance, fourth))
    difference, variance, _ = _cells(sums)
    for window in ARCS:
        # A window and its mate are tested once.
        tests += _most_different(_windowed(difference, *window), _windowed(variance, *window), 0.5)
    # A test with p near 1 must not outweigh one that sees a difference.
    p = np.clip(tests, 1e-300, 0.99)
    mean = float(np.mean(1 / np.tan(np.pi * p)))
    return float(np.arctan2(1, mean) / np.pi)
