"""Rings of rows that share photons: smaller errors where the scene stands still, honest ones where it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bluesky_symdenoise import Ring
from bluesky_symdenoise.analysis.annulus import Annulus
from bluesky_symdenoise.analysis.estimate import Observed, from_counts
from bluesky_symdenoise.analysis.lent import REPORTED, Neighbour, from_lent
from bluesky_symdenoise.analysis.moment import second_moment
from bluesky_symdenoise.analysis.series import values_at_own

SIDE, CENTER, REACH = 80, (39.3, 40.1), 6
Y, X = (each.astype(float) for each in np.mgrid[:SIDE, :SIDE])
RADIUS, AZIMUTH = np.hypot(Y - CENTER[0], X - CENTER[1]), np.arctan2(Y - CENTER[0], X - CENTER[1])
ANNULUS = Annulus.about(CENTER, (SIDE, SIDE), inner=14, outer=32)
ONE, NOTHING = np.ones((SIDE, SIDE)), np.zeros((SIDE, SIDE))
POSITION = REPORTED.index(5)
#: What moves a quantity between rows, by the steps from the own row.
Scene = Callable[[int], dict[str, float]]


def rate(angle: float = 0.5, position: float = 23.0, flux: float = 1.0) -> np.ndarray:
    texture = np.exp(np.cos(2 * (AZIMUTH - angle)))
    texture /= ANNULUS.of(texture).mean()
    peak = 2 * texture * np.exp(-((RADIUS - position) ** 2) / (2 * 2.5**2))
    return flux * ((np.maximum(RADIUS, 4) / 23) ** -1.0 + peak)


def truth(**scene: float) -> np.ndarray:
    moment = second_moment(ANNULUS, ANNULUS.of(rate(**scene)), np.ones(ANNULUS.radius.shape))
    assert moment is not None
    area = 2 * 2.5 * np.sqrt(2 * np.pi) * scene.get("flux", 1.0)
    return np.array([moment.value.real, moment.value.imag, area, scene.get("position", 23.0), np.log(2.5)])


def measured(scene: Scene, *, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return error and sigma of each quantity alone and with neighbours, and how many neighbours were alike."""
    rng = np.random.default_rng(seed)
    offsets = [step for step in range(-REACH, REACH + 1) if step]
    alone, shared, alike = [], [], []
    for _ in range(number):
        own, *others = (Observed(rng.poisson(rate(**scene(at))).astype(float), ONE, NOTHING) for at in (0, *offsets))
        lent = [Neighbour(frame, (float(at),)) for at, frame in zip(offsets, others, strict=True)]
        found = from_lent(ANNULUS, own, lent)
        alike.append(found.alike)
        for results, estimate in ((alone, from_counts(ANNULUS, own)), (shared, found.estimate)):
            error = estimate.values[list(REPORTED)] - truth(**scene(0))
            results.append(np.stack([error, np.sqrt(np.diag(estimate.covariance)[list(REPORTED)])]))
    return np.array(alone), np.array(shared), np.array(alike)


def saved(alone: np.ndarray, shared: np.ndarray) -> np.ndarray:
    return np.asarray((alone[:, 0] ** 2).mean(axis=0) / (shared[:, 0] ** 2).mean(axis=0))


def chi_squared(found: np.ndarray) -> np.ndarray:
    return np.asarray(((found[:, 0] / found[:, 1]) ** 2).mean(axis=0))


def test_a_scene_that_stands_still_lends_nearly_all_its_rows() -> None:
    """All but the area, to which the flux adds the noise of the counts outside the ring."""
    alone, shared, alike = measured(lambda at: {}, number=40)
    assert alike.mean() > 0.95
    gain = saved(alone, shared)
    assert np.median(np.delete(gain, 2)) > 0.5 * (2 * REACH + 1)
    assert gain.min() > 1.5
    assert (chi_squared(shared) < 1.6).all()


def test_the_flux_of_neighbours_may_be_another() -> None:
    alone, shared, alike = measured(lambda at: {"flux": 1.0 if at == 0 else 1.6 - 0.1 * abs(at)}, number=20)
    assert alike.mean() > 0.95
    assert np.median(saved(alone, shared)) > 6
    assert chi_squared(shared).max() < 2


def test_at_a_jump_the_rows_beyond_it_are_dropped() -> None:
    """A jump of 8 sigma of the own position: the error is not larger than that of the row alone."""
    sigma = float(measured(lambda at: {}, number=2)[0][:, 1, POSITION].mean())
    alone, shared, alike = measured(lambda at: {"position": 23 + 9 * sigma * (at > 0)}, number=30)
    assert alike[:, :REACH].mean() > 0.9
    assert alike[:, REACH:].mean() < 0.05
    assert saved(alone, shared).min() > 1 / 1.05**2
    assert chi_squared(shared)[POSITION] < 2


def test_a_row_unlike_all_others_borrows_nothing() -> None:
    sigma = float(measured(lambda at: {}, number=2)[0][:, 1, POSITION].mean())
    alone, shared, alike = measured(lambda at: {"position": 23 + 12 * sigma * (at == 0)}, number=20)
    assert alike.mean() < 0.02
    assert np.allclose(saved(alone, shared), 1, atol=0.1)


def test_without_the_tests_a_jump_ruins_the_row() -> None:
    """Negative control: sums over all rows are off by many times their sigma."""
    rng = np.random.default_rng(5)
    total = sum(rng.poisson(rate(position=23 + 1.0 * (at > 0))) for at in range(-REACH, REACH + 1))
    blind = from_counts(ANNULUS, Observed(total.astype(float), ONE, NOTHING))
    assert abs(blind.values[5] - 23) > 5 * np.sqrt(blind.covariance[5, 5])


def test_a_linear_drift_cancels_between_both_sides() -> None:
    alone, shared, _ = measured(lambda at: {"position": 23 + 0.05 * at}, number=30)
    assert saved(alone, shared)[POSITION] > 2
    assert chi_squared(shared)[POSITION] < 2


def test_frames_without_counts_lend_nothing_and_harm_nothing() -> None:
    rng = np.random.default_rng(6)
    own = Observed(rng.poisson(rate()).astype(float), ONE, NOTHING)
    for lent in ([], [Neighbour(Observed(NOTHING, ONE, NOTHING), (1.0,))]):
        found = from_lent(ANNULUS, own, lent)
        assert not any(found.alike)
        assert np.array_equal(found.estimate.values, from_counts(ANNULUS, own).values)


@pytest.mark.parametrize("step", [0.0, 0.3, 1.0])
def test_the_error_of_a_walk_is_stated(step: float) -> None:
    """Rows that wander: the error agrees with its sigma to a factor of 1.5, and is never larger than the own one."""
    rng = np.random.default_rng(7)
    offsets = [0, *(at for at in range(-8, 9) if at)]
    error, sigma = [], []
    for _ in range(150):
        walk = np.cumsum(rng.normal(size=17)) * step
        seen = (walk + rng.normal(size=17))[[at + 8 for at in offsets]]
        value, variance = values_at_own(seen[None], np.eye(17)[None], [(float(at),) for at in offsets])
        error.append(value[0] - walk[8])
        sigma.append(np.sqrt(variance[0]))
    assert np.mean(np.square(error)) < 1.05
    assert 0.3 < np.mean(np.square(np.divide(error, sigma))) < 2


def test_a_map_borrows_along_both_axes() -> None:
    """And not from beyond a boundary, which runs along one of them."""
    rng = np.random.default_rng(8)
    offsets = [(y, x) for y in range(-2, 3) for x in range(-2, 3) if (y, x) != (0, 0)]
    values = np.array([0.0, *(20.0 * (y > 0) for y, _ in offsets)]) + rng.normal(size=len(offsets) + 1)
    steps = [(0.0, 0.0), *((float(y), float(x)) for y, x in offsets)]
    value, variance = values_at_own(values[None], np.eye(len(values))[None], steps)
    assert abs(value[0]) < 3 * np.sqrt(variance[0])
    assert variance[0] < 0.4


def test_a_ring_takes_what_neighbours_lend() -> None:
    rng = np.random.default_rng(9)
    own, *others = (Observed(rng.poisson(rate()).astype(float), ONE, NOTHING) for _ in range(9))
    ring = Ring(inner=14, outer=32)
    lent = [Neighbour(other, (float(at + 1),)) for at, other in enumerate(others)]
    alone, shared = (
        ring.scalars(own, own.counts, beam_center=CENTER, denoise=lambda counts: counts, lent=each)
        for each in ((), lent)
    )
    for name in ("orientation", "anisotropy", "peak_position", "peak_width"):
        assert shared[f"{name}_sigma"] < 0.75 * alone[f"{name}_sigma"]
