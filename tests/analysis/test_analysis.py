"""Orientation, anisotropy and peaks of a ring are right on average, with correct errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from arrays import frozen

from bluesky_symdenoise.analysis.annulus import Annulus
from bluesky_symdenoise.analysis.estimate import Observed, from_counts, from_denoised, from_likelihood
from bluesky_symdenoise.analysis.likelihood import peak_model, ring_model
from bluesky_symdenoise.analysis.moment import second_moment
from bluesky_symdenoise.analysis.ring import QUANTITIES, Ring, rings_from_texts
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import Recipe

SHAPE = (80, 80)
CENTER = (39.5, 40.0)
INNER, OUTER = 14.0, 34.0
FWHM = 2 * np.sqrt(2 * np.log(2))
#: Of the ring that is simulated.
POSITION, WIDTH, DIRECTION, STRENGTH = 24.0, 2.5, 30.0, 0.8


def ring(level: float = 1.0, strength: float = STRENGTH) -> np.ndarray:
    """Rate of a textured ring on a power law, (y, x)."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    radius, azimuth = np.hypot(y - CENTER[0], x - CENTER[1]), np.arctan2(y - CENTER[0], x - CENTER[1])
    angle = np.deg2rad(DIRECTION)
    parameters = np.array([1.0, -0.4, 15.0, POSITION, np.log(WIDTH), 0.0])
    texture = strength * np.array([np.cos(2 * angle), np.sin(2 * angle)])
    rate, _ = ring_model(radius.ravel(), azimuth.ravel(), 24.0)(np.concatenate([parameters, texture]))
    return frozen(level * rate.reshape(SHAPE))


def gaps() -> np.ndarray:
    """Relative exposure with two module gaps and a gradient."""
    exposure = np.ones(SHAPE) * np.linspace(0.8, 1.2, SHAPE[1])
    exposure[30:35] = 0
    exposure[:, 60:63] = 0
    return frozen(exposure)


def annulus() -> Annulus:
    return Annulus.about(CENTER, SHAPE, inner=INNER, outer=OUTER)


def seen(rate: np.ndarray, rng: np.random.Generator | None = None, background: float = 0.0) -> Observed:
    expected = rate * gaps() + background * (gaps() > 0)
    counts = expected if rng is None else rng.poisson(expected).astype(float)
    return Observed(frozen(counts), gaps(), frozen(np.full(SHAPE, background)))


def truth(level: float = 1.0, strength: float = STRENGTH) -> dict[str, float]:
    g = second_moment(annulus(), annulus().of(ring(level, strength)), np.ones(annulus().radius.shape))
    assert g is not None
    return {
        "orientation": DIRECTION,
        "anisotropy": abs(g.value),
        "peak_position": POSITION,
        "peak_width": FWHM * WIDTH,
        "peak_area": 15.0 * level,
    }


def pulls(estimator, level: float, frames: int, background: float = 0.0) -> dict[str, np.ndarray]:
    """(value - truth) / sigma of many frames, by quantity."""
    rng = np.random.default_rng(11)
    rate, right = ring(level), truth(level)
    found: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for _ in range(frames):
        values = estimator(annulus(), seen(rate, rng, background)).quantities(inner=INNER, outer=OUTER)
        for name, (value, sigma) in values.items():
            away = value - right[name]
            found[name].append(((away + 90) % 180 - 90 if name == "orientation" else away) / sigma)
    return {name: np.array(column) for name, column in found.items()}


class TestWithoutNoise:
    """Without noise, the true values are returned."""

    @pytest.mark.parametrize("estimator", [from_counts, from_likelihood])
    @pytest.mark.parametrize("background", [0.0, 0.7])
    def test_quantities_of_the_rate_are_the_true_ones(self, estimator, background: float) -> None:
        values = estimator(annulus(), seen(ring(5.0), background=background)).quantities(inner=INNER, outer=OUTER)
        for name, right in truth(5.0).items():
            # Where a pixel and its mate lie in gaps, the radial profile of raw counts does not know the texture.
            tolerance = 0.05 if estimator is from_counts and name.startswith("peak") else 0.01
            assert values[name][0] == pytest.approx(right, rel=tolerance), name

    def test_turned_frame_has_a_turned_orientation(self) -> None:
        """By a quarter turn; and the reverse about a mirror: a wrong sense of rotation would show."""
        square = Annulus.about((39.5, 39.5), SHAPE, inner=INNER, outer=OUTER)

        def angle(image: np.ndarray) -> float:
            found = second_moment(square, square.of(image), np.ones(square.radius.shape))
            assert found is not None
            return float(np.rad2deg(np.angle(found.value)) / 2 % 180)

        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] - 39.5
        image = 2 + np.cos(2 * (np.arctan2(y, x) - np.deg2rad(20)))
        assert angle(image) == pytest.approx(20, abs=0.1)
        assert angle(np.rot90(image)) == pytest.approx(110, abs=0.1)
        assert angle(image[::-1]) == pytest.approx(160, abs=0.1)

    def test_counts_scale_with_exposure_only(self) -> None:
        one = from_likelihood(annulus(), seen(ring(5.0)))
        observed = seen(ring(5.0))
        other = from_likelihood(annulus(), replace(observed, counts=2 * observed.counts))
        np.testing.assert_allclose(other.values[:2], one.values[:2], atol=1e-4)
        assert other.values[4] == pytest.approx(2 * one.values[4], rel=1e-4)

    @pytest.mark.parametrize("lost", ["gap", "edge"])
    def test_gaps_in_a_texture_leave_no_bias_where_mates_were_seen(self, lost: str) -> None:
        """Nor does the edge of the detector, beyond which the texture's strong side lies."""
        rate, everything = annulus().of(ring()), np.ones_like(annulus().radius)
        assert (annulus().balance(everything) == 1).mean() > 0.97
        true = np.average(rate)
        if lost == "gap":
            n = np.where(np.abs(annulus().azimuth - np.deg2rad(DIRECTION)) < 0.3, 0.0, everything)
            balanced, plain = n * annulus().balance(n), n
        else:
            beyond = int(CENTER[1] + 16)
            cut = Annulus.about(CENTER, (SHAPE[0], beyond), inner=INNER, outer=OUTER)
            rate, plain = cut.of(ring()[:, :beyond]), np.ones_like(cut.radius)
            balanced = cut.balance(plain)
        assert np.average(rate, weights=balanced) == pytest.approx(true, rel=0.01)
        # Control: what is left is not what was there.
        assert abs(np.average(rate, weights=plain) / true - 1) > 0.02

    @pytest.mark.parametrize("model", ["peak", "ring"])
    def test_derivatives_are_those_of_the_model(self, model: str) -> None:
        radius, azimuth = np.linspace(14, 34, 50), np.linspace(0, 6, 50)
        of = peak_model(radius, 24.0, blur=0.3) if model == "peak" else ring_model(radius, azimuth, 24.0)
        at = np.array([1.0, 0.02, 8.0, 23.0, 1.1, 0.6, 0.4, -0.3][: 6 if model == "peak" else 8])
        _, derivatives = of(at)
        for index in range(len(at)):
            step = np.zeros_like(at)
            step[index] = 1e-5
            numeric = (of(at + step)[0] - of(at - step)[0]) / 2e-5
            np.testing.assert_allclose(derivatives[index], numeric, atol=1e-6)


class TestErrors:
    """Reduced chi-squared of the stated errors is 1 within its statistical error."""

    @pytest.mark.parametrize("level", [0.2, 2.0])
    def test_errors_of_the_likelihood_fit_are_as_stated(self, level: float) -> None:
        for name, column in pulls(from_likelihood, level, 150).items():
            determined = column[np.isfinite(column)]
            assert len(determined) > 100, name
            assert 0.65 < np.mean(determined**2) < 1.45, name

    def test_errors_of_estimates_from_counts_are_as_stated(self) -> None:
        found = pulls(from_counts, 1.0, 150, background=0.5)
        for name in QUANTITIES:
            assert 0.65 < np.mean(found[name] ** 2) < 1.45, name
            # Control: errors of a third of the variance would not pass.
            assert np.mean(found[name] ** 2 * 3) > 1.45, name

    def test_anisotropy_is_unbiased_where_noise_lengthens_the_moment(self) -> None:
        rng = np.random.default_rng(4)
        rate, right = ring(0.04), truth(0.04)["anisotropy"]
        estimates = [from_counts(annulus(), seen(rate, rng)) for _ in range(300)]
        squares = [abs(complex(*each.values[:2])) ** 2 for each in estimates]
        noise = [np.trace(each.covariance[:2, :2]) for each in estimates]
        # The plain square is too large by the noise, and the difference is what was subtracted.
        assert np.mean(squares) > 1.15 * right**2
        assert np.mean(squares) - np.mean(noise) == pytest.approx(right**2, rel=0.15)

    @pytest.mark.parametrize("estimator", [from_counts, from_likelihood])
    def test_isotropic_frame_has_no_orientation(self, estimator) -> None:
        rng = np.random.default_rng(5)
        found = [
            estimator(annulus(), seen(ring(0.5, 0.0), rng)).quantities(inner=INNER, outer=OUTER) for _ in range(100)
        ]
        assert sum(np.isfinite(each["orientation"][0]) for each in found) <= 2
        assert all(np.isfinite(each["peak_position"][0]) for each in found)

    @pytest.mark.parametrize("estimator", [from_counts, from_likelihood])
    @pytest.mark.parametrize("rate", [0.0, 0.3])
    def test_frame_without_a_ring_has_no_peak(self, estimator, rate: float) -> None:
        rng = np.random.default_rng(6)
        flat = frozen(np.full(SHAPE, rate))
        found = [estimator(annulus(), seen(flat, rng)).quantities(inner=INNER, outer=OUTER) for _ in range(40)]
        assert sum(np.isfinite(each["peak_position"][0]) for each in found) <= 2
        assert sum(np.isfinite(each["anisotropy"][0]) for each in found) <= 1


def test_fit_gives_nothing_where_counts_refute_its_form() -> None:
    """A ring of four arcs, which no twofold texture describes; control: a ring of the assumed form has a result."""
    rng = np.random.default_rng(12)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    four = 1 + 0.9 * np.cos(4 * np.arctan2(y - CENTER[0], x - CENTER[1]))
    arcs = from_likelihood(annulus(), seen(frozen(ring(5.0) * four), rng))
    assert np.isnan(arcs.values).all()
    assert sum(np.isfinite(from_likelihood(annulus(), seen(ring(5.0), rng)).values[0]) for _ in range(20)) >= 19


def shrinking(counts: np.ndarray) -> np.ndarray:
    """A stand-in for a denoiser that draws everything a third of the way to the mean."""
    known = gaps() > 0
    mean = counts[known].mean()
    return np.where(known, counts + (mean * gaps() / gaps()[known].mean() - counts) / 3, np.nan)


class TestDenoised:
    """Errors and bias of a denoised frame, by replicates."""

    def test_bias_of_the_denoiser_is_found_and_subtracted(self) -> None:
        rng, level = np.random.default_rng(7), 4.0
        observed = seen(ring(level), rng)
        intensity = shrinking(observed.counts)
        plain = from_counts(annulus(), replace(observed, counts=np.nan_to_num(intensity)))
        right = plain.values[4] * 1.5
        better = from_denoised(annulus(), intensity, observed, shrinking, replicates=16, rng=rng)
        assert abs(plain.values[4] - right) > abs(better.values[4] - right)
        assert np.sqrt(better.covariance[4, 4]) > 0.4 * abs(better.values[4] - right)

    def test_a_denoiser_that_does_nothing_has_the_errors_of_counts(self) -> None:
        rng = np.random.default_rng(8)
        observed = seen(ring(2.0), rng)

        def same(counts: np.ndarray) -> np.ndarray:
            return np.where(gaps() > 0, counts, np.nan)

        found = from_denoised(annulus(), same(observed.counts), observed, same, replicates=60, rng=rng)
        exact = from_counts(annulus(), observed)
        np.testing.assert_allclose(
            np.diag(found.covariance)[:2] ** 0.5, np.diag(exact.covariance)[:2] ** 0.5, rtol=0.25
        )

    def test_same_frame_gives_the_same_numbers(self) -> None:
        observed = seen(ring(2.0), np.random.default_rng(9))
        asked = Ring(INNER, OUTER, estimator="denoised", replicates=4)
        first, again = (
            asked.scalars(observed, shrinking(observed.counts), beam_center=CENTER, denoise=shrinking) for _ in range(2)
        )
        assert first == again
        other = replace(observed, counts=seen(ring(2.0), np.random.default_rng(10)).counts)
        assert asked.scalars(other, shrinking(other.counts), beam_center=CENTER, denoise=shrinking) != first


class TestRing:
    """The value that recipes hold."""

    def test_goes_through_a_recipe_and_changes_its_hash(self) -> None:
        rings = (Ring(10, 20), Ring(20, 30.5, "likelihood", name="second", beam_center=(1, 2)))
        plain = Recipe(model_sha256="0", algorithm="1")
        recipe = replace(plain, analysis=tuple(each.to_text() for each in rings))
        stored = Recipe.from_dict(recipe.to_dict())
        assert stored == recipe
        assert stored.analysis is not None
        assert rings_from_texts(stored.analysis) == rings
        assert recipe.sha256 != plain.sha256
        assert "analysis" not in plain.to_dict()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"inner": 20, "outer": 10},
            {"inner": -1, "outer": 10},
            {"inner": 1, "outer": float("inf")},
            {"inner": 1, "outer": 2, "estimator": "guess"},
            {"inner": 1, "outer": 2, "name": "a b"},
            {"inner": 1, "outer": 2, "replicates": 1},
        ],
    )
    def test_invalid_rings_are_refused(self, wrong) -> None:
        with pytest.raises(SymDenoiseError):
            Ring(**wrong)

    def test_off_the_detector(self) -> None:
        with pytest.raises(SymDenoiseError, match="no pixel"):
            Annulus.about(CENTER, SHAPE, inner=500, outer=600)
