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
from bluesky_symdenoise.physics.counts.curve import transfer_curve
from bluesky_symdenoise.physics.counts.verdict import checked_noise, doubts, fitted_line, verdict

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

    @pytest.mark.parametrize("number", [3, 10, 40])
    def test_the_mean_of_exposures_is_refused_with_their_number(self, rng, number):
        frame = rng.poisson(pattern(3.0), (number, *SHAPE)).mean(axis=0)
        found = verdict(frame.astype(np.float32))
        assert found.kind == "not counts"
        assert f"mean of {number} exposures" in found.why

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
    @pytest.mark.parametrize("level", [1.0, 10.0, 100.0])
    def test_bright_speckle_is_doubtful_at_most(self, rng, level):
        """Its contrast adds to the variance as unequal pixels do."""
        field = ndimage.gaussian_filter(rng.standard_normal((2, *SHAPE)), (0, 1, 1))
        speckle = (field**2).sum(axis=0)
        halo = pattern(1.0) * (0.5 + 0.5 * speckle / speckle.mean())
        assert kind(rng.poisson(level * halo)) != "not counts"

    def test_a_ramp_without_noise_is_refused(self):
        assert kind(np.tile(np.arange(1, 385, dtype=np.uint16), (384, 1))) == "not counts"
