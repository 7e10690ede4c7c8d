"""Darks: a background of the likelihood, with its own noise, and never subtracted from counts."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Background, Dark, hot_pixels, signal, summed_dark
from bluesky_symdenoise.physics.symmetry import Symmetry

SIZE = 128


def truth(level: float) -> tuple[np.ndarray, np.ndarray]:
    """A ring of signal and a sloping background, expected counts per frame."""
    y, x = np.ogrid[:SIZE, :SIZE]
    radius = np.hypot(y - 63.5, x - 63.5)
    ring = np.where(radius < 60, 2 * level * np.exp(-((radius - 40) ** 2) / 60), 0.0)
    return ring, level * (0.5 + 0.5 * x / SIZE) * np.ones((SIZE, SIZE))


class TestBiasAndCoverage:
    """Monte Carlo with new frames and new darks; the numbers are far from the limits."""

    @pytest.mark.parametrize("level", [0.3, 2.0])
    def test_signal_is_unbiased_and_sigma_covers_it(self, denoiser: Denoiser, level: float) -> None:
        ring, background = truth(level)
        rng = np.random.default_rng(4)
        errors, scores, subtracted = [], [], []
        for _ in range(4):
            dark = summed_dark(rng.poisson(background, (5, SIZE, SIZE)))
            frame = rng.poisson(ring + background)
            made = denoiser(frame, symmetry="1", background=denoiser.background(dark, exposures=5))
            errors.append(made.intensity.values - ring)
            scores.append(errors[-1] / made.sigma.values)
            clipped = np.clip(frame - np.rint(dark.counts / 5), 0, None)
            subtracted.append(denoiser(clipped, symmetry="1").intensity.values - ring)
        empty = ring == 0
        bias = abs(np.mean(errors, axis=0)[empty].mean())
        assert abs(np.mean(errors)) < 0.01 * level
        assert bias < 0.05 * level
        assert 0.6 < np.mean(np.abs(scores) < 1) < 0.85
        assert np.mean(np.abs(scores) < 2) > 0.9
        # Negative control: what is subtracted from counts and cut at zero is biased.
        assert np.mean(subtracted) > 0.1 * level

    def test_noise_of_a_shared_dark_does_not_average_out(self, denoiser: Denoiser) -> None:
        """A one-frame dark for many frames: the mean of the frames is off by the dark's error, which sigma holds."""
        ring, background = truth(2.0)
        rng = np.random.default_rng(6)
        shared = denoiser.background(summed_dark(rng.poisson(background, (1, SIZE, SIZE))), exposures=1)
        frames = [
            denoiser(rng.poisson(ring + background), symmetry="1", background=shared).intensity.values for _ in range(6)
        ]
        another = denoiser.background(summed_dark(rng.poisson(background, (1, SIZE, SIZE))), exposures=1)
        off = (np.mean(frames, axis=0) - ring).ravel()
        own, other = (np.corrcoef(off, (background - dark.expected).ravel())[0, 1] for dark in (shared, another))
        assert own > 0.3
        assert own > other + 0.2

    def test_sigma_is_larger_for_a_shorter_dark(self, denoiser: Denoiser) -> None:
        _, background = truth(1.0)
        rng = np.random.default_rng(8)
        short, long = (
            denoiser.background(summed_dark(rng.poisson(background, (n, SIZE, SIZE))), exposures=n) for n in (1, 30)
        )
        assert short.sigma.mean() > 2 * long.sigma.mean()
        assert np.abs(long.expected - background).mean() < np.abs(short.expected - background).mean()


class TestSignal:
    def test_is_total_less_background_with_both_errors(self) -> None:
        total, sigma = np.float32([[3.0, 0.5]]), np.float32([[0.3, 0.3]])
        made, error = signal(total, sigma, Background(np.float32([[1.0, 0.6]]), np.float32([[0.4, np.nan]])))
        np.testing.assert_allclose(made, [[2.0, -0.1]], rtol=1e-6)
        np.testing.assert_allclose(error, [[0.5, np.nan]], rtol=1e-6)

    def test_is_nan_where_the_dark_is_masked_and_no_mate_knows_it(self, denoiser: Denoiser) -> None:
        rng = np.random.default_rng(1)
        frames = rng.poisson(1.0, (2, SIZE, SIZE)).astype(float)
        frames[:, 10, 20] = np.nan
        dark = summed_dark(frames)
        counts = rng.poisson(2.0, (SIZE, SIZE))
        alone = denoiser(
            counts, mask=dark.mask, symmetry="1", background=denoiser.background(dark, exposures=2)
        ).intensity.values
        assert np.argwhere(np.isnan(alone)).tolist() == [[10, 20]]
        two = Symmetry("2", (63.5, 63.5))
        made = denoiser(
            counts, mask=dark.mask, symmetry=two, background=denoiser.background(dark, exposures=2, symmetry=two)
        )
        assert np.isfinite(made.intensity.values).all()

    def test_without_a_background_nothing_changes(self, denoiser: Denoiser) -> None:
        counts = np.random.default_rng(2).poisson(1.0, (SIZE, SIZE))
        nothing = np.zeros((SIZE, SIZE), np.float32)
        plain = denoiser(counts, symmetry="1")
        none = denoiser(counts, symmetry="1", background=Background(nothing, nothing))
        np.testing.assert_array_equal(plain.intensity, none.intensity)
        np.testing.assert_array_equal(plain.sigma, none.sigma)


class TestDark:
    def test_frames_are_summed_and_codes_masked(self) -> None:
        frames = np.ones((3, 20, 20), np.uint16)
        frames[1, 4, 5] = 65535
        dark = summed_dark(frames, seconds=2.0)
        assert (dark.frames, dark.seconds) == (3, 2.0)
        assert dark.counts.max() == 3
        assert np.argwhere(dark.mask).tolist() == [[4, 5]]

    def test_hot_pixels_are_masked_and_warm_noise_is_not(self) -> None:
        rng = np.random.default_rng(0)
        for rate in (0.02, 1.0, 50.0):
            counts = rng.poisson(rate, (256, 256)).astype(float)
            assert not hot_pixels(counts, np.zeros((256, 256), bool)).any()
            counts[100, 50] = 10 * rate + 40
            assert np.argwhere(hot_pixels(counts, np.zeros((256, 256), bool))).tolist() == [[100, 50]]

    def test_exposure_times_scale_it(self) -> None:
        dark = Dark(np.zeros((1, 1)), np.zeros((1, 1), bool), frames=4, seconds=10.0)
        assert dark.exposures(5.0) == 8.0
        assert Dark(dark.counts, dark.mask, frames=4).exposures(None) == 4.0

    def test_a_single_known_exposure_time_is_refused(self) -> None:
        dark = Dark(np.zeros((1, 1)), np.zeros((1, 1), bool), frames=4, seconds=10.0)
        with pytest.raises(SymDenoiseError, match="frame is not"):
            dark.exposures(None)
        with pytest.raises(SymDenoiseError, match="positive"):
            dark.exposures(0.0)

    def test_averaged_dark_is_refused(self) -> None:
        with pytest.raises(SymDenoiseError, match="averaged"):
            summed_dark(np.full((1, 4, 4), 0.25))
