"""Frames of a detector with afterglow share noise, and are worth less to each other."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.afterglow import independent_share, noise_correlation


def glowing(lag: float, frames: int = 40_000) -> np.ndarray:
    rng = np.random.default_rng(3)
    seen = rng.poisson(50.0, frames).astype(float)
    shown = np.empty(frames)
    left = 50.0
    for at, value in enumerate(seen):
        left = shown[at] = (1 - lag) * value + lag * left
    return shown


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_correlation_is_that_of_simulated_frames(steps: int) -> None:
    shown = glowing(0.3)
    assert np.corrcoef(shown[:-steps], shown[steps:])[0, 1] == pytest.approx(noise_correlation(0.3, steps), abs=0.02)


def test_what_a_frame_adds_is_what_the_variance_of_the_mean_says() -> None:
    shown = glowing(0.05)
    worth = np.var(shown) / np.var((shown[:-1] + shown[1:]) / 2)
    assert worth - 1 == pytest.approx(independent_share(Readout(gain=1.0, lag=0.05)), abs=0.03)


def test_counts_lend_all_of_their_exposure() -> None:
    assert independent_share(None) == independent_share(Readout(gain=2.0)) == 1.0


def test_frames_that_share_much_noise_lend_nothing() -> None:
    """But the one after the next does."""
    readout = Readout(gain=1.0, lag=0.2)
    assert independent_share(readout, 1) == independent_share(readout, -1) == 0.0
    assert 0.9 < independent_share(readout, 2) < 1
