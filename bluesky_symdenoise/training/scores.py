"""Scores of a tuned model and its parent on the same frames, with errors: held-out likelihood and false features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special, stats

from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.training.shots import Shot, evidence
from bluesky_symdenoise.training.simulate import peakless_rate

#: Share of the photons from which a held-out frame without a target is denoised; the rest is predicted.
HELD_OUT_SHARE = 0.5
#: One-sided probability of two standard deviations of a normal distribution: the limit of noise.
BEYOND = 0.9772
#: A feature is a connected region that exceeds the truth by this many of the model's own sigma.
FEATURE_SIGMA = 3.0
#: Counts per pixel, frames at each level, and side of the simulated frames without peaks.
LEVELS, FRAMES, SIDE = (0.1, 1.0, 10.0), 16, 256
#: Smallest expected counts per pixel that a likelihood is evaluated at.
_TINY = 1e-6


@dataclass(frozen=True)
class Paired:
    """A figure of a parent and of its tuned model on the same frames; less is better.

    Attributes
    ----------
    parent, tuned
        Means over frames.
    difference, error
        Mean of tuned - parent over frames, and its standard error from the frames' differences.
    frames
        Number of frames.
    """

    parent: float
    tuned: float
    difference: float
    error: float
    frames: int

    @classmethod
    def of(cls, parent: NDArray[np.float64], tuned: NDArray[np.float64]) -> Paired:
        """Make the figure from one value for each frame and model."""
        change = tuned - parent
        error = change.std(ddof=1) / np.sqrt(change.size)
        return cls(float(parent.mean()), float(tuned.mean()), float(change.mean()), float(error), change.size)

    @property
    def better(self) -> bool:
        """Whether the tuned model's figure is smaller beyond noise: two standard errors, more for few frames."""
        return bool(-self.difference > stats.t.ppf(BEYOND, self.frames - 1) * self.error)

    @property
    def worse(self) -> bool:
        """Whether the tuned model's figure is larger beyond noise."""
        return bool(self.difference > stats.t.ppf(BEYOND, self.frames - 1) * self.error)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def held_out_losses(denoiser: Denoiser, shots: Sequence[Shot], *, seed: int) -> NDArray[np.float64]:
    """Return negative log-likelihoods of each shot's held-out counts, nat per pixel, the same for every denoiser.

    The predictive distribution is the negative binomial of the denoiser's Gamma posterior, intensity and sigma, at the
    held-out counts' exposure.
    """
    losses = np.empty(len(shots))
    for index, shot in enumerate(shots):
        found = evidence(np.random.default_rng([seed, index]), shot, HELD_OUT_SHARE)
        result = denoiser(found.counts, mask=~found.good, symmetry=shot.symmetry)
        mean = np.maximum(result["intensity"].values[found.good].astype(np.float64), _TINY)
        variance = np.maximum(result["sigma"].values[found.good].astype(np.float64), _TINY) ** 2
        a, b = mean**2 / variance, mean / variance
        t, e = found.target[found.good], found.exposure
        likelihood = (
            special.gammaln(t + a)
            - special.gammaln(a)
            - special.gammaln(t + 1)
            - a * np.log1p(e / b)
            - t * np.log1p(b / e)
        )
        losses[index] = -likelihood.mean()
    return losses


def false_features(denoiser: Denoiser, *, seed: int, levels: Sequence[float] = LEVELS) -> NDArray[np.float64]:
    """Return features per megapixel in simulated Poisson frames that have none: flat ones and smooth ones.

    A feature is a connected region where the intensity exceeds the true rate by three of the denoiser's own sigma.
    """
    rng = np.random.default_rng(seed)
    found = []
    for level in levels:
        for _ in range(FRAMES):
            truth = level * peakless_rate(rng, (SIDE, SIDE))
            result = denoiser(rng.poisson(truth), symmetry="1")
            risen = result["intensity"].values - truth > FEATURE_SIGMA * result["sigma"].values
            found.append(ndimage.label(risen)[1] / SIDE**2 * 1e6)
    return np.array(found)
