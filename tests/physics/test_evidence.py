"""The symmetry test keeps its false-alarm rate, pools over frames, and says what it could have seen."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.evidence import PairSums, asymmetry, pair_sums
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import INVERSION, MIRROR_X, first_of_pair
from bluesky_symdenoise.physics.symmetry import POINT_GROUPS
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import View

SHAPE, CENTER = (128, 136), (60.5, 70.0)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def frame_of(counts, exposure=None):
    exposure = np.ones(counts.shape) if exposure is None else exposure
    counts, exposure = np.where(exposure > 0, counts, 0).astype(float), exposure.astype(float)
    counts.flags.writeable = exposure.flags.writeable = False
    return Frame(counts, exposure, 1.0)


def symmetric(level):
    rate = textured_rate(View.about(CENTER, SHAPE), orientation=0.8)
    return level * rate / rate.mean()


def one_sided(level, excess):
    """The upper right quarter about the centre is brighter."""
    y, x = np.indices(SHAPE)
    return symmetric(level) * (1 + excess * ((y > CENTER[0]) & (x > CENTER[1])))


def same(a: PairSums, b: PairSums) -> bool:
    names = ("difference", "variance", "fourth", "chi")
    return a.frames == b.frames and all(np.allclose(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("operation", POINT_GROUPS["2mm"])
@pytest.mark.parametrize("center", [CENTER, (60.0, 70.0), (3.0, 130.5)])
def test_each_pair_counts_once(operation, center):
    """Of a pixel and its mate one is first; on the symmetry element, and without a mate, none is."""
    first = first_of_pair(SHAPE, operation, center)
    y, x = np.nonzero(first)
    signs = (operation.yy, operation.xx)
    there = [at if sign > 0 else round(2 * c) - at for at, sign, c in zip((y, x), signs, center, strict=True)]
    assert first.any()
    assert not first[there[0], there[1]].any()


@pytest.mark.parametrize("level", [0.05, 5.0])
def test_p_values_of_symmetric_patterns_are_uniform(rng, level):
    """At 0.05 counts per pixel too, and with unequal exposures; the benchmark measures the tail."""
    exposure = rng.uniform(0.5, 1.5, SHAPE)
    exposure[40:47] = 0
    p = [
        asymmetry(pair_sums(frame_of(rng.poisson(symmetric(level) * exposure), exposure), INVERSION, CENTER)).p_value
        for _ in range(150)
    ]
    assert np.mean(np.less(p, 0.1)) < 0.1 + 4 * np.sqrt(0.09 / 150)
    assert np.mean(np.less(p, 0.3)) > 0.15
    assert min(p) > 1e-5


def test_an_asymmetry_that_no_frame_shows_is_seen_in_the_run(rng):
    frames = [frame_of(rng.poisson(one_sided(0.05, 0.3))) for _ in range(60)]
    sums = [pair_sums(frame, INVERSION, CENTER) for frame in frames]
    assert np.median([asymmetry(one).p_value for one in sums]) > 0.01
    pooled = asymmetry(reduce(add, sums))
    assert pooled.p_value < 1e-4
    assert pooled.frames == 60
    # Control: as many symmetric frames.
    others = (pair_sums(frame_of(rng.poisson(symmetric(0.05))), INVERSION, CENTER) for _ in range(60))
    assert asymmetry(reduce(add, others)).p_value > 1e-3


def test_sums_merge_in_any_order(rng):
    a, b, c = (pair_sums(frame_of(rng.poisson(symmetric(1.0))), MIRROR_X, CENTER) for _ in range(3))
    assert same(a + (b + c), (c + a) + b)
    assert not same(a + b, a + c)
    with pytest.raises(SymDenoiseError, match="cannot be added"):
        a + pair_sums(frame_of(np.ones(SHAPE)), INVERSION, CENTER)


def test_the_brighter_region_is_named(rng):
    """With its sign, as is the opposite region; mates are not used there."""
    found = asymmetry(pair_sums(frame_of(rng.poisson(one_sided(20.0, 0.5))), INVERSION, CENTER))
    # Sectors 0 to 3 are the quarter of rising y and x; 8 to 11 are their mates.
    assert found.rejected[0, :4].all()
    assert not found.foldable[0, :4].any()
    assert (found.difference[0, :4] > 0.2).all()
    np.testing.assert_allclose(found.difference[0, 8:12], -found.difference[0, :4])
    assert not found.rejected[0, 4:8].any()
    image = found.on_pixels(found.rejected, SHAPE)
    assert image[65, 75]
    assert not image[65, 65]


def test_more_frames_detect_smaller_differences(rng):
    """A single sparse frame can reject nothing and allows no mates; a run of such frames can."""
    sums = [pair_sums(frame_of(rng.poisson(symmetric(0.02))), INVERSION, CENTER) for _ in range(40)]
    alone, pooled = asymmetry(sums[0]), asymmetry(reduce(add, sums))
    inner = np.s_[1, :]
    assert np.isinf(alone.smallest[inner]).all()
    assert not alone.foldable.any()
    assert (pooled.smallest[inner] < 2).all()
    assert pooled.foldable[inner].mean() > 0.5


def test_empty_frames_reject_nothing_and_allow_no_mates():
    for frame in (frame_of(np.zeros(SHAPE)), frame_of(np.ones(SHAPE), np.zeros(SHAPE))):
        found = asymmetry(pair_sums(frame, INVERSION, CENTER))
        assert found.p_value == 1
        assert not found.foldable.any()
        assert not found.rejected.any()
