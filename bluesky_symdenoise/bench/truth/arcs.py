"""How much of a weak arc without a mate is left in the mean of a run of sparse frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bluesky_symdenoise.bench.truth.features import Row
from bluesky_symdenoise.bench.truth.symmetry import CENTER, arc, pattern
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.check import tested_symmetry
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import INVERSION, mate
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Excess of the arc over its mate, and its half width in pixels and in radians.
EXCESS, HALF_WIDTH, HALF_ANGLE = 0.1, 20.0, np.pi / 6
LEVELS = (0.1, 0.5, 2.0)
#: Number of frames of a run for each requested frame.
PER_RUN = 2


def series(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield one run at each level: denoised without symmetry, with it, and with it where all frames together support
    it.

    ``kept`` is the excess of the arc over its mate in the sum of the denoised frames, divided by the true excess;
    ``rms`` is the error of the pixels of single frames, in the arc and outside, in units of the mean rate.
    """
    plain, exposure = pattern()
    broken = arc(plain, excess=EXCESS, half_width=HALF_WIDTH, half_angle=HALF_ANGLE)
    both = (exposure > 0) & (mate(exposure, INVERSION, CENTER) > 0)
    on = (broken > plain) & both
    there = mate(on, INVERSION, CENTER)
    number = PER_RUN * frames
    for level in LEVELS:
        rate = level * broken
        drawn = [rng.poisson(rate * exposure) for _ in range(number)]
        total = Frame(np.sum(drawn, axis=0).astype(np.float64), number * exposure, 1.0)
        checked = tested_symmetry(total, Symmetry("2", CENTER), frames=number)
        for used, symmetry in (("no", Symmetry()), ("as named", Symmetry("2", CENTER)), ("checked", checked.symmetry)):
            excess, squared = [], []
            for counts in drawn:
                mean = denoiser(counts, exposure=exposure, symmetry=symmetry)["intensity"].values.astype(np.float64)
                excess.append(mean[on].sum() - mean[there].sum())
                squared.append(np.mean((mean - rate)[both] ** 2))
            true = rate[on].sum() - rate[there].sum()
            yield {
                "what": "arc",
                "level": level,
                "symmetry": used,
                "frames": number,
                "usable": checked.usable[0] if used == "checked" else None,
                "kept": float(np.mean(excess) / true),
                "kept_error": float(np.std(excess) / true / np.sqrt(number)),
                "rms": float(np.sqrt(np.mean(squared)) / level),
            }
