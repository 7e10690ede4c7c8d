"""The benchmark of features finds the known faults of simple methods."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from scipy.stats import gamma

from bluesky_symdenoise.bench.measured.page import texts
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.bench.truth import calibration, features
from bluesky_symdenoise.bench.truth.features import SIDE, amplitude, outside, spot
from bluesky_symdenoise.bench.truth.honesty import main, tables
from bluesky_symdenoise.physics.mates import mate
from bluesky_symdenoise.physics.symmetry import Symmetry


class Method:
    """What a denoiser gives: an image of the counts, and its sigma."""

    def __init__(self, of, widen=1.0):
        self.of, self.widen = of, widen

    def __call__(self, counts, symmetry):
        mean = self.of(np.asarray(counts, float), symmetry)
        return xr.Dataset({"intensity": (("y", "x"), mean), "sigma": (("y", "x"), self.widen * np.sqrt(mean + 0.5))})


RAW = Method(lambda counts, symmetry: counts)


def fold(counts, symmetry):
    if symmetry in ("1", Symmetry()):
        return counts
    return np.mean([counts, *(mate(counts, each, symmetry.beam_center) for each in symmetry.operations)], axis=0)


def test_a_spot_adds_up_to_one_wherever_it_is():
    for center in ((128.0, 128.0), (100.3, 77.8)):
        for width in features.WIDTHS:
            assert spot(center, width).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("width", features.WIDTHS)
def test_the_significance_is_that_of_the_matched_filter(width):
    """Drawn frames: the filter sum of w counts, w = Ap / (b + Ap), is so many of its standard deviations from zero."""
    rng = np.random.default_rng(0)
    rate = np.full((SIDE, SIDE), 0.7)
    p = spot((60.2, 60.7), width)
    a = amplitude(5.0, p, rate)
    weight = a * p / (rate + a * p)
    drawn = [np.sum(weight * (rng.poisson(rate + a * p) - rate)) for _ in range(400)]
    assert np.mean(drawn) / np.std(drawn) == pytest.approx(5.0, rel=0.15)


def test_counts_as_they_are_keep_every_spot_and_copy_none():
    found = list(features.symmetric(RAW, np.random.default_rng(0), frames=2))
    assert all(row["kept"] == pytest.approx(1) and row["copied"] == 0 for row in found)


def test_a_blind_fold_copies_half_of_a_spot():
    found = list(features.symmetric(Method(fold), np.random.default_rng(0), frames=2))
    assert all(
        row["kept"] == pytest.approx(0.5, abs=0.02) and row["copied"] == pytest.approx(0.5, abs=0.02) for row in found
    )


def test_noise_counts_as_false_features():
    """Raw counts: a percent of the pixels is two sigma up by chance, and a wide sigma hides that."""
    by_chance = next(row for row in features.made_up(RAW, np.random.default_rng(0), frames=1) if row["level"] == 10)
    hidden = next(
        row for row in features.made_up(Method(RAW.of, 3.0), np.random.default_rng(0), frames=1) if row["level"] == 10
    )
    assert by_chance["per_megapixel"]["2.0"] > 300
    assert hidden["per_megapixel"]["2.0"] == 0
    assert list(by_chance["per_megapixel"].values()) == sorted(by_chance["per_megapixel"].values(), reverse=True)


def test_a_true_posterior_holds_the_rate_as_often_as_it_says():
    rng = np.random.default_rng(1)
    shape, scale = 3.0, 0.4
    rate = gamma.rvs(shape, scale=scale, size=(200, 200), random_state=rng)
    counts = rng.poisson(rate)
    a, b = shape + counts, 1 / scale + 1
    for share in (0.68, 0.95):
        assert 1 - outside(a / b, np.sqrt(a) / b, rate, share) == pytest.approx(share, abs=0.01)
        assert 1 - outside(a / b, np.sqrt(a) / b / 2, rate, share) < share - 0.1


def test_counts_as_they_are_have_no_bias_in_sums_and_peaks():
    rng = np.random.default_rng(2)
    for row in calibration.sums(RAW, rng, frames=3):
        assert row["worst_in_sigma"] < 4
    for row in calibration.peaks(RAW, rng, frames=6):
        assert row["level"] < 1 or abs(row["bias"]) < 4 * row["sigma"]


def test_a_blur_widens_peaks():
    from scipy.ndimage import gaussian_filter

    blurred = Method(lambda counts, symmetry: gaussian_filter(counts, 2.0))
    found = [row for row in calibration.peaks(blurred, np.random.default_rng(3), frames=2) if row["level"] == 100]
    width = next(row for row in found if row["quantity"] == "width")
    assert width["bias"] == pytest.approx(np.hypot(3, 2) / 3 - 1, abs=0.03)


def test_all_tables_can_be_made(tmp_path, monkeypatch):
    for name in ("LEVELS",):
        monkeypatch.setattr(features, name, (1.0,))
        monkeypatch.setattr(calibration, name, (1.0,))
    monkeypatch.setattr(features, "WIDTHS", (2.0,))
    results = main(json_path=tmp_path / "found.json", frames=2)
    assert len(tables(results)) == 7
    shown = texts(
        json.loads((tmp_path / "found.json").read_text())
        | {"header": header() | {"command": "symdenoise bench features"}}
    )
    assert "| counts left of a spot of 5 sigma" in shown["table"]
    assert "checked" in shown["arcs"]
    spots = {row["significance"]: row for row in results if row["what"] == "spot"}
    assert spots[20.0]["kept"] > spots[1.0]["kept"]
