"""Line through the noise of blocks of pixels: its slope is the gain, and where it begins the read noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.integrating.found import BinnedCurve
from bluesky_symdenoise.physics.integrating.residual import GROUPS, Blocks

#: Fewest blocks from which a line is determined.
FEWEST_BLOCKS = 24
#: Blocks whose noise is further from the line, in standard deviations, hold something else.
OUTLIER_Z = 4.0
#: Levels of a robust first fit and of the curve that is shown, and steps of the fit.
LEVELS, STEPS = 12, 12
#: Least variance that may be predicted, as a share of that of the darkest blocks.
LEAST = 0.3


@dataclass(frozen=True)
class Line:
    """Fit of variance = constant + gain level to blocks.

    Attributes
    ----------
    gain, constant
        The line; NaN if the blocks do not tell.
    used
        Blocks that are not off the line.
    gain_error, constant_error
        Standard errors: those that the noise of blocks gives, or if larger what groups of blocks say.
    gains, constants
        The line without each group of blocks in turn.
    """

    gain: float
    constant: float
    used: NDArray[np.bool_]
    gain_error: float
    constant_error: float
    gains: NDArray[np.float64]
    constants: NDArray[np.float64]

    @property
    def off(self) -> float:
        """Share of blocks that are off the line."""
        return 1 - float(self.used.mean()) if self.used.size else 0.0


def jackknife_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of a value from those that were found without each group in turn."""
    number = len(values)
    return float(np.sqrt((number - 1) / number * ((values - values.mean()) ** 2).sum())) if number > 1 else 0.0


def line_through(blocks: Blocks) -> Line | None:
    """Return the line through blocks; None if they are too few.

    The level has noise, too, which it shares with the variance: where it lies is told by the blocks around each
    (instrumental variable), so that the slope is right at few photons. Weights are those of the fitted line, there.
    """
    if blocks.level.size < FEWEST_BLOCKS or not blocks.variance.any():
        return None
    gain, constant, floor = _first(blocks)
    used = np.ones(blocks.level.shape, bool)
    for _ in range(STEPS):
        expected, deviation = _expected(blocks, blocks.level, gain, constant, floor)
        before, used = used, np.abs(blocks.variance - expected) < OUTLIER_Z * deviation
        if np.count_nonzero(used) < FEWEST_BLOCKS:
            return None
        kept = blocks.chosen(used)
        weight = 1 / _expected(kept, kept.around, gain, constant, floor)[1] ** 2
        gain, constant, gain_error, constant_error = _solved(kept, weight)
        if not np.isfinite(gain):
            return None
        if np.array_equal(before, used):
            break
    without = [_solved(kept.chosen(left), weight[left])[:2] for left in _left_out(kept.group)]
    gains, constants = np.array(without).reshape(-1, 2).T
    return Line(
        gain=gain,
        constant=constant,
        used=used,
        gain_error=max(gain_error, jackknife_error(gains)),
        constant_error=max(constant_error, jackknife_error(constants)),
        gains=gains,
        constants=constants,
    )


def shown(binning: int, blocks: Blocks, line: Line) -> BinnedCurve:
    """Return the photon transfer curve of blocks, at levels of equal numbers of blocks."""
    kept = blocks.chosen(line.used)
    # Darks are one level.
    dark = (kept.level == 0) & (kept.around == 0)
    order = np.argsort(np.where(dark, -np.inf, kept.level), kind="stable")[np.count_nonzero(dark) :]
    parts = [np.flatnonzero(dark)] if dark.any() else []
    parts += np.array_split(order, max(1, min(LEVELS, len(order) // 5)))
    weights = [kept.number[part].sum() for part in parts]
    mean, variance = (
        np.array([np.average(values[part], weights=kept.number[part]) for part in parts])
        for values in (kept.level, kept.variance)
    )
    return BinnedCurve(
        binning=binning,
        mean=mean,
        variance=variance,
        error=variance * np.sqrt(2 / np.array(weights)),
        gain=line.gain,
        gain_error=line.gain_error,
        constant=line.constant,
        constant_error=line.constant_error,
    )


def _left_out(group: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Return the blocks that are left when each group is taken away."""
    return [group != number for number in range(GROUPS**2) if (group == number).any() and (group != number).any()]


def _expected(
    blocks: Blocks, level: NDArray[np.float64], gain: float, constant: float, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variance that a line predicts at levels, and the standard deviation of what is found."""
    expected = np.maximum(gain * level + constant, floor)
    # Few photons have a long tail: the fourth cumulant of gain * Poisson is gain^3 times its mean.
    tail = max(gain, 0.0) ** 3 * np.maximum(level, 0.0) / expected**2
    return expected, expected * np.sqrt((2 + np.minimum(tail, 100)) / blocks.number)


def _first(blocks: Blocks) -> tuple[float, float, float]:
    """Return a line through medians of blocks of similar level, which a minority of them does not move.

    Returns
    -------
    tuple
        Gain, constant, and the least variance that may be predicted.
    """
    order = np.argsort(blocks.around, kind="stable")
    parts = np.array_split(order, max(2, min(LEVELS, len(order) // 10)))
    level, variance = (np.array([np.median(v[part]) for part in parts]) for v in (blocks.level, blocks.variance))
    # The median of chi-squared, over its mean.
    variance /= (1 - 2 / (9 * max(float(np.median(blocks.number)), 1.0))) ** 3
    floor = max(LEAST * float(variance.min()), 1e-6 * float(blocks.variance.mean()))
    if np.ptp(level) > 0:
        gain, constant = np.polyfit(level, variance, 1, w=1 / np.maximum(variance, floor))
        if gain > 0:
            return float(gain), float(constant), floor
    return 0.0, float(np.median(variance)), floor


def _solved(blocks: Blocks, weight: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return gain and constant by weighted least squares with the blocks around as instrument, and their errors."""
    # Levels of about 1 keep the equations well scaled.
    size = max(float(np.abs(blocks.level).mean()), 1e-300)
    told = np.stack([blocks.around / size, np.ones(blocks.level.shape)])
    design = np.stack([blocks.level / size, np.ones(blocks.level.shape)])
    try:
        inverse = np.linalg.inv((told * weight) @ design.T)
    except np.linalg.LinAlgError:
        return np.nan, np.nan, np.nan, np.nan
    slope, constant = inverse @ (told * weight) @ blocks.variance
    error, constant_error = np.sqrt(np.diag(inverse @ ((told * weight) @ told.T) @ inverse.T))
    return float(slope / size), float(constant), float(error / size), float(constant_error)
