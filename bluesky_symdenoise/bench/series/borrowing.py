"""Our own denoiser on the rows of a stack, frame by frame and with photons of other rows."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.neighbours.window import REACH, Borrow, Scan

#: Ours by name: which rows may lend.
OURS: dict[str, str | None] = {"alone": None, "past": "past", "both": "both"}


@dataclass(frozen=True, eq=False)
class Denoised:
    """Denoised rows.

    Attributes
    ----------
    intensity, sigma
        (row, y, x) expected counts and standard deviation; 0 where masked.
    borrowed
        (row,) effective exposures.
    seconds
        Time that it took.
    """

    intensity: FloatArray
    sigma: FloatArray
    borrowed: FloatArray
    seconds: float


def denoised(
    denoiser: Denoiser,
    counts: FloatArray,
    mask: Mask,
    side: str | None,
    *,
    scan: Scan | None = None,
    reach: int = REACH,
) -> Denoised:
    """Return rows (row, y, x), denoised without symmetry.

    Parameters
    ----------
    side
        ``past`` or ``both``, or None to borrow nothing.
    scan
        Scan whose points the rows are; None to go by number.
    """
    begun = time.perf_counter()
    if side is None or scan is None:
        borrow = {} if side is None else {"borrow": side, "borrow_reach": reach}
        found = [denoiser(counts, mask=mask, symmetry="1", **borrow)]  # type: ignore[arg-type]
    else:
        found = []
        for row, own in enumerate(counts):
            lenders = Borrow(side, reach).rows(row, len(counts), scan)
            lent = [Lent(counts[each.row], each.offset, each.row) for each in lenders]
            found.append(denoiser(own[None], mask=mask, symmetry="1", lent=lent))
    seconds = time.perf_counter() - begun
    intensity, sigma = (
        np.nan_to_num(np.concatenate([each[name].to_numpy() for each in found]).astype(np.float64))
        for name in ("intensity", "sigma")
    )
    borrowed = [
        np.atleast_1d(each["borrowed"].to_numpy()) if "borrowed" in each else np.zeros(len(each["intensity"]))
        for each in found
    ]
    return Denoised(intensity, sigma, np.concatenate(borrowed).astype(np.float64), seconds)
