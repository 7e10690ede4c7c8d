"""Quantities at one row from those of rows around it, whatever they do between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Matrix = NDArray[np.float64]
Values = NDArray[np.float64]

#: Variances, in units of that of the own value: of a random walk's step, of a slope, and of a jump.
WALKS, SLOPES, JUMPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0.003, 0.03, 0.3, 3.0), (3.0, 30.0, 300.0, 1e4)
#: Probability, before anything is seen, that all quantities stand still.
ALL_STILL = 0.2
#: If they do not: that one of them stands still, drifts, jumps once in the window, or that the own row differs from all
#: others.
STILL, DRIFT, JUMP, ALONE = 0.4, 0.3, 0.2, 0.1


def values_at_own(values: Matrix, noise: Matrix, offsets: Sequence[tuple[float, ...]]) -> tuple[Values, Values]:
    """Return quantities of the first row and their variances, from those of all rows.

    Values are x_j = f_j + e_j with noise e of known covariance. Of f it is not known whether it stands still, wanders
    (f_j - f_k has variance q |j - k|), has a slope, or jumps somewhere in the window. For each of these and for several
    sizes, f at the first row is the solution of the kriging system with an unknown mean; what is returned is the mean
    of all over their posterior probability, and its variance, which includes that they differ. That the scene stands
    still is judged from all quantities together.

    Parameters
    ----------
    values, noise
        (k, n) and (k, n, n); the own row is the first.
    offsets
        Steps along each scan axis from the own row, which is at 0.
    """
    own = noise[:, 0, 0]
    if values.shape[1] == 1:
        return values[:, 0].copy(), own.copy()
    away, prior = _models(tuple(offsets))
    means, variances, likelihood = (np.empty((len(values), len(prior))) for _ in range(3))
    for k, (x, n) in enumerate(zip(values, noise, strict=True)):
        means[k], variances[k], likelihood[k] = _kriged(x, n, away)
    # Logarithms: far from standing still, the models are too unlike each other for floats.
    evidence = likelihood + np.log(prior)
    total = logsumexp(evidence, axis=1, keepdims=True)
    moving = np.log(1 - ALL_STILL) + total.sum()
    moves = float(np.exp(moving - np.logaddexp(moving, np.log(ALL_STILL) + likelihood[:, 0].sum())))
    posterior = np.exp(evidence - total) * moves
    posterior[:, 0] += 1 - moves
    mean = (posterior * means).sum(axis=1)
    return mean, (posterior * (variances + (means - mean[:, None]) ** 2)).sum(axis=1)


def _kriged(values: Values, noise: Matrix, away: Matrix) -> tuple[Values, Values, Values]:
    """Return the own value, its variance and the log likelihood for each model."""
    own = noise[0, 0]
    # All that is known without a mean: differences from the own value.
    seen = values[1:] - values[0]
    covariance = away * own + noise[1:, 1:] - noise[1:, :1] - noise[:1, 1:] + own
    shared = own - noise[0, 1:]
    both = np.broadcast_to(np.stack([shared, seen], axis=1), (len(away), len(seen), 2))
    weights, scaled = np.moveaxis(np.linalg.solve(covariance, both), 2, 0)
    likelihood = -(np.linalg.slogdet(covariance)[1] + scaled @ seen) / 2
    return values[0] + weights @ seen, own - weights @ shared, likelihood


@lru_cache(maxsize=64)
def _models(offsets: tuple[tuple[float, ...], ...]) -> tuple[Matrix, NDArray[np.float64]]:
    """Return covariances (m, n - 1, n - 1) of the differences from the first row, and probabilities (m,)."""
    at = np.array(offsets, np.float64)
    at = at[1:] - at[0]
    distance = np.linalg.norm(at, axis=1)
    between = np.linalg.norm(at[:, None] - at, axis=2)
    walk, slope = (distance[:, None] + distance - between) / 2, at @ at.T
    drifts = [q * walk + s * slope for q, s in product((0.0, *WALKS), (0.0, *SLOPES)) if q or s]
    jumps = [size * np.outer(side, side) for side in _sides(at) for size in JUMPS]
    alone = [size * np.ones_like(walk) for size in JUMPS]
    covariances = np.stack([np.zeros_like(walk), *drifts, *jumps, *alone])
    shares = ((STILL, 1), (DRIFT, len(drifts)), (JUMP, len(jumps)), (ALONE, len(alone)))
    return covariances, np.concatenate([np.full(number, share / max(number, 1)) for share, number in shares])


def _sides(at: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return, for each place where a jump can be, which rows lie beyond it."""
    return [
        (sign * at[:, axis] >= step).astype(np.float64)
        for axis in range(at.shape[1])
        for sign in (1, -1)
        for step in sorted({float(abs(value)) for value in at[:, axis] if sign * value > 0})
    ]
