"""What borrowing costs: time with eight rows against none, and memory over a long series."""

from __future__ import annotations

import os
import time

import numpy as np

from bluesky_symdenoise.bench.load.scans import resident
from bluesky_symdenoise.bench.series.borrowing import denoised
from bluesky_symdenoise.bench.series.compared import Row
from bluesky_symdenoise.bench.simulated.series import still
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.neighbours.window import REACH, Borrow

#: Rows of the timed series beyond those that have fewer lenders.
_TIMED = 4


def speed(denoiser: Denoiser, *, side: int, repeats: int = 5, level: float = 1.0, seed: int = 0) -> Row:
    """Return time per frame with eight rows borrowed and without, taken in turns; medians.

    Each timed frame is given with the eight rows before it, as a callback gives it.
    """
    rng = np.random.default_rng(seed)
    rates = still(rng, REACH + _TIMED, (side, side))
    counts = rng.poisson(rates * (level / rates.mean())).astype(np.float64)
    mask = np.zeros((side, side), bool)
    taken: dict[str, list[float]] = {"alone": [], "past": []}
    denoised(denoiser, counts[:1], mask, None)
    for _ in range(repeats):
        for name in taken:
            taken[name].append(_seconds(denoiser, counts, mask, name))
    median = {name: float(np.median(each)) / _TIMED for name, each in taken.items()}
    return {
        "what": "speed",
        "side": side,
        "threads": denoiser.threads,
        "seconds": median["alone"],
        "seconds_borrowing": median["past"],
        "ratio": median["alone"] / median["past"],
        "ratio_least": min(a / b for a, b in zip(taken["alone"], taken["past"], strict=True)),
        "ratio_most": max(a / b for a, b in zip(taken["alone"], taken["past"], strict=True)),
    }


def _seconds(denoiser: Denoiser, counts: np.ndarray, mask: np.ndarray, name: str) -> float:
    begun = time.perf_counter()
    for row in range(REACH, len(counts)):
        lent = []
        if name == "past":
            lent = [Lent(counts[each.row], each.offset, each.row) for each in Borrow("past").rows(row)]
        denoiser(counts[row], mask=mask, symmetry="1", lent=lent)
    return time.perf_counter() - begun


def memory(denoiser: Denoiser, *, rows: int, side: int = 64, seed: int = 0) -> Row:
    """Return growth of this process's resident memory over a long series, after its first tenth."""
    rng = np.random.default_rng(seed)
    rate = still(rng, 1, (side, side))[0]
    window: list[np.ndarray] = []
    first = 0.0
    for row in range(rows):
        own = rng.poisson(rate).astype(np.uint16)
        lent = [Lent(each, (float(place - len(window)),)) for place, each in enumerate(window)][::-1]
        denoiser(own, symmetry="1", lent=lent)
        window = [*window, own][-REACH:]
        if row == rows // 10:
            first = resident(os.getpid())
    return {"what": "memory", "side": side, "rows": rows, "grew_mb": resident(os.getpid()) - first}
