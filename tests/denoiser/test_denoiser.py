"""What the denoiser promises whatever its weights: shapes, totals, gaps, errors, the same result every time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from arrays import frozen
from safetensors.torch import save
from scipy.stats import poisson
from torch.nn import functional

from bluesky_symdenoise.denoiser import bands
from bluesky_symdenoise.denoiser.device import engine
from bluesky_symdenoise.denoiser.features import BLOCK_FEATURES, LOG_MEAN, PIXEL_FEATURES, features, pyramid_means
from bluesky_symdenoise.denoiser.identity import ALGORITHM, sha256_of
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.network import Architecture, PriorNet
from bluesky_symdenoise.denoiser.registry import available
from bluesky_symdenoise.denoiser.weights import load_model, save_weights
from bluesky_symdenoise.derived.row import denoised_row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import gated_mates
from bluesky_symdenoise.physics.frame import as_exposure, frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.recipe import Recipe
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import View

SHAPE = (150, 141)
CENTER = (71.5, 66.0)


@pytest.fixture(autouse=True)
def threads():
    """torch's thread count belongs to the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser.pretrained(device="cpu", threads=1)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def pattern(shape=SHAPE, center=CENTER, *, photons_per_pixel=1.0):
    rate = textured_rate(View.about(center, shape, scale=2.0), orientation=0.7)
    return rate * photons_per_pixel / rate.mean()


@pytest.fixture
def counts(rng):
    return frozen(rng.poisson(pattern()).astype(np.uint16))


def difference_in_sigma(one, other):
    """The largest difference of two results, in standard deviations."""
    np.testing.assert_array_equal(np.isnan(one.intensity), np.isnan(other.intensity))
    gap = np.abs(one.intensity - other.intensity) / one.sigma
    spread = np.abs(one.sigma - other.sigma) / one.sigma
    return float(np.maximum(gap, spread).max())


# Shapes, dtypes, inputs


@pytest.mark.parametrize(
    ("leading", "dims"),
    [
        ((), ("y", "x")),
        ((1,), ("frame", "y", "x")),
        ((3,), ("frame", "y", "x")),
        ((2, 1), ("dim_0", "dim_1", "y", "x")),
    ],
)
def test_the_result_has_the_shape_of_the_counts(denoiser, rng, leading, dims):
    counts = frozen(rng.poisson(1.0, (*leading, 30, 41)))
    result = denoiser(counts, symmetry="1")
    assert isinstance(result, xr.Dataset)
    for name in ("intensity", "sigma"):
        assert result[name].dims == dims
        assert result[name].shape == counts.shape
        assert result[name].dtype == np.float32
        assert result[name].attrs["units"] == "counts"


@pytest.mark.parametrize(
    "dtype",
    [
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float32",
        "float64",
        ">u2",
        ">i4",
        ">f4",
        ">f8",
    ],
)
def test_the_dtype_of_the_counts_does_not_matter(denoiser, counts, dtype):
    expected = denoiser(counts, symmetry="2", beam_center=CENTER)
    given = frozen(counts.astype(dtype))
    result = denoiser(given, symmetry="2", beam_center=CENTER)
    xr.testing.assert_equal(result, expected)
    np.testing.assert_array_equal(given, counts)


def test_the_memory_layout_does_not_matter(denoiser, counts):
    expected = denoiser(counts, symmetry="1")
    spread = frozen(np.repeat(np.repeat(counts, 2, axis=0), 3, axis=1))[::2, ::3]
    flipped = frozen(counts[::-1, ::-1].copy())[::-1, ::-1]
    for given in (spread, flipped, frozen(np.asfortranarray(counts)), counts.tolist()):
        xr.testing.assert_equal(denoiser(given, symmetry="1"), expected)


def test_inputs_stay_as_they_were(denoiser, counts, rng):
    """Frozen inputs: a write would raise."""
    mask = frozen(rng.uniform(size=SHAPE) < 0.05)
    exposure = frozen(rng.uniform(0.5, 1.5, SHAPE))
    center = frozen(np.array(CENTER))
    before = counts.copy(), mask.copy(), exposure.copy()
    denoiser(counts, mask=mask, exposure=exposure, symmetry="auto", beam_center=center)
    for given, kept in zip((counts, mask, exposure), before, strict=True):
        np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize("symmetry", ["1", "2", "m", "my", "2mm", "auto"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_one_pixel_is_a_frame(denoiser, symmetry, count):
    result = denoiser(np.array([[count]]), symmetry=symmetry, beam_center=(0, 0))
    assert result.intensity.shape == (1, 1)
    assert result.intensity.item() >= 0
    assert result.sigma.item() > 0


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (2, 2), (127, 129)])
def test_frames_of_any_shape_are_taken(denoiser, rng, shape):
    result = denoiser(rng.poisson(2.0, shape), symmetry="2", beam_center=((shape[0] - 1) / 2, (shape[1] - 1) / 2))
    assert np.isfinite(result.intensity).all()
    assert (result.sigma > 0).all()


def test_provenance_names_model_symmetry_and_machine(denoiser, counts):
    attrs = denoiser(counts, symmetry="2", beam_center=CENTER).attrs
    assert attrs["model"] == denoiser.model.identity()
    assert attrs["model"]["sha256"] == load_model().sha256
    assert (attrs["symmetry"], attrs["beam_center"]) == ("2", list(CENTER))
    assert attrs["environment"] == {"torch": torch.__version__, "device": "cpu", "dtype": "float32", "threads": 1}
    assert denoiser(counts, symmetry="1").attrs["beam_center"] is None


# Gaps


def test_a_gap_is_nan_without_symmetry(denoiser, counts):
    mask = np.zeros(SHAPE, bool)
    mask[40:49] = True
    codes = counts.copy()
    codes[100:103, 20:50] = 65535
    result = denoiser(frozen(codes), mask=frozen(mask), symmetry="1")
    unseen = mask | (codes == 65535)
    np.testing.assert_array_equal(np.isnan(result.intensity), unseen)
    np.testing.assert_array_equal(np.isnan(result.sigma), unseen)


def test_a_gap_is_filled_by_its_mates(denoiser, counts):
    """NaN exactly where neither the pixel nor a mate was measured."""
    mask = np.zeros(SHAPE, bool)
    mask[40:49] = True
    mask[:, 64:69] = True
    symmetry = Symmetry("2", CENTER)
    result = denoiser(counts, mask=frozen(mask), symmetry=symmetry)
    frame = frame_from_counts(counts, mask=mask, exposure=as_exposure(None, SHAPE))
    unseen = (frame.exposure == 0) & (gated_mates(frame, symmetry).exposure == 0)
    np.testing.assert_array_equal(np.isnan(result.intensity), unseen)
    np.testing.assert_array_equal(np.isnan(result.sigma), unseen)
    # The vertical gap lies on the centre and is its own mate; the horizontal one is filled but for that crossing.
    assert unseen[:, 64:69].all()
    assert unseen[40:49, :60].mean() < 0.1
    filled, truth = result.intensity.values[40:49, :60], pattern()[40:49, :60]
    at = np.isfinite(filled)
    assert 0.7 < filled[at].sum() / truth[at].sum() < 1.4


def test_zero_counts_are_no_gap(denoiser):
    result = denoiser(np.zeros((40, 50), np.uint16), symmetry="1")
    assert np.isfinite(result.intensity).all()
    assert (result.intensity < 0.1).all()


def test_neighbours_of_a_hot_code_do_not_see_it(denoiser, counts):
    """The value of a masked pixel has no influence."""
    mask = np.zeros(SHAPE, bool)
    mask[70, 60:64] = True
    other = counts.copy()
    other[mask] = 60_000
    one, two = (
        denoiser(frozen(image), mask=mask, symmetry="2", beam_center=CENTER) for image in (counts.copy(), other)
    )
    xr.testing.assert_equal(one, two)


# Laws of the estimate


@pytest.mark.parametrize("level", [0.6, 3.0, 100.0])
@pytest.mark.parametrize("symmetry", ["1", "2mm"])
def test_total_counts_are_kept(denoiser, rng, level, symmetry):
    mask = np.zeros(SHAPE, bool)
    mask[40:49] = True
    counts = frozen(rng.poisson(pattern(photons_per_pixel=level)))
    total = counts[~mask].sum()
    assert total > 1e4
    result = denoiser(counts, mask=mask, symmetry=symmetry, beam_center=CENTER)
    assert result.intensity.values[~mask].sum(dtype=float) == pytest.approx(total, rel=0.005)


@pytest.mark.parametrize("level", [0.05, 1.0, 1000.0])
def test_sigma_is_positive_and_at_most_that_of_the_counts(denoiser, rng, level):
    counts = frozen(rng.poisson(pattern(photons_per_pixel=level)))
    result = denoiser(counts, symmetry="2", beam_center=CENTER)
    assert (result.intensity > 0).all()
    assert (result.sigma > 0).all()
    # One pixel's counts alone would have a spread of sqrt(rate).
    assert np.sqrt((result.sigma**2).mean()) < 1.2 * np.sqrt(level + 0.05)


@pytest.mark.parametrize("level", [0.2, 1.0, 5.0])
def test_held_out_counts_are_likelier_than_under_the_raw_frame(denoiser, rng, level):
    rate = pattern(photons_per_pixel=level)
    counts, held_out = frozen(rng.poisson(rate)), rng.poisson(rate)
    result = denoiser(counts, symmetry="2", beam_center=CENTER).intensity.values

    def loss(estimate):
        return -poisson.logpmf(held_out, np.maximum(estimate, 0.02)).mean()

    assert loss(rate) < loss(result) < loss(counts) - 0.1
    # A flat frame of the right total is the least that a denoiser must beat.
    assert loss(result) < loss(np.full(SHAPE, counts.mean()))


def test_mates_make_the_estimate_better(denoiser, rng):
    error = {"1": 0.0, "2mm": 0.0}
    for _ in range(3):
        rate = pattern(photons_per_pixel=0.3)
        counts = frozen(rng.poisson(rate))
        for symmetry in error:
            estimate = denoiser(counts, symmetry=symmetry, beam_center=CENTER).intensity.values
            error[symmetry] += ((estimate - rate) ** 2).mean()
    assert error["2mm"] < error["1"]


@pytest.mark.parametrize("factor", [2.0, 3.0, 1e-3])
def test_the_unit_of_exposure_does_not_matter(denoiser, counts, rng, factor):
    """The result is in counts of that frame: the same counts at twice the time are half the rate at twice the time."""
    exposure = rng.uniform(0.5, 1.5, SHAPE)
    options = {"symmetry": "2", "beam_center": CENTER}
    one = denoiser(counts, exposure=frozen(exposure), **options)
    assert difference_in_sigma(one, denoiser(counts, exposure=frozen(factor * exposure), **options)) < 1e-3
    plain = denoiser(counts, **options)
    assert difference_in_sigma(plain, denoiser(counts, exposure=factor, **options)) == 0
    # Control: the relative exposures do matter.
    assert difference_in_sigma(plain, one) > 0.1


def test_expected_counts_follow_the_exposure(denoiser, rng):
    """Behind half a frame of twice the sensitivity, the expected counts double and the rate has no step."""
    exposure = np.ones((160, 160))
    exposure[:, 80:] = 2
    result = denoiser(frozen(rng.poisson(4 * exposure)), exposure=frozen(exposure), symmetry="1").intensity.values
    assert result[:, 80:].mean() / result[:, :80].mean() == pytest.approx(2, rel=0.03)
    assert (result / exposure)[:, 76:84].mean(axis=0) == pytest.approx(4, rel=0.2)


def test_bright_pixels_keep_their_counts(denoiser, rng):
    """A Bragg spot is not noise: its counts outweigh the prior."""
    sharp = np.exp(-4 * np.log(2) * (np.arange(-2, 3) / 0.8) ** 2)
    counts = rng.poisson(1.0, SHAPE)
    counts[58:63, 68:73] += rng.poisson(20_000 * np.outer(sharp, sharp))
    result = denoiser(frozen(counts), symmetry="1")
    assert result.intensity.values[60, 70] == pytest.approx(20_000, rel=0.1)
    assert not result.defect.any()


def test_hot_and_dead_pixels_are_masked_and_reported(denoiser, rng):
    """As with a mask of these pixels; other frames of the stack are not affected."""
    counts = rng.poisson(60.0, (2, *SHAPE))
    counts[0, 60, 70], counts[0, 30, 40] = 10**6, 0
    bad = np.zeros(SHAPE, bool)
    bad[60, 70] = bad[30, 40] = True
    result = denoiser(frozen(counts), symmetry="1")
    assert result.defect.attrs["flag_meanings"] == "hot dead"
    assert [result.defect.values[0, 60, 70], result.defect.values[0, 30, 40]] == [1, 2]
    assert np.count_nonzero(result.defect) == 2
    for name in ("intensity", "sigma"):
        np.testing.assert_array_equal(result[name].values[0], denoiser(counts[0], mask=bad, symmetry="1")[name])
        assert np.isnan(result[name].values[0][bad]).all()
        assert np.isfinite(result[name].values[1]).all()
    # With a symmetry their mates know them.
    filled = denoiser(frozen(counts[0]), symmetry="2", beam_center=CENTER)
    np.testing.assert_allclose(filled.intensity.values[bad], 60, rtol=0.2)


# The same result every time


def test_results_are_bit_identical(denoiser, counts):
    again = Denoiser.pretrained(device="cpu", threads=1)
    expected = denoiser(counts, symmetry="2", beam_center=CENTER)
    for each in (denoiser, again):
        xr.testing.assert_identical(each(counts, symmetry="2", beam_center=CENTER), expected)


def test_a_stack_is_denoised_frame_by_frame(denoiser, rng):
    """Other frames of the stack have no influence, except through the common symmetry."""
    stack = frozen(rng.poisson([pattern(photons_per_pixel=level) for level in (0.2, 5.0, 1.0)]))
    symmetry = denoiser.resolve(stack, symmetry="auto")
    assert symmetry.point_group != "1"
    together = denoiser(stack)
    assert together.attrs["symmetry"] == symmetry.point_group
    for index, frame in enumerate(stack):
        xr.testing.assert_equal(denoiser(frame, symmetry=symmetry), together.isel(frame=index))


def test_bfloat16_changes_a_small_part_of_sigma(denoiser, counts):
    rounded = Denoiser.pretrained(device="cpu", threads=1, dtype="bfloat16")
    exact, result = denoiser(counts, symmetry="1"), rounded(counts, symmetry="1")
    off = np.abs(result.intensity - exact.intensity) / exact.sigma
    assert off.max() > 0
    assert off.quantile(0.99) < 0.05
    assert result.attrs["environment"]["dtype"] == "bfloat16"
    assert result.intensity.dtype == np.float32


def test_eight_views_make_no_difference_between_up_and_down(denoiser, rng):
    """A turned or mirrored frame gives a turned or mirrored result; with one view, it does so only approximately."""
    counts = rng.poisson(pattern((128, 128), (60.0, 66.0)))
    eight = Denoiser(denoiser.model, threads=1, views=8)
    for there, back in ((np.flipud, np.flipud), (np.rot90, lambda image: np.rot90(image, -1))):
        one, turned = eight(counts, symmetry="1"), eight(there(counts), symmetry="1")
        plain, plain_turned = denoiser(counts, symmetry="1"), denoiser(there(counts), symmetry="1")
        for name in ("intensity", "sigma"):
            np.testing.assert_allclose(back(turned[name].values), one[name].values, rtol=1e-3)
        assert np.abs(back(plain_turned.intensity.values) / plain.intensity.values - 1).max() > 0.01


@pytest.mark.parametrize(("height", "kept"), [(100, 0.85), (1000, 0.97), (20_000, 0.99)])
def test_a_lone_bright_pixel_stays(denoiser, rng, height, kept):
    """Its own counts refute the prior, although its surroundings do not predict it."""
    counts = rng.poisson(1.0, (128, 128))
    counts[40, 50] = counts[90, 71] = height
    result = Denoiser(denoiser.model, threads=1, defects="keep")(counts, symmetry="1")
    for at in ((40, 50), (90, 71)):
        off = height - result.intensity.values[at]
        assert kept * height < result.intensity.values[at] < 1.01 * height
        assert off < 1.5 * result.sigma.values[at]


def test_an_unknown_dtype_is_refused():
    with pytest.raises(SymDenoiseError, match="float32 or bfloat16"):
        Denoiser.pretrained(dtype="float16")


def test_the_network_is_a_plain_unet():
    """Levels are doubled by repetition and joined to the finer ones; the quick way there gives the same."""
    torch.manual_seed(1)
    net = PriorNet(Architecture())
    torch.nn.init.normal_(net.head.weight, std=0.1)
    per_pixel, per_block = torch.randn(2, PIXEL_FEATURES + 2, 128, 256), torch.randn(2, BLOCK_FEATURES, 64, 128)
    with torch.inference_mode():
        x = torch.cat([functional.pixel_unshuffle(per_pixel[:, :PIXEL_FEATURES], 2), per_block], dim=1)
        levels = []
        for level, block in enumerate(net.down):
            x = block(x if level == 0 else functional.avg_pool2d(x, 2))
            levels.append(x)
        for block, finer in zip(net.up, levels[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), finer], dim=1))
        out = functional.pixel_shuffle(net.head(x), 2)
        relative, kappa, in_sigma, own, mates = out[:, :5].split(1, dim=1)
        log_mean = 4 * per_pixel[:, LOG_MEAN : LOG_MEAN + 1]
        root = in_sigma / torch.sqrt(1 + torch.exp(log_mean)) / 2
        plain = relative + 2 * root.sign() * torch.log(1 + root.abs())
        plain += own * per_pixel[:, -2:-1] + mates * per_pixel[:, -1:]
        around = functional.pad(log_mean + per_pixel[:, -2:-1], (1, 1, 1, 1), mode="replicate")
        for index, (down, right) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
            pair = sum(torch.roll(around, (s * down, s * right), (2, 3))[:, :, 1:-1, 1:-1] for s in (-1, 1))
            plain += out[:, 5 + index : 6 + index] * (pair - 2 * log_mean)
        ratio, log_kappa, _ = net(per_pixel, per_block)
    torch.testing.assert_close(ratio, 12 * torch.tanh(plain / 12), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_kappa, (kappa + 1).clamp(-8, 14), rtol=1e-4, atol=1e-4)


def test_a_frame_without_mates_is_one_whose_mates_were_not_measured(denoiser):
    """Inputs that are zero are left out of the first layer, which gives the same."""
    counts, exposure = torch.randint(0, 5, (1, 1, 128, 128)).float(), torch.ones(1, 1, 128, 128)
    nothing = torch.zeros_like(counts)
    net = denoiser.model.net
    with torch.inference_mode():
        per_pixel, per_block, _ = features(counts, exposure, nothing, nothing)
        assert (per_pixel.shape[1], per_block.shape[1]) == (4, BLOCK_FEATURES // 2)
        stabilised, log_mean, relative_exposure, log_rate = per_pixel.split(1, dim=1)
        whole = [stabilised, nothing, log_mean, relative_exposure, nothing, nothing, log_rate, nothing]
        expected = net(torch.cat(whole, dim=1), per_block.repeat(1, 2, 1, 1))
        for ours, theirs in zip(net(per_pixel, per_block)[:2], expected[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetry", ["1", "2mm", "4", "inf", "m@30"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_threads_nor_batches_change_a_bit(counts, symmetry, dtype):
    stack = np.stack([counts, counts[::-1], 40 * counts])
    options = {"symmetry": symmetry, "beam_center": None if symmetry == "1" else CENTER}
    one, three = (Denoiser.pretrained(device="cpu", threads=threads, dtype=dtype) for threads in (1, 3))
    assert three.environment()["threads"] == 3
    together = three(stack, **options)
    for index, frame in enumerate(stack):
        alone = one(frame, **options)
        for name in ("intensity", "sigma"):
            np.testing.assert_array_equal(together[name].values[index], alone[name].values)


def test_bands_of_a_large_frame_agree_with_the_frame_in_one_piece(denoiser, rng, monkeypatch):
    shape = (1100, 130)
    rate = pattern(shape, (500.0, 60.0))
    counts = frozen(rng.poisson(rate))
    options = {"symmetry": "2", "beam_center": (500.0, 60.0)}
    whole = denoiser(counts, **options)
    monkeypatch.setattr(engine, "PART_PIXELS", 10_000)
    assert difference_in_sigma(whole, denoiser(counts, **options)) < 0.02
    # Control: bands that do not overlap show their seams.
    monkeypatch.setattr(bands, "HALO", 0)
    assert difference_in_sigma(whole, denoiser(counts, **options)) > 0.05


def test_the_halo_is_wider_than_the_network_looks():
    """Whatever the weights: a change in a row moves no output further than HALO rows away."""
    torch.manual_seed(0)
    net = PriorNet(Architecture()).double()
    torch.nn.init.normal_(net.head.weight)
    height, at = 2560, 1280
    with torch.inference_mode():
        blank = torch.zeros(1, 8, height, 64).double(), torch.zeros(1, 8, height // 2, 32).double()
        touched = blank[0].clone()
        touched[:, :, at] = 5.0
        changed = (net(*blank)[0] != net(touched, blank[1])[0]).any(dim=(0, 1, 3)).nonzero().ravel()
    assert changed.numel() > 100
    assert at - bands.HALO < changed.min()
    assert changed.max() < at + bands.HALO


def test_local_means_keep_a_flat_rate():
    """The pyramid's prior is itself: a flat rate at full exposure is found at every level, and nothing is NaN."""
    counts, exposure = torch.full((1, 1, 256, 128), 3.0), torch.ones(1, 1, 256, 128)
    for mean in pyramid_means(counts, exposure):
        torch.testing.assert_close(mean, torch.full_like(mean, 3.0), rtol=1e-3, atol=0)
    for mean in pyramid_means(0 * counts, 0 * exposure):
        assert (mean > 0).all()


# Symmetry


def test_a_symmetric_pattern_is_recognised(denoiser, rng):
    counts = frozen(rng.poisson(pattern((256, 256), (120.5, 131.0), photons_per_pixel=3.0)))
    for center in (None, (120.5, 131.0)):
        symmetry = denoiser.resolve(counts, beam_center=center)
        assert symmetry.point_group == "2mm"
        assert np.abs(np.subtract(symmetry.beam_center, (120.5, 131.0))).max() <= 0.5
    assert denoiser.resolve(frozen(rng.poisson(1.0, (256, 256)))) == Symmetry()


def test_a_named_symmetry_finds_its_centre(denoiser, counts):
    symmetry = denoiser.resolve(counts, symmetry="2")
    assert symmetry.point_group == "2"
    assert np.abs(np.subtract(symmetry.beam_center, CENTER)).max() <= 0.5


def test_a_resolved_symmetry_is_taken_as_it_is(denoiser, counts):
    symmetry = Symmetry("m", (3.0, 66.5))
    assert denoiser.resolve(counts, symmetry=symmetry) is symmetry
    assert denoiser.resolve(counts, symmetry="1", beam_center=CENTER) == Symmetry()


def test_a_wrong_symmetry_does_little_harm(denoiser, rng):
    """The gate keeps out what differs: an asymmetric pattern folded about any centre stays what it was."""
    y, x = np.indices((160, 160))
    rate = 0.3 + 4 * np.exp(-((y - 40) ** 2 + (x - 50) ** 2) / 200) + 3 * np.exp(-((y - 110) ** 2 + (x - 45) ** 2) / 90)
    counts = frozen(rng.poisson(rate))
    error = {
        symmetry: ((denoiser(counts, symmetry=symmetry, beam_center=(79.5, 79.5)).intensity.values - rate) ** 2).mean()
        for symmetry in ("1", "2mm")
    }
    assert error["2mm"] < 2 * error["1"]
    folded = (counts + counts[::-1, ::-1] + counts[::-1] + counts[:, ::-1]) / 4
    assert error["2mm"] < 0.2 * ((folded - rate) ** 2).mean()


# Errors


def test_a_frame_without_pixels_is_refused(denoiser, counts):
    with pytest.raises(SymDenoiseError, match=r"frame 0 with all pixels masked.*check the mask"):
        denoiser(counts, mask=np.ones(SHAPE, bool))
    stack = np.stack([counts, np.full(SHAPE, 65535, np.uint16)])
    with pytest.raises(SymDenoiseError, match="frame 1 with all pixels masked"):
        denoiser(stack, symmetry="1")
    with pytest.raises(SymDenoiseError, match="frame 0 with all pixels masked"):
        denoiser(counts, exposure=0)


@pytest.mark.parametrize("shape", [(), (5,), (0, 5, 5), (0, 5), (2, 0, 5), (5, 0)])
def test_arrays_that_are_not_frames_are_refused(denoiser, shape):
    with pytest.raises(SymDenoiseError, match=r"counts of shape \(.*at least one frame of at least one pixel"):
        denoiser(np.zeros(shape))


@pytest.mark.parametrize("dtype", [bool, complex, "U3", object, "M8[s]"])
def test_dtypes_that_cannot_be_counts_are_refused(denoiser, dtype):
    with pytest.raises(SymDenoiseError, match=r"counts of dtype .*integers or floats"):
        denoiser(np.zeros((4, 4)).astype(dtype))


@pytest.mark.parametrize("symmetry", ["5", "4m", "", None])
@pytest.mark.parametrize("center", [None, CENTER])
def test_an_unknown_symmetry_is_refused(denoiser, counts, symmetry, center):
    with pytest.raises(SymDenoiseError, match=r"symmetry .*must be one of 1, 2, m, my, 2mm, 4, 4mm, inf, .* or auto"):
        denoiser(counts, symmetry=symmetry, beam_center=center)


def test_what_is_stored_says_how_many_defects_and_leaves_them_out_of_the_sums(denoiser, rng):
    counts = rng.poisson(60.0, SHAPE)
    counts[60, 70], counts[30, 40], counts[30, 90] = 10**6, 0, 0
    recipe = Recipe(model_sha256=denoiser.model.sha256, algorithm=ALGORITHM)
    row = denoised_row(denoiser, recipe, frozen(counts), mask=None, exposure=None, symmetry=Symmetry())
    assert (row.scalars["hot_pixels"], row.scalars["dead_pixels"]) == (1, 2)
    assert row.scalars["counts_in"] == counts.sum() - 10**6
    assert row.scalars["counts_out"] == pytest.approx(row.scalars["counts_in"], rel=0.01)


@pytest.mark.parametrize("symbol", ["4", "4mm", "inf", "m@30", "2mm@-12.5"])
def test_every_group_makes_the_estimate_better(denoiser, rng, symbol):
    """Of a ring, at half a photon per pixel: held-out counts are likelier with its mates."""
    y, x = np.indices(SHAPE)
    rate = 0.1 + 2 * np.exp(-((np.hypot(y - CENTER[0], x - CENTER[1]) - 40) ** 2) / 60)
    counts, target = frozen(rng.poisson(rate)), rng.poisson(50 * rate)
    with_mates = denoiser(counts, symmetry=symbol, beam_center=CENTER)
    assert with_mates.attrs["symmetry"] == symbol
    errors = [
        np.mean((result.intensity.values - target / 50) ** 2) for result in (with_mates, denoiser(counts, symmetry="1"))
    ]
    assert errors[0] < errors[1]


def test_rings_find_their_centre_to_a_fraction_of_a_pixel(denoiser, rng):
    y, x = np.indices(SHAPE)
    center = (71.3, 66.2)
    rate = 0.1 + 4 * np.exp(-((np.hypot(y - center[0], x - center[1]) - 40) ** 2) / 40)
    found = denoiser.resolve(frozen(rng.poisson(rate)), symmetry="inf")
    assert found.point_group == "inf"
    np.testing.assert_allclose(found.beam_center, center, atol=0.15)
    # An oblique mirror fixes no centre that could be found.
    with pytest.raises(SymDenoiseError, match="without a beam centre"):
        denoiser.resolve(frozen(rng.poisson(rate)), symmetry="m@30")


@pytest.mark.parametrize("symmetry", [Symmetry("3", CENTER), Symmetry("2")])
def test_a_symmetry_that_cannot_be_used_is_refused(denoiser, counts, symmetry):
    with pytest.raises(SymDenoiseError):
        denoiser(counts, symmetry=symmetry)


@pytest.mark.parametrize("center", [(200, 10), (10, 150), (-3, 10), (np.nan, 3)])
@pytest.mark.parametrize("symmetry", ["2", "auto"])
def test_a_centre_off_the_detector_is_refused(denoiser, counts, center, symmetry):
    with pytest.raises(SymDenoiseError, match=r"beam centre .*must"):
        denoiser(counts, symmetry=symmetry, beam_center=center)
    if np.isfinite(center).all():
        with pytest.raises(SymDenoiseError, match="must be on the detector of 150 x 141 pixels"):
            denoiser(counts, symmetry=Symmetry("2", center))


@pytest.mark.parametrize("symmetry", ["2", "m", "my", "2mm"])
def test_a_named_symmetry_without_a_centre_to_be_found_is_refused(denoiser, rng, symmetry):
    with pytest.raises(SymDenoiseError, match=r"without a beam centre: none could be found.*give beam_center=\(y, x\)"):
        denoiser(rng.poisson(1.0, SHAPE), symmetry=symmetry)


@pytest.mark.parametrize("shape", [SHAPE[::-1], (1, *SHAPE), (SHAPE[0],)])
def test_a_mask_or_exposure_of_another_shape_is_refused(denoiser, counts, shape):
    with pytest.raises(SymDenoiseError, match="mask of shape"):
        denoiser(counts, mask=np.zeros(shape, bool))
    with pytest.raises(SymDenoiseError, match="exposure of shape"):
        denoiser(counts, exposure=np.ones(shape))


def test_a_background_subtracted_frame_is_refused(denoiser, counts):
    with pytest.raises(SymDenoiseError, match="looks background-subtracted"):
        denoiser(counts - 0.3)


def test_an_unknown_device_is_refused():
    with pytest.raises(SymDenoiseError, match="device 'nonsense': torch cannot use it"):
        Denoiser.pretrained(device="nonsense")


# Weights


@pytest.fixture
def tiny(tmp_path):
    """A small untrained model on disk."""
    torch.manual_seed(0)
    return save_weights(PriorNet(Architecture((8, 8))), tmp_path, name="tiny", version="7", training={"note": 1})


def test_weights_come_back_from_disk(tiny, counts):
    model = load_model(tiny)
    assert model.identity() == {"name": "tiny", "version": "7", "sha256": sha256_of(tiny.read_bytes())}
    assert model.net.architecture == Architecture((8, 8))
    assert not any(parameter.requires_grad for parameter in model.net.parameters())
    assert json.loads(tiny.with_suffix(".json").read_text())["training"] == {"note": 1}
    torch.manual_seed(0)
    for stored, made in zip(model.net.parameters(), PriorNet(Architecture((8, 8))).parameters(), strict=True):
        assert torch.equal(stored, made)
    # A string is a path if it ends like one.
    result = Denoiser.pretrained(str(tiny), device="cpu", threads=1)(counts)
    assert result.attrs["model"]["name"] == "tiny"


def test_the_same_weights_have_the_same_identity(tmp_path):
    """Training again gives the same file, so that its sha256 can be compared."""
    net = PriorNet(Architecture((8, 8)))
    identities = {
        sha256_of(save_weights(net, tmp_path, name="tiny", version="7", training={}).read_bytes()) for _ in range(20)
    }
    assert len(identities) == 1


def test_an_untrained_network_is_already_sane(tiny, counts):
    """The laws come from the Gamma posterior, not from the weights."""
    result = Denoiser.pretrained(tiny, device="cpu", threads=1)(counts, symmetry="1")
    assert result.intensity.values.sum(dtype=float) == pytest.approx(counts.sum(), rel=0.005)
    assert (result.sigma > 0).all()


def test_shipped_models_load():
    assert "fast" in available()
    for name in available():
        assert load_model(name).name == name


@pytest.mark.parametrize("name", ["nonsense", "fast.pt", "../fast"])
def test_an_unknown_model_is_refused(name):
    with pytest.raises(SymDenoiseError, match=r"model '.*': the package has .*fast.*choose one of these"):
        Denoiser.pretrained(name)


def test_missing_weights_are_refused(tmp_path, tiny):
    with pytest.raises(SymDenoiseError, match="cannot be read"):
        load_model(tmp_path / "none.safetensors")
    tiny.with_suffix(".json").unlink()
    with pytest.raises(SymDenoiseError, match="cannot be read"):
        load_model(tiny)


@pytest.mark.parametrize("position", [0, 0.3, 0.999])
def test_damaged_weights_are_refused(tiny, position):
    content = bytearray(tiny.read_bytes())
    content[int(position * len(content))] ^= 1
    tiny.write_bytes(content)
    with pytest.raises(SymDenoiseError, match=r"with sha256 .*tiny\.json records .*damaged or was replaced"):
        load_model(tiny)


def other_architecture():
    return save(PriorNet(Architecture((8, 8))).state_dict(), metadata={"architecture": '{"channels": [8, 16]}'})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"these are no weights, but there are many of them",
        save({"a": torch.zeros(2)}),
        save({"a": torch.zeros(2)}, metadata={"architecture": '{"channels": [8, 8]}'}),
        save({"a": torch.zeros(2)}, metadata={"architecture": "{}"}),
        other_architecture(),
        save({"a": torch.zeros(2)}, metadata={"architecture": "none"}),
    ],
    ids=["empty", "text", "no header", "other tensors", "no channels", "other architecture", "no JSON"],
)
def test_a_file_that_is_no_model_is_refused(tiny, content):
    """Although its sha256 is the recorded one."""
    tiny.write_bytes(content)
    record = json.loads(tiny.with_suffix(".json").read_text()) | {"sha256": sha256_of(content)}
    tiny.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(SymDenoiseError, match="is not a model of this package"):
        load_model(tiny)


def test_a_record_without_a_sha256_is_refused(tiny):
    tiny.with_suffix(".json").write_text("{}")
    with pytest.raises(SymDenoiseError):
        load_model(tiny)


def test_masks_and_exposures_say_the_same(denoiser, counts):
    """An exposure of 0 is a mask."""
    mask = np.zeros(SHAPE, bool)
    mask[20:30, 40:90] = True
    masked = denoiser(counts, mask=mask, symmetry="2", beam_center=CENTER)
    xr.testing.assert_equal(denoiser(counts, exposure=1.0 - mask, symmetry="2", beam_center=CENTER), masked)
    assert masked.intensity.isnull().sum() < mask.sum()
