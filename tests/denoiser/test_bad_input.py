"""Any array gives a result without unexpected NaN, or one line with value, rule and remedy; inputs are unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_symdenoise import Denoiser
from bluesky_symdenoise.denoiser.network import Architecture, PriorNet
from bluesky_symdenoise.denoiser.weights import load_model, save_weights
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_exposure, as_mask, frame_from_counts, sentinel_mask

SYMBOLS = ("auto", "1", "2", "m", "my", "2mm", "4", "4mm", "inf", "m@30", "2mm@-12.5", "4mm~20:35:30", "inf~20:35:30")
DTYPES = [
    order + kind for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8") for order in ("<", ">")
]
SEARCH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    """As much of the way as ours, with a network too small to wait for."""
    net = PriorNet(Architecture(channels=(4, 4)))
    path = save_weights(net, tmp_path_factory.mktemp("model"), name="tiny", version="0", training={})
    return Denoiser(load_model(path), device="cpu", threads=1)


@st.composite
def frames(draw):
    """Counts of any dtype and byte order, of small and odd shapes: dark, full, coded, strided, reversed, read-only."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=9))
    most = 2000 if dtype.itemsize > 1 else np.iinfo(dtype).max
    counts = draw(hnp.arrays(dtype, shape, elements=st.integers(0, most), fill=st.sampled_from([0, 1, 3])))
    odd = [0] if dtype.kind == "u" else [-1, -2]
    odd += [float("nan"), float("inf")] if dtype.kind == "f" else [np.iinfo(dtype).max]
    for _ in range(draw(st.integers(0, 3))):
        counts[tuple(draw(st.integers(0, size - 1)) for size in shape)] = draw(st.sampled_from(odd))
    layout = draw(st.sampled_from(["as is", "fortran", "strided", "reversed"]))
    if layout == "fortran":
        counts = np.asfortranarray(counts)
    elif layout == "strided":
        counts = np.repeat(counts, 2, axis=-1)[..., ::2]
    elif layout == "reversed":
        counts = counts[..., ::-1, :]
    counts.flags.writeable = False
    return counts


def sound(result, counts, mask, exposure, symbol):
    """NaN only where nothing was measured, no negative intensity, and errors where there are values."""
    intensity, sigma = result.intensity.values, result.sigma.values
    assert intensity.shape == sigma.shape == counts.shape
    assert intensity.dtype == sigma.dtype == np.float32
    shape = counts.shape[-2:]
    measured = ~(sentinel_mask(counts) | as_mask(mask, shape)) & (as_exposure(exposure, shape) > 0)
    known = measured & (result.defect.values == 0)
    assert np.isfinite(intensity[known]).all()
    assert (intensity[known] >= 0).all()
    assert (sigma[known] > 0).all()
    np.testing.assert_array_equal(np.isnan(intensity), np.isnan(sigma))
    if symbol == "1":
        np.testing.assert_array_equal(np.isnan(intensity), ~known)


@SEARCH
@given(counts=frames(), symbol=st.sampled_from(SYMBOLS), data=st.data())
def test_any_counts_are_denoised_or_refused_in_one_line(denoiser, counts, symbol, data):
    shape = counts.shape[-2:]
    kept = counts.copy()
    mask = data.draw(st.none() | hnp.arrays(bool, shape))
    exposure = data.draw(st.none() | hnp.arrays(float, shape, elements=st.sampled_from([0.0, 1e-3, 1.0, 7.0])))
    center = data.draw(st.none() | st.tuples(*(st.floats(-0.5, size - 0.5) for size in shape)))
    try:
        result = denoiser(counts, mask=mask, exposure=exposure, symmetry=symbol, beam_center=center)
    except SymDenoiseError as refused:
        said = str(refused)
    else:
        said = None
        sound(result, counts, mask, exposure, symbol)
    assert said is None or ("\n" not in said and ("all pixels masked" in said or "without a beam centre" in said))
    np.testing.assert_array_equal(counts, kept)


@SEARCH
@given(counts=frames(), data=st.data())
def test_a_frame_keeps_all_counts_and_no_code(counts, data):
    """The border of the package, for every dtype: counts stay as they are, and what is no count has no exposure."""
    image = counts.reshape(-1, *counts.shape[-2:])[0]
    mask = data.draw(hnp.arrays(bool, image.shape))
    frame = frame_from_counts(image, mask=mask, exposure=np.ones(image.shape))
    bad = mask | sentinel_mask(image)
    np.testing.assert_array_equal(frame.mask, bad)
    np.testing.assert_array_equal(frame.counts[~bad], image[~bad].astype(float))
    assert not frame.counts[bad].any()


@SEARCH
@given(
    values=hnp.arrays(float, (4, 5), elements=st.floats(0, 5)),
    negative=st.floats(-1e3, -1e-3).filter(lambda value: value != int(value)),
)
def test_negative_fractions_are_refused_with_the_remedy(denoiser, values, negative):
    values[2, 3] = negative
    with pytest.raises(SymDenoiseError, match="background-subtracted; give the counts as measured"):
        denoiser(values, symmetry="1")


@SEARCH
@given(value=st.sampled_from([np.nan, np.inf, -np.inf]) | st.floats(-1e30, -1e-30), at=st.integers(0, 19))
def test_an_invalid_exposure_is_refused(denoiser, value, at):
    exposure = np.ones((4, 5))
    exposure.flat[at] = value
    with pytest.raises(SymDenoiseError, match="exposure with the value"):
        denoiser(np.ones((4, 5), int), symmetry="1", exposure=exposure)


@SEARCH
@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=6))
def test_masks_and_exposures_of_another_shape_are_refused(denoiser, shape):
    assume(shape not in ((4, 5), ()))
    for name in ("mask", "exposure"):
        with pytest.raises(SymDenoiseError, match=f"{name} of shape"):
            denoiser(np.ones((4, 5), int), symmetry="1", **{name: np.ones(shape)})


@SEARCH
@given(
    center=st.tuples(st.floats(), st.floats()).filter(lambda c: not (-0.5 <= c[0] <= 3.5 and -0.5 <= c[1] <= 4.5)),
    symbol=st.sampled_from(SYMBOLS),
)
def test_centres_outside_are_refused_where_one_is_needed(denoiser, center, symbol):
    assume(symbol != "1")
    with pytest.raises(SymDenoiseError, match="beam centre"):
        denoiser(np.ones((4, 5), int), symmetry=symbol, beam_center=center)


@SEARCH
@given(shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3))
def test_what_has_no_pixels_is_refused(denoiser, shape):
    assume(len(shape) < 2 or 0 in shape)
    with pytest.raises(SymDenoiseError, match=r"at least one frame of at least one pixel"):
        denoiser(np.ones(shape, int))


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("value", [1, 1000, 10**6, 2**32 - 3])
def test_a_single_hot_pixel_is_kept_or_reported(denoiser, symbol, value):
    """In a dark frame: either its counts are there, or the result says that it is hot."""
    counts = np.zeros((40, 44), np.uint32)
    counts[17, 21] = value
    counts.flags.writeable = False
    result = denoiser(counts, symmetry=symbol, beam_center=(19.5, 20.0))
    sound(result, counts, None, None, symbol)
    hot = result.defect.values[17, 21] == 1
    assert hot == (value > 1200)
    assert np.count_nonzero(result.defect) == hot


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_an_empty_frame_is_dark_and_not_nan(denoiser, symbol):
    result = denoiser(np.zeros((33, 20), np.uint16), symmetry=symbol, beam_center=(16.0, 9.5))
    assert np.isfinite(result.intensity).all()
    assert (result.intensity >= 0).all()
    assert float(result.intensity.max()) < 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (129, 257), (700, 900)])
def test_frames_of_any_size_are_denoised(denoiser, shape):
    counts = np.random.default_rng(0).poisson(1.0, shape)
    sound(denoiser(counts, symmetry="4", beam_center=(0.0, 0.0)), counts, None, None, "4")
