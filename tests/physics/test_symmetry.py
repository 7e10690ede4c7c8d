"""Point groups move counts exactly and reversibly, and never from off the detector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from arrays import frozen

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import mated
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import IDENTITY, MIRROR_X, MIRROR_Y, first_of_pair, mate
from bluesky_symdenoise.physics.symmetry import POINT_GROUPS, Symmetry, checked_beam_center, checked_point_group

SHAPE = (13, 18)
OPERATIONS = POINT_GROUPS["2mm"]
#: Whole, half and other centres; at the middle, off it, and on the detector's edges.
CENTERS = [(6.0, 8.5), (6.5, 8.0), (4.0, 12.0), (2.3, 14.9), (0.0, 17.0), (-0.5, 17.5), (12.5, -0.5)]


@pytest.fixture
def image():
    return frozen(np.arange(1, 1 + SHAPE[0] * SHAPE[1], dtype=np.uint32).reshape(SHAPE))


def overlap(operation, center):
    """True where the mate is on the detector, from the geometry alone."""
    y, x = there(operation, center)
    return (y >= 0) & (y < SHAPE[0]) & (x >= 0) & (x < SHAPE[1])


def there(operation, center):
    """Where the mates of all pixels lie, about a centre on the grid: whole numbers."""
    y, x = np.indices(SHAPE)
    dy, dx = 2 * y - round(2 * center[0]), 2 * x - round(2 * center[1])
    to_y = operation.yy * dy + operation.yx * dx + round(2 * center[0])
    to_x = operation.xy * dy + operation.xx * dx + round(2 * center[1])
    assert (to_y % 2 == 0).all()
    assert (to_x % 2 == 0).all()
    return to_y // 2, to_x // 2


@pytest.mark.parametrize("symbol", POINT_GROUPS)
def test_point_groups_are_groups(symbol):
    """With the identity: closed, and every operation is there with its inverse."""
    group = {IDENTITY, *POINT_GROUPS[symbol]}
    assert len(group) == 1 + len(POINT_GROUPS[symbol])
    assert all(a @ b in group for a, b in itertools.product(group, group))
    assert all(a.inverse() in group and a @ a.inverse() == IDENTITY for a in group)
    # Control: without one of its mirrors, 2mm is none.
    broken = {IDENTITY, *POINT_GROUPS["2mm"][:-1]}
    assert any(a @ b not in broken for a in broken for b in broken)


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
        signs = (operation.yy, operation.xx)
        other = tuple(at if s > 0 else int(2 * c) - at for at, s, c in zip((y, x), signs, center, strict=True))
        assert moved[y, x] == image[other]


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
    other = mated(frame, MIRROR_X, (6.0, 2.0))
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
    operation = MIRROR_Y if axis == 0 else MIRROR_X
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


@pytest.mark.parametrize("symbol", ["", "5", "M", "2 mm", "m@", "m@x", "m@1e3", "4@30", None])
def test_an_unknown_group_is_refused(symbol):
    with pytest.raises(
        SymDenoiseError, match="must be one of 1, 2, m, my, 2mm, 4, 4mm, inf, m@ANGLE, 2mm@ANGLE or auto"
    ):
        checked_point_group(symbol)


@pytest.mark.parametrize("symbol", ["3", "3m", "6", "6mm"])
def test_groups_that_would_interpolate_counts_are_refused_with_the_reason(symbol):
    with pytest.raises(SymDenoiseError, match="do not map pixels onto pixels, and counts are not interpolated; choose"):
        checked_point_group(symbol)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("symbol", ["4", "4mm"])
def test_quarter_turns_permute_pixels_about_the_next_centre_that_lets_them(image, symbol, center):
    """All operations about one centre; four quarter turns are the identity, and no operation interpolates."""
    symmetry = Symmetry(symbol, center)
    grid = symmetry.grid_center
    assert np.abs(np.subtract(grid, center)).max() <= 0.5
    assert sum(2 * np.array(grid)) % 2 == 0
    for operation in symmetry.operations:
        moved = mate(image, operation, grid)
        on = overlap(operation, grid)
        y, x = there(operation, grid)
        np.testing.assert_array_equal(moved[on], image[y[on], x[on]])
        assert not moved[~on].any()
        back = mate(frozen(moved), operation.inverse(), grid)
        known = back > 0
        np.testing.assert_array_equal(back[known], image[known])
        # What stays on the detector on the way comes back.
        assert known.sum() == on.sum()


@pytest.mark.parametrize("operation", POINT_GROUPS["4mm"])
def test_pairs_of_any_operation_share_no_photon(operation):
    center = Symmetry("4mm", (6.0, 8.5)).grid_center
    first = first_of_pair(SHAPE, operation, center)
    index = np.arange(1, 1 + first.size).reshape(SHAPE)
    ones, others = index[first], mate(index, operation, center)[first]
    assert len(set(ones) | set(others)) == 2 * first.sum()
    assert first.any()
    assert (others > 0).all()


@pytest.mark.parametrize("angle", [0, 30, 45, 77.5, 90, -60, 180])
def test_oblique_mirrors_pair_pixels_near_their_true_mates(angle):
    """Each pixel is the mate of its mate, which is less than a pixel from the true place; nothing is interpolated."""
    symmetry = Symmetry(f"m@{angle:g}", (6.2, 8.4))
    (operation,) = symmetry.operations
    index = frozen(np.arange(1, 1 + SHAPE[0] * SHAPE[1]).reshape(SHAPE))
    moved = mate(index, operation, symmetry.grid_center)
    y, x = np.nonzero(moved)
    to_y, to_x = np.divmod(moved[y, x] - 1, SHAPE[1])
    np.testing.assert_array_equal(moved[to_y, to_x], index[y, x])
    line = np.array([np.cos(np.radians(angle)), -np.sin(np.radians(angle))])
    u = np.stack([y, x]) - np.array(symmetry.grid_center)[:, None]
    true = 2 * line[:, None] * (line @ u) - u + np.array(symmetry.grid_center)[:, None]
    assert np.hypot(*(true - [to_y, to_x])).max() <= 0.71
    on = ((np.rint(true) >= 0) & (np.rint(true) < np.array(SHAPE)[:, None])).all(axis=0)
    assert on.all()


def test_mirrors_along_the_axes_are_those_without_an_angle():
    assert Symmetry("m@0").operations == Symmetry("m").operations
    assert Symmetry("m@90").operations == Symmetry("my").operations
    assert set(Symmetry("2mm@90").operations) == set(Symmetry("2mm").operations)
    assert Symmetry("m@45").operations != Symmetry("m@-45").operations


def test_most_pixels_have_a_mate_under_an_oblique_mirror():
    shares = []
    for angle in (10, 22.5, 30):
        image = np.ones((101, 101), np.uint8)
        moved = mate(image, Symmetry(f"m@{angle}").operations[0], (50.0, 50.0))
        shares.append(moved[20:81, 20:81].mean())
    assert min(shares) > 0.8


@pytest.mark.parametrize("center", [(0, 0), (-0.5, 17.5), (12.5, -0.5), np.array([6, 8]), ["3", "4"]])
def test_centres_on_the_detector_are_taken(center):
    assert checked_beam_center(center, SHAPE) == tuple(float(value) for value in center)


@pytest.mark.parametrize("center", [(-0.51, 3), (3, 17.51), (17, 3), (3, -1), (1e9, 3)])
def test_a_centre_off_the_detector_is_refused(center):
    with pytest.raises(SymDenoiseError, match=r"must be on the detector of 13 x 18 pixels; check the order \(y, x\)"):
        checked_beam_center(center, SHAPE)


@pytest.mark.parametrize("center", [(np.nan, 3), (np.inf, 3), (1, 2, 3), 4, (1,), [(1, 2)], (None, 3)])
def test_a_centre_is_two_finite_numbers(center):
    with pytest.raises(SymDenoiseError, match=r"must be two finite numbers; give \(y, x\) in pixels"):
        checked_beam_center(center, SHAPE)
