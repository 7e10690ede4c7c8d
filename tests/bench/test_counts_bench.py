"""The bench of the test of photon counts: what it draws has the variance that it says, and its figures add up."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from bluesky_symdenoise.bench.measured.page import texts
from bluesky_symdenoise.bench.simulated.detectors import COUNTING, OTHERS, averaged, shared_out
from bluesky_symdenoise.bench.simulated.scenes import SCENES, at_level
from bluesky_symdenoise.bench.truth import counts
from bluesky_symdenoise.bench.truth.counts import judged, main, sigma_error

SHAPE = (256, 272)


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_are_rates_of_the_wanted_mean(scene):
    rate = at_level(SCENES[scene](np.random.default_rng(3), SHAPE), 5.0)
    assert rate.shape == SHAPE
    assert rate.min() >= 0
    assert rate.mean() == pytest.approx(5)


@pytest.mark.parametrize("name", OTHERS)
def test_frames_that_are_no_counts_have_the_stated_mean_and_variance(name):
    """Repeats of one seed of the settings: the first draws are theirs."""
    rate = np.full(SHAPE, 20.0)
    made = OTHERS[name](np.random.default_rng(8), rate)
    inner = (slice(20, -20),) * 2
    excess = (made.frame - made.mean)[inner]
    variance = made.variance[inner].mean()
    assert np.mean(excess**2) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("name", COUNTING)
def test_counting_detectors_keep_the_mean(name):
    frame = COUNTING[name](np.random.default_rng(2), np.full(SHAPE, 20.0))
    good = (frame >= 0) & (frame < 10_000)
    assert frame[good].mean() == pytest.approx(20, rel=0.3 if "corrected" in name else 0.02)


def test_virtual_pixels_share_counts_out():
    frame = np.random.default_rng(2).poisson(5.0, (128, 128))
    out = shared_out(frame, every=64)
    assert out.sum() == frame.sum()
    assert (abs(out[:62, 62] - out[:62, 63]) <= 1).all()


def test_what_a_user_is_told_and_how_far_sigma_is_off():
    rng = np.random.default_rng(4)
    rate = np.full(SHAPE, 30.0)
    assert judged(rng.poisson(rate)) == "silent"
    assert judged(rng.poisson(rate) - 25.5) == "refused", "negative fractions"
    made = averaged(rng, rate, 4)
    assert judged(made.frame) == "refused"
    assert sigma_error(made) == pytest.approx(0.5)


def test_the_bench_runs_without_real_frames_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SYMDENOISE_REAL_DATA", raising=False)
    report = main(tmp_path / "counts.json", None, 20, 1, 0)
    assert "no real frames" in capsys.readouterr().out
    assert sum(row["frames"] for row in report["cases"] if row["part"] == "simulated counts") == 20
    written = json.loads((tmp_path / "counts.json").read_text())
    assert [each["figure"] for each in written["summary"]] == [each["figure"] for each in report["summary"]]
    written["header"]["command"] = "symdenoise bench counts"
    assert "simulated counts that are refused" in texts(written)["summary"]


def test_real_sets_of_counting_detectors_are_used(tmp_path):
    rng = np.random.default_rng(6)
    for name, noise in (("counted", "counting"), ("panel", "integrating")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["counts"], file["mask"] = rng.poisson(20.0, (4, 200, 210)), np.zeros((200, 210), bool)
            file.attrs.update(role="train", noise=noise, symmetry="1")
    found = {tally.case: tally for tally in counts.on_real(tmp_path, frames=2, seed=0)}
    assert found["as measured"].frames == 2
    assert {"thinned to 10 counts/pixel", "virtual pixels", "rates corrected by up to 30 %"} <= set(found)
    assert not any(tally.refused for tally in found.values())
