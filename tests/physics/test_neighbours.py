"""Rows that lend photons: what the structure function, the weights and the tests promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours.borrowed import borrowed_evidence
from bluesky_symdenoise.physics.neighbours.flux import flux_ratios
from bluesky_symdenoise.physics.neighbours.pools import pool_score
from bluesky_symdenoise.physics.neighbours.structure import lags, pair_variances, structure_function
from bluesky_symdenoise.physics.neighbours.weights import effective_exposure, kriging

PAST = -np.arange(1.0, 9.0)[:, None]
BOTH = np.array([-1, 1, -2, 2, -3, 3, -4, 4], float)[:, None]


@pytest.fixture
def rng():
    return np.random.default_rng(18)


def with_own(offsets):
    return lags(np.concatenate([np.zeros_like(offsets[:1]), offsets]))


@pytest.mark.parametrize(("walk", "mean", "expected"), [(0.01, 1, 6.42), (0.1, 1, 2.67), (0.01, 100, 0.62)])
def test_eight_past_rows_of_a_random_walk_are_worth_what_the_kriging_system_says(walk, mean, expected):
    exposure, rate, terms = np.ones((1, 8)), np.array([float(mean)]), np.array([[0, walk, 0]])
    weights, left = kriging(exposure, rate, terms, with_own(PAST))
    assert weights.sum() == pytest.approx(1)
    assert effective_exposure(weights, exposure, left, rate)[0] == pytest.approx(expected, abs=0.01)


def test_rows_of_one_scene_are_worth_the_sum_of_their_exposures():
    exposure = np.array([[1.0, 2.0, 0.0, 0.5]])
    weights, left = kriging(exposure, np.ones(1), np.zeros((1, 3)), with_own(PAST[:4]))
    assert left[0] == 0
    assert effective_exposure(weights, exposure, left, np.ones(1))[0] == pytest.approx(3.5)


def test_a_steady_drift_cancels_between_rows_on_both_sides_and_not_in_the_past():
    terms, many = np.array([[0, 0, 0.1]]), np.full((1, 8), 1e6)
    for offsets, exact in ((BOTH, True), (PAST, False)):
        _, left = kriging(many, np.ones(1), terms, with_own(offsets))
        assert (left[0] < 1e-6) == exact


def test_nothing_is_lent_without_exposure():
    weights, left = kriging(np.zeros((2, 3)), np.ones(2), np.zeros((2, 3)), with_own(PAST[:3]))
    assert not weights.any()
    assert not effective_exposure(weights, np.zeros((2, 3)), left, np.ones(2)).any()


def walking(rng, *, rows, step, mean, pixels=4096, cells=40):
    """Return Poisson counts (cell, row, pixel) of scenes whose pixels walk at random, relative step S = step."""
    walk = np.cumsum(rng.normal(0, np.sqrt(step), (cells, rows, pixels)), axis=1)
    return rng.poisson(np.clip(mean * (1 + walk - walk[:, :1]), 0, None)).astype(float)


@pytest.mark.parametrize(("mean", "step", "error"), [(0.5, 0.05, 0.012), (5.0, 0.004, 5e-4)])
def test_the_structure_function_of_a_random_walk_is_its_step_at_any_count(rng, mean, step, error):
    """Poisson noise is taken off without bias, also where most pixels have no count."""
    counts = walking(rng, rows=5, step=step, mean=mean)
    ones = np.ones_like(counts)
    product, squares, shared = (
        one @ other.swapaxes(1, 2) for one, other in ((counts, counts), (counts * (counts - 1), ones), (ones, ones))
    )
    lag = lags(np.arange(5.0)[:, None])
    variances = pair_variances(product, squares)
    apart = np.triu(np.ones((5, 5), bool), 1)
    slope = (variances.mean(axis=0)[apart] / product.mean(axis=0)[apart] / lag[apart]).mean()
    assert slope == pytest.approx(step, abs=error)
    terms, squared = structure_function(variances, product, shared, lag)
    assert (terms >= 0).all()
    assert squared.mean() == pytest.approx(mean**2, rel=0.1)
    assert (terms @ [1, 1, 1]).mean() == pytest.approx(step, rel=0.35)


def test_the_prediction_of_a_random_walk_is_as_good_as_it_claims(rng):
    """Chi squared of prediction against the row's true rate, with the fitted structure function, is about one."""
    mean, step, rows, pixels = 20.0, 0.01, 9, 2000
    walk = np.cumsum(rng.normal(0, np.sqrt(step), (60, rows, pixels)), axis=1)
    rate = mean * np.clip(1 + walk - walk[:, rows // 2 :][:, :1], 0.05, None)
    counts = rng.poisson(rate).astype(float)
    order = [4, 3, 5, 2, 6, 1, 7, 0, 8]
    counts, rate = counts[:, order], rate[:, order]
    ones = np.ones_like(counts)
    product, squares, shared = (
        one @ other.swapaxes(1, 2) for one, other in ((counts, counts), (counts * (counts - 1), ones), (ones, ones))
    )
    lag = with_own(BOTH)
    terms, _ = structure_function(pair_variances(product, squares), product, shared, lag)
    exposure, level = np.ones((60, 8)), np.full(60, mean)
    weights, left = kriging(exposure, level, terms, lag)
    predicted = np.einsum("cr,crp->cp", weights, counts[:, 1:])
    variance = mean / effective_exposure(weights, exposure, left, level)
    chi = ((predicted - rate[:, 0]) ** 2).mean(axis=1) / variance
    assert chi.mean() == pytest.approx(1, abs=0.12)
    # A negative control: equal weights with Poisson errors alone claim far too much.
    plain = ((counts[:, 1:].mean(axis=1) - rate[:, 0]) ** 2).mean() / (mean / 8)
    assert plain > 2


def test_the_flux_ratio_is_that_of_what_agrees(rng):
    """A peak of a third of all counts that is in one row only does not move it."""
    own = rng.poisson(200.0, 256).astype(float)
    other = rng.poisson(500.0, 256).astype(float)
    ones = np.ones(256)
    assert flux_ratios(own, ones, other[None], ones[None])[0] == pytest.approx(2.5, rel=0.02)
    other[:20] += 4000
    assert flux_ratios(own, ones, other[None], ones[None])[0] == pytest.approx(2.5, rel=0.02)
    assert np.isnan(flux_ratios(own, ones, np.zeros((1, 256)), ones[None])[0])


def test_scores_of_pools_of_few_counts_are_no_more_often_high_than_low(rng):
    """Of unequal exposures the difference is skewed; what is left out must not be mostly rows with a count too many."""
    counts = rng.poisson(0.05 * 16, (40, 64, 64)).astype(float)
    pool = rng.poisson(7 * 0.05 * 16, (40, 64, 64)).astype(float)
    high = low = 0
    for one, other in zip(counts, pool, strict=True):
        apart = pool_score((one, np.full(one.shape, 16.0)), (other, np.full(one.shape, 112.0)), sigmas=[1.25]) > 3
        more = ndimage.gaussian_filter(one - other / 7, 1.25) > 0
        high, low = high + (apart & more).sum(), low + (apart & ~more).sum()
    assert 0.4 < high / max(low, 1) < 2.5
    assert (high + low) / counts.size < 0.01


def scene(size=128):
    y, x = np.mgrid[:size, :size] - size / 2.0
    radius = np.hypot(y, x)
    return 0.3 + 4 * np.exp(-(((radius - 30) / 4) ** 2)) + 2 / (1 + (radius / 12) ** 2)


def frames(rng, rates, level):
    ones = np.ones(rates[0].shape)
    return [Frame(rng.poisson(rate * level).astype(float), ones, 1.0) for rate in rates]


@pytest.mark.parametrize("level", [0.1, 1.0, 10.0])
def test_alike_rows_lend_nearly_all_and_their_evidence_is_unbiased_and_calibrated(rng, level):
    rate = scene()
    own, *rows = frames(rng, [rate] * 9, level)
    found = borrowed_evidence(own, rows, BOTH)
    assert found is not None
    assert np.median(found.exposure) > 6.8
    used = found.exposure > 0
    expected = found.exposure[used] * rate[used] * level
    assert found.counts[used].sum() == pytest.approx(expected.sum(), rel=0.02)
    chi = ((found.counts[used] - expected) ** 2 / expected).mean()
    assert 0.8 < chi < 1.15


def test_another_scene_lends_nothing_at_a_count_per_pixel(rng):
    rate = scene()
    own, *rows = frames(rng, [rate, *[np.roll(rate, 40, 0)] * 4, *[rate] * 4], 1.0)
    offsets = -np.arange(1.0, 9.0)[:, None]
    assert borrowed_evidence(own, rows[:4], offsets[:4]) is None
    both = borrowed_evidence(own, rows, offsets)
    assert both is not None
    used = both.exposure > 0
    assert both.counts[used].sum() == pytest.approx((both.exposure * rate)[used].sum(), rel=0.02)
    assert np.median(both.exposure) < 4.5


def test_a_spot_of_one_row_is_neither_taken_from_it_nor_given_to_others(rng):
    rate = scene()
    spot = np.zeros_like(rate)
    spot[20:23, 20:23] = 40
    own, *rows = frames(rng, [rate + spot, *[rate] * 8], 1.0)
    at = np.s_[20:23, 20:23]
    found = borrowed_evidence(own, rows, BOTH)
    assert found is not None
    assert not found.exposure[at].any()
    own, *rows = frames(rng, [rate, rate + spot, *[rate] * 7], 1.0)
    found = borrowed_evidence(own, rows, BOTH)
    assert found is not None
    leaked = (found.counts[at] / np.maximum(found.exposure[at], 1e-9))[found.exposure[at] > 0] - rate[at].mean()
    assert leaked.size == 0 or leaked.mean() < 0.02 * 40


def test_rows_of_other_flux_lend_in_proportion(rng):
    rate = scene()
    own, *rows = frames(rng, [rate, *[2 * rate] * 4], 1.0)
    found = borrowed_evidence(own, rows, PAST[:4])
    assert found is not None
    assert found.ratios == pytest.approx(2, rel=0.03)
    assert 5 < np.median(found.exposure) < 8.5
    assert borrowed_evidence(own, rows, PAST[:4], same_flux=True) is None


def test_inputs_are_not_written_to(rng):
    own, *rows = frames(rng, [scene()] * 4, 1.0)
    for frame in (own, *rows):
        frame.counts.flags.writeable = False
    assert borrowed_evidence(own, rows, PAST[:3]) is not None
