"""Verdict on whether a frame holds photon counts, from its photon transfer curve and the steps between its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.counts.curve import Curve, transfer_curve
from bluesky_symdenoise.physics.frame import sentinel_mask

#: Variance over mean of counts: within `SURE` nothing is said, and sigma is right to 15 %. Below the least the noise is
#: too small, which structure cannot make it. Above, speckle, spots, unequal pixels and corrected rates may be the
#: reason, but where counts are few they add little: beyond the most in the limit of no counts it is something else.
LEAST, SURE, MOST = 0.7, (0.8, 1.3), 1.8
#: Largest share of its own signal, squared, by which the pixels of a counting detector differ from each other: it adds
#: to the variance with the square of the mean. So do count-rate corrections, at most by this at the brightest level.
NONUNIFORM, RATE_CORRECTED = 0.11**2, 0.9
#: A part of the variance that does not grow with the mean (read noise): its least share of the variance of the darkest
#: level, and how much better than without it the curve must fit (chi-squared); and what is doubtful.
CONSTANT, BETTER, SURE_CONSTANT, SURE_BETTER = 0.5, 50.0, 0.2, 12.0
#: Levels, and ratio of the brightest to the darkest, that a line is fitted to. Levels whose ratio is so many times the
#: least are structure. The error of each is at least this share of its ratio.
FITTED_LEVELS, FITTED_RANGE, STRUCTURE, LEAST_ERROR = 5, 1.5, 2.5, 0.02
#: Blocks of a frame that can be judged, and standard errors by which a ratio must be out of its range.
JUDGED_BLOCKS, Z = 200, 4.0
#: Pixels that are not 0, and different values, from which steps between values are read.
STEP_PIXELS, STEP_VALUES = 50, 4
#: Different values of a frame that are looked at, the largest as a multiple of a step, and how far it may be off one.
MOST_VALUES, MOST_STEPS, OFF_STEP = 2000, 100_000, 0.05
#: Pixels of a frame that are enough, taken in bands of rows.
MOST_PIXELS, BAND = 2**21, 64
#: Frames of one image that are looked at until one can be judged.
MOST_FRAMES = 4

Kind = Literal["counts", "doubtful", "not counts", "too few"]


@dataclass(frozen=True)
class Line:
    """Fit of a photon transfer curve: variance = constant + gain mean + nonuniform mean^2.

    Attributes
    ----------
    constant
        Read noise squared less gain times offset, in units of the values squared.
    gain
        Units per photon.
    counting_gain
        Gain of the best curve without a constant.
    darkest, darkest_error
        Ratio of variance and mean in the limit of no counts, and its standard error.
    better
        Chi-squared by which the constant improves the fit.
    share
        Constant as a share of the darkest level's variance.
    """

    constant: float
    gain: float
    counting_gain: float
    darkest: float
    darkest_error: float
    better: float
    share: float


@dataclass(frozen=True)
class Verdict:
    """Whether a frame holds photon counts, and what says so.

    Attributes
    ----------
    kind
        ``counts``; ``doubtful``; ``not counts``; ``too few`` to say.
    why
        What was found, in words; empty for counts.
    curve, line
        Photon transfer curve and its fit; None where there is too little for them.
    step
        All values are multiples of it, if it is not 1; else None.
    """

    kind: Kind
    why: str = ""
    curve: Curve | None = None
    line: Line | None = None
    step: float | None = None


def verdict(image: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Verdict:
    """Return whether a frame holds photon counts, y ~ Poisson(mean).

    The variance of counts is their mean, at each level of the frame. Pixels of a real detector differ by some per
    cent, which adds to the variance with the square of the mean. Scaled counts have another slope, charge-integrating
    detectors a part that does not grow with the mean, smoothed or interpolated frames too little noise.

    Parameters
    ----------
    image
        (y, x).
    mask
        (y, x), True = bad; codes of the detector are added.
    """
    if image.dtype.kind == "b":
        return Verdict("too few")
    bad = sentinel_mask(image) if mask is None else sentinel_mask(image) | mask
    values = image[~bad]
    if not values.size or values.min() == values.max():
        return Verdict("too few")
    step = value_step(values)
    if step is not None and step > 1:
        return Verdict(
            "not counts", f"all its values are multiples of {step:.4g}: counts are multiples of 1", step=step
        )
    curve = transfer_curve(*_sampled(image, bad))
    if curve is None or curve.blocks.sum() < JUDGED_BLOCKS:
        return Verdict("too few", curve=curve, step=step)
    line = fitted_line(curve)
    kind, why = _judged(curve, line, step)
    return Verdict(kind, why, curve, line, step)


def fitted_line(curve: Curve) -> Line | None:
    """Return the fit of a photon transfer curve; None if its levels are too few or too alike."""
    if not curve.ratio.min() > 0:
        return None
    plain = curve.ratio <= STRUCTURE * curve.ratio.min()
    m, ratio = curve.mean[plain], curve.ratio[plain]
    if len(m) < FITTED_LEVELS or m[-1] < FITTED_RANGE * m[0]:
        return None
    error = np.hypot(curve.error[plain], LEAST_ERROR * ratio)
    design = np.stack([1 / m, np.ones_like(m), m], axis=1) / error[:, None]
    low, high = [-np.inf, 0.0, 0.0], [np.inf, np.inf, max(NONUNIFORM, RATE_CORRECTED / m[-1])]
    free = lsq_linear(design, ratio / error, bounds=(low, high))
    counting = lsq_linear(design[:, 1:], ratio / error, bounds=(low[1:], high[1:]))
    darkest, darkest_error = _in_the_dark(design[:, 1:], ratio / error)
    return Line(
        constant=float(free.x[0]),
        gain=float(free.x[1]),
        counting_gain=float(counting.x[0]),
        darkest=darkest,
        darkest_error=darkest_error,
        better=float(2 * (counting.cost - free.cost)),
        share=float(free.x[0] / (ratio[0] * m[0])),
    )


def _sampled(image: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return bands of rows, evenly spread, of a frame that is larger than is needed; their first rows are masked."""
    if image.size <= MOST_PIXELS:
        return image, bad
    bands = np.arange(0, image.shape[0] - BAND, BAND)
    chosen = bands[:: -(-len(bands) * BAND * image.shape[1] // MOST_PIXELS)]
    rows = (chosen[:, None] + np.arange(BAND)).ravel()
    # No difference is taken between one band and the next.
    masked = bad[rows] | (np.arange(len(rows)) % BAND == 0)[:, None]
    return image[rows], masked


def _in_the_dark(design: NDArray[np.float64], ratio: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ratio where the mean is 0, of a straight line that does not fall, and its standard error."""
    (at_zero, slope), *_ = np.linalg.lstsq(design, ratio, rcond=None)
    if slope <= 0:
        weight = design[:, 0] ** 2
        return float((design[:, 0] * ratio).sum() / weight.sum()), float(1 / np.sqrt(weight.sum()))
    return float(at_zero), float(np.sqrt(np.linalg.pinv(design.T @ design)[0, 0]))


def _judged(curve: Curve, line: Line | None, step: float | None) -> tuple[Kind, str]:
    slack, ratio = Z * curve.median_error, curve.median
    said = f"its variance is {ratio:.2g} times its mean, where counts have 1"
    if ratio + slack < LEAST:
        if step is not None and abs(step / ratio - 1) < 0.25:
            said += f"; it looks like the mean of {1 / step:.0f} exposures"
        return "not counts", said
    if line is None:
        return ("counts", "") if SURE[0] <= ratio <= SURE[1] else ("doubtful", said)
    fitted = f"{said}: variance = {line.gain:.2g} mean {line.constant:+.2g}, as with an offset or read noise"
    if line.better > BETTER and line.share > CONSTANT:
        return "not counts", fitted
    if line.darkest - Z * line.darkest_error > MOST:
        return "not counts", f"{said}, and it is {line.darkest:.2g} where counts are few, too"
    if line.better > SURE_BETTER and abs(line.share) > SURE_CONSTANT:
        return "doubtful", fitted
    if line.counting_gain > SURE[1] or (ratio < SURE[0] and line.counting_gain < SURE[0]):
        return "doubtful", said
    return "counts", ""


def value_step(values: NDArray[Any]) -> float | None:
    """Return the number of which all values are multiples; None if it is 1, or there is none."""
    found = np.unique(np.abs(values[values != 0]))[:MOST_VALUES]
    if len(found) < STEP_VALUES or np.count_nonzero(values) < STEP_PIXELS:
        return None
    if values.dtype.kind in "iu":
        step = float(np.gcd.reduce(found.astype(np.int64)))
        return None if step == 1 else step
    found = found.astype(np.float64)
    step = float(np.diff(found, prepend=0.0).min())
    # Small values tell roughly what large ones tell exactly.
    for value in found:
        number = np.round(value / step)
        if number < 1 or number > MOST_STEPS or abs(value / step - number) > OFF_STEP:
            return None
        step = float(value / number)
    return None if abs(step - 1) < 1e-3 else step


def checked_noise(noise: str | None) -> str | None:
    """Return what was stated of the noise: ``poisson``, or None for nothing.

    Raises
    ------
    SymDenoiseError
        If it is something else.
    """
    if noise not in (None, "poisson"):
        raise SymDenoiseError(
            f"noise={noise!r}", rule="it is 'poisson', or left out to have frames tested", remedy="choose one of these"
        )
    return noise


def doubts(image: NDArray[Any], mask: NDArray[np.bool_] | None) -> str | None:
    """Return what is doubtful about the counts of an image (..., y, x); None if nothing is, or too little can be said.

    The first of its frames that can be judged decides.

    Raises
    ------
    SymDenoiseError
        If it plainly holds something else than photon counts.
    """
    for frame in image.reshape(-1, *image.shape[-2:])[:MOST_FRAMES]:
        found = verdict(frame, mask if mask is None or mask.shape == frame.shape else None)
        if found.kind == "not counts":
            raise SymDenoiseError(
                "frame that is not photon counts",
                rule=found.why,
                remedy="give the counts as the detector wrote them; for CCDs, flat panels and averaged frames see the "
                "guide on integrating detectors; if these are counts, state it: noise='poisson' or --noise poisson",
            )
        if found.kind != "too few":
            return found.why or None
    return None
