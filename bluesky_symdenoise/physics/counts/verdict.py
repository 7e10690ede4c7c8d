"""Verdict on whether a frame holds photon counts, from its photon transfer curve and the steps between its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.counts.curve import WIDE, Curve, fine_curve, transfer_curve, wide_curve
from bluesky_symdenoise.physics.frame import sentinel_mask

#: Variance over mean of counts: within `SURE` nothing is said, and sigma is right to 15 %. Below the least the noise is
#: too small, which structure cannot make it. Above, speckle, spots, unequal pixels and corrected rates may be the
#: reason, but where counts are few they add little: beyond the most in the limit of no counts it is something else.
LEAST, SURE, MOST = 0.7, (0.8, 1.3), 1.8
#: Share of the levels that have too little noise, which structure hides at the others.
QUIET_SHARE = 0.25
#: Ratio of the finest differences below which neighbours share their noise. Counting detectors have 0.92 and more.
LEAST_FINE = 0.75
#: Ratio of whole numbers from which photons may be counted in several pixels, if pixels that are apart have `SURE`.
LEAST_SHARED = 0.4
#: Ratio of the mean of the most exposures that are told apart from frames without noise.
LEAST_GAIN = 1e-3
#: Ratio in the limit of no counts over that of the darkest level, of a slope: what structure adds grows with the level.
#: The second number is for that ratio less its error.
FLAT, SURELY_FLAT = 0.85, 0.6
#: Ratio of the finest differences over that of others: it is 1 for noise, and less for structure and shared noise.
WHITE = 0.8
#: Ratio of the finest differences that detectors have, and variance over mean squared that structure has there even if
#: it is as strong at all levels.
MOST_GAIN, FINE_CONTRAST = 20.0, 0.02
#: Contrast squared that few structures have, and share of the levels whose noise would need more.
CONTRAST, LOUD_SHARE = 0.5, 0.25
#: Ratio, and ratio over mean, that only blocks with a hot pixel have.
HOT = (10.0, 20.0)
#: Share of values that are whole numbers, in frames of which some are fractions: virtual pixels halve counts.
WHOLE = 0.75
#: Largest share of its own signal, squared, by which the pixels of a counting detector differ from each other: it adds
#: to the variance with the square of the mean. So do count-rate corrections, at most by this at the brightest level.
NONUNIFORM, RATE_CORRECTED = 0.11**2, 0.9
#: A part of the variance that does not grow with the mean (read noise): its least share of the variance of the darkest
#: level, and how much better than without it the curve must fit (chi-squared); and what is doubtful.
CONSTANT, BETTER, SURE_CONSTANT, SURE_BETTER = 0.5, 50.0, 0.2, 12.0
#: Levels, and ratio of the brightest to the darkest, that a line is fitted to. Levels whose ratio is so many times the
#: least are structure. The error of each is at least this share of its ratio.
FITTED_LEVELS, FITTED_RANGE, STRUCTURE, LEAST_ERROR = 5, 1.5, 2.5, 0.02
#: Blocks of a frame that can be judged (fewer show too little noise), and standard errors by which a ratio must be out
#: of its range.
JUDGED_BLOCKS, Z = 200, 4.0
#: Pixels that are not 0, and different values, from which steps between values are read.
STEP_PIXELS, STEP_VALUES = 50, 4
#: Different values of a frame that are looked at, the largest as a multiple of a step, and how far it may be off one.
MOST_VALUES, MOST_STEPS, OFF_STEP = 2000, 100_000, 0.05
#: Pixels of a frame that are enough, taken in bands of rows, and of one that is tested later in a run.
MOST_PIXELS, LATER_PIXELS, BAND = 2**21, 2**18, 64
#: Frames of one image that are looked at until one can be judged.
MOST_FRAMES = 4

#: Values and mask (True = bad) of the part of a frame that is looked at.
Sampled = tuple[NDArray[Any], NDArray[np.bool_]]
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
    exposures
        Number of exposures that it looks like the mean of.
    """

    kind: Kind
    why: str = ""
    curve: Curve | None = None
    line: Line | None = None
    step: float | None = None
    exposures: int | None = None


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
    fractions = step is not None and not _mostly_whole(values)
    number = _number(step) if fractions else None
    if number is not None:
        said = f"all its values are multiples of {step:.4g}: it looks like the mean of {number} exposures"
        return Verdict("not counts", said, step=step, exposures=number)
    found = judged(sampled(image, bad), step)
    if found.kind in ("counts", "too few") and found.curve is not None and fractions:
        said = f"all its values are multiples of {step:.4g}: counts are multiples of 1"
        return Verdict("doubtful", said, found.curve, found.line, step)
    return found


def judged(part: Sampled, step: float | None = None) -> Verdict:
    """Return the verdict on values and mask (y, x) by their photon transfer curve, whatever the values are.

    Parameters
    ----------
    step
        All values are multiples of it; None if they are of none, or it is 1.
    """
    curve = transfer_curve(*part)
    if curve is None:
        return Verdict("too few", curve=curve, step=step)
    return _too_little(part, curve, step) or _judged(part, curve, step)


def fitted_line(curve: Curve) -> Line | None:
    """Return the fit of a photon transfer curve; None if its levels are too few or too alike."""
    from scipy.optimize import lsq_linear

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


def sampled(image: NDArray[Any], bad: NDArray[np.bool_], pixels: int = MOST_PIXELS) -> Sampled:
    """Return bands of rows, evenly spread, of a frame that is larger than is needed; their first rows are masked."""
    bands = np.arange(0, image.shape[0] - BAND, BAND)
    if image.size <= pixels or not len(bands):
        return image, bad
    chosen = bands[:: -(-len(bands) * BAND * image.shape[1] // pixels)]
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


def _too_little(part: Sampled, curve: Curve, step: float | None) -> Verdict | None:
    """Return what is said of a frame with less noise than counts have; None if it has enough."""
    line = fitted_line(curve)
    quiet = _quiet(curve)
    if curve.median + Z * curve.median_error < LEAST:
        ratio, where = curve.median, ""
    elif quiet.sum() >= max(2, QUIET_SHARE * len(quiet)):
        ratio, where = float(np.median(curve.ratio[quiet])), " where its noise is least"
    else:
        return None
    said = f"its variance is {ratio:.2g} times its mean{where}, where counts have 1"
    values = part[0][~part[1]]
    wide = wide_curve(*part)
    if ratio > LEAST_SHARED and wide is not None and wide.median > SURE[0] and np.all(values == np.floor(values)):
        said += f", and {wide.median:.2g} for pixels that are {WIDE} apart: photons may be counted in several pixels"
        return Verdict("doubtful", said, curve, line, step)
    return Verdict("not counts", said, curve, line, step)


def _number(step: float | None) -> int | None:
    """Return of how many exposures the mean has this step; None if it is of none."""
    number = 0 if step is None else round(1 / step)
    return number if step is not None and number > 1 and abs(step * number - 1) < 1e-3 else None


def _judged(part: Sampled, curve: Curve, step: float | None) -> Verdict:
    ratio, line, fine = curve.median, fitted_line(curve), fine_curve(*part)

    def said(kind: Kind, why: str = "") -> Verdict:
        return Verdict(kind, why, curve, line, step)

    found = f"its variance is {ratio:.2g} times its mean, where counts have 1"
    loud, quiet = _loud(curve), _quiet(curve)
    if curve.blocks.sum() < JUDGED_BLOCKS and loud.mean() < LOUD_SHARE:
        return said("too few")
    fitted = ""
    if line is not None:
        fitted = f"{found}: variance = {line.gain:.2g} mean {line.constant:+.2g}, as with an offset or read noise"
        if line.better > BETTER and line.share > CONSTANT:
            return said("not counts", fitted)
    if fine is not None:
        if (dark := _slope(fine)) > MOST and fine.ratio.min() > WHITE * curve.ratio.min():
            return said("not counts", f"{found}, and it is {dark:.2g} where counts are few, too")
        if fine.median + Z * fine.median_error < LEAST_FINE:
            return said(
                "doubtful",
                f"its variance is {fine.median:.2g} times its mean in the finest differences, where counts have 1: "
                "neighbours seem to share their noise, as in blurred frames",
            )
    if line is not None and line.better > SURE_BETTER and abs(line.share) > SURE_CONSTANT:
        return said("doubtful", fitted)
    if loud.mean() >= LOUD_SHARE:
        return said("doubtful", f"{found}, and {_at(curve, loud)}")
    if quiet.sum() > 1:
        return said("doubtful", f"{found}, and {_at(curve, quiet)}")
    gain = ratio if line is None else line.counting_gain
    if gain > SURE[1] or (ratio < SURE[0] and gain < SURE[0]):
        return said("doubtful", found)
    if line is not None and line.darkest + Z * line.darkest_error < LEAST:
        return said("doubtful", f"{found}, and it falls to {line.darkest:.2g} where counts are few")
    return said("counts")


def _quiet(curve: Curve) -> NDArray[np.bool_]:
    """Return the levels that have too little noise for counts."""
    return np.asarray(curve.ratio + Z * curve.error < LEAST)


def _loud(curve: Curve) -> NDArray[np.bool_]:
    """Return the levels that have more noise than structure adds, and less than a hot pixel in each block."""
    low, high = np.maximum(MOST, 1 + CONTRAST * curve.mean), np.maximum(HOT[0], HOT[1] * curve.mean)
    return np.asarray((curve.ratio - Z * curve.error > low) & (curve.ratio < high))


def _at(curve: Curve, levels: NDArray[np.bool_]) -> str:
    return f"{np.median(curve.ratio[levels]):.2g} at {np.median(curve.mean[levels]):.2g} counts"


def _slope(fine: Curve) -> float:
    """Return the ratio in the limit of no counts, less its error, if it is that of all levels; else 0."""
    line = fitted_line(fine)
    plain = fine.ratio <= STRUCTURE * fine.ratio.min()
    if line is None or np.quantile(fine.mean[plain], 0.75) < FITTED_RANGE * fine.mean[plain][0]:
        return 0.0
    at_zero, first = line.darkest - Z * line.darkest_error, fine.ratio[plain][0]
    flat = line.darkest > FLAT * first and at_zero > SURELY_FLAT * first
    return at_zero if flat and (first < MOST_GAIN or first > FINE_CONTRAST * fine.mean[plain][0]) else 0.0


def _mostly_whole(values: NDArray[Any]) -> bool:
    values = values[values != 0]
    return bool(np.mean(values == np.floor(values)) > WHOLE)


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
    for value in np.sort(np.concatenate([found, np.diff(found[:: len(found) // 8 + 1]), found[1:] - found[0]])):
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
