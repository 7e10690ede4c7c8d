"""Gaps, hot and dead pixels that no mask names are found; dark lines and sharp peaks that may be real are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from bluesky_symdenoise.physics.defects import found_defects, gap_lines, without, without_gaps
from bluesky_symdenoise.physics.frame import Frame

SHAPE = (90, 110)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def frame_of(counts, exposure=None):
    exposure = np.ones(SHAPE) if exposure is None else exposure
    counts = np.where(exposure > 0, counts, 0).astype(float)
    counts.flags.writeable = exposure.flags.writeable = False
    return Frame(counts, exposure, 1.0)


@pytest.mark.parametrize("level", [1.0, 100.0])
def test_unmasked_gaps_are_found(rng, level):
    counts = rng.poisson(level, SHAPE)
    counts[30:47], counts[:, 60:67] = 0, 0
    expected = counts == 0 if level > 50 else np.zeros(SHAPE, bool)
    expected[30:47], expected[:, 60:67] = True, True
    frame = frame_of(counts)
    np.testing.assert_array_equal(gap_lines(frame), expected)
    np.testing.assert_array_equal(without_gaps(frame).mask, expected)
    # Control: without gaps, none.
    assert not gap_lines(frame_of(rng.poisson(level, SHAPE))).any()


def test_sparse_frames_have_no_gaps_to_find(rng):
    """At 0.01 counts per pixel lines without a count are common."""
    counts = rng.poisson(0.01, SHAPE)
    assert (counts.sum(axis=0) == 0).any()
    assert not gap_lines(frame_of(counts)).any()


def test_what_is_masked_is_not_found_again(rng):
    exposure = np.ones(SHAPE)
    exposure[30:47] = 0
    assert not gap_lines(frame_of(rng.poisson(5.0, SHAPE), exposure)).any()


def test_a_bragg_peak_beside_a_dark_line_makes_no_gap():
    """One bright pixel is no reason to expect counts along the whole line."""
    counts = np.zeros(SHAPE)
    counts[20, 50], counts[22, 70] = 5000, 5000
    assert not gap_lines(frame_of(counts)).any()


def spots(level, *, widths, heights, seed=0):
    """A field of Gaussian spots on a background: their centres fall anywhere within a pixel."""
    rng = np.random.default_rng(seed)
    rate = np.full(SHAPE, level)
    edges = [np.arange(size + 1) - 0.5 for size in SHAPE]
    for width, height in zip(widths, heights, strict=True):
        sigma = width / np.sqrt(8 * np.log(2))
        along = [
            np.diff(special.ndtr((edge - rng.uniform(5, size - 6)) / sigma))
            for edge, size in zip(edges, SHAPE, strict=True)
        ]
        rate += height * np.outer(*along)
    return rng.poisson(rate)


@pytest.mark.parametrize("level", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_a_bragg_peak_is_never_hot(level, width):
    """However sharp: half a pixel wide and up to 10^6 counts, single or as Friedel pairs, in dark and bright frames."""
    for seed in range(40):
        heights = 10 ** np.random.default_rng(seed).uniform(1, 6, 8)
        frame = frame_of(spots(level, widths=[width] * 8, heights=heights, seed=seed))
        assert not found_defects(frame).mask.any()


@pytest.mark.parametrize(("level", "hot"), [(0.1, 2000), (10.0, 2e4), (100.0, 2e5)])
def test_hot_pixels_are_found(rng, level, hot):
    """Alone, beside each other, at the edge, beside a gap; doubtful pixels are kept."""
    counts = rng.poisson(level, SHAPE).astype(float)
    where = [(20, 20), (40, 50), (40, 51), (0, 70), (61, 30)]
    for at in where:
        counts[at] = hot
    exposure = np.ones(SHAPE)
    exposure[62:70] = 0
    found = found_defects(frame_of(counts, exposure))
    assert sorted(zip(*np.nonzero(found.hot), strict=True)) == sorted(where)
    assert not found.dead.any()
    # Control: a pixel twenty standard deviations above its surroundings may be a spot.
    counts = rng.poisson(level, SHAPE).astype(float)
    counts[20, 20] += 20 * np.sqrt(level + 1)
    assert not found_defects(frame_of(counts)).mask.any()


def test_dead_pixels_are_found_and_shadows_are_not(rng):
    counts = rng.poisson(100.0, SHAPE)
    dead = np.zeros(SHAPE, bool)
    dead[10, 10], dead[30, 40:42], dead[50:52, 60:62], dead[0, 80] = True, True, True, True
    counts[dead] = 0
    counts[70:, 20], counts[60:65, 90:95] = 0, 0
    found = found_defects(frame_of(counts))
    np.testing.assert_array_equal(found.dead, dead)
    assert not found.hot.any()
    # Control: where 10 counts are expected, no pixel is dead for certain.
    counts = rng.poisson(10.0, SHAPE)
    counts[10, 10] = 0
    assert not found_defects(frame_of(counts)).mask.any()


def test_more_frames_show_more_defects(rng):
    frames = [rng.poisson(10.0, SHAPE) for _ in range(20)]
    for frame in frames:
        frame[10, 10], frame[20, 20] = 0, rng.poisson(5000)
    assert not found_defects(frame_of(frames[0])).mask.any()
    pooled = found_defects(frame_of(np.sum(frames, axis=0), np.full(SHAPE, 20.0)))
    assert list(zip(*np.nonzero(pooled.dead), strict=True)) == [(10, 10)]
    assert list(zip(*np.nonzero(pooled.hot), strict=True)) == [(20, 20)]


def test_exposures_are_no_defects(rng):
    """A pixel behind a filter counts less than its neighbours, and one in front of it more."""
    exposure = np.ones(SHAPE)
    exposure[20, 20], exposure[40, 40] = 1e-3, 1e3
    assert not found_defects(frame_of(rng.poisson(60.0 * exposure), exposure)).mask.any()


@pytest.mark.parametrize("level", [0.1, 3.0, 300.0])
def test_smooth_patterns_have_no_defects(rng, level):
    y, x = np.indices(SHAPE)
    rate = level * (0.01 + np.exp(-np.hypot(y - 45, x - 55) / 10) * (1 + np.cos(np.hypot(y - 45, x - 55))))
    for _ in range(50):
        assert not found_defects(frame_of(rng.poisson(rate))).mask.any()


def test_a_frame_without_defects_is_the_frame_itself(rng):
    frame = frame_of(rng.poisson(1.0, SHAPE))
    assert without(frame, found_defects(frame).mask) is frame


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 3)])
@pytest.mark.parametrize("value", [0.0, 1e9])
def test_the_smallest_frames_have_no_defects(shape, value):
    assert not found_defects(Frame(np.full(shape, value), np.ones(shape), 1.0)).mask.any()
