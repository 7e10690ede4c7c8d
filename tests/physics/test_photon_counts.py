"""Which frames are taken for photon counts, and what is said of others."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from arrays import frozen
from scipy import ndimage

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.counts.curve import fine_curve, transfer_curve, wide_curve
from bluesky_symdenoise.physics.counts.doubts import doubts, later_doubts
from bluesky_symdenoise.physics.counts.verdict import checked_noise, fitted_line, verdict

SHAPE = (256, 240)


@pytest.fixture
def rng():
    return np.random.default_rng(12)


def pattern(level):
    """Rings and a halo on a background; their median is about a third of the mean."""
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    r = np.hypot(y - 120.3, x - 100.8)
    rate = 0.2 + 5 * np.exp(-r / 30) + 2 * np.exp(-((r - 70) ** 2) / 30)
    return level * rate / rate.mean()


def kind(frame, mask=None):
    return verdict(frozen(np.asarray(frame)), mask).kind


class TestCounts:
    @pytest.mark.parametrize("level", [0.01, 0.1, 1.0, 10.0, 1e3, 1e5])
    @pytest.mark.parametrize("dtype", ["uint32", "float32"])
    def test_of_any_level_are_counts(self, rng, level, dtype):
        for _ in range(5):
            found = verdict(frozen(rng.poisson(pattern(level)).astype(dtype)))
            assert found.kind in ("counts", "too few")
            assert found.kind == "counts" or level <= 0.1

    @pytest.mark.parametrize("level", [1.0, 50.0, 2000.0])
    def test_with_a_flat_field_of_the_firmware_are_counts(self, rng, level):
        flat = np.clip(rng.normal(1, 0.1, SHAPE), 0.7, 1.3)
        counted = rng.poisson(pattern(level) / flat) * flat
        assert kind(counted.astype(np.float32)) == "counts"
        assert kind(np.round(counted).astype(np.uint32)) == "counts"

    def test_of_unequal_pixels_are_counts(self, rng):
        """The variance grows with the square of the level, and is well above the mean where counts are many."""
        unequal = np.clip(rng.normal(1, 0.05, SHAPE), 0.7, 1.3)
        frame = rng.poisson(pattern(1000.0) * unequal)
        found = verdict(frame)
        assert found.kind == "counts"
        assert found.curve.ratio[-1] > 3

    def test_corrected_for_their_rate_are_never_refused(self, rng):
        """A correction that reaches 30 % at the brightest pixels."""
        counted = rng.poisson(pattern(300.0)).astype(float)
        corrected = counted / (1 - 0.23 * np.minimum(counted / np.quantile(counted, 0.99), 1.0))
        assert kind(np.round(corrected)) != "not counts"

    def test_with_gaps_hot_pixels_and_virtual_pixels_are_counts(self, rng):
        frame = rng.poisson(pattern(20.0)).astype(np.int32)
        frame[rng.random(SHAPE) < 1e-3] = 100_000
        frame[:, 119], frame[:, 120] = frame[:, 119] // 2, frame[:, 119] - frame[:, 119] // 2
        frame[100:110], frame[:, 50:55] = -1, -2
        assert kind(frame) == "counts"

    def test_sharp_spots_are_no_noise(self, rng):
        rate = pattern(2.0)
        rate[rng.integers(0, SHAPE[0], 200), rng.integers(0, SHAPE[1], 200)] += 500
        assert kind(rng.poisson(rate)) == "counts"

    def test_a_false_alarm_is_rarer_than_one_in_a_hundred(self, rng):
        found = [kind(rng.poisson(pattern(10 ** rng.uniform(-2, 4)))) for _ in range(100)]
        assert set(found) <= {"counts", "too few"}

    def test_a_false_alarm_is_as_rare_in_small_frames(self, rng):
        for side in rng.integers(40, 120, 200):
            part = pattern(10 ** rng.uniform(-2, 4))[60 : 60 + side, 40 : 40 + side]
            assert kind(rng.poisson(part)) in ("counts", "too few", "doubtful")

    def test_too_little_noise_is_seen_in_small_frames(self, rng):
        assert kind(rng.poisson(40.0, (56, 56)).astype(np.float32) / 7.3) == "not counts"

    @pytest.mark.skipif("SYMDENOISE_REAL_DATA" not in os.environ, reason="SYMDENOISE_REAL_DATA names no folder")
    def test_real_counting_frames_as_measured_and_thinned(self, rng):
        seen = 0
        for path in sorted(Path(os.environ["SYMDENOISE_REAL_DATA"]).glob("*.h5")):
            with h5py.File(path) as file:
                for group in [file] if "counts" in file else file.values():
                    if file.attrs.get("noise", group.attrs.get("noise")) != "counting":
                        continue
                    counts, mask = group["counts"][0], group["mask"][()].astype(bool)
                    assert verdict(counts, mask).kind in ("counts", "too few"), path.name
                    whole = np.where(mask, 0, counts).astype(np.int64)
                    for level in (10.0, 1.0, 0.1):
                        share = level / whole[~mask].mean()
                        if share < 1:
                            assert kind(rng.binomial(whole, share), mask) != "not counts", (path.name, level)
                    seen += 1
        assert seen > 10


class TestOthers:
    @pytest.mark.parametrize("level", [0.3, 10.0, 300.0])
    @pytest.mark.parametrize(("gain", "offset", "noise"), [(2.4, 100, 4), (1.0, 1000, 3), (5.0, 300, 10), (0.3, 99, 2)])
    def test_an_integrating_detector_is_refused_or_doubtful(self, rng, level, gain, offset, noise):
        frame = np.round(gain * rng.poisson(pattern(level)) + offset + rng.normal(0, noise, SHAPE))
        found = verdict(frame.astype(np.uint16))
        # An offset may make variance and mean alike by chance; the line through the levels shows it all the same.
        assert found.kind == "not counts" or (found.kind == "doubtful" and 0.7 < found.curve.median < 2.2)

    def test_read_noise_is_refused(self, rng):
        """Variance that does not grow with the mean, where counts are few."""
        frame = np.clip(np.round(rng.poisson(pattern(2.0)) + rng.normal(10, 6, SHAPE)), 0, None)
        assert kind(frame) == "not counts"

    @pytest.mark.parametrize("step", [2, 7, 16])
    def test_scaled_counts_are_refused_with_their_step(self, rng, step):
        found = verdict(rng.poisson(pattern(2.0)) * step)
        assert (found.kind, found.step) == ("not counts", step)
        assert f"multiples of {step}" in found.why

    def test_counts_times_a_number_are_refused(self, rng):
        found = verdict((rng.poisson(pattern(2.0)) * 12.4).astype(np.float32))
        assert found.kind == "not counts"
        assert found.step == pytest.approx(12.4, rel=1e-3)
        assert kind((rng.poisson(pattern(2.0)) / 8123.5).astype(np.float32)) == "not counts"

    @pytest.mark.parametrize("number", [2, 3, 10, 40])
    @pytest.mark.parametrize("level", [3.0, 300.0])
    def test_the_mean_of_exposures_is_refused_with_their_number(self, rng, number, level):
        found = verdict((rng.poisson(number * pattern(level)) / number).astype(np.float32))
        assert (found.kind, found.exposures) == ("not counts", number)
        assert f"mean of {number} exposures" in found.why

    def test_the_mean_of_exposures_in_whole_numbers_is_refused_by_its_noise(self, rng):
        found = verdict(np.round(rng.poisson(10 * pattern(200.0)) / 10).astype(np.uint16))
        assert found.kind == "not counts"
        # A camera with an offset looks the same: no number of exposures is proposed.
        assert found.exposures is None

    def test_half_counts_of_virtual_pixels_are_no_mean(self, rng):
        frame = rng.poisson(pattern(5.0)).astype(np.float32)
        frame[:, 119:121] = frame[:, 119:121].mean(axis=1, keepdims=True)
        found = verdict(frame)
        assert (found.kind, found.step) == ("counts", 0.5)

    def test_noise_that_falls_with_the_level_is_doubtful(self, rng):
        """Read noise, cut at zero, in the shadow of a bright part."""
        rate = pattern(200.0)
        rate[:, :110] = 0.5
        frame = np.round(rate + np.sqrt(rate) * rng.standard_normal(SHAPE) + rng.normal(0, 12, SHAPE)).clip(0)
        assert kind(frame.astype(np.int32)) in ("not counts", "doubtful")

    def test_smoothed_and_interpolated_frames_are_refused(self, rng):
        counts = rng.poisson(pattern(5.0)).astype(np.float32)
        assert kind(ndimage.gaussian_filter(counts, 0.6)) == "not counts"
        assert kind(ndimage.shift(counts, (0.4, 0.3), order=1, mode="nearest")) == "not counts"

    def test_what_is_a_little_off_is_doubtful(self, rng):
        found = verdict(np.round(rng.poisson(pattern(200.0)) * 1.6))
        assert found.kind == "doubtful"
        assert "times its mean, where counts have 1" in found.why


class TestTooFew:
    def test_small_empty_and_constant_frames_are_not_judged(self, rng):
        assert kind(rng.poisson(5.0, (64, 64)) * 3 // 2) == "too few"
        assert kind(np.zeros(SHAPE, np.uint16)) == "too few"
        assert kind(np.full(SHAPE, 7, np.uint16)) == "too few"
        assert kind(rng.poisson(pattern(1.0)), np.ones(SHAPE, bool)) == "too few"
        assert kind(rng.poisson(1e-4, SHAPE)) == "too few"


class TestLine:
    @pytest.mark.parametrize(("gain", "offset", "noise"), [(2.0, 50.0, 5.0), (0.5, 20.0, 2.0)])
    def test_gain_and_constant_are_found(self, rng, gain, offset, noise):
        frame = gain * rng.poisson(pattern(80.0)) + offset + rng.normal(0, noise, SHAPE)
        line = fitted_line(transfer_curve(frame, np.zeros(SHAPE, bool)))
        assert line.gain == pytest.approx(gain, rel=0.1)
        assert line.constant == pytest.approx(noise**2 - gain * offset, rel=0.25)

    def test_a_frame_of_one_level_has_none(self, rng):
        assert fitted_line(transfer_curve(rng.poisson(5.0, SHAPE), np.zeros(SHAPE, bool))) is None


class TestDoubts:
    def test_the_refusal_says_what_was_found_and_what_to_do(self, rng):
        frame = np.round(rng.normal(100, 5, SHAPE)).astype(np.uint16)
        with pytest.raises(
            SymDenoiseError, match=r"not photon counts: its variance is 0\.2.* times its mean.*--noise poisson"
        ):
            doubts(frame, None)

    def test_the_first_frame_that_can_be_judged_decides(self, rng):
        counts = rng.poisson(pattern(1.0))
        assert doubts(np.stack([np.zeros(SHAPE, int), counts, 5 * counts]), None) is None
        with pytest.raises(SymDenoiseError, match="multiples of 5"):
            doubts(np.stack([np.zeros(SHAPE, int), 5 * counts, counts]), None)

    def test_noise_is_poisson_or_tested(self):
        assert checked_noise(None) is None
        assert checked_noise("poisson") == "poisson"
        with pytest.raises(SymDenoiseError, match="noise='gaussian'"):
            checked_noise("gaussian")


class TestSpeed:
    def test_large_frames_are_judged_by_a_part(self, rng):
        frame = rng.poisson(3.0, (2048, 2048))
        assert kind(frame) == "counts"
        assert kind(np.round(2.4 * frame + 100)) == "not counts"


class TestStructure:
    @pytest.mark.parametrize("level", [1.0, 10.0, 100.0, 1e4])
    @pytest.mark.parametrize("width", [1.5, 2.0, 3.0, 4.0])
    def test_bright_speckle_is_doubtful_at_most(self, rng, level, width):
        """Its contrast adds to the variance as unequal pixels do."""
        for _ in range(3):
            grain = (0, *[width / 2.35] * 2)
            speckle = (ndimage.gaussian_filter(rng.standard_normal((2, *SHAPE)), grain) ** 2).sum(axis=0)
            assert kind(rng.poisson(level * pattern(1.0) * speckle / speckle.mean())) != "not counts"

    def test_structure_does_not_hide_too_little_noise(self, rng):
        """Spots lift the variance of most levels, but not of all."""
        rate = pattern(300.0)
        rate[rng.integers(0, SHAPE[0], 400), rng.integers(0, SHAPE[1], 400)] += 3000
        halved = ndimage.uniform_filter(rng.poisson(rate).astype(np.float32), 2)
        assert kind(halved) == "not counts"

    def test_a_ramp_without_noise_is_refused(self):
        assert kind(np.tile(np.arange(1, 385, dtype=np.uint16), (384, 1))) == "not counts"


class TestSharedNoise:
    @pytest.mark.parametrize("level", [0.3, 2.0, 20.0])
    def test_photons_that_are_counted_in_several_pixels_are_doubtful(self, rng, level):
        """Small pixels with a low threshold: each pixel has the variance of counts, but neighbours share it."""
        counts = rng.poisson(pattern(level) / 2.5)
        frame = counts.copy()
        for shift, share in (((0, 1), 0.6), ((1, 0), 0.5), ((1, 1), 0.4)):
            frame += np.roll(rng.binomial(counts, share), shift, (0, 1))
        found = verdict(frame)
        assert found.kind == "doubtful"
        assert found.curve.median < 0.75
        # As fractions they are what an interpolation gives.
        assert kind(frame + np.float32(0.25)) == "not counts"

    def test_light_that_spreads_is_doubtful_where_the_gain_makes_up_for_it(self, rng):
        light = ndimage.gaussian_filter(rng.poisson(pattern(500.0)).astype(float), 0.65)
        ratio = transfer_curve(light, np.zeros(SHAPE, bool)).median
        found = verdict(np.round(light / ratio).astype(np.int32))
        assert found.curve.median == pytest.approx(1, rel=0.1)
        assert found.kind == "doubtful"
        assert "share their noise" in found.why

    @pytest.mark.parametrize("rate", [0.3, 3.0, 300.0])
    def test_counts_have_one_variance_for_all_differences(self, rng, rate):
        frame, mask = rng.poisson(rate, (512, 512)), np.zeros((512, 512), bool)
        for curve in (transfer_curve, fine_curve, wide_curve):
            assert curve(frame, mask).median == pytest.approx(1, abs=0.05)


class TestLater:
    def test_says_the_reason_and_raises_nothing(self, rng):
        counts = rng.poisson(pattern(3.0))
        assert later_doubts(counts, None) is None
        assert "multiples of 3" in later_doubts(3 * counts, None)
        assert later_doubts(np.zeros(SHAPE, np.uint16), None) is None

    def test_a_part_of_a_large_frame_is_enough(self, rng):
        frame = frozen(rng.poisson(3.0, (1100, 1000)))
        assert later_doubts(frame, np.zeros(frame.shape, bool)) is None
        assert "times its mean" in later_doubts(np.round(2.4 * frame + 100), None)
        assert later_doubts(rng.poisson(3.0, (60, 9000)), None) is None
