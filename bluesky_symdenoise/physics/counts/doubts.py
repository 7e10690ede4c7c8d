"""What is said of an image that does not hold photon counts, or not those that its stated readout gives."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.counts.verdict import LATER_PIXELS, MOST_FRAMES, Verdict, judged, sampled, verdict
from bluesky_symdenoise.physics.frame import frames_of
from bluesky_symdenoise.physics.integrating.readout import Readout

#: Share of pixels so many standard deviations below the offset that noise does not explain.
BELOW_Z, BELOW_SHARE = 4.0, 0.005

Mask = NDArray[np.bool_] | None


def doubts(image: NDArray[Any], mask: Mask, readout: Readout | None = None) -> str | None:
    """Return what is doubtful about the counts of an image (..., y, x); None if nothing is, or too little can be said.

    The first of its frames that can be judged decides. A readout that was stated is doubted, and never refused.

    Raises
    ------
    SymDenoiseError
        If it plainly holds something else than photon counts.
    """
    for frame, bad in islice(frames_of(image, mask), MOST_FRAMES):
        found = verdict(frame, bad) if readout is None else readout_verdict(frame, readout, bad)
        if found.kind == "not counts" and readout is None:
            raise SymDenoiseError("frame that is not photon counts", rule=found.why, remedy=_remedy(found))
        if found.kind != "too few":
            return _said(found, readout)
    return None


def says_nothing(image: NDArray[Any], mask: Mask) -> bool:
    """Return whether too little can be said of the frames of an image (..., y, x)."""
    return all(verdict(frame, bad).kind == "too few" for frame, bad in islice(frames_of(image, mask), MOST_FRAMES))


def later_doubts(image: NDArray[Any], mask: Mask, readout: Readout | None = None) -> str | None:
    """Return what is doubtful about the counts of an image (..., y, x), or why they are none, by a part of its pixels.

    None if nothing is, or too little can be said.
    """
    for frame, bad in islice(frames_of(image, mask), MOST_FRAMES):
        if readout is None:
            found = verdict(*sampled(frame, bad, LATER_PIXELS))
        else:
            found = readout_verdict(frame, readout, bad, LATER_PIXELS)
        if found.kind != "too few":
            return _said(found, readout)
    return None


def readout_verdict(signal: NDArray[Any], readout: Readout, mask: Mask = None, pixels: int | None = None) -> Verdict:
    """Return whether a frame of an integrating detector has the noise that its readout states.

    Of photons and the variance of the read noise together, the variance is the mean. Spread light makes neighbours
    alike, so that a readout with a blur is not refuted by too little noise.

    Parameters
    ----------
    signal
        (y, x).
    mask
        (y, x), True = bad; codes and saturated pixels are added.
    pixels
        Pixels that are enough; None for the usual number.
    """
    if signal.dtype.kind not in "iuf":
        return Verdict("too few")
    above, bad = readout.measured(signal)
    bad = bad if mask is None else bad | mask
    below = float(np.mean((above < -BELOW_Z * np.asarray(readout.noise))[~bad])) if not bad.all() else 0.0
    if below > BELOW_SHARE:
        return Verdict("doubtful", f"{below:.0%} of its pixels are more than {BELOW_Z:g} sigma below the offset")
    photons = above + np.square(readout.noise)
    found = judged(sampled(photons, bad) if pixels is None else sampled(photons, bad, pixels))
    if readout.blur > 0 and found.curve is not None and found.curve.median < 1:
        return Verdict("counts", "", found.curve, found.line)
    return found


def _said(found: Verdict, readout: Readout | None) -> str | None:
    if not found.why or readout is None:
        return found.why or None
    return f"with the readout that was stated, {found.why}"


def _remedy(found: Verdict) -> str:
    stated = "if these are counts, state noise='poisson' or --noise poisson"
    if found.exposures is not None:
        return (
            f"state readout=Readout(1, frames={found.exposures}), or --readout FILE with [readout], gain = 1 and "
            f"frames = {found.exposures}; {stated}"
        )
    return (
        "give the counts as the detector wrote them; of a CCD, sCMOS or flat panel find the readout, `symdenoise "
        f"readout FRAMES -o found.toml`, and state readout='found.toml' or --readout found.toml; {stated}"
    )
