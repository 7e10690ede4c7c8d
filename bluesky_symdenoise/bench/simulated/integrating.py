"""Frames of integrating detectors: gain, read noise, spread of light, lag, rows that jump, darks that drift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.fold import block_sum

Image = NDArray[np.float64]

#: Pixels are divided into so many parts along each side to spread light between them.
PARTS = 4


@dataclass(frozen=True)
class Detector:
    """An integrating detector.

    Attributes
    ----------
    gain, read_noise, offset
        As of `bluesky_symdenoise.physics.integrating.Readout`.
    blur
        Standard deviation of the spread of light, in pixels.
    lag
        Share of an exposure's light that is read out with the next one.
    row_noise
        Standard deviation of what all pixels of a row share, anew in each exposure.
    dark_drift
        Standard deviation of the offset's change from exposure to exposure, as a smooth slope over the frame.
    averaged
        Exposures of which each frame is the mean.
    dead
        Share of dead pixels; one row and one column are dead, too, if it is not 0.
    rounded
        Whether exposures are rounded to whole numbers.
    """

    gain: float
    read_noise: float = 0.0
    offset: float = 0.0
    blur: float = 0.0
    lag: float = 0.0
    row_noise: float = 0.0
    dark_drift: float = 0.0
    averaged: int = 1
    dead: float = 0.0
    rounded: bool = False

    def frames(self, rng: np.random.Generator, rate: Image, number: int) -> NDArray[np.float32]:
        """Return frames (frame, y, x) of a rate (y, x) in photons per exposure."""
        dead = self._dead(rate.shape)
        out = np.zeros((number, *rate.shape))
        before = self._light(rng, rate) if self.lag else np.zeros(rate.shape)
        ramp = np.linspace(-1, 1, rate.shape[0])[:, None]
        for frame in out:
            for _ in range(self.averaged):
                light = self._light(rng, rate)
                signal = self.gain * ((1 - self.lag) * light + self.lag * before) + self.offset
                signal += rng.normal(0, self.read_noise, rate.shape)
                signal += rng.normal(0, self.row_noise, (rate.shape[0], 1))
                signal += rng.normal(0, self.dark_drift) * (1 + 0.3 * ramp)
                before = light
                signal[dead] = self.offset
                frame += np.round(signal) if self.rounded else signal
            frame /= self.averaged
        return out.astype(np.float32)

    def _light(self, rng: np.random.Generator, rate: Image) -> Image:
        if not self.blur:
            return rng.poisson(rate).astype(np.float64)
        fine = np.repeat(np.repeat(rate, PARTS, axis=0), PARTS, axis=1) / PARTS**2
        spread = ndimage.gaussian_filter(rng.poisson(fine).astype(np.float64), PARTS * self.blur, mode="wrap")
        return block_sum(spread, PARTS)

    def _dead(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        dead = np.zeros(shape, bool)
        if self.dead:
            # The same pixels in all frames, scattered without a pattern.
            y, x = np.indices(shape)
            dead = (y * 7919 + x * 104729) % 10007 < 10007 * self.dead
            dead[shape[0] // 3], dead[:, shape[1] // 4] = True, True
        return dead
