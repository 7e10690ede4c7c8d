"""A frame in the form of the likelihood: counts and the exposure that they were collected with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from bluesky_symdenoise.errors import SymDenoiseError

#: Codes of unsigned 16- and 32-bit detectors (Eiger, Pilatus, Lambda) for gaps, dead and saturated pixels. In a type of
#: their own size, and those of 32 bits in every type, they are never counts.
CODES = {16: (2**16 - 1,), 32: (2**32 - 2, 2**32 - 1)}
#: Codes of detectors whose values were stored in a wider type: codes only where several pixels hold them.
NARROW_CODES = (2**15 - 1, 2**16 - 1, 2**31 - 1)
#: Up to so many connected pixels with one large value may be counts, if the pixels around them have half of it.
PLAUSIBLE_PIXELS = 4
#: More pixels with one large value than these are not looked at one by one: they are gaps, or saturated.
MANY_PIXELS = 4096
#: Negative values are not codes if there are more different ones than this, or if so many pixels, and so large a share
#: of the frame, have scattered ones: apart from each other, or with counts apart from each other among them.
NEGATIVE_CODES, SCATTERED_PIXELS, SCATTERED_SHARE = 4, 50, 0.02


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
    """Return the pixels that hold a code, not a count.

    Codes are negative values, NaN, infinity, 2^16-1 in 16 bits, 2^32-2 and 2^32-1. The largest value of other integer
    types is one unless the pixels around have values like it. 2^15-1, 2^16-1 and 2^31-1 in a wider type are codes
    where two pixels or more have it and those around them do not: one pixel may be a bright spot.

    Parameters
    ----------
    counts
        (..., y, x) array of any integer or float dtype.
    """
    kind, bits = counts.dtype.kind, 8 * counts.dtype.itemsize
    bad = np.zeros(counts.shape, bool)
    largest = float(np.finfo(counts.dtype).max) if kind == "f" else np.iinfo(counts.dtype).max
    certain = CODES.get(bits, ()) if kind == "u" and bits <= 32 else CODES[32]
    for value in certain:
        if value <= largest:
            bad |= counts == value
    if kind == "f":
        bad |= ~np.isfinite(counts)
    if kind in "fi":
        bad |= counts < 0
    own = () if kind == "f" or largest in certain else (int(largest),)
    for value in (*own, *(each for each in NARROW_CODES if each < largest)):
        held = counts == value
        if held.any():
            frames = zip(counts.reshape(-1, *counts.shape[-2:]), held.reshape(-1, *held.shape[-2:]), strict=True)
            coded = [_coded(frame, pixels, value, alone=value in own) for frame, pixels in frames]
            bad |= np.reshape(coded, counts.shape)
    return bad


def _coded(frame: NDArray[Any], held: NDArray[np.bool_], value: int, *, alone: bool) -> NDArray[np.bool_]:
    """Return which pixels (y, x) that hold a large value hold it as a code.

    Parameters
    ----------
    alone
        Whether a single pixel may be one.
    """
    y, x = np.nonzero(held)
    if not y.size or y.size > MANY_PIXELS:
        return held
    labels, number = ndimage.label(held, np.ones((3, 3)))
    group = labels[y, x] - 1
    # The largest count beside each group of pixels: it is near the value in a peak, and far from it around a gap.
    beside = np.zeros(number)
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        row, column = y + dy, x + dx
        inside = (row >= 0) & (row < held.shape[0]) & (column >= 0) & (column < held.shape[1])
        there = frame[row[inside], column[inside]].astype(np.float64)
        there[~np.isfinite(there) | held[row[inside], column[inside]]] = 0
        np.maximum.at(beside, group[inside], there)
    plausible = beside >= value / 2
    pixels = np.bincount(group, minlength=number)
    if not alone and pixels[~plausible].sum() < 2:
        plausible[:] = True
    coded = ~plausible | (pixels > PLAUSIBLE_PIXELS)
    found = np.zeros(held.shape, bool)
    found[y, x] = coded[group]
    return found


def frames_of(image: NDArray[Any], mask: NDArray[np.bool_] | None) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Yield the frames (y, x) of an image (..., y, x), each with its mask; one of another shape masks nothing here."""
    for frame in image.reshape(-1, *image.shape[-2:]):
        yield frame, np.zeros(frame.shape, bool) if mask is None or mask.shape != frame.shape else mask


def mostly_masked(
    mask: NDArray[np.bool_],
    name: str = "the mask",
    remedy: str = "if 1 means good in it, invert it: mask == 0, or --invert-mask",
) -> str | None:
    """Return a warning that more than half of the pixels are masked; None if they are not."""
    share = float(np.mean(mask)) if mask.size else 0.0
    if share <= 0.5:
        return None
    return f"{name} masks {share:.0%} of the pixels (True, or not 0, = bad, as in pyFAI and NeXus); {remedy}"


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
        If negative values are not codes: a background was subtracted, and the values are not counts.
    """
    refuse_negative(counts, mask)
    bad = mask | sentinel_mask(counts)
    n = np.where(bad, 0.0, exposure)
    good = n > 0
    reference = float(np.median(n[good])) if good.any() else 1.0
    return Frame(counts=np.where(good, counts, 0).astype(np.float64), exposure=n / reference, reference=reference)


def refuse_negative(counts: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Raise SymDenoiseError if a frame (y, x) has negative values, outside the mask (True = bad), that are not codes.

    Detectors write few different negative codes, mostly in gaps between modules. Fractions, many different values, or
    values scattered among the counts are what is left after a background was subtracted.
    """
    if counts.dtype.kind not in "if":
        return
    below = (counts < 0) & ~mask
    if not below.any():
        return
    found = np.unique(counts[below])
    # Pixels that differ from their four neighbours.
    y, x = below[1:] != below[:-1], below[:, 1:] != below[:, :-1]
    apart = np.count_nonzero(y[:-1, 1:-1] & y[1:, 1:-1] & x[1:-1, :-1] & x[1:-1, 1:])
    fractions = counts.dtype.kind == "f" and bool(np.any(found != np.floor(found)))
    if fractions or len(found) > NEGATIVE_CODES:
        value = f"counts with the value {found[0]:.6g}" if fractions else f"{len(found)} different negative values"
    elif apart > max(SCATTERED_PIXELS, SCATTERED_SHARE * counts.size):
        value = f"negative values scattered over {np.count_nonzero(below) / counts.size:.0%} of the pixels"
    else:
        return
    raise SymDenoiseError(
        value,
        rule="counts are not negative; this frame looks background-subtracted",
        remedy="give the counts as measured, and what was subtracted as a background; of a CCD, a flat panel or a "
        "Jungfrau state the readout, `symdenoise readout FRAMES -o found.toml` and --readout found.toml; mask a "
        "detector's own codes",
    )
