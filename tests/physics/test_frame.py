"""What a frame takes for a count, what it masks, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import frozen

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import (
    Frame,
    as_exposure,
    as_mask,
    frame_from_counts,
    sentinel_mask,
)


def frame_of(counts, *, mask=None, exposure=None):
    counts = frozen(np.atleast_2d(np.asarray(counts)))
    return frame_from_counts(counts, mask=as_mask(mask, counts.shape), exposure=as_exposure(exposure, counts.shape))


def apart(values, dtype, background=1):
    """A frame with these values, each by itself amid few counts."""
    frame = np.full((5, 4 * len(values)), background, dtype)
    frame[2, 1::4] = np.array(values, dtype)
    return frozen(frame)


@pytest.mark.parametrize(
    ("dtype", "values", "bad"),
    [
        ("uint8", [0, 1, 254, 255], [255]),
        ("int8", [0, 1, 126, 127, -1, -128], [127, -1, -128]),
        ("uint16", [0, 1, 32767, 65534, 65535], [65535]),
        ("int16", [0, 32766, 32767, -1, -2], [32767, -1, -2]),
        ("uint32", [0, 65534, 65535, 65536, 2**32 - 3, 2**32 - 2, 2**32 - 1], [2**32 - 2, 2**32 - 1]),
        ("int32", [0, 65535, 2**31 - 1, -1, -2], [2**31 - 1, -1, -2]),
        ("int64", [0, 65535, 2**32 - 1, 2**32, 2**63 - 1, -7], [2**32 - 1, 2**63 - 1, -7]),
        ("uint64", [0, 65535, 2**32 - 2, 2**32 + 1], [2**32 - 2]),
        (">u2", [0, 1, 65535], [65535]),
        ("float32", [0.0, 0.5, 65535, -1.0, 65536], [-1.0]),
        ("float64", [0.0, 0.5, 65535, 2**32 - 2, 2**32 - 1, 2**32 + 1, -1.0], [2**32 - 2, 2**32 - 1, -1.0]),
    ],
)
def test_codes_of_each_dtype_are_masked_and_nothing_else(dtype, values, bad):
    counts = apart(values, dtype)
    assert counts[2, 1::4][sentinel_mask(counts)[2, 1::4]].tolist() == bad
    assert np.count_nonzero(sentinel_mask(counts)) == len(bad)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint32", 65535), ("int32", 65535), ("int32", 32767), ("int64", 2**31 - 1), ("float32", 65535), (">u4", 65535)],
)
def test_a_code_of_a_narrower_type_shows_in_more_than_one_pixel(dtype, value):
    """A gap, and dead pixels apart from each other, were stored in a wider type; one such value is a bright spot."""
    gap = np.ones((12, 12), dtype)
    gap[:, 5:7] = value
    gap[2, 9] = value
    assert sentinel_mask(frozen(gap)).tolist() == (gap == value).tolist()
    dead = apart([value, 3, value], dtype)
    assert np.count_nonzero(sentinel_mask(dead)) == 2
    assert not sentinel_mask(apart([value, 3], dtype)).any()


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 255), ("int16", 32767), ("uint32", 65535), ("int32", 65535)])
def test_a_large_value_amid_large_values_is_a_count(dtype, value):
    """The top of a peak may reach the largest value, or that of another type; a plateau of it is saturated."""
    peak = np.full((9, 9), value // 8, dtype)
    peak[3:6, 3:6] = value * 0.7
    peak[4, 4] = value
    assert not sentinel_mask(frozen(peak.copy())).any()
    peak[3:6, 3:6] = value
    assert np.count_nonzero(sentinel_mask(frozen(peak))) == 9


def test_each_frame_of_a_stack_says_itself_what_is_a_code():
    stack = np.ones((2, 8, 8), np.uint32)
    stack[0, 4, 4] = 65535
    stack[1, 4, 4:6] = 65535
    assert np.count_nonzero(sentinel_mask(frozen(stack)), axis=(1, 2)).tolist() == [0, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_masked(dtype, value):
    counts = frozen(np.array([[1, value, 2]], dtype))
    assert sentinel_mask(counts).tolist() == [[False, True, False]]


def test_half_precision_frames_are_read():
    counts = frozen(np.array([[0, 3, np.nan, 60000]], np.float16))
    assert sentinel_mask(counts).tolist() == [[False, False, True, False]]


def test_zero_is_a_count():
    """Zero photons are a measurement; only a mask or a code takes a pixel out."""
    frame = frame_of(np.array([[0, 0, 3, 65535]], np.uint16))
    assert frame.exposure.tolist() == [[1, 1, 1, 0]]
    assert frame.counts.tolist() == [[0, 0, 3, 0]]
    assert frame.mask.tolist() == [[False, False, False, True]]


def test_a_masked_pixel_holds_no_counts():
    frame = frame_of([[5, 6, 7]], mask=[[0, 1, 0]], exposure=[[1, 1, 0]])
    assert frame.counts.tolist() == [[5, 0, 0]]
    assert frame.mask.tolist() == [[False, True, True]]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", ">f8"])
def test_inputs_stay_as_they_were(dtype):
    counts = frozen(np.array([[1, 2, 3], [65535 % (2**15 - 1), 0, 9]]).astype(dtype))
    mask = frozen(np.array([[True, False, False], [False, False, True]]))
    exposure = frozen(np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]))
    before = counts.copy(), mask.copy(), exposure.copy()
    frame = frame_from_counts(counts, mask=as_mask(mask, mask.shape), exposure=as_exposure(exposure, mask.shape))
    for given, kept in zip((counts, mask, exposure), before, strict=True):
        np.testing.assert_array_equal(given, kept)
    assert not np.shares_memory(frame.counts, counts)
    assert not np.shares_memory(frame.exposure, exposure)


def test_negative_integers_are_codes():
    frame = frame_of(np.array([[4, -1, -2]], np.int32))
    assert frame.mask.tolist() == [[False, True, True]]
    # Whole negative floats are the same codes, stored by software that knows only floats.
    assert frame_of(np.array([[4.0, -1.0, -2.0]])).mask.tolist() == [[False, True, True]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_background_subtracted_frame_is_refused(dtype):
    with pytest.raises(
        SymDenoiseError, match=r"counts with the value -0\.25: .*background-subtracted; give the counts"
    ):
        frame_of(np.array([[4, -0.25, 2, np.nan]], dtype))


def test_scattered_or_many_different_negative_integers_are_refused():
    """What is left of counts after a background of whole numbers was subtracted; gaps and dead pixels are not."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(2.0, (64, 64)).astype(np.int32)
    with pytest.raises(SymDenoiseError, match=r"6 different negative values: .*background-subtracted"):
        frame_of(np.maximum(counts - 6, -6))
    with pytest.raises(SymDenoiseError, match=r"negative values scattered over 1[34]% of the pixels: .*background-sub"):
        frame_of(counts - 1)
    gaps = counts.copy()
    gaps[:, 20:25], gaps[40:44], gaps[rng.random(gaps.shape) < 0.002] = -1, -1, -2
    assert (frame_of(gaps).mask == (gaps < 0)).all()
    assert (frame_of(counts - 1, mask=counts < 1).mask == (counts < 1)).all()


def test_fractions_that_are_masked_or_positive_are_taken():
    assert frame_of(np.array([[4, -0.25]]), mask=[[0, 1]]).mask.tolist() == [[False, True]]
    assert frame_of(np.array([[4, 0.25]])).counts.tolist() == [[4, 0.25]]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3.0, 2.0**40])
def test_exposure_has_median_one_and_its_unit_is_kept(scale):
    exposure = scale * np.array([[0.0, 1.0, 2.0, 5.0]])
    frame = frame_of([[9, 8, 7, 6]], exposure=exposure)
    assert frame.reference == 2.0 * scale
    assert np.median(frame.exposure[~frame.mask]) == 1
    np.testing.assert_allclose(frame.exposure * frame.reference, exposure, rtol=1e-15)


def test_masked_pixels_do_not_move_the_median():
    frame = frame_of([[9, 8, -1, 6]], mask=[[0, 0, 0, 1]], exposure=[[2.0, 2.0, 90.0, 50.0]])
    assert frame.reference == 2.0
    assert frame.exposure.tolist() == [[1, 1, 0, 0]]


def test_the_exposure_of_a_frame_without_pixels_is_zero():
    frame = frame_of(np.full((2, 2), 65535, np.uint16))
    assert frame.mask.all()
    assert frame.reference == 1.0


def test_a_mask_is_true_where_bad_whatever_its_dtype():
    for dtype in (bool, np.uint8, float):
        assert as_mask(frozen(np.array([[0, 1]], dtype)), (1, 2)).tolist() == [[False, True]]
    assert not as_mask(None, (2, 3)).any()


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), ()])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(SymDenoiseError, match=r"mask of shape .*the frame's shape \(2, 3\); .*True = bad"):
        as_mask(np.zeros(shape), (2, 3))


@pytest.mark.parametrize("shape", [(3, 2), (3,), (2,), (1, 2, 3)])
def test_an_exposure_of_another_shape_is_refused(shape):
    """Also one that NumPy would broadcast: a row of exposures is more likely a mistake."""
    with pytest.raises(SymDenoiseError, match=r"exposure of shape .*the frame's shape \(2, 3\); give one"):
        as_exposure(np.ones(shape), (2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5])
def test_an_exposure_is_finite_and_not_negative(value):
    image = np.ones((2, 3))
    image[1, 2] = value
    for given in (image, value):
        with pytest.raises(SymDenoiseError, match=f"exposure with the value {value}: .*not negative; set it to 0"):
            as_exposure(given, (2, 3))


def test_a_number_is_the_exposure_of_all_pixels():
    assert as_exposure(None, (2, 2)).tolist() == [[1, 1], [1, 1]]
    assert as_exposure(2, (1, 2)).tolist() == [[2, 2]]
    assert frame_of([[1, 2]], exposure=0.0).mask.all()


def test_the_smallest_frame():
    frame = frame_of(np.array([[7]], np.uint8), exposure=4)
    assert (frame.counts.item(), frame.exposure.item(), frame.reference) == (7, 1, 4)


def test_a_frame_is_a_value():
    frame = frame_of([[1, 2]])
    with pytest.raises(AttributeError):
        frame.reference = 2.0
    assert isinstance(frame, Frame)
