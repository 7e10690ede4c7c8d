"""Readout of a detector from its frames: the photon transfer of repeats, neighbouring frames, mates, or one frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.counts.verdict import verdict
from bluesky_symdenoise.physics.frame import as_mask
from bluesky_symdenoise.physics.integrating.darks import FoundDark, found_dark
from bluesky_symdenoise.physics.integrating.found import BinnedCurve, FoundReadout
from bluesky_symdenoise.physics.integrating.line import shown
from bluesky_symdenoise.physics.integrating.passed import SEEN, refuse_structure, shared, tested_sums
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.integrating.residual import Image, Mask
from bluesky_symdenoise.physics.integrating.spread import KNOWN, Spread, spread_of
from bluesky_symdenoise.physics.integrating.told import Told, candidates
from bluesky_symdenoise.physics.integrating.values import averaged_exposures, bands, saturation, usable_pixels
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_beam_center

#: Frames that are looked at.
MOST_FRAMES = 24
#: What is said of frames that look like those of a counting detector.
COUNTS = "photon counts, which need no readout"
#: Standard errors from which a lag is taken into account: it changes the gain by more than most of them.
LAG_SEEN = 2.5
#: How far the noise of averaged counts may be off their mean.
OFF_COUNTS = 0.15


@dataclass(frozen=True)
class _Passed:
    """Noise that passed the tests: gain and spread, what rows and columns share, chi-squared, and what did not pass."""

    noise: Told
    found: Spread
    lines: dict[str, float]
    chi_squared: float
    refusal: str | None


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
        frames are taken as dark-subtracted, and refused if their noise shows an offset.
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
    given = [np.asarray(frame) for frame in islice(darks, MOST_FRAMES)]
    for frame in [*held, *given]:
        if frame.dtype.kind not in "iuf":
            raise SymDenoiseError(
                f"frame of {frame.dtype} values",
                rule="a signal is real numbers",
                remedy="give it as the detector wrote it",
            )
    if symmetry is not None and symmetry.beam_center is not None:
        checked_beam_center(symmetry.beam_center, (held[0].shape[0], held[0].shape[1]))
    bad = as_mask(mask, (held[0].shape[0], held[0].shape[1]))
    top = saturation(held, bad)
    # Mates need whole frames.
    rows = bands(bad.shape) if symmetry is None else np.arange(len(bad))
    parts = [frame[rows] for frame in held]
    usable = [usable_pixels(frame, bad[rows], top) for frame in parts]
    steps = averaged_exposures(parts, usable) if averaged is None else None
    number = averaged or steps or 1
    for frame in given:
        if frame.shape != bad.shape:
            raise SymDenoiseError(
                f"dark of shape {frame.shape}", rule=f"the frames have {bad.shape}", remedy="give their own darks"
            )
    dark = found_dark(given, averaged=number, rows=rows) if given else None
    signals = [_signal(frame, good, dark) for frame, good in zip(parts, usable, strict=True)]
    told: Iterable[Told] = candidates(signals, dark, symmetry)
    hints = []
    if steps is not None and dark is None:
        first, *rest = told
        if (ratio := _over_counts(first, steps)) is not None:
            return _averaged_counts(first, steps, ratio, top, len(held))
        told = [first, *rest]
        if len(held) == 1:
            hints.append(
                f"all values are multiples of 1/{steps}: if that is because the frame is a mean of exposures, and not "
                "because a mean dark was subtracted, give --frames"
            )
            number, steps = 1, None
    try:
        passed = _first_passed(told, offset_known=dark is not None)
    except SymDenoiseError as refusal:
        if dark is None and held[0].dtype.kind in "iu" and verdict(held[0], bad).kind == "counts":
            raise SymDenoiseError(
                refusal.value, rule=refusal.rule, remedy=f"{refusal.remedy}; these look like {COUNTS}"
            ) from refusal
        raise
    noise, found = passed.noise, passed.found
    kept, lag, said = 1.0, 0.0, []
    if noise.unlike:
        said.append(
            "lag was not measured, because successive frames differ in brightness: of a lag of 1 % the gain is 2 % too "
            "small"
        )
    if noise.lag > LAG_SEEN * noise.lag_error:
        kept, lag = (1 - noise.lag) ** 2 + noise.lag**2, _rounded(noise.lag)
        said.append(
            f"{noise.lag:.1%} of a frame is seen in the next one, so that a frame has {1 - kept:.1%} less noise than "
            "its gain says"
        )
    no_lag = noise.lag < -LAG_SEEN * noise.lag_error
    if no_lag:
        said.append("lag was not measured: frames that follow each other are less alike than others")
    # Of a lag l, the gain is too small by 2 l if it is not seen.
    gain, error = found.gain / kept, float(np.hypot(found.gain_error, 2 * found.gain * np.nan_to_num(noise.lag_error)))
    if error > KNOWN * gain:
        raise SymDenoiseError(
            f"gain {number * gain:.3g} +/- {number * error:.1g}",
            rule=f"a gain is found if it is known to {KNOWN:.0%}, the lag between frames included",
            remedy="give more frames, or frames of unequal brightness",
        )
    readout, read_noise_error, notes = _readout(noise, found, gain, error, dark, number)
    notes += [f"pixels of a {name} share noise of {value:.3g}" for name, value in passed.lines.items()] + said + hints
    if dark is None and noise.differences == "along" and not noise.mates and any(map(_negative, parts, usable)):
        notes.append(
            "of a dark that was subtracted from all frames, differences of frames do not see the noise: multiply "
            "read_noise by sqrt(1 + 1/n) if it was the mean of n dark frames"
        )
    if passed.refusal is not None:
        notes.append(f"not used are {passed.refusal}")
    if steps is not None:
        notes.append(f"all values are multiples of 1/{steps}: frames are means of {steps} exposures")
    elif all(frame.dtype.kind in "iu" for frame in held) and _counts(noise, found, dark):
        notes.append(f"these look like {COUNTS}")
    return FoundReadout(
        readout=replace(readout, saturation=top, lag=lag),
        gain_error=number * error,
        read_noise_error=read_noise_error,
        how=noise.how,
        frames=len(held),
        curves=_curves(noise),
        lag=np.nan if no_lag else noise.lag,
        lag_error=np.nan if no_lag else noise.lag_error,
        chi_squared=passed.chi_squared,
        notes=tuple(notes),
    )


def _first_passed(told: Iterable[Told], *, offset_known: bool) -> _Passed:
    """Return the first noise that passes all tests.

    Raises
    ------
    SymDenoiseError
        If none does: what is said of the first.
    """
    refusal: SymDenoiseError | None = None
    most, said = np.inf, None
    for noise in told:
        lines: dict[str, float] = {}
        try:
            found = spread_of(noise.lines, noise.differences)
            refuse_structure(noise, found, offset_known=offset_known, most=most)
            lines = shared(noise)
            if found.blur and not offset_known and _vanishes(noise, found) is not None:
                # The sums cannot be tested: what an offset adds to the noise depends on the binning.
                return _Passed(noise, found, lines, np.nan, said)
            return _Passed(noise, found, lines, tested_sums(noise, found, lines), said)
        except SymDenoiseError as error:
            refusal, said = refusal or error, said or f"{noise.how}: {error.value}"
            if 1 in noise.lines:
                most = min(most, noise.lines[1].gain + SEEN * noise.lines[1].gain_error)
            # Differences within a frame do not see what its rows share.
            if lines:
                break
    assert refusal is not None
    raise refusal


def _vanishes(noise: Told, found: Spread) -> float | None:
    """Return the signal at which noise vanishes, as that of frames with an offset; None if there is none.

    Where light spreads, sums over more pixels show it better: less of their noise is read noise.
    """
    lines = noise.lines.values() if found.blur else (noise.lines[1],)
    seen = [
        -line.constant / line.gain for line in lines if line.gain > 0 and line.constant < -SEEN * line.constant_error
    ]
    return max(seen, default=None)


def _negative(frame: NDArray[Any], good: Mask) -> bool:
    """Return whether a frame has negative signal, as without an offset."""
    return bool((frame[good] < 0).any())


def _counts(noise: Told, found: Spread, dark: FoundDark | None) -> bool:
    """Return whether noise is that of counts."""
    noiseless = dark is None and noise.lines[1].constant < SEEN * noise.lines[1].constant_error
    return noiseless and found.blur == 0 and abs(found.gain - 1) < max(0.05, SEEN * found.gain_error)


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
    return ratio if abs(ratio - 1) < OFF_COUNTS and blocks.number.sum() > 2 / KNOWN**2 else None


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


def _readout(
    noise: Told, found: Spread, gain: float, gain_error: float, dark: FoundDark | None, number: int
) -> tuple[Readout, float, list[str]]:
    """Return the readout of one exposure, the standard error of its read noise, and notes.

    Parameters
    ----------
    gain, gain_error
        Of a frame, with the lag.

    Raises
    ------
    SymDenoiseError
        If frames have an offset that is not known.
    """
    constant, error = noise.lines[1].constant, noise.lines[1].constant_error
    notes = []
    sigma = float(np.sqrt(max(constant, 0.0)))
    sigma_error = error / (2 * sigma) if sigma > np.sqrt(error) else float(np.sqrt(error))
    if dark is not None and np.isfinite(dark.noise):
        if constant - dark.noise**2 > SEEN * error:
            notes.append(f"without photons, noise would be {sigma:.3g} in the frames; it is {dark.noise:.3g} in darks")
        sigma, sigma_error = dark.noise, dark.error
    elif dark is None and (least := _vanishes(noise, found)) is not None:
        raise SymDenoiseError(
            f"noise vanishes at a signal of {least:.4g}",
            rule="frames have an offset of at least this, which without darks is not told apart from read noise",
            remedy="give darks (--dark), or write offset and read noise into the file by hand, with the gain that was "
            f"found: gain = {number * gain:.4g}  # +/- {number * gain_error:.1g}",
        )
    elif dark is None:
        notes.append("the offset is taken as 0: give darks unless they were subtracted")
    if sigma < 2 * sigma_error:
        notes.append("read noise is not seen beside that of the photons")
    root = float(np.sqrt(number))
    readout = Readout(
        gain=_rounded(number * gain),
        read_noise=_rounded(root * sigma),
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
