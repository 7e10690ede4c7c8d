"""Gaps that no mask names are found, and dark lines that may be real are not."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_symdenoise.physics.defects import gap_lines, without_gaps
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
