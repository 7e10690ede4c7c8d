"""Sums of the denoised frame agree with the counts where there are enough of them, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bluesky_symdenoise.denoiser import sums
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import View

SIDE, CENTER = 256, (127.5, 127.5)
Y, X = np.mgrid[:SIDE, :SIDE]
RADIUS = np.hypot(Y - CENTER[0], X - CENTER[1])


@pytest.fixture(scope="module")
def free():
    return Denoiser.pretrained(device="cpu", threads=1)


@pytest.fixture(scope="module")
def agree(free):
    return Denoiser(free.model, device="cpu", threads=1, sums="agree")


@pytest.fixture(scope="module")
def ringed():
    """Rate and frames of textured rings at 0.1 counts/pixel."""
    rng = np.random.default_rng(3)
    rate = textured_rate(View.about(CENTER, (SIDE, SIDE)), orientation=0.5)
    rate *= 0.1 / rate.mean()
    counts = rng.poisson(rate, (6, SIDE, SIDE))
    counts.flags.writeable = False
    return rate, counts


def rms_in_sigma(found, counts, part, *, fewest=100.0):
    """Return the rms over frames and parts of (sum found - sum counts) / sqrt(sum counts)."""
    away = []
    for image, raw in zip(found, counts, strict=True):
        x, y = (np.bincount(part.ravel(), each.ravel()) for each in (image, raw))
        away.append(((x - y) / np.sqrt(np.maximum(y, 1)))[y >= fewest])
    return float(np.sqrt(np.mean(np.concatenate(away) ** 2)))


def loss(found, rate):
    """Return the expected negative Poisson log-likelihood per pixel of independent counts, up to a constant."""
    return float(np.mean(found - rate * np.log(found)))


PARTS = {
    "ring": (RADIUS / 4).astype(int),
    "sector": (6 * (np.arctan2(Y - CENTER[0], X - CENTER[1]) / np.pi + 1)).astype(int) % 12,
    "box": Y // 64 * 4 + X // 64,
}


def test_sums_of_rings_sectors_and_boxes_agree_within_the_error_of_their_counts(free, agree, ringed):
    """Without a symmetry, too, if the centre is given; the negative control is the frame without the correction."""
    _, counts = ringed
    for found in (
        agree(counts, symmetry="2mm", beam_center=CENTER),
        agree(counts, symmetry="1", beam_center=CENTER),
    ):
        within = {name: rms_in_sigma(found["intensity"].values, counts, part) for name, part in PARTS.items()}
        assert within["ring"] < 0.75
        assert within["sector"] < 0.9
        assert within["box"] < 0.7
    before = free(counts, symmetry="1", beam_center=CENTER)["intensity"].values
    assert rms_in_sigma(before, counts, PARTS["ring"]) > 1.5


def test_rings_that_came_out_low_come_out_right_and_the_likelihood_gains(free, agree, ringed):
    """A bias is what is left in the mean of frames: the ring's peak over its flanks."""
    rate, counts = ringed
    peak, flanks = np.abs(RADIUS - 74) < 3, (np.abs(RADIUS - 74) >= 6) & (np.abs(RADIUS - 74) < 10)

    def height(image):
        return image[..., peak].mean() - image[..., flanks].mean()

    before, after = (each(counts, symmetry="2mm", beam_center=CENTER)["intensity"].values for each in (free, agree))
    assert height(before) / height(rate) < 0.92
    assert height(after) / height(counts) == pytest.approx(1, abs=0.06)
    assert loss(after, rate) < loss(before, rate)


@pytest.mark.parametrize("level", [0.1, 1.0])
def test_where_a_frame_shows_nothing_its_noise_is_not_put_back(free, agree, level):
    """The likelihood of independent counts is not worse by 1e-4 per pixel."""
    rng = np.random.default_rng(4)
    rate = np.full((SIDE, SIDE), level)
    counts = rng.poisson(rate, (4, SIDE, SIDE))
    before, after = (each(counts, symmetry="1", beam_center=CENTER)["intensity"].values for each in (free, agree))
    assert loss(after, rate) - loss(before, rate) < 1e-4
    # Negative control: each ring's sum is made that of its counts, whatever the frame shows.
    ring = PARTS["ring"].ravel()
    forced = [
        image * (np.bincount(ring, raw.ravel()) / np.bincount(ring, image.ravel()))[PARTS["ring"]]
        for image, raw in zip(before, counts, strict=True)
    ]
    assert loss(np.maximum(forced, 1e-3), rate) - loss(before, rate) > 2e-4


def test_fewer_than_a_hundred_counts_change_nothing(free, agree):
    rng = np.random.default_rng(5)
    counts = np.zeros((SIDE, SIDE), int)
    counts.flat[rng.choice(np.flatnonzero(np.abs(RADIUS - 80) < 3), 60, replace=False)] = 1
    before, after = (each(counts, symmetry="1", beam_center=CENTER)["intensity"].values for each in (free, agree))
    np.testing.assert_allclose(after, before, rtol=1e-4)
    nothing = agree(np.zeros((SIDE, SIDE), int), symmetry="1", beam_center=CENTER)["intensity"].values
    assert np.isfinite(nothing).all()
    assert nothing.sum() < 2
    assert (nothing >= 0).all()


def test_narrow_windows_below_a_hundred_counts_are_left_out():
    """A window's correction is zero just below the limit and not above it."""
    flat, peak = np.full(400, 50.0), np.full(400, 50.0)
    peak[195:205] *= 2
    change = np.full(400, 50.0)
    far = sums.ring_factor(peak, np.full(400, 500.0), flat, change)
    assert far[200] > 1.5
    few = sums.ring_factor(peak / 100, np.full(400, 500.0), flat / 100, change / 100)
    np.testing.assert_array_equal(few, 1)


@pytest.mark.parametrize("width", [2, 3, 8])
def test_a_window_falls_linearly_to_zero(width):
    rng = np.random.default_rng(7)
    values = rng.random((12, 9))
    weights = [np.maximum(1 - np.abs(np.subtract.outer(range(n), range(n))) / width, 0) for n in values.shape]
    for axis, expected in ((0, weights[0] @ values), (1, values @ weights[1])):
        np.testing.assert_allclose(sums.windowed(values, width, axis), expected, rtol=1e-12)


def test_masked_pixels_count_for_nothing(agree, ringed):
    _, counts = ringed
    mask = np.zeros((SIDE, SIDE), bool)
    mask[100:110], mask[:, 40:46] = True, True
    spoiled = np.where(mask, 9999, counts[0])
    one, other = (agree(each, mask=mask, symmetry="2mm", beam_center=CENTER) for each in (counts[0], spoiled))
    np.testing.assert_array_equal(one["intensity"].values, other["intensity"].values)
    seen = [np.where(mask, 0, np.nan_to_num(each))[None] for each in (one["intensity"].values, counts[0])]
    assert rms_in_sigma(*seen, PARTS["ring"]) < 0.8
    assert seen[0].sum() == pytest.approx(seen[1].sum(), rel=0.01)


def test_it_is_a_function_of_the_frame_that_respects_its_symmetry(agree, ringed):
    _, counts = ringed
    first, again = (agree(counts[0], symmetry="2mm", beam_center=CENTER) for _ in range(2))
    for name in ("intensity", "sigma"):
        np.testing.assert_array_equal(first[name].values, again[name].values)
    rings = 1 + np.rint(2 * RADIUS).astype(np.int64)
    y = torch.from_numpy(counts[0].astype(np.float32))[None, None]
    ones, mean = torch.ones_like(y), torch.full_like(y, 0.1)
    mended, mirrored = (sums.agreeing(each, ones, each, ones, 10 * ones, mean, rings) for each in (y, y.flip(2)))
    assert (mended != mean).any()
    np.testing.assert_allclose(mended.numpy(), mirrored.flip(2).numpy(), rtol=1e-4)


def test_by_default_sums_are_free_and_no_pixel_changes(free, agree, ringed):
    _, counts = ringed
    plain = Denoiser(free.model, device="cpu", threads=1)
    assert plain.sums == DenoiserSettings().sums == "free"
    one = plain(counts[0], symmetry="2mm", beam_center=CENTER)
    assert (one["intensity"].values != agree(counts[0], symmetry="2mm", beam_center=CENTER)["intensity"].values).any()
    with pytest.raises(SymDenoiseError, match="give free or agree"):
        DenoiserSettings(sums="exact")


def test_without_a_centre_boxes_agree(free, agree):
    """A prior that is wrong by a slope over the frame."""
    counts = torch.from_numpy(np.random.default_rng(6).poisson(1.0, (1, 1, SIDE, SIDE)).astype(np.float32))
    exposure, kappa = torch.ones_like(counts), torch.full_like(counts, 100.0)
    wrong = torch.linspace(0.8, 1.2, SIDE).expand_as(counts)
    mended = sums.agreeing(counts, exposure, counts, exposure, kappa, wrong, None)
    away = [
        rms_in_sigma(((counts + kappa) / (1 + kappa / mean))[0].numpy(), counts[0].numpy(), PARTS["box"])
        for mean in (wrong, mended)
    ]
    assert away[0] > 5
    assert away[1] < 1


def test_a_beam_far_off_the_detector_and_pixels_without_a_ring_are_fine(agree, ringed):
    _, counts = ringed
    found = agree(counts[0], symmetry="1", beam_center=(128.0, 30000.0))["intensity"].values
    assert found.sum() == pytest.approx(counts[0].sum(), rel=0.01)
    ones = torch.ones(1, 1, SIDE, SIDE)
    same = sums.agreeing(ones, ones, ones, ones, ones, ones, np.zeros((SIDE, SIDE), np.int64))
    np.testing.assert_allclose(same.numpy(), 1, rtol=1e-5)
