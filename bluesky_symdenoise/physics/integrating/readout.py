"""The readout of an integrating detector as a value, and the counts that are equivalent to its signal."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Background, Dark
from bluesky_symdenoise.physics.fold import block_sum
from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask

#: A number, or a map (y, x) of each pixel's.
Value = float | NDArray[np.float64]
#: Attributes of a `Readout` that may be maps.
MAPS = ("gain", "read_noise", "offset", "offset_error")
#: Most exposures of which a frame may be the mean.
MOST_EXPOSURES = 1_000_000
#: A signal so many standard deviations of its noise, and so many photons, below the offset is none: the pixel is dead,
#: or holds a code. Of a frame with a larger share of such pixels, the readout is another detector's.
COLD_Z, COLD_PHOTONS, COLD_SHARE = 8.0, 0.5, 0.2
#: Pixels whose variance is more than this times the typical one are masked.
NOISY = 4.0


@dataclass(frozen=True, eq=False)
class Readout:
    """Response of an integrating detector to photons.

    One exposure gives signal = offset + gain * photons + noise; the frame may be the mean of several.

    Attributes
    ----------
    gain
        Units of the signal (ADU, electrons, keV) per photon; (y, x) if pixels differ.
    read_noise
        Standard deviation of one exposure's pixel without photons, in the same units; (y, x) if pixels differ.
    offset
        Signal of a pixel without photons; (y, x) if pixels differ. 0 for frames whose dark was subtracted.
    saturation
        Signal from which on a pixel is masked; None if no pixel is saturated.
    frames
        Number of exposures of which each frame is the mean.
    blur
        Standard deviation, in pixels, of the spread of light between pixels, which makes their noise alike. Frames are
        then too smooth for their number of photons, while sums over many pixels are right.
    lag
        Share of a frame's signal that the next one shows again (afterglow). It changes no pixel, and is recorded
        because the noise of frames that follow each other is then alike.
    offset_error
        Standard deviation of a pixel's offset; (y, x) if pixels differ. It is noise as the read noise is, but the same
        in all frames. Unless the offset was averaged from few darks it is 0.

    Raises
    ------
    SymDenoiseError
        If a value cannot be used.
    """

    gain: Value
    read_noise: Value = 0.0
    offset: Value = 0.0
    saturation: float | None = None
    frames: int = 1
    blur: float = 0.0
    offset_error: Value = 0.0
    lag: float = 0.0

    def __post_init__(self) -> None:
        for name in MAPS:
            object.__setattr__(self, name, _value(name, getattr(self, name)))
        for name in ("saturation", "blur", "lag"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _number(name, given))
        gain, noise = np.asarray(self.gain), np.asarray(self.read_noise)
        # A pixel of a map that is NaN is masked.
        if not (np.all((gain > 0) | np.isnan(gain)) and np.isfinite(gain).any() and not np.any(noise < 0)):
            raise SymDenoiseError(
                f"gain {_said(gain)}, read noise {_said(noise)}",
                rule="a gain is positive and a read noise is not negative",
                remedy="give both in units of the signal, or find them with `symdenoise readout`",
            )
        if not (isinstance(self.frames, int | np.integer) and 1 <= self.frames <= MOST_EXPOSURES):
            raise SymDenoiseError(
                f"frames={str(self.frames)[:20]}",
                rule=f"a frame is the mean of at least 1 exposure, and of {MOST_EXPOSURES:,} at most",
                remedy="give their number",
            )
        object.__setattr__(self, "frames", int(self.frames))
        if not (self.blur >= 0 and not np.any(np.asarray(self.offset_error) < 0)):
            raise SymDenoiseError(
                f"blur {self.blur}, error of the offset {_said(np.asarray(self.offset_error))}",
                rule="neither is negative",
                remedy="give the blur in pixels, and the error in units of the signal",
            )
        if not 0 <= self.lag < 1:
            raise SymDenoiseError(
                f"lag {self.lag}", rule="it is a share, from 0 to below 1", remedy="give 0.03 for 3 %"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Readout) and all(
            np.array_equal(np.asarray(getattr(self, each.name)), np.asarray(getattr(other, each.name)), equal_nan=True)
            if each.name in MAPS
            else getattr(self, each.name) == getattr(other, each.name)
            for each in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def noise(self) -> Value:
        """Standard deviation of a frame's pixel without photons, in photons of all its exposures."""
        read, offset = np.asarray(self.read_noise), np.asarray(self.offset_error)
        value: Value = np.sqrt(self.frames * read**2 + (self.frames * offset) ** 2) / np.asarray(self.gain)
        return value

    def with_dark(self, dark: Dark, *, seconds: float | None = None) -> Readout:
        """Return this readout with the mean of dark frames as its offset.

        Parameters
        ----------
        dark
            From `bluesky_symdenoise.physics.dark.summed_signal`.
        seconds
            Exposure time of the frames; None if it is not known.

        Raises
        ------
        SymDenoiseError
            If the dark was exposed for another time: of an offset, no part is known to grow with the time.
        """
        if seconds is not None and dark.seconds is not None and not np.isclose(seconds, dark.seconds, rtol=1e-3):
            raise SymDenoiseError(
                f"dark of {dark.seconds} s for a frame of {seconds} s",
                rule="the offset of an integrating detector does not grow with the exposure time as counts do",
                remedy="take the dark with the exposure time of the frames",
            )
        error = np.asarray(self.read_noise) / np.sqrt(dark.frames * dark.averaged)
        return replace(self, offset=np.where(dark.mask, np.nan, dark.counts / dark.frames), offset_error=error)

    def saturated(self, signal: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the pixels (..., y, x) that are saturated."""
        if self.saturation is None:
            return np.zeros(signal.shape, bool)
        return np.asarray(signal >= self.saturation)

    def equivalent(
        self, signal: NDArray[Any], mask: ArrayLike | None = None, exposure: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float32], Background]:
        """Return the counts equivalent to frames (..., y, x) of this detector, NaN where masked, and their background.

        y = photons + b with photons = frames (signal - offset)/gain and b the mean variance of the noise in photons has
        mean and variance photons + b, as Poisson counts have. b is the same for all pixels, times their exposure, as a
        background that differs from pixel to pixel would be taken for structure. Where noise makes y negative, what is
        lacking is taken from the pixels around, so that sums over more than a few pixels are right.
        `bluesky_symdenoise.Denoiser` takes b off again.

        Parameters
        ----------
        signal
            Signal as the detector wrote it. Codes, non-finite and saturated values become NaN, and so do pixels that
            are far below the offset or have more than twice the usual noise; negative values are signal.
        mask
            (y, x), True = bad.
        exposure
            (y, x) relative exposure; None where all pixels have the same.

        Raises
        ------
        SymDenoiseError
            If a map of the readout has another shape than the frames, or many pixels are far below the offset.
        """
        shape = (signal.shape[-2], signal.shape[-1])
        given = as_mask(mask, shape)
        noise = np.asarray(self.noise)
        lift = float(np.nanmedian(noise)) ** 2
        if noise.ndim:
            given = given | ~(noise**2 <= NOISY * lift)
            lift = lift if given.all() else float(np.mean(noise[~given] ** 2))
        photons, bad = self.measured(signal)
        bad = bad | given
        relative = np.ones(shape) if exposure is None else _relative(exposure, given)
        lifted = np.where(bad, 0.0, photons + lift * relative).reshape(-1, *shape)
        counts = np.stack([without_negative(frame) for frame in lifted]).reshape(signal.shape)
        # A pixel that only its mates have measured is returned at the median exposure.
        expected = lift * np.where(given | (relative == 0), 1.0, relative)
        background = Background(expected.astype(np.float32), np.zeros(shape, np.float32))
        return np.where(bad, np.nan, counts).astype(np.float32), background

    def photons(self, signal: NDArray[Any]) -> NDArray[np.float64]:
        """Return the photons of all exposures of frames (..., y, x), negative within noise; NaN where a map is NaN.

        Raises
        ------
        SymDenoiseError
            If a map of the readout has another shape than the frames.
        """
        shape = signal.shape[-2:]
        for name in MAPS:
            held = np.shape(getattr(self, name))
            if held and held != shape:
                raise SymDenoiseError(
                    f"{name} of shape {held}",
                    rule=f"the frames have {shape}",
                    remedy="give one (y, x) map, or a number",
                )
        return np.asarray(self.frames * (signal.astype(np.float64) - self.offset) / self.gain)

    def measured(self, signal: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return `photons` of frames (..., y, x), and the pixels that hold no signal.

        These are codes, values that are not finite, saturated ones, and those far below the offset.

        Raises
        ------
        SymDenoiseError
            If many pixels are far below the offset.
        """
        bad = coded(signal) | self.saturated(signal)
        photons = self.photons(signal)
        bad |= ~np.isfinite(photons) | ~np.isfinite(np.broadcast_to(self.noise, photons.shape))
        cold: NDArray[np.bool_] = ~bad & (photons < -(COLD_Z * np.asarray(self.noise) + COLD_PHOTONS))
        share = float(np.count_nonzero(cold)) / max(int(np.count_nonzero(~bad)), 1)
        if share > COLD_SHARE:
            raise SymDenoiseError(
                f"frame with {share:.0%} of its pixels far below the offset of {_said(np.asarray(self.offset))}",
                rule=f"by more than {COLD_Z:g} standard deviations of the noise that the readout states",
                remedy="give the readout of this detector, and mask its dead parts; of several detectors, choose one "
                "(data_keys)",
            )
        return photons, bad | cold


def coded(signal: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels (..., y, x) that hold a code or no finite value; negative values are signal.

    They are what is left after a dark was subtracted.
    """
    return sentinel_mask(np.where(signal < 0, signal.dtype.type(0), signal))


def without_negative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a frame (y, x) whose negative values are 0 and taken from the values around.

    Blocks of 2, 4, 8, ... pixels keep their sums, if these are positive; else the block that holds them does.
    """
    if not (values < 0).any():
        return values
    height, width = values.shape
    levels = [values]
    while max(levels[-1].shape) > 1:
        levels.append(block_sum(levels[-1], 2))
    kept = np.maximum(levels[-1], 0.0)
    for level in reversed(levels[:-1]):
        positive = np.maximum(level, 0.0)
        total = block_sum(positive, 2)
        share = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
        wide = np.repeat(np.repeat(share, 2, axis=0), 2, axis=1)
        kept = positive * wide[: level.shape[0], : level.shape[1]]
    return kept[:height, :width]


def pseudo_counts(
    signal: NDArray[Any], readout: Readout, *, dark: ArrayLike | None = None, dark_frames: int | None = None
) -> tuple[NDArray[np.float32], Background]:
    """Return the counts equivalent to an integrating detector's frames (..., y, x), and their background.

    As `Readout.equivalent`; ``Denoiser(...)(signal, readout=readout)`` does all of it.

    Parameters
    ----------
    dark
        (y, x) mean of dark frames, or a number; by default the readout's offset.
    dark_frames
        Number of frames averaged in the dark; their read noise is then part of the background's error.

    Raises
    ------
    SymDenoiseError
        If the dark has another shape.
    """
    if dark is not None:
        error = np.asarray(readout.read_noise) / np.sqrt(dark_frames) if dark_frames else 0.0
        readout = replace(readout, offset=np.asarray(dark, np.float64), offset_error=error)
    return readout.equivalent(signal)


def _value(name: str, given: Any) -> Value:
    if isinstance(given, np.ndarray) and given.dtype == np.float64 and not given.flags.writeable:
        value = given
    else:
        try:
            value = np.array(given, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise SymDenoiseError(
                f"{name} {str(given)[:20]!r}", rule="it is a number, or (y, x)", remedy="give one"
            ) from error
    if value.ndim not in (0, 2) or not value.size:
        raise SymDenoiseError(
            f"{name} of shape {value.shape}", rule="it is a number or a map (y, x)", remedy="give one"
        )
    if value.ndim == 0:
        if not np.isfinite(value):
            raise SymDenoiseError(f"{name} {value}", rule="it must be finite", remedy="give a finite number")
        return float(value)
    if np.isinf(value).any():
        raise SymDenoiseError(f"{name} with infinite values", rule="it is finite", remedy="set NaN to mask a pixel")
    value.flags.writeable = False
    return value


def _relative(exposure: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return an exposure in units of its median over the pixels that are measured."""
    measured = (exposure > 0) & ~mask
    return exposure / np.median(exposure[measured]) if measured.any() else np.asarray(exposure, np.float64)


def _number(name: str, given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        value = np.nan
    if not np.isfinite(value) or (name == "saturation" and value <= 0):
        raise SymDenoiseError(
            f"{name} {str(given)[:20]}", rule="it is a finite number, a saturation above 0", remedy="give such a number"
        )
    return value


def _said(value: NDArray[np.float64]) -> str:
    return f"{value:.4g}" if value.ndim == 0 else f"from {np.nanmin(value):.4g} to {np.nanmax(value):.4g}"
