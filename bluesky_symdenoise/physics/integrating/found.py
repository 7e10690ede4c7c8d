"""What frames told about the readout of their detector, as a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.integrating.readout import Readout


@dataclass(frozen=True, eq=False)
class BinnedCurve:
    """Photon transfer curve of sums over blocks of `binning` x `binning` pixels, per pixel.

    Attributes
    ----------
    binning
        Side of the blocks in pixels.
    mean, variance, error
        Signal above the offset at each level, variance of a sum divided by its number of pixels, and standard error
        of that; in units of the signal and its square.
    gain, gain_error
        Slope of the curve, and its standard error.
    constant, constant_error
        Variance without photons, and its standard error.
    """

    binning: int
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    error: NDArray[np.float64]
    gain: float
    gain_error: float
    constant: float
    constant_error: float


@dataclass(frozen=True, eq=False)
class FoundReadout:
    """Readout of a detector as its frames show it, and how well it is known.

    Attributes
    ----------
    readout
        What was found.
    gain_error, read_noise_error
        Standard errors, of the gain with that of the lag; NaN if it is not known.
    how
        What noise was read from: differences of frames (far from each other, consecutive, or of similar brightness),
        symmetry pairs, second differences of frames, or steps between values.
    frames
        Number of frames that were used.
    curves
        Photon transfer curves at each binning.
    lag, lag_error
        Share of a frame's signal that is seen again in the next one, and its standard error; NaN if it was not
        measured, because successive frames differ in brightness for instance.
    chi_squared
        Variance of sums over blocks of 32 x 32 pixels, over what the readout predicts; NaN if it was not measured.
    notes
        What else was noticed, one sentence each.
    """

    readout: Readout
    gain_error: float
    read_noise_error: float
    how: str
    frames: int
    curves: tuple[BinnedCurve, ...] = ()
    lag: float = np.nan
    lag_error: float = np.nan
    chi_squared: float = np.nan
    notes: tuple[str, ...] = ()
