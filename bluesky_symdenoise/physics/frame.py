"""A frame in the form of the likelihood: counts and the exposure that they were collected with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError

#: Values that detectors write where they have no count: gaps, dead and saturated pixels (Eiger, Pilatus, Lambda).
SENTINELS = (2**16 - 1, 2**32 - 2, 2**32 - 1)


@dataclass(frozen=True)
class Frame:
    """Counts y ~ Poisson(exposure * rate), per pixel.

    Attributes
    ----------
    counts
        (y, x) float64, 0 where masked.
    exposure
        (y, x) float64 relative exposure n >= 0, 0 where masked; its median over the other pixels is 1.
    reference
        Exposure, in the caller's unit, that corresponds to ``exposure == 1``.
    """

    counts: NDArray[np.float64]
    exposure: NDArray[np.float64]
    reference: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where nothing was measured."""
        return self.exposure == 0


def sentinel_mask(counts: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels that hold a code, not a count: negative, NaN, infinite, 2^16-1, 2^32-2 or 2^32-1.

    Parameters
    ----------
    counts
        (..., y, x) array of any integer or float dtype.
    """
    if counts.dtype.kind == "u" and counts.dtype.itemsize == 1:
        return np.zeros(counts.shape, bool)
    bad = np.zeros(counts.shape, bool)
    largest = float(np.finfo(counts.dtype).max) if counts.dtype.kind == "f" else np.iinfo(counts.dtype).max
    for value in SENTINELS:
        if value <= largest:
            bad |= counts == value
    if counts.dtype.kind == "f":
        bad |= ~np.isfinite(counts)
    if counts.dtype.kind in "fi":
        bad |= counts < 0
    return bad


def as_mask(mask: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask as (y, x) booleans, True = bad; None masks nothing.

    Raises
    ------
    SymDenoiseError
        If its shape is not the frame's.
    """
    if mask is None:
        return np.zeros(shape, bool)
    checked = np.asarray(mask)
    if checked.shape != shape:
        raise SymDenoiseError(
            f"mask of shape {checked.shape}",
            rule=f"it must have the frame's shape {shape}",
            remedy="give one (y, x) mask, True = bad",
        )
    return checked.astype(bool)


def as_exposure(exposure: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the exposure as (y, x) floats >= 0; None is 1 and a number is the same for all pixels; 0 is masked.

    Raises
    ------
    SymDenoiseError
        If it holds NaN, infinite or negative values or has another shape.
    """
    given = np.asarray(1.0 if exposure is None else exposure, dtype=np.float64)
    if given.ndim and given.shape != shape:
        raise SymDenoiseError(
            f"exposure of shape {given.shape}",
            rule=f"it must be a number or have the frame's shape {shape}",
            remedy="give one (y, x) exposure: flat field times solid angle times time",
        )
    if not np.isfinite(given).all() or (given < 0).any():
        worst = given[~np.isfinite(given) | (given < 0)].ravel()[0]
        raise SymDenoiseError(
            f"exposure with the value {worst}",
            rule="an exposure is finite and not negative",
            remedy="set it to 0 where a pixel measured nothing",
        )
    return np.broadcast_to(given, shape)


def frame_from_counts(counts: NDArray[Any], *, mask: NDArray[np.bool_], exposure: NDArray[np.float64]) -> Frame:
    """Return counts, mask (True = bad) and exposure, all (y, x), as a `Frame`; detector codes are masked.

    Raises
    ------
    SymDenoiseError
        If a float frame has negative fractions: a background was subtracted, and the values are not counts.
    """
    if counts.dtype.kind == "f":
        negative = counts[(counts < 0) & ~mask]
        if np.any(negative != np.floor(negative)):
            raise SymDenoiseError(
                f"counts with the value {negative.min():.6g}",
                rule="counts are not negative; this frame looks background-subtracted",
                remedy="give the counts as measured, and what was subtracted as a background",
            )
    bad = mask | sentinel_mask(counts)
    n = np.where(bad, 0.0, exposure)
    good = n > 0
    reference = float(np.median(n[good])) if good.any() else 1.0
    return Frame(counts=np.where(good, counts, 0).astype(np.float64), exposure=n / reference, reference=reference)
