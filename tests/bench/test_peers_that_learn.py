"""SMAE and Noise2Void as the benchmark trains them: what they learn from one frame, and what they cannot see."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from arrays import frozen

from bluesky_symdenoise.bench.quality import learned, stabilised
from bluesky_symdenoise.bench.quality.cases import Given
from bluesky_symdenoise.bench.quality.peers import PEERS
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.n2v import n2v
from bluesky_symdenoise.training.smae import BUDGET, UNet, both_counted, both_measured, smae

pytestmark = pytest.mark.train

SHORT = replace(BUDGET, steps=60, channels=(8, 16))


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def pattern(shape, center):
    """Rates of 0.5 to 8 counts per pixel, symmetric under inversion about the centre and under nothing else."""
    y, x = np.indices(shape)
    y, x = y - center[0], x - center[1]
    return 0.5 + 8 * np.exp(-((x + y) ** 2) / 60 - (x - y) ** 2 / 600)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_published_mask_makes_the_estimate_too_large_by_the_share_of_empty_pixels(rng, rate):
    """It uses only counts above zero, whose mean is rate/(1 - exp(-rate)); with the corrected mask, zero is a count."""
    counts = frozen(rng.poisson(rate, (64, 64)).astype(float))
    mask = np.zeros(counts.shape, bool)
    published, mended = (
        smae(counts, mask, (31.5, 31.5), common_mask=common, budget=SHORT).mean()
        for common in (both_counted, both_measured)
    )
    assert published == pytest.approx(rate / (1 - np.exp(-rate)), rel=0.1)
    assert mended == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("center", [(31.5, 31.5), (31.0, 32.0), (29.5, 31.0)])
def test_smae_denoises_a_symmetric_pattern_about_any_centre_and_leaves_alone_what_has_no_mate(rng, center):
    shape = (64, 64)
    rate = pattern(shape, center)
    counts = frozen(rng.poisson(rate).astype(float))
    estimate = smae(counts, np.zeros(shape, bool), center, common_mask=both_measured, budget=replace(SHORT, steps=120))
    y, x = np.indices(shape)
    mated = np.ones(shape, bool)
    for axis, c in ((y, center[0]), (x, center[1])):
        mated &= (2 * c - axis >= 0) & (2 * c - axis < 64)
    np.testing.assert_array_equal(estimate[~mated], counts[~mated])
    before, after = (np.mean((each - rate)[mated] ** 2) for each in (counts, estimate))
    assert after < before / 3


def test_smae_never_sees_the_half_that_it_predicts(rng):
    """One more photon changes the training, but an untrained network predicts a half from its mates alone."""
    counts = rng.poisson(2.0, (32, 32)).astype(float)
    spotted = counts.copy()
    spotted[5, 7] += 2
    counts[9, 9] = spotted[9, 9] = 50  # the largest count stays what it is
    untrained = replace(SHORT, steps=0)
    mask = np.zeros(counts.shape, bool)
    change = np.abs(
        np.subtract(
            *(smae(c, mask, (15.5, 15.5), common_mask=both_measured, budget=untrained) for c in (counts, spotted))
        )
    )
    assert change[:16].max() == 0
    assert change[26, 24] > 0


def test_learning_peers_are_seeded_and_leave_no_trace_in_torch(rng):
    counts = frozen(rng.poisson(1.0, (32, 32)).astype(float))
    mask = np.zeros(counts.shape, bool)
    budget = replace(SHORT, steps=5)
    before = torch.get_rng_state()
    for method in (
        lambda budget: smae(counts, mask, (15.5, 15.5), common_mask=both_measured, budget=budget),
        lambda budget: n2v(counts, mask, budget=budget),
    ):
        first, again, other = method(budget), method(budget), method(replace(budget, seed=1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise2void_denoises_and_does_not_learn_to_copy(rng):
    """Control: the same network without the blind spot copies the noise."""
    rate = pattern((64, 64), (31.5, 31.5))
    noisy = stabilised.anscombe(frozen(rng.poisson(rate).astype(float)))
    mask = np.zeros(rate.shape, bool)
    estimate = n2v(noisy, mask, budget=replace(SHORT, learning_rate=2e-3))
    truth = stabilised.anscombe(rate)
    assert np.mean((estimate - truth) ** 2) < 0.35 * np.mean((noisy - truth) ** 2)


@pytest.mark.parametrize("name", ["smae", "smae_mended", "n2v"])
def test_learning_peers_never_read_masked_pixels(rng, monkeypatch, name):
    brief = replace(SHORT, steps=3)
    monkeypatch.setattr("bluesky_symdenoise.training.smae.smae", partial(smae, budget=brief))
    monkeypatch.setattr("bluesky_symdenoise.training.n2v.n2v", partial(n2v, budget=brief))
    mask = np.zeros((32, 32), bool)
    mask[10:13] = True
    counts = rng.poisson(2.0, mask.shape).astype(float)
    symmetry = Symmetry("2", (15.5, 15.5))
    first, second = (
        PEERS[name].estimate(Given(frozen(np.where(mask, hidden, counts)), mask, symmetry))[~mask]
        for hidden in (0.0, 4e9)
    )
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


def test_smae_needs_inversion(rng):
    counts, mask = np.ones((16, 16)), np.zeros((16, 16), bool)
    for symmetry in (Symmetry(), Symmetry("m", (7.5, 7.5))):
        assert learned.smae(Given(counts, mask, symmetry)) is None
        assert learned.smae_mended(Given(counts, mask, symmetry)) is None


def test_the_network_takes_images_of_any_size():
    for size in ((1, 1), (7, 30), (33, 64)):
        assert UNet((4, 8, 16))(torch.zeros(1, 1, *size)).shape == (1, 1, *size)
