"""Scores of the benchmark have their stated properties."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from arrays import frozen
from rich.console import Console

from bluesky_symdenoise.bench.quality import filters, metrics, quality, stabilised
from bluesky_symdenoise.bench.quality.cases import Given, cases, pair_statistic, thin
from bluesky_symdenoise.bench.quality.peers import QUICK
from bluesky_symdenoise.bench.quality.report import report, strata_table, summary
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry

SHAPE = (96, 80)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def rate():
    """A smooth pattern of 0.05 to 12 counts per pixel."""
    y, x = np.indices(SHAPE)
    return frozen(0.05 + 12 * np.exp(-((y - 50) ** 2 + (x - 33) ** 2) / 400))


@pytest.fixture
def mask():
    bad = np.zeros(SHAPE, bool)
    bad[40:47] = True
    bad[:, 60] = True
    return frozen(bad)


def stand_in(counts, *, mask, symmetry, beam_center):
    """A denoiser for tests: a local mean, its Poisson error, NaN where masked."""
    mean = np.where(mask, np.nan, filters.gaussian(counts, mask, sigma=2.0))
    return mean.astype(np.float32), np.sqrt(mean / 25).astype(np.float32)


def write_set(path, counts, mask, *, group="/", **attributes):
    with h5py.File(path, "a") as file:
        node = file.require_group(group)
        node["counts"], node["mask"] = counts, mask
        node.attrs.update({"role": "test", "noise": "counting", "symmetry": "1", "notes": ""} | attributes)


@pytest.fixture
def data(tmp_path, rng, rate, mask):
    """Three sets: one repeats its scene with falling exposure and then changes it, one has two groups."""
    scenes = [rate, 0.9 * rate, 0.8 * rate, rate[::-1]]
    repeated = rng.poisson(scenes).astype(np.uint32)
    repeated[:, mask] = 4_000_000_000
    write_set(
        tmp_path / "a.h5",
        repeated,
        mask,
        technique="2 samples x 3 repeated exposures",
        symmetry="inf",
        beam_center=(50.0, 33.0),
    )
    for group in ("shape0", "shape1"):
        write_set(tmp_path / "b.h5", rng.poisson([rate]), mask, group=group, symmetry="m")
    write_set(
        tmp_path / "c.h5",
        rng.poisson([rate, rate]),
        mask,
        role="train",
        notes="points of a scan: not repeats",
        symmetry="2mm",
        beam_center=(50.0, 33.0),
    )
    write_set(tmp_path / "d.h5", rng.poisson([rate]), mask, noise="integrating")
    return tmp_path


# Likelihood


@pytest.mark.parametrize("k", [0.5, 30.0])
def test_the_likelihood_is_best_at_the_truth(rng, rate, mask, k):
    target = frozen(rng.poisson(k * rate))
    truth = metrics.poisson_nll(rate, target, k, mask=mask)
    for wrong in (0.9 * rate, 1.1 * rate, rate + 0.1, np.roll(rate, 2, axis=0)):
        assert metrics.poisson_nll(wrong, target, k, mask=mask) > truth


def test_the_likelihood_is_the_poisson_probability(rng, rate, mask):
    from scipy.stats import poisson

    target = rng.poisson(3 * rate)
    expected = -poisson.logpmf(target, 3 * rate)[~mask].mean()
    assert metrics.poisson_nll(rate, target, 3.0, mask=mask) == pytest.approx(expected, rel=1e-12)


def test_zero_where_a_photon_arrived_is_infinitely_wrong_unless_floored():
    estimate, mask = np.array([[0.0, 1.0]]), np.zeros((1, 2), bool)
    assert metrics.poisson_nll(estimate, np.array([[1, 1]]), 1.0, mask=mask) == np.inf
    assert metrics.poisson_nll(estimate, np.array([[0, 1]]), 1.0, mask=mask) == pytest.approx(0.5)
    assert metrics.poisson_nll(estimate, np.array([[1, 1]]), 1.0, mask=mask, floor=1.0) == pytest.approx(1.0)


def test_best_floor_is_the_best_of_all_floors(rng, rate, mask):
    counts, target = rng.poisson(rate).astype(float), rng.poisson(4 * rate)
    each = [metrics.poisson_nll(counts, target, 4.0, mask=mask, floor=floor) for floor in metrics.FLOORS]
    best = metrics.best_floor_nll(counts, target, 4.0, mask=mask)
    assert best.nll == pytest.approx(min(each), rel=1e-12)
    assert best.floor == metrics.FLOORS[np.argmin(each)]
    assert max(each) > 1.2 * best.nll


def test_nan_at_a_valid_pixel_makes_every_score_nan(rate, mask):
    holed = rate.copy()
    holed[0, 0] = np.nan
    target = np.ones(SHAPE)
    scores = [
        metrics.poisson_nll(holed, target, 1.0, mask=mask, floor=1.0),
        metrics.best_floor_nll(holed, target, 1.0, mask=mask).nll,
        metrics.unbiased_psnr(holed, target, 1.0, mask=mask, peak=1.0).value,
        metrics.flux_error(holed, target, 1.0, mask=mask).value,
        *metrics.coverage(holed, rate, target, 1.0, mask=mask),
    ]
    assert np.isnan(scores).all()


def test_errors_by_stratum_are_one_for_raw_counts_and_zero_for_the_truth(rng, rate):
    """In every stratum, whatever the target's own noise; a wrong rate shows where it is wrong."""
    rate = np.tile(rate * np.geomspace(0.5, 1000, 8).repeat(10)[None, :], (6, 6))
    mask = frozen(rng.uniform(size=rate.shape) < 0.02)
    counts, target = rng.poisson(rate).astype(float), rng.poisson(3 * rate).astype(float)
    raw = metrics.stratified_errors(counts, target, 3.0, mask=mask)
    assert raw == pytest.approx(np.ones(5), abs=0.12)
    truth = metrics.stratified_errors(rate, target, 3.0, mask=mask)
    assert truth == pytest.approx(np.zeros(5), abs=0.06)
    wrong = metrics.stratified_errors(np.where(rate > 30, 1.5, 1.0) * rate, target, 3.0, mask=mask)
    assert wrong[:3] == pytest.approx(truth[:3], abs=1e-6)
    assert wrong[4] > 5
    hidden = metrics.stratified_errors(counts, np.where(mask, 1e9, target), 3.0, mask=mask)
    assert hidden == raw
    assert np.isnan(metrics.stratified_errors(counts, np.zeros(rate.shape), 3.0, mask=mask)).all()


def test_masked_pixels_are_never_scored(rate, mask):
    target = np.ones(SHAPE)
    hidden = np.where(mask, np.nan, rate)
    poisoned = np.where(mask, 1e9, target)
    assert metrics.poisson_nll(hidden, poisoned, 1.0, mask=mask) == metrics.poisson_nll(rate, target, 1.0, mask=mask)


# PSNR and flux


def test_unbiased_psnr_finds_the_error_against_the_truth_from_noisy_targets(rng, rate, mask):
    """Over many targets the mean of the estimated square error is the true one, and its error bar holds."""
    k, estimate, peak = 2.0, 1.15 * rate + 0.02, 12.0
    truth = 10 * np.log10(peak**2 / np.mean((estimate - rate)[~mask] ** 2))
    found = np.array(
        [metrics.unbiased_psnr(estimate, rng.poisson(k * rate), k, mask=mask, peak=peak) for _ in range(200)]
    )
    mse, naive = 10 ** (-found[:, 0] / 10), 0.5 * rate[~mask].mean() / peak**2
    true_mse = 10 ** (-truth / 10)
    error = mse.std() / np.sqrt(len(mse))
    assert abs(mse.mean() - true_mse) < 4 * error
    assert naive > 20 * error  # without the correction for the target's own noise this test would fail
    assert 0.5 < found[:, 0].std() / found[:, 1].mean() < 1.5


def test_psnr_is_undefined_where_the_target_cannot_tell(rng, rate, mask):
    target = rng.poisson(0.5 * rate)
    assert np.isnan(metrics.unbiased_psnr(rate, target, 0.5, mask=mask, peak=1.0)).all()


def test_flux_error_of_an_unbiased_estimate_is_as_large_as_its_standard_error(rng, rate, mask):
    k = 3.0
    found = np.array(
        [metrics.flux_error(rng.poisson(rate), rng.poisson(k * rate), k, mask=mask)[:2] for _ in range(400)]
    )
    pull = found[:, 0] / found[:, 1]
    assert abs(pull.mean()) < 0.2
    assert pull.std() == pytest.approx(1, abs=0.15)
    biased = metrics.flux_error(1.5 * rate, rng.poisson(k * rate), k, mask=mask)
    assert biased.value == pytest.approx(0.5, abs=4 * biased.standard_error)
    assert biased.standard_error == pytest.approx(np.hypot(biased.input_error, biased.target_error))


# Coverage


@pytest.mark.parametrize("k", [1.0, 100.0])
@pytest.mark.parametrize("relative", [0.0, 1e-5, 0.3, 1.5])
def test_intervals_cover_what_they_promise(rng, rate, mask, k, relative):
    """Counts drawn from the predictive distribution, from 0.05 per pixel on: discreteness must not bias."""
    mean = np.tile(rate, (6, 1))
    sigma = relative * mean
    truth = rng.gamma(1 / relative**2, relative**2 * mean) if relative else mean
    target = rng.poisson(k * truth)
    bad = np.tile(mask, (6, 1))
    covered = metrics.coverage(mean, sigma, target, k, mask=bad)
    assert covered == pytest.approx((0.68, 0.95), abs=0.01)
    if relative == 0.3 and k == 100:
        too_sure = metrics.coverage(mean, sigma / 2, target, k, mask=bad)
        assert too_sure[0] < 0.5
        assert too_sure[1] < 0.8


def test_a_predictive_likelihood_is_best_with_the_right_sigma_and_that_of_poisson_without(rng):
    mean = np.full((300, 300), 2.0)
    good = np.zeros(mean.shape, bool)
    target = rng.poisson(50 * rng.gamma(1 / 0.09, 0.09 * mean))
    found = [metrics.predictive_nll(mean, s * mean, target, 50, mask=good) for s in (0.25, 0.3, 0.36, 0.0)]
    assert min(found) == found[1]
    assert found[3] == pytest.approx(metrics.poisson_nll(mean, target, 50, mask=good), rel=1e-4)


def test_deciles_show_where_intervals_are_too_narrow(rng):
    """Right everywhere, then too narrow where there is little: the mean over all hides it, the deciles do not."""
    mean = np.sort(rng.uniform(0.5, 8, (200, 300)), axis=None).reshape(200, 300)
    sigma = 0.3 * mean
    target = rng.poisson(100 * rng.gamma(1 / 0.09, 0.09 * mean))
    good = np.zeros(mean.shape, bool)
    assert metrics.decile_coverage(mean, sigma, target, 100, mask=good) == pytest.approx(
        (0.68, 0.68, 0.95, 0.95), abs=0.02
    )
    narrow = np.where(mean < 1.25, sigma / 3, sigma)
    least, most, _, _ = metrics.decile_coverage(mean, narrow, target, 100, mask=good)
    assert least < 0.4
    assert most == pytest.approx(0.68, abs=0.02)


def test_an_impossible_count_is_not_covered():
    one = np.ones((1, 1))
    for sigma in (0 * one, 0.1 * one):
        assert metrics.coverage(one, sigma, 10_000 * one, 1.0, mask=one < 0) == (0.0, 0.0)


# Peers


def test_gaussian_conserves_flux_and_spreads_a_photon_as_a_gaussian(mask):
    counts = np.zeros(SHAPE)
    counts[70, 25] = 5.0
    smooth = filters.gaussian(counts, mask, sigma=2.0)
    assert smooth.sum() == pytest.approx(5.0, rel=1e-3)
    y, x = np.indices(SHAPE)
    assert np.sum(smooth * ((y - 70) ** 2 + (x - 25) ** 2)) / 5 == pytest.approx(8, rel=0.02)


def test_gaussian_leaves_a_flat_field_flat_up_to_masks_and_edges(mask):
    smooth = filters.gaussian(frozen(np.full(SHAPE, 3.0)), mask, sigma=1.0)
    np.testing.assert_allclose(smooth[~mask], 3.0, rtol=1e-12)


@pytest.mark.parametrize("name", QUICK)
def test_peers_never_read_masked_pixels(rng, rate, mask, name):
    counts = rng.poisson(rate).astype(float)
    symmetry = Symmetry("2", (50.0, 33.0))
    sentinels, clean = (
        QUICK[name].estimate(Given(frozen(np.where(mask, hidden, counts)), mask, symmetry, rings=True))
        for hidden in (4e9, 0.0)
    )
    np.testing.assert_array_equal(sentinels[~mask], clean[~mask])
    assert np.isfinite(clean[~mask]).all()


def test_a_peer_in_the_midst_of_a_wide_gap_still_works(rng):
    mask = np.zeros((64, 256), bool)
    mask[:, 20:236] = True
    counts = rng.poisson(2.0, mask.shape).astype(float)
    assert np.isnan(filters.gaussian(counts, mask, sigma=1.0)[:, 128]).all()
    assert stabilised.nlm(counts, mask)[~mask].mean() == pytest.approx(2.0, rel=0.1)


def test_nlm_denoises_better_than_no_method(rng, rate, mask):
    counts, target = rng.poisson(rate).astype(float), rng.poisson(20 * rate)
    raw, smooth = (
        metrics.unbiased_psnr(estimate, target, 20.0, mask=mask, peak=12.0).value
        for estimate in (counts, stabilised.nlm(counts, mask))
    )
    assert smooth > raw + 5


def test_the_inverse_anscombe_undoes_the_transform_of_the_mean(rng):
    """Applied to E[2 sqrt(y + 3/8)] it gives E[y]; the algebraic inverse is biased at few counts."""
    from scipy.stats import poisson

    y = np.arange(400)
    for mean in (0.1, 1.0, 5.0, 100.0):
        expectation = np.sum(poisson.pmf(y, mean) * stabilised.anscombe(y))
        assert stabilised.unbiased_inverse_anscombe(expectation) == pytest.approx(mean, abs=0.02)
    algebraic = np.sum(poisson.pmf(y, 1.0) * stabilised.anscombe(y)) ** 2 / 4 - 3 / 8
    assert abs(algebraic - 1.0) > 0.1
    assert stabilised.unbiased_inverse_anscombe(np.array([0.0, 1.0])).max() == 0


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch, mask):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(SymDenoiseError, match=r"bluesky-symdenoise\[bench\]"):
        stabilised.nlm(np.ones(SHAPE), mask)


# Cases


def test_thinned_halves_are_independent_and_sum_to_the_frame(rng, mask):
    """The covariance of Poisson halves vanishes; that of an input with the whole does not."""
    counts = frozen(rng.poisson(4.0, (40, *SHAPE)).astype(float))
    bad = np.broadcast_to(mask, counts.shape)
    part, rest, k = thin(counts, bad, level=1.0, rng=rng)
    np.testing.assert_array_equal(part + rest, counts)
    valid = ~bad
    assert part[valid].mean() == pytest.approx(1.0, rel=0.01)
    assert rest[valid].mean() == pytest.approx(k, rel=0.02)
    error = np.sqrt(1.0 * k / valid.sum())
    assert abs(np.cov(part[valid], rest[valid])[0, 1]) < 4 * error
    assert np.cov(part[valid], counts[valid])[0, 1] > 100 * error


def test_pair_statistic_tells_repeats_from_another_scene(rng, rate, mask):
    a = rng.poisson(rate)
    assert pair_statistic(a, rng.poisson(rate), mask) == pytest.approx(1, abs=0.06)
    assert pair_statistic(a, rng.poisson(0.3 * rate), mask) == pytest.approx(1, abs=0.06)
    assert pair_statistic(a, rng.poisson(np.roll(rate, 9, axis=0)), mask) > 1.2


def test_cases_are_those_that_the_data_allow(data, mask):
    found = list(cases(data))
    assert [(case.set, case.kind) for case in found] == [
        ("a", "thinning"),
        ("a", "thinning"),
        ("a", "repeats"),
        *[("b/shape0", "thinning")] * 2,
        *[("b/shape1", "thinning")] * 2,
    ]
    for case in found:
        assert case.counts[~mask].mean() == pytest.approx(case.level, rel=0.2)
        assert case.target[~mask].sum() / case.counts[~mask].sum() == pytest.approx(case.k, rel=0.2)
        assert case.fraction == pytest.approx(1 / (1 + case.k))
        assert not any(array.flags.writeable for array in (case.counts, case.target, case.mask))
    assert {case.set: case.symmetry for case in found} == {"a": "2", "b/shape0": "1", "b/shape1": "1"}


def test_repeats_stop_where_the_scene_changes(data, mask):
    (repeats,) = (case for case in cases(data) if case.kind == "repeats")
    with h5py.File(data / "a.h5") as file:
        frames = file["counts"][()].astype(float)
    np.testing.assert_array_equal(repeats.counts, frames[0])
    np.testing.assert_array_equal(repeats.target, frames[1] + frames[2])
    assert repeats.k == pytest.approx(1.7, rel=0.1)


def test_a_case_is_the_same_whatever_else_is_asked_for(data):
    def thinned(**options):
        return {(c.set, c.level, c.frame): c.counts for c in cases(data, **options)}

    few, many = thinned(levels=(1.0,)), thinned(levels=(0.1, 1.0), roles=("test", "train"), frames=2)
    assert len(many) > len(few)
    for key, counts in few.items():
        np.testing.assert_array_equal(counts, many[key])
    other = thinned(levels=(1.0,), seed=1)
    assert not np.array_equal(other["a", 1.0, 0], few["a", 1.0, 0])


def test_a_folder_without_benchmark_images_says_so(tmp_path):
    with pytest.raises(SymDenoiseError, match="give the folder"):
        list(cases(tmp_path))


# The whole run


def text(*tables):
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(*tables)
    return console.export_text()


def test_a_run_scores_every_method_on_every_case_and_survives_json(data, capsys):
    results = quality.run(data, stand_in, levels=(1.0,))
    methods = {}
    for row in results:
        methods.setdefault((row["set"], row["kind"]), []).append(row["method"])
    assert methods["a", "thinning"] == ["symdenoise", "symdenoise+symmetry", *QUICK]
    assert methods["b/shape0", "thinning"] == ["symdenoise", *QUICK]
    notes = {row["method"]: row["note"] for row in results if row["set"] == "b/shape0"}
    assert {method for method, note in notes.items() if note} == {"plain_fold", "gated_fold", "azimuthal"}
    results = [row for row in results if not row["note"]]
    assert min(row["nll_excess"] for row in results) == 0
    assert all((row["coverage_68"] is None) == (row["method"] in QUICK) for row in results)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    shown = text(report(results), strata_table(results, title="strata"), summary(results))
    won = sum(
        row["nll"]
        < min(r["nll"] for r in results if r["set"] == row["set"] and r["kind"] == row["kind"] and r["method"] in QUICK)
        for row in results
        if row["method"] == "symdenoise"
    )
    assert "b/shape1" in shown
    assert f"{won} of 4" in shown
    assert capsys.readouterr().out == ""


def test_the_summary_says_whether_our_flux_is_within_one_per_cent(data):
    results = quality.run(data, stand_in, levels=(1.0,))

    def verdict(worst, *, of="symdenoise"):
        first = next(row for row in results if row["method"] == of)
        rows = [row | {"flux_error": worst if row is first else 0.002} for row in results]
        shown = text(summary(rows))
        (line,) = (line.strip() for line in shown.splitlines() if "|flux error| of ours" in line)
        return line

    where = "(symdenoise, a thinning 1)"
    assert verdict(-0.0099) == f"worst |flux error| of ours: 0.99 % {where}, within 1 %"
    assert verdict(-0.0101) == f"worst |flux error| of ours: 1.01 % {where}, not within 1 %"
    assert verdict(None) == f"worst |flux error| of ours: undefined {where}, not within 1 %"
    assert "(symdenoise+symmetry, a thinning 1), not" in verdict(0.5, of="symdenoise+symmetry")
    assert ": 0.20 %" in verdict(0.5, of="gaussian_1")
    assert "of ours" not in text(summary([row for row in results if row["method"] in QUICK]))


def test_our_estimate_must_be_defined_at_every_valid_pixel(data):
    def holed(counts, **how):
        estimate, sigma = stand_in(counts, **how)
        estimate[30, 10:13] = np.nan
        return estimate, sigma

    results = quality.run(data, holed, levels=(1.0,))
    ours = [row for row in results if row["method"] == "symdenoise"]
    assert {row["invalid_pixels"] for row in ours} == {3}
    assert {row["nll"] for row in ours} == {None}
    assert not any(row["invalid_pixels"] for row in results if row["method"] in QUICK)
    assert "0 of 4" in text(summary(results))
    json.dumps(results, allow_nan=False)


def test_the_symmetry_and_centre_reach_the_denoiser(data):
    asked = set()

    def curious(counts, *, mask, symmetry, beam_center):
        asked.add((symmetry, beam_center))
        return stand_in(counts, mask=mask, symmetry=symmetry, beam_center=beam_center)

    quality.run(data, curious, levels=(1.0,), peers={}, roles=("test", "train"))
    assert asked == {("1", (50.0, 33.0)), ("2", (50.0, 33.0)), ("1", None), ("2mm", (50.0, 33.0))}


@pytest.mark.process
def test_benchmarks_import_no_torch():
    import subprocess

    code = "import sys, bluesky_symdenoise.bench.quality.quality; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_prints_each_role_apart_and_writes_json(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "pretrained", lambda model, views: stand_in)
    path = tmp_path / "scores.json"
    results = quality.main(data, json_path=path, peers=list(QUICK), training_sets=True, levels=[1.0])
    printed = capsys.readouterr().out
    assert printed.index("role test") < printed.index("role train") < printed.rindex("symdenoise+symmetry")
    assert "with symmetry against without" in printed  # nothing is cut off where there is no terminal
    assert json.loads(path.read_text())["results"] == results


@pytest.mark.skipif("SYMDENOISE_REAL_DATA" not in os.environ, reason="needs SYMDENOISE_REAL_DATA=folder")
def test_real_sets_repeat_where_they_say_so():
    folder = Path(os.environ["SYMDENOISE_REAL_DATA"])
    found = list(cases(folder, roles=("test", "train"), levels=(0.1,)))
    repeats = {case.set: case.k for case in found if case.kind == "repeats"}
    assert repeats == pytest.approx({"muscle_p40": 4.82, "saxs_ssrl": 2.0, "waxs_ssrl": 1.99}, abs=0.02)
    assert "alloy_pixium" not in {case.set for case in found}
    assert {case.set: case.symmetry for case in found}["gisaxs_p03"] == "1"
