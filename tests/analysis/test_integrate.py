"""Profiles of denoised frames have correct errors; those for independent pixels are too small."""

from __future__ import annotations

import numpy as np
import pytest
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from bluesky_symdenoise.analysis.integrate import integrate
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError

SHAPE, CENTER, BINS = (128, 128), (63.5, 63.5), 24


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser.pretrained(device="cpu", threads=1)


@pytest.fixture(scope="module")
def integrator():
    """A millimetre a pixel, one metre away."""
    pixel = 1e-3
    return AzimuthalIntegrator(
        dist=1.0,
        poni1=(CENTER[0] + 0.5) * pixel,
        poni2=(CENTER[1] + 0.5) * pixel,
        detector=Detector(pixel1=pixel, pixel2=pixel, max_shape=SHAPE),
    )


@pytest.fixture(scope="module")
def rate():
    y, x = np.indices(SHAPE)
    radius = np.hypot(y - CENTER[0], x - CENTER[1])
    return 0.3 + 2 * np.exp(-(((radius - 30) / 3) ** 2) / 2) + 1.5 * np.exp(-(radius**2) / 200)


@pytest.fixture(scope="module")
def profiles(denoiser, integrator, rate):
    """Of frames that differ by their noise alone."""
    return [
        integrate(
            denoiser,
            np.random.default_rng(seed).poisson(rate),
            integrator,
            bins=BINS,
            unit="r_mm",
            symmetry="2",
            beam_center=CENTER,
            replicates=16,
            seed=seed,
        )
        for seed in range(12)
    ]


def expected(integrator, rate):
    return integrator.integrate1d_ng(rate, BINS, unit="r_mm", method=("no", "histogram", "cython")).intensity


def chi_squared(profiles, truth, sigma):
    return np.mean([((one.intensity - truth) / one[sigma]).values ** 2 for one in profiles])


def test_stated_errors_match_the_actual_ones(profiles, integrator, rate):
    assert 0.6 < chi_squared(profiles, expected(integrator, rate), "sigma") < 1.6


def test_errors_for_independent_pixels_are_too_small(profiles, integrator, rate):
    holds = chi_squared(profiles, expected(integrator, rate), "sigma")
    assert chi_squared(profiles, expected(integrator, rate), "sigma_independent") / holds > 9


def test_a_sum_of_bins_has_the_error_given_by_the_covariance(profiles, integrator, rate):
    weight = integrator.integrate1d_ng(rate, BINS, unit="r_mm", method=("no", "histogram", "cython")).count
    truth = weight @ expected(integrator, rate)
    pull = [
        (weight @ one.intensity.values - truth) / np.sqrt(weight @ one.covariance.values @ weight) for one in profiles
    ]
    assert 0.3 < np.mean(np.square(pull)) < 2.5


def test_errors_are_those_of_the_replicates(profiles):
    one = profiles[0]
    np.testing.assert_allclose(one.sigma, np.sqrt(((one.replicates - one.intensity) ** 2).mean("replicate")))
    np.testing.assert_allclose(np.diag(one.covariance), one.sigma**2)
    np.testing.assert_allclose(one.sigma**2, one.replicates.var("replicate") + one.bias**2)
    assert one.radial.attrs["units"] == "r_mm"


def test_the_same_seed_gives_the_same(denoiser, integrator, rate):
    counts = np.random.default_rng(3).poisson(rate)
    first, second = (
        integrate(denoiser, counts, integrator, bins=8, unit="r_mm", symmetry="1", replicates=2) for _ in range(2)
    )
    assert first.identical(second)


def test_masked_pixels_take_no_part(denoiser, integrator, rate):
    counts = np.random.default_rng(3).poisson(rate).astype(np.uint16)
    counts[60:70] = 65535
    result = integrate(denoiser, counts, integrator, bins=8, unit="r_mm", symmetry="1", replicates=2)
    np.testing.assert_allclose(result.intensity, expected_of(rate, counts, integrator), rtol=0.15)


def expected_of(rate, counts, integrator):
    method = ("no", "histogram", "cython")
    return integrator.integrate1d_ng(rate, 8, unit="r_mm", mask=counts == 65535, method=method).intensity


def test_a_sector_and_empty_bins(denoiser, integrator, rate):
    counts = np.random.default_rng(3).poisson(rate)
    mask = np.hypot(*(np.indices(SHAPE) - 63.5)) < 20
    sector = integrate(
        denoiser,
        counts,
        integrator,
        bins=30,
        unit="r_mm",
        azimuth_range=(0, 90),
        mask=mask,
        symmetry="1",
        replicates=2,
    )
    np.testing.assert_array_equal(sector.intensity.isnull(), sector.sigma.isnull())


def test_the_exposure_divides_the_sums(denoiser, integrator, rate):
    counts = np.random.default_rng(3).poisson(rate)
    once, twice = (
        integrate(
            denoiser, counts, integrator, bins=8, unit="r_mm", exposure=exposure, symmetry="1", replicates=2
        ).intensity
        for exposure in (1.0, 2.0)
    )
    np.testing.assert_allclose(once, 2 * twice, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"replicates": 1}, "a standard deviation needs at least two"), ({"counts": np.ones((2, 9, 9))}, "one frame")],
)
def test_what_cannot_be_integrated_is_refused(denoiser, integrator, changed, said):
    given = {"counts": np.ones(SHAPE), "replicates": 2} | changed
    with pytest.raises(SymDenoiseError, match=said):
        integrate(denoiser, given.pop("counts"), integrator, bins=8, symmetry="1", **given)


def test_q_without_a_wavelength_is_refused(denoiser, integrator):
    with pytest.raises(SymDenoiseError, match="wavelength"):
        integrate(denoiser, np.ones(SHAPE), integrator, bins=8, symmetry="1", replicates=2)
