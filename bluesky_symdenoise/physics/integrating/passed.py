"""Tests that a readout must pass before it is told."""

from __future__ import annotations

import numpy as np

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating.blur import seen_noise
from bluesky_symdenoise.physics.integrating.residual import Blocks, in_blocks, shared_noise
from bluesky_symdenoise.physics.integrating.spread import Spread
from bluesky_symdenoise.physics.integrating.told import Told

#: Side of the blocks of the test of sums, its range, standard errors off 1 from which it must be inside, and a range in
#: which it must be in any case.
TESTED, RANGE, TEST_Z, FAR = 32, (0.8, 1.25), 3.0, (0.5, 2.0)
#: Fewest sums that are a test, and how far, squared and in standard deviations, those are off whose scene changed.
TESTED_SUMS, TEST_OFF = 16, 25.0
#: Standard errors from which an effect is seen.
SEEN = 4.0
#: How far the gain from within frames may be above that of differences of frames.
MORE = 0.1


def shared(noise: Told) -> dict[str, float]:
    """Return the standard deviation of what pixels of a ``row`` or ``column`` share, where it is seen."""
    if noise.differences == "mixed" or noise.mates:
        return {}
    found = {}
    for axis, name in ((1, "row"), (0, "column")):
        variances, errors = np.array([shared_noise(residual, axis) for residual in noise.residuals]).T
        if variances.mean() > SEEN * errors.mean() / np.sqrt(len(errors)):
            found[name] = float(np.sqrt(variances.mean()))
    return found


def refuse_structure(noise: Told, found: Spread, *, offset_known: bool, most: float) -> None:
    """Raise SymDenoiseError if the noise within a frame is in part its structure.

    Parameters
    ----------
    offset_known
        Whether the offset was subtracted.
    most
        Largest gain that differences of frames allow: they have noise at least.
    """
    line = noise.lines[1]
    if noise.differences != "mixed":
        return
    if found.gain > (1 + MORE) * most:
        raise SymDenoiseError(
            f"gain {found.gain:.3g} from second differences of frames",
            rule=f"differences between frames allow {most:.3g} at most: structure adds to the noise",
            remedy="give repeats of one scene, flat fields for instance",
        )
    if not offset_known and line.constant < -SEEN * line.constant_error:
        raise SymDenoiseError(
            f"noise that vanishes at a signal of {-line.constant / line.gain:.4g}",
            rule="an offset explains it, or structure that adds to the noise where the frame is bright",
            remedy="give darks, or repeats of one scene",
        )


def tested_sums(noise: Told, found: Spread, lines: dict[str, float]) -> float:
    """Return the variance of sums over 32 x 32 pixels, over what was found; NaN if there are too few.

    Parameters
    ----------
    lines
        What rows and columns share, which is said if the test fails.

    Raises
    ------
    SymDenoiseError
        If it is far from 1.
    """
    if noise.differences == "mixed":
        return np.nan
    sums = Blocks.together([in_blocks(residual, TESTED, shared=noise.shared) for residual in noise.residuals])
    slope = found.gain * seen_noise(TESTED, found.blur, noise.differences)
    expected = slope * sums.level + noise.lines[1].constant
    fine = expected > 0
    ratio, number = sums.variance[fine] / expected[fine], sums.number[fine]
    kept = ratio * np.maximum(number, 0.3) < TEST_OFF
    if np.count_nonzero(fine) >= TESTED_SUMS and kept.mean() < 0.5:
        raise SymDenoiseError(
            f"{1 - kept.mean():.0%} of sums over {TESTED} x {TESTED} pixels are far off what noise explains",
            rule="pairs of equal signal have few of them",
            remedy="check symmetry and centre, or give repeats of one scene",
        )
    if np.count_nonzero(kept) < TESTED_SUMS:
        return np.nan
    value = float(np.average(ratio[kept], weights=number[kept]))
    # Of the right readout: of another, it would grow with the value.
    error = float(np.sqrt(2 / number[kept].sum()))
    low, high = RANGE
    if not low <= value <= high and (abs(value - 1) > TEST_Z * error or not FAR[0] <= value <= FAR[1]):
        said = "".join(f"; pixels of a {name} share noise of {sigma:.3g}" for name, sigma in lines.items())
        raise SymDenoiseError(
            f"chi-squared {value:.3g} +/- {error:.1g} of sums over {TESTED} x {TESTED} pixels",
            rule=f"with the right readout it lies between {low} and {high}{said}",
            remedy=("subtract what they share, and " if said else "")
            + "give repeats of one scene as the detector wrote them, not smoothed or interpolated",
        )
    return value
