"""Symmetry is checked, not believed: where do a pixel and its mate count the same rate?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.symmetry import INVERSION, MIRROR_X, MIRROR_Y, Operation, Symmetry, mate

#: Side, in pixels, of the blocks that the test is averaged over before it is smoothed.
BLOCK = 4
#: Gaussian windows of the test, in pixels.
WINDOWS = (5.0, 16.0)
#: A mate is used where no window's test exceeds this many standard deviations.
GATE_Z = 3.0


@dataclass(frozen=True)
class Mates:
    """The counts and exposures of a pixel's mates, summed over the operations that hold there; (y, x) float64."""

    counts: NDArray[np.float64]
    exposure: NDArray[np.float64]


def block_sum(image: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Sums over blocks of ``block`` x ``block`` pixels, zeros beyond the edge."""
    height, width = image.shape
    padded = np.pad(image, ((0, -height % block), (0, -width % block)))
    return padded.reshape(padded.shape[0] // block, block, -1, block).sum(axis=(1, 3))


def pair_statistics(
    frame: Frame, other: Frame, *, block: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Block sums of two tests of equal rates, given each pair's total n = a + b with share p = n_a/(n_a + n_b).

    Difference: D = a - n p, mean 0, variance n p (1 - p). Chi square: X2 = D^2/(n p (1 - p)), mean 1, variance
    2 + [1/(p (1 - p)) - 6]/n. Both are exact at any count, because they are conditional on the pair sums.

    Returns
    -------
    tuple
        Sums of D, of its variance, of X2 - 1 and of its variance.
    """
    total_exposure = frame.exposure + other.exposure
    both = (frame.exposure > 0) & (other.exposure > 0)
    share = np.divide(frame.exposure, total_exposure, out=np.full(both.shape, 0.5), where=both)
    n = np.where(both, frame.counts + other.counts, 0.0)
    difference = np.where(both, frame.counts - n * share, 0.0)
    variance = n * share * (1 - share)
    seen = n > 0
    chi = np.divide(difference**2, variance, out=np.ones(both.shape), where=seen) - 1
    chi_variance = np.where(seen, 2 + (1 / (share * (1 - share)) - 6) / np.where(seen, n, 1), 0.0)
    return (
        block_sum(difference, block),
        block_sum(variance, block),
        block_sum(chi, block),
        block_sum(np.maximum(chi_variance, 0), block),
    )


def _standard_score(value: NDArray[np.float64], variance: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Windowed sum over its standard deviation; a Gaussian window squared is one of sigma / sqrt(2)."""
    total = ndimage.gaussian_filter(value, sigma, mode="constant", truncate=3.0)
    # The window w has unit sum; the sum of w^2 v is the window of sigma/sqrt(2) times the sum of w^2.
    spread = ndimage.gaussian_filter(variance, sigma / np.sqrt(2), mode="constant", truncate=3.0)
    scale = np.sqrt(spread / (4 * np.pi * sigma**2))
    return np.divide(total, scale, out=np.zeros_like(total), where=scale > 1e-12)


def symmetry_gate(frame: Frame, other: Frame) -> NDArray[np.bool_]:
    """Where a mate may be used: True where neither test sees a difference within any window.

    Parameters
    ----------
    frame
        The frame's own counts.
    other
        The frame seen through one symmetry operation.

    Returns
    -------
    ndarray
        (y, x) booleans.
    """
    difference, variance, chi, chi_variance = pair_statistics(frame, other, block=BLOCK)
    holds = np.ones(difference.shape, bool)
    for window in WINDOWS:
        sigma = window / BLOCK
        holds &= np.abs(_standard_score(difference, variance, sigma)) <= GATE_Z
        holds &= _standard_score(chi, chi_variance, sigma) <= GATE_Z
    height, width = frame.counts.shape
    return holds.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]


def mated(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> Frame:
    """The frame seen through one operation about the beam centre."""
    return Frame(
        counts=mate(frame.counts, operation, beam_center),
        exposure=mate(frame.exposure, operation, beam_center),
        reference=frame.reference,
    )


def gated_mates(frame: Frame, symmetry: Symmetry) -> Mates:
    """Counts and exposures of all mates where the test lets them in: a broken region keeps its own photons only."""
    counts, exposure = np.zeros_like(frame.counts), np.zeros_like(frame.exposure)
    for operation in symmetry.operations:
        assert symmetry.beam_center is not None
        other = mated(frame, operation, symmetry.beam_center)
        # A pixel on the symmetry element is its own mate: it brings nothing new.
        fixed = _fixed_points(frame.counts.shape, operation, symmetry.beam_center)
        use = symmetry_gate(frame, other) & ~fixed
        counts += np.where(use, other.counts, 0)
        exposure += np.where(use, other.exposure, 0)
    return Mates(counts=counts, exposure=exposure)


def _fixed_points(
    shape: tuple[int, ...], operation: Operation, beam_center: tuple[float, float]
) -> NDArray[np.bool_]:
    on_element = [
        np.ones(size, bool) if sign > 0 else np.arange(size) * 2 == round(2 * center)
        for size, sign, center in zip(shape, operation, beam_center, strict=True)
    ]
    return on_element[0][:, None] & on_element[1][None, :]


#: Side of the blocks over which `supported` asks whether a symmetry holds.
REGION = 32
#: Share of the testable regions that must agree.
AGREEING = 0.7
#: Standard deviations by which mates must resemble each other more than a smooth pattern makes them.
EVIDENCE_Z = 6.0


def supported(frame: Frame, operation: Operation, beam_center: tuple[float, float]) -> bool:
    """Whether the data support an operation: most regions agree with their mates, and there is contrast to tell.

    A region (32 x 32 pixels) is testable if its pair has at least 25 counts and agrees if its difference is within
    three standard deviations. Contrast: the regions' log rates must correlate with their mates' by more than chance
    (Fisher's z of 6), else the data cannot tell this symmetry from another and it is refused.
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
    rates = [
        np.log(np.maximum(block_sum(f.counts, REGION), 0.5) / np.maximum(block_sum(f.exposure, REGION), 1e-9))
        for f in (frame, other)
    ]
    a, b = rates[0][testable], rates[1][testable]
    if a.std() < 1e-6 or b.std() < 1e-6:
        return False
    # Mates count twice in a region map that holds both halves.
    correlation = min(float(np.corrcoef(a, b)[0, 1]), 1 - 1e-12)
    return bool(np.arctanh(correlation) * np.sqrt(max(testable.sum() / 2 - 3, 1)) > EVIDENCE_Z)


def found_beam_center(frame: Frame) -> tuple[float, float] | None:
    """The centre of inversion on the half-pixel grid, by correlating the frame with itself turned round.

    The masked normalised correlation of log(1 + counts), smoothed, is maximal at twice the centre. None if the
    overlap at the best place is under a quarter of the detector or the correlation is under 0.5.
    """
    weight = (frame.exposure > 0).astype(np.float64)
    if not weight.any():
        return None
    smooth = ndimage.gaussian_filter(frame.counts * weight, 2.0, mode="constant")
    norm = ndimage.gaussian_filter(weight, 2.0, mode="constant")
    image = np.log1p(np.divide(smooth, norm, out=np.zeros_like(smooth), where=norm > 0.05) * 8) * weight
    shape = [2 * size for size in image.shape]

    def spectrum(array: NDArray[np.float64]) -> NDArray[np.complex128]:
        return np.fft.rfft2(array, shape)

    f, f2, w = spectrum(image), spectrum(image**2), spectrum(weight)

    def convolved(a: NDArray[np.complex128], b: NDArray[np.complex128]) -> NDArray[np.float64]:
        return np.fft.irfft2(a * b, shape)

    overlap = convolved(w, w)
    enough = overlap > 0.25 * weight.sum()
    if not enough.any():
        return None
    overlap = np.where(enough, overlap, 1)
    mean = convolved(f, w) / overlap
    covariance = convolved(f, f) / overlap - mean**2
    variance = convolved(f2, w) / overlap - mean**2
    correlation = np.where(enough & (variance > 1e-6), covariance / np.maximum(variance, 1e-6), -1)
    total = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    if correlation[total] < 0.5:
        return None
    return float(total[0]) / 2, float(total[1]) / 2


def supported_symmetry(frame: Frame, beam_center: tuple[float, float] | None) -> Symmetry:
    """The largest point group that the frame supports about the centre, or about the one found; else ``1``."""
    center = found_beam_center(frame) if beam_center is None else beam_center
    if center is None:
        return Symmetry()
    held = {op for op in (INVERSION, MIRROR_X, MIRROR_Y) if supported(frame, op, center)}
    for symbol, needed in (
        ("2mm", {INVERSION, MIRROR_X, MIRROR_Y}),
        ("2", {INVERSION}),
        ("m", {MIRROR_X}),
        ("my", {MIRROR_Y}),
    ):
        if needed <= held:
            return Symmetry(symbol, center)
    return Symmetry()
