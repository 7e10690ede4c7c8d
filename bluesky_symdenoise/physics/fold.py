"""Symmetry tested instead of assumed: where do a pixel and its mate count the same rate?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.center import found_beam_center
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import IDENTITY, Operation, mate, same_mate
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.physics.tilt import Tilt, on_tilt

#: Side, in pixels, of the blocks over which the test is averaged before it is smoothed.
BLOCK = 4
#: Gaussian windows of the test, in pixels.
WINDOWS = (5.0, 16.0)
#: A mate is used if the test exceeds this many standard deviations in no window.
GATE_Z = 3.0
#: The same test for spots: side of blocks and Gaussian window in pixels, blocks around a spot, standard deviations.
SPOT_BLOCK, SPOT_WINDOW, SPOT_REACH, SPOT_Z = 2, 1.5, 3, 2.75
#: Width of the rings of ``inf``, in pixels.
RING_WIDTH = 0.5
#: Upper limit of the mates' exposure on a ring: the networks were trained with at most three.
RING_MATES = 3.0
#: How many times the pixels that disagree most with their ring are left out of the ring's mean.
RING_TRIMS = 6


@dataclass(frozen=True)
class Mates:
    """Counts and exposures of a pixel's mates, summed over the operations that hold there; (y, x) float64."""

    counts: NDArray[np.float64]
    exposure: NDArray[np.float64]


def block_sum(image: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return sums over blocks of ``block`` x ``block`` pixels, zeros beyond the edge."""
    height, width = image.shape
    padded = np.pad(image, ((0, -height % block), (0, -width % block)))
    return padded.reshape(padded.shape[0] // block, block, -1, block).sum(axis=(1, 3))


def pair_terms(
    frame: Frame, other: Frame
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return `pair_statistics` of each pixel and D's fourth cumulant n p q (1 - 6 p q); (y, x), 0 without a pair."""
    total_exposure = frame.exposure + other.exposure
    both = (frame.exposure > 0) & (other.exposure > 0)
    share = np.divide(frame.exposure, total_exposure, out=np.full(both.shape, 0.5), where=both)
    # Exposures that differ by more than float precision cannot be compared.
    both &= (share > 0) & (share < 1)
    share = np.where(both, share, 0.5)
    n = np.where(both, frame.counts + other.counts, 0.0)
    difference = np.where(both, frame.counts - n * share, 0.0)
    variance = n * share * (1 - share)
    seen = n > 0
    chi = np.divide(difference**2, variance, out=np.ones(both.shape), where=seen) - 1
    chi_variance = np.where(seen, 2 + (1 / (share * (1 - share)) - 6) / np.where(seen, n, 1), 0.0)
    fourth = variance * (1 - 6 * share * (1 - share))
    return difference, variance, chi, chi_variance, fourth


def pair_statistics(
    frame: Frame, other: Frame, *, block: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return block sums of two tests of equal rates, given each pair's total n = a + b with p = n_a/(n_a + n_b).

    Difference: D = a - n p, mean 0, variance n p (1 - p). Chi square: X2 = D^2/(n p (1 - p)), mean 1, variance
    2 + [1/(p (1 - p)) - 6]/n. Both are exact at any count, because they are conditional on the pair sums.

    Returns
    -------
    tuple
        Sums of D, of its variance, of X2 - 1 and of its variance.
    """
    difference, variance, chi, chi_variance, _ = pair_terms(frame, other)
    return (
        block_sum(difference, block),
        block_sum(variance, block),
        block_sum(chi, block),
        block_sum(np.maximum(chi_variance, 0), block),
    )


def _standard_score(value: NDArray[np.float64], variance: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Return the windowed sum over its standard deviation; a squared Gaussian window has sigma / sqrt(2)."""
    total = ndimage.gaussian_filter(value, sigma, mode="constant", truncate=3.0)
    # The window w has unit sum; the sum of w^2 v is the window of sigma/sqrt(2) times the sum of w^2.
    spread = ndimage.gaussian_filter(variance, sigma / np.sqrt(2), mode="constant", truncate=3.0)
    scale = np.sqrt(spread / (4 * np.pi * sigma**2))
    return np.divide(total, scale, out=np.zeros_like(total), where=scale > 1e-12)


def symmetry_score(frame: Frame, other: Frame) -> NDArray[np.float64]:
    """Return how strongly mates differ: the largest standard score of both tests in any window, about 1 by noise.

    Parameters
    ----------
    frame
        The frame's own counts.
    other
        The frame seen through one symmetry operation.

    Returns
    -------
    ndarray
        (y, x); 0 where no pair was measured.
    """
    difference, variance, chi, chi_variance = pair_statistics(frame, other, block=BLOCK)
    worst = np.zeros(difference.shape)
    for window in WINDOWS:
        sigma = window / BLOCK
        np.maximum(worst, np.abs(_standard_score(difference, variance, sigma)), out=worst)
        np.maximum(worst, _standard_score(chi, chi_variance, sigma), out=worst)
    height, width = frame.counts.shape
    return worst.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]


def symmetry_gate(frame: Frame, other: Frame) -> NDArray[np.bool_]:
    """Return where a mate may be used, (y, x): True where no test sees a difference within any window.

    Where the frame has own counts, spots of a few pixels are sought too: their threshold is lower, because a mate's
    noise hides half of the square of their significance, and a mate left out needlessly costs little.
    """
    difference, variance, _, _ = pair_statistics(frame, other, block=SPOT_BLOCK)
    score = np.abs(_standard_score(difference, variance, SPOT_WINDOW / SPOT_BLOCK))
    spot = ndimage.maximum_filter(score, size=SPOT_REACH, mode="constant") > SPOT_Z
    height, width = frame.counts.shape
    fine = spot.repeat(SPOT_BLOCK, axis=0).repeat(SPOT_BLOCK, axis=1)[:height, :width]
    return (symmetry_score(frame, other) <= GATE_Z) & ~(fine & (frame.exposure > 0))


def mated(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> Frame:
    """Return the frame seen through one operation about the beam centre."""
    return Frame(
        counts=mate(frame.counts, operation, beam_center),
        exposure=mate(frame.exposure, operation, beam_center),
        reference=frame.reference,
    )


def gated_mates(frame: Frame, symmetry: Symmetry) -> Mates:
    """Return counts and exposures of all mates that the test accepts: a broken region keeps its own photons only."""
    center = symmetry.grid_center
    if symmetry.group == "inf" and center is not None:
        mates = _ring_mates(frame, rings(frame.counts.shape, symmetry))
        if symmetry.fold is None:
            return mates
        use = symmetry.may_fold(0, frame.counts.shape)
        return Mates(counts=np.where(use, mates.counts, 0.0), exposure=np.where(use, mates.exposure, 0.0))
    counts, exposure = np.zeros_like(frame.counts), np.zeros_like(frame.exposure)
    for index, operation in enumerate(symmetry.operations):
        assert center is not None
        other = mated(frame, operation, center)
        use = symmetry_gate(frame, other)
        if symmetry.fold is not None:
            use &= symmetry.may_fold(index, frame.counts.shape)
        # A pixel on a symmetry element is its own mate, or the mate of an earlier operation: it adds nothing.
        for earlier in (IDENTITY, *symmetry.operations[:index]):
            use &= ~same_mate(frame.counts.shape, operation, earlier, center)
        counts += np.where(use, other.counts, 0)
        exposure += np.where(use, other.exposure, 0)
    return Mates(counts=counts, exposure=exposure)


def rings(shape: tuple[int, ...], symmetry: Symmetry) -> NDArray[np.int64]:
    """Return the number of each pixel's ring about the centre itself, from 1; 0 if it scatters sideways or back.

    Rings are half a pixel wide where the beam meets a detector, or, if it is tilted, where it would without the tilt.
    """
    assert symmetry.beam_center is not None
    dy, dx = (np.arange(size) - c for size, c in zip(shape, symmetry.beam_center, strict=True))
    dy, dx = dy[:, None], dx[None, :]
    if symmetry.tilt is None:
        return 1 + np.rint(np.hypot(dy, dx) / RING_WIDTH).astype(np.int64)
    ring = 1 + np.rint(np.hypot(*symmetry.tilt.flattened(dy, dx)) / RING_WIDTH)
    return np.nan_to_num(ring, nan=0.0).astype(np.int64)


def ring_mean(frame: Frame, ring: NDArray[np.int64], use: NDArray[np.bool_]) -> Frame:
    """Return the sums (y, x) over the other pixels of each pixel's ring, among those where `use` is True.

    No count is shared between two rings.
    """

    def others(image: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.where(use & (ring > 0), image, 0.0)
        return np.asarray(np.bincount(ring.ravel(), own.ravel())[ring] - own, dtype=np.float64)

    alone = others((frame.exposure > 0).astype(np.float64)) == 0
    counts, exposure = (np.where(alone, 0.0, np.maximum(others(i), 0.0)) for i in (frame.counts, frame.exposure))
    return Frame(counts=counts, exposure=exposure, reference=frame.reference)


def _ring_mates(frame: Frame, ring: NDArray[np.int64]) -> Mates:
    """Return mates of full rotation: the mean over the agreeing part of a pixel's ring, worth `RING_MATES`."""
    speaks = np.ones(frame.counts.shape, bool)
    for _ in range(RING_TRIMS):
        # A bright spot raises the mean of its ring, so that the whole ring disagrees: leave out the worst pixels
        # first.
        score = symmetry_score(frame, ring_mean(frame, ring, speaks))
        if score.max() <= GATE_Z:
            break
        speaks &= score <= max(GATE_Z, score[speaks].max(initial=0) / 4)
    other = ring_mean(frame, ring, speaks)
    weight = symmetry_gate(frame, other) * RING_MATES / np.maximum(other.exposure, RING_MATES)
    return Mates(counts=other.counts * weight, exposure=other.exposure * weight)


#: Side of the blocks for which `supported` tests whether a symmetry holds.
REGION = 32
#: Share of the testable regions that must agree.
AGREEING = 0.7
#: A symmetry is distinguished from none if moving its centre by this many pixels ...
DISPLACED = 12
#: ... makes the mates differ by this many more standard deviations.
EVIDENCE_Z = 6.0


def supported(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> bool:
    """Return whether the data support an operation about this centre, and would not about another one.

    A region (32 x 32 pixels) is testable if its pair has at least 25 counts, and agrees if both tests of
    `pair_statistics` are within three standard deviations. The sum of D^2/variance over blocks of 8 x 8 pixels must
    grow by six standard deviations when the centre moves by 12 pixels either way along each turned axis: if it does
    not, the data cannot tell this symmetry from another, and it is rejected.
    """
    other = mated(frame, operation, beam_center)
    difference, variance, chi, chi_variance = pair_statistics(frame, other, block=REGION)
    testable = variance >= 25 / 4
    if testable.sum() < 16:
        return False
    score = np.abs(difference[testable]) / np.sqrt(variance[testable])
    chi_score = chi[testable] / np.sqrt(np.maximum(chi_variance[testable], 1e-12))
    if np.mean((score <= 3) & (chi_score <= 3)) < AGREEING:
        return False
    here = _misfit(frame, operation, beam_center)
    for axis, sign in enumerate((operation.yy, operation.xx)):
        for step in (-DISPLACED, DISPLACED) if sign < 1 else ():
            moved = (beam_center[0] + step * (axis == 0), beam_center[1] + step * (axis == 1))
            if _misfit(frame, operation, moved) - here < EVIDENCE_Z:
                return False
    return True


def _misfit(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> float:
    """Return the sum of D^2/variance - 1 over blocks, in standard deviations of that sum under symmetry."""
    difference, variance, _, _ = pair_statistics(frame, mated(frame, operation, beam_center), block=8)
    testable = variance >= 1
    excess = np.minimum(difference[testable] ** 2 / variance[testable], 100.0) - 1
    return float(excess.sum() / np.sqrt(2 * max(testable.sum(), 1)))


def supported_symmetry(frame: Frame, beam_center: tuple[float, float] | None, tilt: Tilt | None = None) -> Symmetry:
    """Return the largest point group that the frame supports about the centre, or about the one found; else ``1``.

    Without a centre only groups with inversion are looked for: a smooth pattern is nearly its own mirror image about
    some line anywhere, and that would be a guess.
    """
    center = found_beam_center(frame) if beam_center is None else beam_center
    if center is None:
        return Symmetry()
    for symbol in ("2mm", "2") if beam_center is None else ("2mm", "2", "m", "my"):
        found = Symmetry(on_tilt(symbol, tilt), center)
        if all(supported(frame, operation, center) for operation in found.operations):
            return found
    return Symmetry()
