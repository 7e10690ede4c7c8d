"""Noise of a detector's frames at several binnings: from those differences that say most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.integrating.blur import Differences
from bluesky_symdenoise.physics.integrating.darks import FoundDark
from bluesky_symdenoise.physics.integrating.line import Line, jackknife_error, line_through
from bluesky_symdenoise.physics.integrating.residual import (
    Blocks,
    Image,
    Mask,
    Residual,
    in_blocks,
    of_mates,
    of_one_frame,
    of_two_frames,
    without_lone_pixels,
)
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Binnings at which noise is compared; of one frame, its structure hides the noise of larger ones.
BINNINGS, ONE_FRAME_BINNINGS = (1, 2, 4, 8), (1, 2)
#: Share of blocks off the line from which frames are not of one scene.
CHANGED = 0.1
#: Share by which the brightness of successive frames may differ if a lag is to be found.
ALIKE = 0.25
#: Share of what frames have in common that may be left in their differences if it is not known.
COMMON = ALIKE**2 / 2


@dataclass(frozen=True)
class Told:
    """Noise of frames.

    Attributes
    ----------
    how
        Where it was read from, in words.
    lines, blocks
        Line through the noise, and the blocks that it goes through, at each binning.
    residuals
        Noise of each pixel.
    mates
        Whether it is that of mates.
    lag, lag_error
        Share of a frame that is seen in the next one, and its standard error; NaN if it was not measured.
    unlike
        Whether it was not measured because successive frames differ in brightness.
    shared
        Variance of a pixel that all frames share: that of the dark that was subtracted from them.
    """

    how: str
    lines: dict[int, Line]
    blocks: dict[int, Blocks]
    residuals: list[Residual]
    mates: bool = False
    lag: float = np.nan
    lag_error: float = np.nan
    unlike: bool = False
    shared: float = 0.0

    @property
    def differences(self) -> Differences:
        """Differences that noise was read from."""
        return self.residuals[0].differences

    @property
    def off(self) -> float:
        """Share of blocks that are off the line of single pixels."""
        return self.lines[1].off if 1 in self.lines else 1.0


def candidates(
    signals: Sequence[tuple[Image, Mask]], dark: FoundDark | None, symmetry: Symmetry | None
) -> Iterator[Told]:
    """Yield the noise of frames, that which says most first.

    First differences of frames, if they are of one scene: of frames that are far from each other, as neighbours may
    have a lag. Where their brightness differs, the pattern of an offset that is left, or the noise of a dark that was
    subtracted, cancels in part only: unless darks say it, frames of similar brightness are compared. Then those of
    mates, and last those of neighbouring pixels.

    Parameters
    ----------
    signals
        Signal above the offset and which pixels were measured, (y, x) of each frame.
    """
    lag = lag_error = np.nan
    if len(signals) > 1:
        apart = len(signals) // 2 if len(signals) > 3 else 1
        consecutive, distant = _pairs(signals, 1), _pairs(signals, apart)
        # Of frames with an offset, the scale to each other says more than their levels.
        alike = _alike(signals) and max(pair.common for pair in consecutive + distant) < COMMON
        if not alike and (dark is None or not np.isfinite(dark.noise)) and len(signals) > 2:
            ordered = [signals[index] for index in np.argsort(_levels(signals))]
            similar = _lines("differences of frames of similar brightness", _pairs(ordered, 1), dark, BINNINGS)
            if similar.off < CHANGED:
                yield replace(similar, unlike=True)
        near = _lines("differences of consecutive frames", consecutive, dark, BINNINGS)
        if apart > 1:
            far = _lines("differences of frames", distant, dark, BINNINGS)
            if far.off < CHANGED:
                if alike:
                    lag, lag_error = _lag(near, far)
                    yield replace(far, lag=lag, lag_error=lag_error)
                else:
                    yield replace(far, unlike=True)
        # With a lag, consecutive frames have less noise between them.
        if near.off < CHANGED and not lag > 2 * lag_error:
            yield near
    if symmetry is not None and symmetry.grid_center is not None and symmetry.operations:
        center = symmetry.grid_center
        mates = [of_mates(*signal, operation, center) for signal in signals for operation in symmetry.operations]
        yield replace(_lines("symmetry pairs", mates, dark, BINNINGS), mates=True, lag=lag, lag_error=lag_error)
    alone = [_alone(*signal) for signal in signals]
    single = _lines("second differences of frames", alone, dark, ONE_FRAME_BINNINGS)
    yield replace(single, lag=lag, lag_error=lag_error)


def _alone(frame: Image, good: Mask) -> Residual:
    residual = of_one_frame(frame, good)
    line = line_through(in_blocks(residual, 1))
    if line is None or line.gain <= 0:
        return residual
    return without_lone_pixels(residual, gain=line.gain, constant=line.constant)


def _pairs(signals: Sequence[tuple[Image, Mask]], apart: int) -> list[Residual]:
    """Return the residuals of frames so far apart, each of which is in one or two pairs."""
    last = 2 * apart if apart > 1 else len(signals)
    return [
        of_two_frames(first, second, good & fine)
        for (first, good), (second, fine) in zip(signals, signals[apart:last], strict=False)
    ]


def _lines(how: str, residuals: list[Residual], dark: FoundDark | None, binnings: Sequence[int]) -> Told:
    """Return the lines through the noise of residuals, and of darks, at each binning."""
    differences = residuals[0].differences
    shared = _shared(residuals, dark)
    # Where the dark drifts, the level of frames is not known, but their differences in level are.
    without = [] if dark is None or dark.drift else dark.residuals(residuals[0].good, differences)
    lines: dict[int, Line] = {}
    blocks: dict[int, Blocks] = {}
    for binning in binnings:
        bright = Blocks.together([in_blocks(residual, binning, shared=shared) for residual in residuals])
        if not bright.level.size:
            continue
        here = Blocks.together([bright, *(in_blocks(residual, binning) for residual in without)])
        line = line_through(here)
        if line is not None:
            lines[binning], blocks[binning] = line, here
    return Told(how, lines, blocks, residuals, shared=shared)


def _shared(residuals: list[Residual], dark: FoundDark | None) -> float:
    """Return the variance of a pixel of the mean dark, which is in all frames."""
    if dark is None or max(residual.common for residual in residuals) == 0:
        return 0.0
    if np.isfinite(dark.noise):
        return dark.noise**2 / dark.dark.frames
    # One dark does not say its noise: it is that of frames without photons.
    shared = 0.0
    for _ in range(6):
        line = line_through(Blocks.together([in_blocks(residual, 1, shared=shared) for residual in residuals]))
        if line is None:
            break
        shared = max(line.constant, 0.0) / dark.dark.frames
    return shared


def _levels(signals: Sequence[tuple[Image, Mask]]) -> NDArray[np.float64]:
    return np.array([signal[good].mean() if good.any() else 0.0 for signal, good in signals])


def _alike(signals: Sequence[tuple[Image, Mask]]) -> bool:
    """Return whether frames that follow each other have about the same brightness."""
    level = _levels(signals)
    return bool(np.all(np.abs(np.diff(level)) <= ALIKE * np.maximum(np.abs(level[1:]), np.abs(level[:-1]))))


def _lag(near: Told, far: Told) -> tuple[float, float]:
    """Return the share of a frame that is seen in the next one: differences of neighbours have less noise.

    Of x exposed and f = (1 - l) x + l x', the covariance of consecutive frames over the variance of one is
    l (1 - l)/((1 - l)^2 + l^2).
    """
    shares, errors = [], []
    for binning, one in near.lines.items():
        other = far.lines.get(binning)
        if other is None or len(one.gains) != len(other.gains) or other.gain < 3 * other.gain_error:
            continue
        alike = 1 - one.gain / other.gain
        shares.append(alike / (1 + 2 * alike))
        errors.append(max(jackknife_error(1 - one.gains / other.gains), 1e-6))
    if not shares:
        return np.nan, np.nan
    weight = 1 / np.square(errors)
    # The binnings share their noise: they are not better together than the best of them.
    return float(np.average(shares, weights=weight)), min(errors)
