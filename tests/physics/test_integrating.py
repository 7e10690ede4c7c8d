"""A CCD's gain and read noise are read from symmetry pairs, and its frames are denoised as counts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from arrays import frozen

from bluesky_symdenoise import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import summed_signal
from bluesky_symdenoise.physics.fold import block_sum
from bluesky_symdenoise.physics.integrating import Readout, found_readout, pseudo_counts
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import View

SHAPE, CENTER = (256, 272), (121.5, 141.0)


def pattern(photons):
    rate = textured_rate(View.about(CENTER, SHAPE), orientation=0.8)
    return photons * rate / rate.mean()


def ccd(rng, rate, readout, *, dark=0.0):
    """Signal of the detector for a rate in photons: fractional, and negative in dark areas."""
    signal = readout.gain * rng.poisson(rate) + rng.normal(0, readout.read_noise, rate.shape) + dark
    return frozen(signal.astype(np.float32))


@pytest.mark.parametrize("symbol", ["2", "2mm"])
@pytest.mark.parametrize("readout", [Readout(1.0, 1.5), Readout(2.5, 8.0), Readout(0.3, 0.5)])
def test_gain_and_read_noise_are_found_within_ten_percent(symbol, readout):
    rng = np.random.default_rng(5)
    dark = rng.uniform(100, 200, SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[40:50] = True
    frames = [ccd(rng, pattern(5.0), readout, dark=dark) for _ in range(4)]
    found = found_readout(frames, Symmetry(symbol, CENTER), mask=mask, dark=dark)
    assert found.gain == pytest.approx(readout.gain, rel=0.1)
    assert found.read_noise == pytest.approx(readout.read_noise, rel=0.1)


@pytest.mark.parametrize("photons", [1.0, 30.0, 1000.0])
def test_one_frame_tells_the_gain(photons):
    found = found_readout([ccd(np.random.default_rng(6), pattern(photons), Readout(2.0, 0.5))], Symmetry("2", CENTER))
    assert found.gain == pytest.approx(2.0, rel=0.1)


def test_asymmetric_blocks_are_not_taken_for_noise():
    """A shadow and a spot on one side; control: a wrong centre is taken for noise."""
    rng = np.random.default_rng(7)
    rate = pattern(20.0)
    rate[:70, :70] *= 0.5
    rate[90:94, 200:204] += 5000
    frame = ccd(rng, rate, Readout(2.0, 3.0))
    assert found_readout([frame], Symmetry("2", CENTER)).gain == pytest.approx(2.0, rel=0.1)
    assert found_readout([frame], Symmetry("2", (CENTER[0] + 9, CENTER[1]))).gain != pytest.approx(2.0, rel=0.02)


def test_frames_from_which_no_gain_follows_are_refused():
    flat = ccd(np.random.default_rng(8), np.full((16, 16), 3.0), Readout(1.0, 1.0))
    with pytest.raises(SymDenoiseError, match="give gain and read noise"):
        found_readout([flat], Symmetry("2", (7.5, 7.5)))
    with pytest.raises(SymDenoiseError, match="give gain and read noise"):
        found_readout([], Symmetry("2", (7.5, 7.5)))
    with pytest.raises(SymDenoiseError, match="noise is estimated from pairs of mates"):
        found_readout([flat], Symmetry())
    for gain, noise in ((0, 1), (-1, 1), (1, -1), (np.nan, 1)):
        with pytest.raises(SymDenoiseError, match=r"a gain is positive|must be finite"):
            Readout(gain, noise)
    with pytest.raises(SymDenoiseError, match="offset of shape"):
        pseudo_counts(flat, Readout(1.0, 1.0), dark=np.zeros((3, 3)))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
def test_pseudo_counts_have_the_mean_and_at_least_the_variance_of_counts(noise):
    rng = np.random.default_rng(9)
    readout = Readout(3.0, 3.0 * noise)
    for photons in (0.0, 0.5, 20.0):
        counts, background = pseudo_counts(ccd(rng, np.full(SHAPE, photons), readout, dark=50.0), readout, dark=50.0)
        expected = photons + background.expected[0, 0]
        error = np.sqrt((photons + noise**2 + 1e-3) / counts.size)
        assert counts.mean(dtype=float) == pytest.approx(expected, abs=5 * error + 1e-3 * noise)
        assert counts.min() >= 0
        assert counts.var(dtype=float) <= expected * 1.03 + 1e-6
        # From 3 photons of noise on the variance is that of counts.
        if noise >= 3:
            assert counts.var(dtype=float) == pytest.approx(expected, rel=0.03)


def test_codes_are_no_signal_and_negative_values_are():
    counts, _ = pseudo_counts(np.array([[7, 65535, 0]], np.uint16), Readout(1.0, 0.0))
    assert np.isnan(counts).tolist() == [[False, True, False]]
    counts, _ = pseudo_counts(np.array([[-2.5, np.nan, 65535.0]], np.float32), Readout(1.0, 2.0))
    assert np.isnan(counts).tolist() == [[False, True, False]]
    assert counts[0, 0] == 1.5


def test_a_ccd_frame_is_denoised_without_bias():
    """At one photon per pixel, with a read noise as large; total and dark corners are right."""
    rng = np.random.default_rng(10)
    readout, rate = Readout(4.0, 4.0), pattern(1.0)
    counts, background = pseudo_counts(ccd(rng, rate, readout, dark=80.0), readout, dark=80.0)
    result = Denoiser.pretrained(threads=1)(counts, symmetry="2", beam_center=CENTER, background=background)
    estimate = result.intensity.values
    assert estimate.mean() == pytest.approx(rate.mean(), rel=0.02)
    dim = rate < np.quantile(rate, 0.2)
    assert estimate[dim].mean() == pytest.approx(rate[dim].mean(), abs=0.03)
    assert np.mean((estimate - rate) ** 2) < 0.1 * np.mean((counts - background.expected - rate) ** 2)
    assert 0.5 < np.std((estimate - rate) / result.sigma.values) < 1.3


def test_negative_equivalent_counts_are_taken_from_the_pixels_around():
    """Blocks of pixels keep their sums, and so does the frame, whatever the read noise is."""
    rng = np.random.default_rng(3)
    for noise, photons in ((0.2, 0.1), (1.0, 0.5), (4.0, 0.1)):
        signal = ccd(rng, np.full((130, 141), photons), Readout(3.0, 3.0 * noise), dark=20.0)
        readout = Readout(3.0, 3.0 * noise, offset=20.0)
        counts, background = readout.equivalent(signal)
        assert counts.min() >= 0
        lifted = readout.photons(signal) + background.expected
        np.testing.assert_allclose(counts.sum(), lifted.sum(), rtol=1e-5)
        inside = (slice(0, 128), slice(0, 128))
        sums, kept = (block_sum(np.asarray(image[inside], np.float64), 32) for image in (lifted, counts))
        np.testing.assert_allclose(kept, sums, rtol=1e-4)
    # A frame that is negative as a whole, within its noise, has no counts.
    assert not Readout(1.0, 1.0).equivalent(np.full((5, 7), -2.0))[0].any()


def test_saturated_masked_and_coded_pixels_are_nan():
    signal = np.array([[10, 50, 99, 65535], [20, 30, 40, 50]], np.uint16)
    mask = np.zeros(signal.shape, bool)
    mask[1, 0] = True
    counts, _ = Readout(1.0, saturation=99).equivalent(signal, mask)
    assert np.isnan(counts).tolist() == [[False, False, True, True], [True, False, False, False]]


def test_a_mean_of_exposures_is_worth_all_of_them():
    """The mean of N exposures has N times the photons of one, and N times the variance of its read noise."""
    rng, one = np.random.default_rng(4), Readout(2.0, 3.0)
    frames = [ccd(rng, np.full((200, 200), 4.0), one) for _ in range(10)]
    counts, background = Readout(2.0, 3.0, frames=10).equivalent(np.mean(frames, axis=0))
    assert np.mean(counts) == pytest.approx(40 + 10 * 1.5**2, rel=0.01)
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.05)
    assert background.expected[0, 0] == pytest.approx(10 * 1.5**2)


def test_offset_from_darks_is_part_of_the_error():
    rng, readout = np.random.default_rng(5), Readout(2.0, 3.0)
    offset = 100 + rng.normal(0, 10, (64, 64))
    dark = summed_signal((ccd(rng, np.zeros((64, 64)), readout, dark=offset) for _ in range(4)), averaged=9)
    with_dark = readout.with_dark(dark)
    assert np.std(np.asarray(with_dark.offset) - offset) == pytest.approx(1.5, rel=0.1)
    _, background = with_dark.equivalent(np.full((64, 64), 120.0))
    # Each dark frame is the mean of nine exposures: its noise is there beside that of the frame.
    assert background.expected[0, 0] == pytest.approx(1.5**2 * (1 + 1 / 36))


def test_values_compare_by_their_maps():
    offset = np.arange(6.0).reshape(2, 3)
    assert Readout(1.0, offset=offset) == Readout(1.0, offset=offset.copy())
    assert Readout(1.0, offset=offset) != Readout(1.0, offset=offset + 1)
    assert pickle.loads(pickle.dumps(Readout(1.0, offset=offset))) == Readout(1.0, offset=offset)
    with pytest.raises(SymDenoiseError, match="at least 1 exposure"):
        Readout(1.0, frames=0)


def scored(result, rate):
    score = (result["intensity"].values - rate) / result["sigma"].values
    return np.nanstd(score)


@pytest.mark.parametrize("case", ["gain", "noise", "exposure"])
def test_pixels_that_differ_make_no_structure(case):
    """Of a gain map, of noisy pixels and under a flat field, sigma covers the error and no photon is lost."""
    rng, shape = np.random.default_rng(6), (160, 160)
    y, x = np.ogrid[:160, :160]
    rate = 5 + 20 * np.exp(-0.5 * ((np.hypot(y - 79.5, x - 79.5) - 40) / 5) ** 2)
    gain = 100 * (1 + 0.05 * rng.standard_normal(shape)) if case == "gain" else 100.0
    noise = np.where(rng.random(shape) < 0.005, 800.0, 140.0) if case == "noise" else 300.0
    exposure = 1 + 0.1 * rng.standard_normal(shape) if case == "exposure" else None
    expected = rate if exposure is None else rate * exposure / np.median(exposure)
    signal = gain * rng.poisson(expected) + noise * rng.standard_normal(shape)
    result = Denoiser.pretrained(threads=1)(signal, readout=Readout(gain, noise), exposure=exposure, symmetry="1")
    assert scored(result, expected) < 1.3
    seen = np.isfinite(result["intensity"].values)
    assert seen.mean() > 0.99
    assert result["intensity"].values[seen].sum() == pytest.approx(expected[seen].sum(), rel=0.02)


def test_dead_pixels_and_codes_are_masked_and_drain_nothing():
    rng = np.random.default_rng(1)
    signal = (100 + 2 * rng.poisson(20.0, (160, 160)) + rng.normal(0, 3, (160, 160))).round().astype(np.uint16)
    signal[:, 40], signal[80:90, 100:110] = 0, 65535
    counts, background = Readout(2.0, 3.0, offset=100.0).equivalent(signal)
    assert np.isnan(counts[:, 40]).all()
    assert np.isnan(counts[80:90, 100:110]).all()
    photons = counts - background.expected
    assert np.nanmean(photons[:, 36:45]) == pytest.approx(20, rel=0.02)
    mean = np.mean([rng.poisson(20.0, (160, 160)) for _ in range(10)], axis=0).astype(np.float32)
    mean[70:80] = -1
    counts, _ = Readout(1.0, frames=10).equivalent(mean)
    assert np.isnan(counts[70:80]).all()
    assert np.nanmean(counts[66:84]) == pytest.approx(200, rel=0.01)


def test_pixels_filled_by_their_mates_have_their_photons():
    rng, shape = np.random.default_rng(2), (160, 160)
    gain = np.full(shape, 100.0)
    gain[30:50, 30:50] = np.nan
    signal = np.nan_to_num(gain, nan=100.0) * rng.poisson(6.0, shape) + 500 * rng.standard_normal(shape)
    result = Denoiser.pretrained(threads=1)(
        signal, readout=Readout(gain, 500.0), symmetry="2mm", beam_center=(79.5, 79.5)
    )
    filled = result["intensity"].values[30:50, 30:50]
    assert np.mean(filled) == pytest.approx(6.0, rel=0.1)
