"""The test of a symmetry gives uniform p-values where it holds, and small ones where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bluesky_symdenoise.physics.agreement import disagreement, pair_tests
from bluesky_symdenoise.physics.frame import Frame, frame_from_counts
from bluesky_symdenoise.physics.mates import INVERSION, MIRROR_X, MIRROR_Y
from bluesky_symdenoise.physics.symmetry import Symmetry

CENTER = (63.5, 62.0)
SHAPE = (128, 128)


def frame(seed: int, *, broken: bool = False, mean: float = 1.0) -> Frame:
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    rate = mean * (0.5 + 2 * np.exp(-((np.hypot(y - CENTER[0], x - CENTER[1]) - 40) ** 2) / 60))
    if broken:
        rate = rate * np.where(x < 40, 0.7, 1.0)
    counts = np.random.default_rng(seed).poisson(rate)
    mask = np.zeros(SHAPE, bool)
    mask[20:24] = True
    counts[mask] = 10_000
    return frame_from_counts(counts, mask=mask, exposure=np.ones(SHAPE))


@pytest.mark.parametrize("mean", [0.3, 3.0])
def test_where_the_symmetry_holds_p_is_uniform(mean: float):
    """Each pair is taken once: with both of its ends, p would be near 0 or 1 far too often."""
    found = [pair_tests(frame(seed, mean=mean), Symmetry("2mm", CENTER)) for seed in range(60)]
    for name in ("p_regions", "p_pixels"):
        for operation in range(3):
            values = [getattr(tests[operation], name) for tests in found]
            assert stats.kstest(values, "uniform").pvalue > 1e-3, (name, operation)


def test_a_shadow_on_one_side_is_seen_by_the_operations_that_move_it():
    by_operation = {test.operation: test for test in pair_tests(frame(1, broken=True), Symmetry("2mm", CENTER))}
    for operation in (INVERSION, MIRROR_X):
        assert by_operation[operation].p_regions < 1e-6
        assert 0.1 < by_operation[operation].difference < 0.5
    assert by_operation[MIRROR_Y].p_regions > 1e-3


def test_a_frame_without_counts_is_not_tested():
    nothing = frame_from_counts(np.zeros(SHAPE, int), mask=np.zeros(SHAPE, bool), exposure=np.ones(SHAPE))
    (test,) = pair_tests(nothing, Symmetry("2", CENTER))
    assert test.regions == 0
    assert np.isnan([test.p_regions, test.p_pixels, test.difference]).all()


def test_the_map_is_empty_where_nothing_was_measured_and_high_in_a_shadow():
    score = disagreement(frame(2, broken=True, mean=4), Symmetry("m", CENTER))
    assert np.isnan(score[20:24]).all()
    assert np.nanmedian(score[40:, 5:35]) > 3
    assert np.nanmedian(disagreement(frame(2, mean=4), Symmetry("m", CENTER))) < 2
