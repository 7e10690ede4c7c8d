"""The bench of rings: its truth is true, and its savings are what they are called."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_symdenoise.analysis.estimate import Observed, from_counts, from_likelihood
from bluesky_symdenoise.bench import science
from bluesky_symdenoise.bench.patterns import QUANTITIES, Pattern, measured, simulated

FIT, SAMPLE = simulated()


def curves(factors: dict[str, float]) -> list[science.Result]:
    """Rows of methods whose error falls as 1/sqrt(exposure), that of each at so many times the exposure of raw."""
    return [
        {"pattern": "p", "quantity": "orientation", "level": level, "method": method}
        | {"rms": (level * factor) ** -0.5, "determined": 20, "chi2": 1.0}
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
        # Gaps let harmonics into the moment that it does not fit, and texture into the profile's area.
        tolerance = 0.02 if pattern is FIT else 0.2 if name == "peak_area" else 0.05
        assert values[name][0] == pytest.approx(truth[name], rel=tolerance), name
    # Control: the truth of another frame is another.
    assert abs(other["orientation"] - truth["orientation"]) > 1


def test_exposure_saved_is_the_ratio_at_equal_error() -> None:
    rows = curves({science.RAW: 1.0, science.PLAIN: 1.0, science.OURS: 2.0, science.FIT: 4.0})
    for row in science._with_savings(rows):
        factor = {science.RAW: 1.0, science.PLAIN: 1.0, science.OURS: 2.0, science.FIT: 4.0}[str(row["method"])]
        assert row["saved_against_raw"] == pytest.approx(factor)
        assert row["saved_against_fit"] == pytest.approx(factor / 4)


@pytest.mark.parametrize(
    ("ours", "fit", "said"),
    [
        (2.0, 1.0, "gains exposure over the same"),
        (1.0, 1.05, "gains nothing over"),
        (1.0, 4.0, "loses to the likelihood fit"),
    ],
)
def test_what_denoising_does_not_gain_is_said_plainly(ours: float, fit: float, said: str) -> None:
    rows = science._with_savings(curves({science.RAW: 1.0, science.PLAIN: 1.0, science.OURS: ours, science.FIT: fit}))
    lines = science.verdicts(rows)
    assert any(said in line for line in lines)
    assert lines[-1] == "SMAE: not measured"
    assert "too few frames" in lines[1]


def test_runs_and_shows_a_table() -> None:
    results = science.run([FIT], levels=(1.0, 4.0), frames=2, replicates=2)
    assert {row["method"] for row in results} == set(science.METHODS)
    assert all(row["rms"] is None for row in results)  # Two frames make no figure.
    assert science.report(results, FIT.name).row_count == len(QUANTITIES) * 2


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
