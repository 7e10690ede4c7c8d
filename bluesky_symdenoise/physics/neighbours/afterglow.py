"""Noise that successive frames of an integrating detector share: how much less a row lends because of it."""

from __future__ import annotations

from bluesky_symdenoise.physics.integrating.readout import Readout

#: Correlation of the noise of two frames from which on neither lends to the other.
TOO_ALIKE = 0.1


def noise_correlation(lag: float, steps: int) -> float:
    """Return the correlation of the photon noise of two frames that are so many frames apart in time.

    A detector that shows the share l of its signal again in each following frame, y_i = (1 - l) sum_k l^k x_(i-k) of
    independent x, has the correlation l^steps.

    Parameters
    ----------
    lag
        `bluesky_symdenoise.physics.integrating.readout.Readout.lag`.
    steps
        Frames from one to the other, either way; 0 for a frame and itself.
    """
    return float(lag) ** abs(steps) if lag > 0 or steps == 0 else 0.0


def independent_share(readout: Readout | None, steps: int = 1) -> float:
    """Return the share of another frame's exposure that is evidence of its own, from 0 to 1.

    The sum of two frames whose noise has the correlation r is worth 2/(1 + r) frames: the other adds (1 - r)/(1 + r)
    to the own one. From `TOO_ALIKE` on it is 0: the tests of two rows then find them alike because of their noise.

    Parameters
    ----------
    readout
        Readout of the detector; None for photon counts, which have no lag.
    steps
        Frames between the two, in the order of acquisition and not along scan axes; 1 where that is not known.
    """
    r = 0.0 if readout is None else noise_correlation(readout.lag, max(abs(steps), 1))
    return 0.0 if r >= TOO_ALIKE else (1 - r) / (1 + r)
