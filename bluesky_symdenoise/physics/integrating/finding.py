"""Readout of a detector from its frames: the photon transfer of repeats, neighbouring frames, mates, or one frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import NEGATIVE_CODES, as_mask
from bluesky_symdenoise.physics.integrating.blur import seen_noise
from bluesky_symdenoise.physics.integrating.darks import FoundDark, found_dark
from bluesky_symdenoise.physics.integrating.found import BinnedCurve, FoundReadout
from bluesky_symdenoise.physics.integrating.line import shown
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.integrating.residual import Blocks, Image, Mask, in_blocks, shared_noise
from bluesky_symdenoise.physics.integrating.spread import Spread, spread_of
from bluesky_symdenoise.physics.integrating.told import Told, candidates
from bluesky_symdenoise.physics.integrating.values import exposures, saturation
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Frames that are looked at, their pixels that are enough, and rows of the bands that these are taken in.
MOST_FRAMES, MOST_PIXELS, BAND = 24, 2**20, 128
#: Side of the blocks of the test, its range, and standard errors by which it must be outside.
TESTED, RANGE, TEST_Z = 32, (0.8, 1.25), 3.0
#: Fewest sums that are a test, and how far, squared and in standard deviations, those are off whose scene changed.
TESTED_SUMS, TEST_OFF = 16, 25.0
#: Pixels around saturated ones that are left out.
AROUND_SATURATED = 4
#: Standard errors from which an effect is said.
SAID = 4.0
#: How far the noise of averaged counts may be off their mean.
OFF_COUNTS = 0.15


def readout_from_frames(
    frames: Iterable[NDArray[Any]],
    *,
    darks: Iterable[NDArray[Any]] = (),
    mask: ArrayLike | None = None,
    averaged: int | None = None,
    symmetry: Symmetry | None = None,
) -> FoundReadout:
    """Return gain, read noise and whatever else of a detector's readout its frames show.

    The variance of a frame is gain (mean - offset) + read_noise^2 for each exposure (Janesick, Photon Transfer, 2007).
    It is read from differences of frames if there are several of one scene, else from pairs of mates if a symmetry is
    given, else from second differences within frames. Sums over 2, 4 and 8 pixels a side tell spread of light.

    Parameters
    ----------
    frames
        (y, x) each, as the detector wrote them; of some 20 frames the gain is known to a few per cent.
    darks
        (y, x) each: frames without photons, of the same exposure time and number of averaged exposures. Without them
        frames are taken as dark-subtracted.
    mask
        (y, x), True = bad.
    averaged
        Number of exposures of which each frame is the mean; by default 1, unless all values are multiples of 1/N.
    symmetry
        A group with a centre, of which mates are taken if there is one frame, or if frames differ.

    Raises
    ------
    SymDenoiseError
        If the frames do not tell the gain, or the noise of sums over many pixels is not that of the readout.
    """
    held = [np.asarray(frame) for frame in islice(frames, MOST_FRAMES)]
    if not held or any(frame.shape != held[0].shape or frame.ndim != 2 for frame in held):
        raise SymDenoiseError(
            f"{len(held)} frames of shapes {sorted({frame.shape for frame in held})}",
            rule="a readout is found from frames (y, x) of one shape",
            remedy="give at least one, and those of each detector separately",
        )
    bad = as_mask(mask, (held[0].shape[0], held[0].shape[1]))
    top = saturation(held, bad)
    # Mates need whole frames.
    rows = _bands(bad.shape) if symmetry is None else np.arange(len(bad))
    parts = [frame[rows] for frame in held]
    usable = [_usable(frame, bad[rows], top) for frame in parts]
    steps = exposures(parts[0][usable[0]]) if averaged is None else None
    number = averaged or steps or 1
    given = [np.asarray(frame) for frame in islice(darks, MOST_FRAMES)]
    for frame in given:
        if frame.shape != bad.shape:
            raise SymDenoiseError(
                f"dark of shape {frame.shape}", rule=f"the frames have {bad.shape}", remedy="give their own darks"
            )
    dark = found_dark(given, averaged=number, rows=rows) if given else None
    signals = [_signal(frame, good, dark) for frame, good in zip(parts, usable, strict=True)]
    refusal: SymDenoiseError | None = None
    for noise in candidates(signals, dark, symmetry):
        if steps is not None and dark is None and (ratio := _over_counts(noise, steps)) is not None:
            return _averaged_counts(noise, steps, ratio, top, len(held))
        shared: dict[str, float] = {}
        try:
            found = spread_of(noise.lines, noise.differences)
            shared = _shared(noise)
            chi_squared = _tested(noise, found, shared)
            break
        except SymDenoiseError as error:
            refusal = refusal or error
            # Differences within a frame do not see what its rows share.
            if shared:
                raise refusal from None
    else:
        assert refusal is not None
        raise refusal
    readout, read_noise_error, notes = _readout(noise, found, dark, number)
    notes += [f"pixels of a {name} share noise of {value:.3g}" for name, value in shared.items()]
    if noise.lag > SAID * noise.lag_error:
        kept = (1 - noise.lag) ** 2 + noise.lag**2
        readout = replace(readout, gain=_rounded(number * found.gain / kept))
        notes.append(
            f"{noise.lag:.1%} of a frame is seen in the next one, so that a frame has {1 - kept:.1%} less noise than "
            "its gain says"
        )
    if refusal is not None:
        notes.append(f"differences of frames are more than noise, and not used: {refusal.value}")
    if steps is not None:
        notes.append(f"all values are multiples of 1/{steps}: frames are means of {steps} exposures")
    return FoundReadout(
        readout=replace(readout, saturation=top),
        gain_error=number * found.gain_error,
        read_noise_error=read_noise_error,
        how=noise.how,
        frames=len(held),
        curves=_curves(noise),
        lag=noise.lag,
        lag_error=noise.lag_error,
        chi_squared=chi_squared,
        notes=tuple(notes),
    )


def _bands(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the rows of bands, evenly spread, that are enough of a large frame."""
    height, width = shape
    number = max(1, MOST_PIXELS // (BAND * width))
    if height <= number * BAND:
        return np.arange(height)
    first = np.linspace(0, height - BAND, number).astype(int) // TESTED * TESTED
    return np.unique((first[:, None] + np.arange(BAND)).ravel())


def _usable(frame: NDArray[Any], bad: Mask, top: float | None) -> Mask:
    """Return which pixels were measured, far from saturated ones."""
    out = bad | Readout(1.0).unusable(frame)
    below = frame[(frame < 0) & ~out]
    # Many different negative values are noise about a dark that was subtracted; few are codes.
    if below.size and np.unique(below).size <= NEGATIVE_CODES:
        out |= frame < 0
    if top is not None:
        out |= ndimage.binary_dilation(frame >= top, iterations=AROUND_SATURATED)
    return ~out


def _signal(frame: NDArray[Any], good: Mask, dark: FoundDark | None) -> tuple[Image, Mask]:
    """Return the signal above the offset, and where it is known."""
    signal = frame.astype(np.float64)
    if dark is not None:
        signal -= dark.offset
        good = good & np.isfinite(dark.offset)
    return np.where(good, signal, 0.0), good


def _over_counts(noise: Told, exposures: int) -> float | None:
    """Return the variance over that of averaged counts, if frames have it at all levels."""
    if 1 not in noise.lines:
        return None
    blocks = noise.blocks[1].chosen(noise.lines[1].used)
    level = float((blocks.number * blocks.level).sum())
    ratio = exposures * float((blocks.number * blocks.variance).sum()) / level if level > 0 else np.nan
    return ratio if abs(ratio - 1) < OFF_COUNTS else None


def _averaged_counts(noise: Told, exposures: int, ratio: float, top: float | None, frames: int) -> FoundReadout:
    return FoundReadout(
        readout=Readout(1.0, saturation=top, frames=exposures),
        gain_error=float(np.sqrt(2 / noise.blocks[1].number.sum())),
        read_noise_error=np.nan,
        how=f"values that are multiples of 1/{exposures}, and {noise.how}",
        frames=frames,
        curves=_curves(noise),
        notes=(f"means of {exposures} exposures of counts: variance is {ratio:.3g} of mean / {exposures}",),
    )


def _curves(noise: Told) -> tuple[BinnedCurve, ...]:
    return tuple(shown(binning, noise.blocks[binning], line) for binning, line in noise.lines.items())


def _shared(noise: Told) -> dict[str, float]:
    """Return the standard deviation of what pixels of a ``row`` or ``column`` share, where it is seen."""
    if noise.differences == "mixed" or noise.mates:
        return {}
    found = {}
    for axis, name in ((1, "row"), (0, "column")):
        variances, errors = np.array([shared_noise(residual, axis) for residual in noise.residuals]).T
        if variances.mean() > SAID * errors.mean() / np.sqrt(len(errors)):
            found[name] = float(np.sqrt(variances.mean()))
    return found


def _tested(noise: Told, found: Spread, shared: dict[str, float]) -> float:
    """Return the variance of sums over 32 x 32 pixels, over what was found; NaN if there are too few.

    Raises
    ------
    SymDenoiseError
        If it is far from 1.
    """
    if noise.differences == "mixed":
        return np.nan
    sums = Blocks.together([in_blocks(residual, TESTED) for residual in noise.residuals])
    slope = found.gain * seen_noise(TESTED, found.blur, noise.differences)
    expected = slope * sums.level + noise.lines[1].constant
    fine = expected > 0
    ratio, number = sums.variance[fine] / expected[fine], sums.number[fine]
    kept = ratio * np.maximum(number, 0.3) < TEST_OFF
    if np.count_nonzero(kept) < TESTED_SUMS:
        return np.nan
    value = float(np.average(ratio[kept], weights=number[kept]))
    error = value * float(np.sqrt(2 / number[kept].sum()))
    low, high = RANGE
    if value - TEST_Z * error > high or value + TEST_Z * error < low:
        said = "".join(f"; pixels of a {name} share noise of {sigma:.3g}" for name, sigma in shared.items())
        raise SymDenoiseError(
            f"chi-squared {value:.3g} +/- {error:.1g} of sums over {TESTED} x {TESTED} pixels",
            rule=f"with the right readout it lies between {low} and {high}{said}",
            remedy=("subtract what they share, and " if said else "")
            + "give repeats of one scene as the detector wrote them, not smoothed or interpolated",
        )
    return value


def _readout(noise: Told, found: Spread, dark: FoundDark | None, number: int) -> tuple[Readout, float, list[str]]:
    """Return the readout of one exposure, the standard error of its read noise, and notes."""
    constant, error = noise.lines[1].constant, noise.lines[1].constant_error
    notes = []
    sigma = float(np.sqrt(max(constant, 0.0)))
    sigma_error = error / (2 * sigma) if sigma > np.sqrt(error) else float(np.sqrt(error))
    offset = 0.0
    if dark is not None and np.isfinite(dark.noise):
        if constant - dark.noise**2 > SAID * error:
            notes.append(f"without photons, noise would be {sigma:.3g} in the frames; it is {dark.noise:.3g} in darks")
        sigma, sigma_error = dark.noise, dark.error
    elif dark is None and constant < -SAID * error:
        offset = -constant / found.gain
        notes.append(
            f"the offset is where noise vanishes, {offset:.4g}: without darks it is not told apart from read noise"
        )
    elif dark is None:
        notes.append("the offset is taken as 0: give darks unless they were subtracted")
    if sigma < 2 * sigma_error:
        notes.append("read noise is not seen beside that of the photons")
    root = float(np.sqrt(number))
    readout = Readout(
        gain=_rounded(number * found.gain),
        read_noise=_rounded(root * sigma),
        offset=_rounded(offset),
        frames=number,
        blur=_rounded(found.blur),
    )
    if dark is not None:
        readout = readout.with_dark(dark.dark)
        readout = replace(readout, offset_error=_rounded(float(np.hypot(np.asarray(readout.offset_error), dark.drift))))
        if dark.drift:
            notes.append(f"the dark drifts: means of dark frames differ by {dark.drift:.3g}")
    return readout, root * sigma_error, notes


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
