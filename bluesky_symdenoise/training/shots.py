"""Frames of a user's own runs as training cases: split photons, repeated exposures, a better exposed reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.fold import gated_mates, pair_statistics
from bluesky_symdenoise.physics.frame import Frame, sentinel_mask
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.pairs import Sample

#: Share of a frame's photons that the network gets, drawn uniformly between these; the rest is its target.
SHARES = (0.3, 0.9)
#: Probability that the network sees the symmetry mates of a frame that has a symmetry.
MATES_SHARE = 0.7
#: Two exposures show one scene if no test of equal rates exceeds its expectation by this fraction, or by this many
#: standard deviations.
SCENE_EXCESS, SCENE_Z = 0.1, 3.0
#: Sides of the blocks of these tests, in pixels.
SCENE_BLOCKS = (2, 8, 32)


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame, and what it may be compared with.

    Attributes
    ----------
    counts
        Counts (y, x) as the detector gave them.
    mask
        (y, x), True = bad; the detector's own codes are masked in any case.
    symmetry
        Point group with its centre, as it will be used when the run is denoised.
    target
        (y, x) independent counts of the same scene, or None: then the frame's own photons are split in two.
    exposure
        Exposure of the target, in units of the frame's.
    """

    counts: NDArray[Any]
    mask: NDArray[np.bool_]
    symmetry: Symmetry = field(default_factory=Symmetry)
    target: NDArray[Any] | None = None
    exposure: float = 1.0

    @property
    def good(self) -> NDArray[np.bool_]:
        """(y, x), True where a count was measured, in the target too."""
        good = ~(self.mask | sentinel_mask(self.counts))
        return good if self.target is None else good & ~sentinel_mask(self.target)

    def part(self, window: tuple[slice, slice]) -> Shot:
        """Return a part of the shot, which has no symmetry of its own."""
        target = None if self.target is None else self.target[window]
        return Shot(self.counts[window], self.mask[window], Symmetry(), target, self.exposure)

    @property
    def mean(self) -> float:
        """Counts per measured pixel."""
        good = self.good
        return float(self.counts[good].mean(dtype=np.float64)) if good.any() else 0.0


@dataclass(frozen=True, eq=False)
class Evidence:
    """Counts to denoise, and independent ones to predict at ``exposure`` times theirs; (y, x) float64, 0 if bad."""

    counts: NDArray[np.float64]
    target: NDArray[np.float64]
    good: NDArray[np.bool_]
    exposure: float


def evidence(rng: np.random.Generator, shot: Shot, share: float) -> Evidence:
    """Return a shot and its target; without a target, each photon goes to the input with probability ``share``.

    Halves of a Poisson count are independent, and so no network can learn to copy one to the other.
    """
    good = shot.good
    counts = np.where(good, shot.counts, 0).astype(np.int64)
    if shot.target is not None:
        target = np.where(good, shot.target, 0).astype(np.float64)
        return Evidence(counts.astype(np.float64), target, good, shot.exposure)
    own = rng.binomial(counts, share)
    return Evidence(own.astype(np.float64), (counts - own).astype(np.float64), good, (1 - share) / share)


@dataclass(frozen=True, eq=False)
class Split:
    """A shot to be split with this share; ``whole`` is the shot split and folded, if it is used with its mates."""

    shot: Shot
    share: float
    whole: NDArray[np.float32] | None


def split(rng: np.random.Generator, shot: Shot) -> Split:
    """Return a shot prepared for `crops`: mates may be anywhere; without mates, each crop is split by itself."""
    share = rng.uniform(*SHARES)
    with_mates = shot.symmetry.operations and rng.uniform() < MATES_SHARE
    return Split(shot, share, _stacked(rng, shot, share) if with_mates else None)


def crops(rng: np.random.Generator, prepared: Split, *, size: int, number: int) -> Iterator[Sample]:
    """Return training cases of one shot, turned and mirrored at random.

    The target is never a symmetry mate: the network would learn to trust the symmetry. Mates are input only,
    folded and gated from the input's photons as in use; the target, the pixel's own photons, shows how far they may
    be trusted.
    """
    shot, whole = prepared.shot, prepared.whole
    height, width = shot.counts.shape
    for _ in range(number):
        y, x = rng.integers(0, max(1, height - size + 1)), rng.integers(0, max(1, width - size + 1))
        window = np.s_[y : y + size, x : x + size]
        crop = _stacked(rng, shot.part(window), prepared.share) if whole is None else whole[:, *window]
        crop = np.rot90(crop, int(rng.integers(4)), axes=(1, 2))
        crop = crop[:, ::-1] if rng.uniform() < 0.5 else crop
        yield Sample(*np.pad(crop, [(0, 0), *((0, size - side) for side in crop.shape[1:])]))


def _stacked(rng: np.random.Generator, shot: Shot, share: float) -> NDArray[np.float32]:
    """Return (6, y, x) in the order of a sample's fields."""
    found = evidence(rng, shot, share)
    exposure = found.good.astype(np.float64)
    mates = gated_mates(Frame(found.counts, exposure, 1.0), shot.symmetry)
    return np.stack(
        [found.counts, exposure, mates.counts, mates.exposure, found.target, found.exposure * exposure]
    ).astype(np.float32)


def same_scene(one: Shot, other: Shot) -> float | None:
    """Return the exposure of the other shot in units of the first one's if they may show one scene, else None.

    Given the sum of each pixel's or block's counts, its split between the two is binomial. Chi squared of pixels and
    the squared differences of blocks may exceed their expectation by a tenth, or by three standard deviations where
    noise allows no better.
    """
    if one.counts.shape != other.counts.shape:
        return None
    good = one.good & other.good
    a, b = (np.where(good, shot.counts, 0).astype(np.float64) for shot in (one, other))
    if not (a.sum() and b.sum()):
        return None
    ratio = float(b.sum() / a.sum())
    first, second = Frame(a, good.astype(np.float64), 1.0), Frame(b, np.where(good, ratio, 0.0), 1.0)
    _, _, chi, chi_variance = pair_statistics(first, second, block=1)
    excesses = [(chi.sum(), (a + b > 0).sum(), chi_variance.sum())]
    for block in SCENE_BLOCKS:
        difference, variance, _, _ = pair_statistics(first, second, block=block)
        told = variance >= 1
        # The square of a standardised binomial has variance 2 and at most a little more: 1/V.
        excesses.append(
            ((difference[told] ** 2 / variance[told] - 1).sum(), told.sum(), (2 + 1 / variance[told]).sum())
        )
    same = all(excess <= max(SCENE_EXCESS * number, SCENE_Z * np.sqrt(spread)) for excess, number, spread in excesses)
    return ratio if same else None


def with_repeats(shots: Sequence[Shot]) -> list[Shot]:
    """Return the shots; one without a target gets its neighbour in the list, if that repeats the scene."""
    out = list(shots)
    for i, (one, other) in enumerate(pairwise(shots)):
        ratio = same_scene(one, other) if one.target is None and other.target is None else None
        if ratio is not None:
            out[i] = replace(one, target=other.counts, exposure=ratio)
            out[i + 1] = replace(other, target=one.counts, exposure=1 / ratio)
    return out
