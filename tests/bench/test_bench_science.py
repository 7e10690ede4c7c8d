"""The bench of measured quantities: its truth and its exposure savings are correct."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_symdenoise.analysis.estimate import Observed, from_counts, from_likelihood
from bluesky_symdenoise.bench.simulated.patterns import QUANTITIES, Pattern, measured, simulated
from bluesky_symdenoise.bench.simulated.powders import LATTICE, POLARISATION, Powder, R, powders
from bluesky_symdenoise.bench.truth import few, pdf, science
from bluesky_symdenoise.bench.truth.savings import FIT as LIKELIHOOD
from bluesky_symdenoise.bench.truth.savings import OURS, PLAIN, RAW, summary, verdict, with_savings
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.training.smae import Budget

FIT, SAMPLE = simulated()


def curves(factors: dict[str, float]) -> list[science.Result]:
    """Rows of methods whose error falls as 1/sqrt(exposure), that of each at so many times the exposure of raw."""
    return [
        {"pattern": "p", "quantity": "orientation", "level": level, "method": method}
        | {"rms": (level * factor) ** -0.5, "determined": 20, "chi2": 1.0, "chi2_error": 0.1}
        for level in science.LEVELS
        for method, factor in factors.items()
    ]


@pytest.mark.parametrize("pattern", [FIT, SAMPLE], ids=lambda pattern: pattern.name)
def test_truth_is_what_many_counts_say(pattern: Pattern) -> None:
    counts, truth = pattern.draw(np.random.default_rng(1), 3000.0)
    _, other = pattern.draw(np.random.default_rng(2), 3000.0)
    estimator = from_likelihood if pattern is FIT else from_counts
    found = estimator(pattern.annulus, Observed(counts, pattern.exposure, np.zeros_like(counts)))
    values = found.quantities(inner=pattern.inner, outer=pattern.outer)
    for name in QUANTITIES:
        # Gaps let harmonics into the moment that it does not fit.
        tolerance = 0.02 if pattern is FIT else 0.05
        assert values[name][0] == pytest.approx(truth[name], rel=tolerance), name
    # Control: the truth of another frame is another.
    assert abs(other["orientation"] - truth["orientation"]) > 1


def test_exposure_saved_is_the_ratio_at_equal_error() -> None:
    factors = {RAW: 1.0, PLAIN: 1.0, OURS: 2.0, LIKELIHOOD: 4.0}
    for row in with_savings(curves(factors)):
        factor = factors[str(row["method"])]
        assert row["saved_against_raw"] == pytest.approx(factor)
        assert row["saved_against_fit"] == pytest.approx(factor / 4)


@pytest.mark.parametrize(
    ("ours", "fit", "against_raw", "against_fit"),
    [(2.0, 1.0, "gains", "gains"), (1.0, 1.05, "gains nothing", "gains nothing"), (1.0, 4.0, "gains nothing", "loses")],
)
def test_losses_from_denoising_are_reported(ours: float, fit: float, against_raw: str, against_fit: str) -> None:
    (found,) = summary(with_savings(curves({RAW: 1.0, PLAIN: 9.0, OURS: ours, LIKELIHOOD: fit})))
    assert verdict(found["saved_against_raw"]) == against_raw
    assert verdict(found["saved_against_fit"]) == against_fit
    assert found[f"chi2_{OURS}"] == pytest.approx(1.0)
    # Of six exposures together.
    assert found[f"chi2_error_{OURS}"] == pytest.approx(0.1 / 6**0.5)


def test_runs_and_shows_a_table(denoiser: Denoiser) -> None:
    results = science.run([FIT], denoiser, levels=(1.0, 4.0), frames=2, replicates=2)
    assert {row["method"] for row in results} == set(science.METHODS)
    assert all(row["rms"] is None for row in results)  # Two frames make no figure.
    assert science.report(results, FIT.name).row_count == len(QUANTITIES) * 2
    assert {verdict(row["saved_against_raw"]) for row in summary(results)} == {"not compared"}


@pytest.mark.train
def test_smae_is_compared_on_few_frames(denoiser: Denoiser) -> None:
    results = few.run(SAMPLE, denoiser, frames=1, levels=(5.0,), replicates=2, budget=Budget(steps=2, channels=(4, 4)))
    assert {row["method"] for row in results} == {*science.METHODS, few.SMAE}
    assert few.report(results).row_count == len(QUANTITIES)
    assert few.run(SAMPLE, denoiser, frames=0) == []


@pytest.mark.parametrize("powder", powders(), ids=lambda powder: powder.name)
def test_pair_distribution_has_the_distances_of_the_atoms(powder: Powder) -> None:
    found = powder.pair_distribution(powder.rate)
    assert R[np.argmax(found)] == pytest.approx(LATTICE / 2**0.5, abs=0.05)
    # No two atoms are nearer than neighbours: what is there is the line of the mean density.
    assert (found[R < 2] < 0).all()
    # The fifth shell is there in the crystal and lost in the glass.
    shell = np.abs(R - LATTICE * 2.5**0.5) < 0.15
    assert (found[shell].max() > 2) == (powder.name == "nanocrystal")
    # Control: exposure is no structure, and the polarisation is taken out.
    np.testing.assert_allclose(powder.pair_distribution(7 * powder.rate), found, atol=1e-5)
    flat = powder.rate / powder.geometry.polarization(powder.rate.shape, POLARISATION)
    assert np.abs(powder.pair_distribution(flat) - found).max() > 0.01


def test_errors_of_pair_distributions_fall_with_exposure(denoiser: Denoiser) -> None:
    results = pdf.run(powders()[1:], denoiser, levels=(1.0, 100.0), frames=1)
    errors = [row["rms_whole"] for row in results if row["method"] == RAW]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert pdf.report(results).row_count == 2
    assert [row["saved_against_raw"] for row in results if row["method"] == RAW] == pytest.approx([1, 1])


def test_ring_of_an_image_is_found_and_thinned(tmp_path: Path) -> None:
    """And one with too few counts to know the truth of, or without a beam centre, is left out."""
    y, x = np.mgrid[:160, :150] - np.array([80.0, 70.0])[:, None, None]
    texture = 1 + 0.8 * np.cos(2 * (np.arctan2(y, x) - 0.7))
    rate = 20 + 60 * texture * np.exp(-((np.hypot(y, x) - 40) ** 2) / 18)
    rng = np.random.default_rng(0)
    sets = {"bright": (rate, {"beam_center": (80.0, 70.0)}), "dim": (rate / 50, {"beam_center": (80.0, 70.0)})}
    for name, (mean, attributes) in (sets | {"lost": (rate, {})}).items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["counts"], file["mask"] = rng.poisson(mean, (1, 160, 150)), np.zeros((160, 150), bool)
            file.attrs.update({"role": "test", "noise": "counting", "symmetry": "2", "notes": ""} | attributes)
    (pattern,) = measured(tmp_path)
    assert pattern.name == "bright"
    counts, truth = pattern.draw(rng, 2.0)
    annulus = pattern.annulus
    assert annulus.of(counts).sum() / annulus.of(pattern.exposure).sum() == pytest.approx(2, rel=0.05)
    assert truth["orientation"] == pytest.approx(np.rad2deg(0.7), abs=2)
    assert truth["peak_position"] == pytest.approx(40, abs=0.3)
