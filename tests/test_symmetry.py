"""Point groups move counts: exactly, back again, and never from off the detector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import mated
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.symmetry import (
    POINT_GROUPS,
    Symmetry,
    checked_beam_center,
    checked_point_group,
    mate,
)

SHAPE = (13, 18)
OPERATIONS = POINT_GROUPS["2mm"]
#: Whole, half and other centres; at the middle, off it, and on the detector's edges.
CENTERS = [(6.0, 8.5), (6.5, 8.0), (4.0, 12.0), (2.3, 14.9), (0.0, 17.0), (-0.5, 17.5), (12.5, -0.5)]


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.fixture
def image():
    return frozen(np.arange(1, 1 + SHAPE[0] * SHAPE[1], dtype=np.uint32).reshape(SHAPE))


def overlap(operation, center):
    """True where the mate is on the detector, from the geometry alone."""
    y, x = np.indices(SHAPE)
    inside = np.ones(SHAPE, bool)
    for at, size, sign, c in zip((y, x), SHAPE, operation, center, strict=True):
        there = at if sign > 0 else round(2 * c) - at
        inside &= (there >= 0) & (there < size)
    return inside


@pytest.mark.parametrize("symbol", POINT_GROUPS)
def test_point_groups_are_groups(symbol):
    """With the identity: closed, and every operation is there with its inverse."""
    group = {(1, 1), *POINT_GROUPS[symbol]}
    assert len(group) == 1 + len(POINT_GROUPS[symbol])
    for (ay, ax), (by, bx) in itertools.product(group, group):
        assert (ay * by, ax * bx) in group
    assert all(any((ay * by, ax * bx) == (1, 1) for by, bx in group) for ay, ax in group)
    # Control: without one of its mirrors, 2mm is none.
    broken = {(1, 1), *POINT_GROUPS["2mm"][:-1]}
    assert any((a[0] * b[0], a[1] * b[1]) not in broken for a in broken for b in broken)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_mate_of_the_mate_is_the_pixel_itself(image, operation, center):
    twice = mate(frozen(mate(image, operation, center)), operation, center)
    on = overlap(operation, center)
    np.testing.assert_array_equal(twice, np.where(on, image, 0))


@pytest.mark.parametrize("center", CENTERS)
def test_two_mirrors_make_the_inversion(image, center):
    m, my = POINT_GROUPS["m"][0], POINT_GROUPS["my"][0]
    np.testing.assert_array_equal(mate(mate(image, m, center), my, center), mate(image, POINT_GROUPS["2"][0], center))


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_mates_are_permutations(image, operation, center):
    """No count is interpolated, lost or doubled: the overlap holds the same values in another order."""
    moved = mate(image, operation, center)
    on = overlap(operation, center)
    assert moved.dtype == image.dtype
    assert (moved[~on] == 0).all()
    assert sorted(moved[on]) == sorted(image[on])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_mate_lies_at_twice_the_centre_minus_the_pixel(image, operation):
    center = (5.5, 10.0)
    moved = mate(image, operation, center)
    for y, x in [(3, 5), (8, 15), (5, 10)]:
        there = tuple(at if s > 0 else int(2 * c) - at for at, s, c in zip((y, x), operation, center, strict=True))
        assert moved[y, x] == image[there]


@pytest.mark.parametrize("center", [(6.0, 8.5), (6.5, 8.0), (3.0, 9.0)])
def test_a_symmetric_pattern_is_its_own_mate(center):
    y, x = np.indices(SHAPE)
    pattern = np.abs(y - center[0]) * 100 + np.abs(x - center[1])
    moved_center = (center[0] + 0.5, center[1] + 0.5)
    for operation in OPERATIONS:
        on = overlap(operation, center)
        np.testing.assert_array_equal(mate(pattern, operation, center)[on], pattern[on])
        # Control: half a pixel beside, it is not.
        both = on & overlap(operation, moved_center)
        assert (mate(pattern, operation, moved_center)[both] != pattern[both]).any()


@pytest.mark.parametrize("offset", [-0.2, -0.1, 0.1, 0.2])
def test_the_centre_is_taken_to_the_next_half_pixel(image, offset):
    near = (6.5 + offset, 8.0 - offset)
    for operation in OPERATIONS:
        np.testing.assert_array_equal(mate(image, operation, near), mate(image, operation, (6.5, 8.0)))


def test_mates_off_the_detector_have_no_exposure():
    frame = Frame(counts=frozen(np.ones(SHAPE)), exposure=frozen(np.ones(SHAPE)), reference=3.0)
    other = mated(frame, (1, -1), (6.0, 2.0))
    assert other.exposure[:, :5].all()
    assert not other.exposure[:, 5:].any()
    assert not other.counts[:, 5:].any()
    assert other.reference == 3.0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "beyond",
    [
        -3.0,
        -0.5,
        30.0,
    ],
)
def test_a_centre_beyond_the_edge_leaves_no_mates(image, axis, beyond):
    """The test of a symmetry asks about displaced centres, which may be off the detector."""
    operation = (-1, 1) if axis == 0 else (1, -1)
    assert not mate(image, operation, (beyond, beyond)).any()


def test_the_smallest_frame():
    pixel = frozen(np.array([[5]]))
    for operation in OPERATIONS:
        assert mate(pixel, operation, (0.0, 0.0)).item() == 5
        assert mate(pixel, operation, (0.5, 0.5)).item() == 0


@pytest.mark.parametrize("symbol", POINT_GROUPS)
def test_known_groups_are_taken(symbol):
    assert checked_point_group(symbol) == symbol
    assert Symmetry(symbol, (1.0, 2.0)).operations == POINT_GROUPS[symbol]


@pytest.mark.parametrize("symbol", ["3", "", "4mm", "M", "2 mm"])
def test_an_unknown_group_is_refused(symbol):
    with pytest.raises(SymDenoiseError, match="must be one of 1, 2, m, my, 2mm or auto"):
        checked_point_group(symbol)


@pytest.mark.parametrize("center", [(0, 0), (-0.5, 17.5), (12.5, -0.5), np.array([6, 8]), ["3", "4"]])
def test_centres_on_the_detector_are_taken(center):
    assert checked_beam_center(center, SHAPE) == tuple(float(value) for value in center)


@pytest.mark.parametrize("center", [(-0.51, 3), (3, 17.51), (17, 3), (3, -1), (1e9, 3)])
def test_a_centre_off_the_detector_is_refused(center):
    with pytest.raises(SymDenoiseError, match=r"must lie on the detector of 13 x 18 pixels; check the order \(y, x\)"):
        checked_beam_center(center, SHAPE)


@pytest.mark.parametrize("center", [(np.nan, 3), (np.inf, 3), (1, 2, 3), 4, (1,), [(1, 2)], (None, 3)])
def test_a_centre_is_two_finite_numbers(center):
    with pytest.raises(SymDenoiseError, match=r"must be two finite numbers; give \(y, x\) in pixels"):
        checked_beam_center(center, SHAPE)
