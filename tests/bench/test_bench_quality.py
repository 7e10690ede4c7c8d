"""Peers do what their names say, on every case alike, and the comparison counts only what was measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from arrays import frozen
from typer.testing import CliRunner

from bluesky_symdenoise.bench.measured.page import texts
from bluesky_symdenoise.bench.quality import filters, folded, metrics, quality, stabilised
from bluesky_symdenoise.bench.quality.cases import Given, cases
from bluesky_symdenoise.bench.quality.comparison import EVERY, compared
from bluesky_symdenoise.bench.quality.floors import tuned_floors
from bluesky_symdenoise.bench.quality.origins import main as origins
from bluesky_symdenoise.bench.quality.peers import PEERS, QUICK, Peer
from bluesky_symdenoise.bench.quality.report import DECILE_SCORES
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.fit import TrainConfig, fit

SIDE = 96
CENTER = (47.5, 40.0)
# BM3D adds up in float32 in several threads: from run to run blocks just at its threshold come out by 0.1 % otherwise.
BM3D_REPEATS = 0.01


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def mask():
    bad = np.zeros((SIDE, SIDE), bool)
    bad[20:24] = True
    return frozen(bad)


@pytest.fixture
def radius():
    y, x = np.indices((SIDE, SIDE))
    return np.hypot(y - CENTER[0], x - CENTER[1])


@pytest.fixture
def rings(radius):
    """Rates of 0.2 to 6 counts per pixel in two rings."""
    return frozen(0.2 + 6 * np.exp(-((radius - 20) ** 2) / 18) + 3 * np.exp(-((radius - 38) ** 2) / 18))


def given(rng, rate, mask, symmetry="2", **options):
    counts = np.where(mask, 4e9, rng.poisson(rate).astype(float))
    return Given(frozen(counts), mask, Symmetry(symmetry, None if symmetry == "1" else CENTER), **options)


def error(estimate, rate, mask):
    return float(np.mean((estimate - rate)[~mask] ** 2))


# Peers


def test_rebinning_conserves_counts_and_averages_valid_pixels_only(rng, mask):
    counts = rng.poisson(2.0, mask.shape).astype(float)
    odd, hidden = counts[:95, :93], mask[:95, :93]
    for side in (2, 4):
        mean = filters.rebinned(frozen(np.where(hidden, 4e9, odd)), hidden, side=side)
        assert mean.shape == odd.shape
        assert mean[~hidden].sum() == pytest.approx(odd[~hidden].sum())
        assert mean[0, 0] == mean[side - 1, side - 1] == pytest.approx(odd[:side, :side].mean())
        assert np.isnan(mean[20:24]).all()


def test_a_fold_halves_the_noise_of_a_symmetric_frame_and_the_gate_keeps_it_from_harm(rng, rings, mask):
    """Twice the photons, half the error; a broken half is averaged in blindly and left alone by the gate."""
    symmetric = given(rng, rings, mask)
    raw = error(symmetric.counts, rings, mask)
    assert error(folded.plain_fold(symmetric), rings, mask) == pytest.approx(raw / 2, rel=0.15)
    assert error(folded.gated_fold(symmetric), rings, mask) == pytest.approx(raw / 2, rel=0.15)
    broken = rings.copy()
    broken[:40] += 20
    noisy = given(rng, broken, mask)
    assert error(folded.gated_fold(noisy), broken, mask) < 1.1 * error(noisy.counts, broken, mask)
    assert error(folded.plain_fold(noisy), broken, mask) > 4 * error(noisy.counts, broken, mask)


def test_bm3d_on_the_fold_beats_bm3d_and_that_beats_the_frame(rng, rings, mask):
    symmetric = given(rng, rings, mask)
    alone, fold = stabilised.bm3d(symmetric.counts, mask), folded.bm3d_on_fold(symmetric)
    assert error(alone, rings, mask) < error(symmetric.counts, rings, mask) / 8
    assert error(fold, rings, mask) < 0.8 * error(alone, rings, mask)
    assert fold[~mask].mean() == pytest.approx(rings[~mask].mean(), rel=0.02)


def test_bm3d_on_a_fold_that_is_refused_everywhere_is_bm3d_of_the_frame(rng, radius, mask):
    one_sided = np.where(np.arange(SIDE)[:, None] < 48, 30.0, 2.0) + 0 * radius
    noisy = given(rng, one_sided, np.zeros_like(mask))
    alone = stabilised.bm3d(noisy.counts, noisy.mask)
    np.testing.assert_allclose(folded.bm3d_on_fold(noisy), alone, rtol=BM3D_REPEATS)


def test_the_azimuthal_average_finds_rings_and_only_rings(rng, rings, radius, mask):
    noisy = given(rng, rings, mask, rings=True)
    mean = folded.azimuthal(noisy)
    assert error(mean, rings, mask) < 0.03 * error(noisy.counts, rings, mask)
    assert mean[10, 10] == pytest.approx(mean[85, 70], rel=0.02)  # mates, across the beam
    half = np.where(np.arange(SIDE) < 40, 0.2, 1.0) * rings
    arcs = given(rng, half, mask, rings=True)
    assert error(folded.azimuthal(arcs), half, mask) > 0.3 * error(arcs.counts, half, mask)


def test_peers_that_need_a_symmetry_or_rings_say_that_they_are_not_applicable(rng, rings, mask):
    without = given(rng, rings, mask, "1")
    assert folded.plain_fold(without) is folded.gated_fold(without) is folded.bm3d_on_fold(without) is None
    assert folded.azimuthal(given(rng, rings, mask)) is None


@pytest.mark.parametrize("name", ["bm3d", "bm3d_on_fold"])
def test_bm3d_never_reads_masked_pixels(rng, rings, mask, name):
    shown = given(rng, rings, mask)
    hidden = Given(frozen(np.where(mask, 0.0, shown.counts)), mask, shown.symmetry)
    first, second = (PEERS[name].estimate(each)[~mask] for each in (shown, hidden))
    np.testing.assert_allclose(first, second, rtol=BM3D_REPEATS)
    assert np.isfinite(first).all()


def test_without_bm3d_the_error_says_what_to_install(monkeypatch, mask):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(SymDenoiseError, match=r"bluesky-symdenoise\[bench\]"):
        stabilised.bm3d(np.ones(mask.shape), mask)


@pytest.mark.process
def test_quick_peers_import_no_bm3d():
    """Its licence forbids commercial use: nothing may load it that was not asked for it."""
    import subprocess

    code = (
        "import sys, bluesky_symdenoise.bench.quality.quality; "
        "assert 'bm3d' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Parts of frames


def write_set(path, counts, mask, **attributes):
    with h5py.File(path, "w") as file:
        file["counts"], file["mask"] = counts, mask
        file.attrs.update({"role": "test", "noise": "counting", "symmetry": "1", "notes": ""} | attributes)


@pytest.fixture
def data(tmp_path, rng, rings, mask):
    """A set of rings about a half-integer row and an integer column, and one with a bright corner and no centre."""
    write_set(tmp_path / "rings.h5", rng.poisson([20 * rings]), mask, symmetry="inf", beam_center=CENTER)
    corner = np.full(mask.shape, 2.0)
    corner[60:90, 5:35] = 40
    write_set(tmp_path / "spot.h5", rng.poisson([corner]), mask)
    return tmp_path


def test_a_part_is_symmetric_about_the_recorded_centre_or_where_the_counts_are(data, mask):
    parts = {case.set: case for case in cases(data, levels=(1.0,), crop=32)}
    rings, spot = parts["rings"], parts["spot"]
    assert rings.counts.shape == (32, 31)  # about a boundary of pixels, and about a pixel
    assert rings.beam_center == (15.5, 15.0)
    assert rings.counts.mean() == pytest.approx(1.0, rel=0.1)
    assert spot.counts.shape == (32, 32)
    assert (spot.counts + spot.target).mean() > 30
    whole = next(cases(data, levels=(1.0,)))
    assert whole.counts.shape == mask.shape
    assert whole.beam_center == CENTER


def test_a_part_near_the_edge_stays_on_the_detector(tmp_path, rng):
    write_set(
        tmp_path / "edge.h5",
        rng.poisson(5.0, (1, 64, 64)),
        np.zeros((64, 64), bool),
        symmetry="2",
        beam_center=(3.0, 62.0),
    )
    (case,) = cases(tmp_path, levels=(1.0,), crop=32)
    assert case.counts.shape == (31, 31)
    assert case.beam_center == (3.0, 29.0)


# The comparison


def row(name, nll, *, psnr=30.0, level=1.0, kind="thinning", method="symdenoise", **other):
    scores = {"flux_error": 0.001, "flux_standard_error": 0.001, "k": 100.0, "coverage_68": 0.68, "coverage_95": 0.95}
    scores |= dict(zip(DECILE_SCORES, (0.66, 0.7, 0.94, 0.96), strict=True))
    names = {"set": name, "role": "test", "kind": kind, "level": level, "frame": 0, "method": method, "note": ""}
    return names | scores | {"nll": nll, "psnr": psnr} | other


def figure(rows, start):
    (found,) = (each for each in compared(rows)["figures"] if each["name"].startswith(start))
    return found


def test_wins_are_counted_by_peer_and_level_for_ours_with_its_symmetry():
    rows = [
        row("a", 1.5),
        row("a", 1.0, method="symdenoise+symmetry"),
        row("a", 1.2, method="raw"),
        row("b", 2.0),
        row("b", 1.9, method="raw"),
        row("b", 2.1, method="bm3d"),
        row("c", 3.0, level=0.6, kind="repeats"),
        row("c", None, level=0.6, kind="repeats", method="raw"),
        row("d", None, level=100.0, method="", note="not testable"),
    ]
    won = compared(rows)["likelihood"]
    assert won["raw"] == {"1": (1, 2), "100": (0, 0), "repeats": (0, 1)}
    assert won["bm3d"] == {"1": (1, 1), "100": (0, 0), "repeats": (0, 0)}
    assert won[EVERY] == {"1": (1, 2), "100": (0, 0), "repeats": (0, 1)}
    assert figure(rows, "held-out likelihood")["met"] is False


def test_a_predictive_distribution_may_win_where_the_mean_does_not():
    rows = [
        row("a", 1.5, predictive_nll=1.1),
        row("a", 1.2, method="bm3d"),
        row("b", 2.0, method="symdenoise+symmetry", predictive_nll=2.2),
        row("b", 1.9, predictive_nll=1.8),
        row("b", 2.1, method="bm3d"),
    ]
    assert figure(rows, "held-out likelihood")["value"] == "1: 1 of 2"
    assert figure(rows, "the same of its own predictive")["value"] == "1: 1 of 2"
    rows[2]["predictive_nll"] = 2.05
    assert figure(rows, "the same of its own predictive")["value"] == "1: 2 of 2"


def test_intervals_are_judged_over_all_pixels_and_in_every_decile():
    rows = [row("a", 1.0), row("b", 1.0, level=10.0, decile_68_least=0.6), row("c", 1.0, k=10.0, coverage_68=0.1)]
    assert figure(rows, "coverage of the rate's")["met"] is True
    deciles = figure(rows, "the same in each decile")
    assert (deciles["met"], deciles["cases"]) == (False, 2)
    assert deciles["value"] == "1: off by up to 2.0, 10: off by up to 8.0"


def test_gain_over_bm3d_is_over_the_better_one_and_undefined_cases_are_counted_apart():
    rows = [
        row("a", 1.0, psnr=33.0),
        row("a", 1.0, psnr=30.0, method="bm3d"),
        row("a", 1.0, psnr=31.5, method="bm3d_on_fold"),
        row("b", 1.0, psnr=30.0),
        row("b", 1.0, psnr=29.0, method="bm3d"),
        row("c", 1.0, psnr=None),
        row("c", 1.0, psnr=29.0, method="bm3d"),
    ]
    found = figure(rows, "unbiased PSNR over the best of BM3D")
    assert (found["cases"], found["left_out"], found["met"]) == (2, 1, True)
    assert found["value"] == "+1.25 dB on average, worst +1.00 dB"
    rows[3]["psnr"] = 28.6
    assert figure(rows, "unbiased PSNR over the best of BM3D")["met"] is False


def test_figures_that_nothing_here_can_test_say_so():
    rows = [row("a", 1.0, k=3.0)]
    met = {each["name"].split(",")[0]: each["met"] for each in compared(rows)["figures"]}
    assert met.pop("total flux") is True
    assert met.pop("held-out likelihood better than every peer's") is True
    assert set(met.values()) == {None}


def test_folding_that_costs_likelihood_misses_its_figures():
    rows = [row("a", 1.0), row("a", 1.0002, method="symdenoise+symmetry"), row("b", 1.0, level=10.0)]
    assert [each["met"] for each in compared(rows)["figures"] if "folding" in each["name"]] == [False, False]
    rows[1]["nll"] = 0.99
    assert [each["met"] for each in compared(rows)["figures"] if "folding" in each["name"]] == [True, True]
    rows[1]["nll"] = None
    assert [each["met"] for each in compared(rows)["figures"] if "folding" in each["name"]] == [False, False]


def test_flux_may_be_off_by_its_statistical_error_and_no_more():
    def met(off, error):
        return figure([row("a", 1.0, flux_error=off, flux_standard_error=error)], "total flux")["met"]

    assert met(0.0029, 1e-4)
    assert not met(0.0031, 1e-4)
    assert met(0.0031, 0.002)
    assert not met(None, 0.002)


# The command


def stand_in(counts, *, mask, symmetry, beam_center):
    """A denoiser for tests: a local mean, its Poisson error, NaN where masked."""
    mean = np.where(mask, np.nan, filters.gaussian(counts, mask, sigma=2.0))
    return mean.astype(np.float32), np.sqrt(mean / 25).astype(np.float32)


def test_the_command_takes_sets_levels_peers_and_the_size_of_the_part(data, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "pretrained", lambda model, views=1: stand_in)
    path = tmp_path / "scores.json"
    options = ["--sets", "rings", "--levels", "1", "--levels", "1000", "--peers", "raw", "--peers", "azimuthal"]
    options += ["--rival", "some/small.safetensors"]
    options += ["--json", str(path), "--crop", "48", "--pictures", str(tmp_path / "pictures")]
    done = CliRunner().invoke(app, ["bench", "quality", "--data", str(data), *options])
    assert done.exit_code == 0, done.output
    stored = json.loads(path.read_text())
    assert {each["set"] for each in stored["results"]} == {"rings"}
    assert [each["method"] for each in stored["results"] if not each["note"]] == [
        "symdenoise",
        "symdenoise+symmetry",
        "raw",
        "azimuthal",
        "small",
    ]
    assert stored["figures"]["test"]["likelihood"]["small"]["1"] == [0, 1]  # as good as the same
    assert stored["figures"]["test"]["likelihood"]["azimuthal"] == {"1": [0, 1], "1000": [0, 0]}
    assert "not testable" in done.output
    assert stored["crop"] == 48
    shown = texts(stored)
    assert "| `azimuthal` | 0 of 1 | not testable |" in shown["likelihood"]
    assert "| `raw` | " in shown["strata"]
    # One case, which gains and loses most.
    best, worst = ((tmp_path / "pictures" / f"{name}.png").read_bytes() for name in ("best", "worst"))
    assert best.startswith(b"\x89PNG")
    assert best == worst


@pytest.mark.parametrize("option", ["--sets", "--peers"])
def test_an_unknown_set_or_peer_is_refused_with_those_that_there_are(data, monkeypatch, option):
    monkeypatch.setattr(quality, "pretrained", lambda model, views: stand_in)
    done = CliRunner().invoke(app, ["bench", "quality", "--data", str(data), option, "nonsense"])
    assert done.exit_code != 0
    assert "nonsense" in str(done.exception)


def test_quick_peers_are_those_that_do_not_learn_or_search():
    assert all(isinstance(peer, Peer) and peer.floor > 0 for peer in PEERS.values())
    assert set(PEERS) - set(QUICK) == {"bm3d", "bm3d_on_fold", "bmnd", "smae", "smae_mended", "n2v"}


# Floors


def test_a_floor_is_the_best_one_for_all_cases_together(data):
    """Of a raw frame it is about the rate where no photon came; a smooth estimate needs less, a perfect one none."""
    found = list(cases(data, levels=(0.1, 1.0)))
    chosen = {name: PEERS[name] for name in ("raw", "gaussian_2", "azimuthal")}
    floors = tuned_floors(found, chosen)
    assert floors["azimuthal"] < floors["gaussian_2"] < floors["raw"]

    def loss(floor):
        return sum(
            metrics.poisson_nll(filters.raw(case.counts, case.mask), case.target, case.k, mask=case.mask, floor=floor)
            / case.target[~case.mask].mean()
            for case in found
        )

    assert loss(floors["raw"]) <= min(loss(floor) for floor in metrics.FLOORS) * (1 + 1e-12)
    assert "azimuthal" not in tuned_floors([case for case in found if case.set == "spot"], chosen)


# Cross-validation


@pytest.mark.train
def test_each_origin_is_left_out_in_turn(tmp_path, rng, rings, mask, monkeypatch):
    """Each set is scored by weights that have seen no real frame, all but those of its origin, and all."""
    monkeypatch.setattr("bluesky_symdenoise.bench.quality.origins.LEVELS", (1.0,))
    data = tmp_path / "data"
    data.mkdir()
    for name, origin in (("one", "a/b@1"), ("two", "a/b@2"), ("three", "c/d@1")):
        write_set(data / f"{name}.h5", rng.poisson([5 * rings, 5 * rings]), mask, role="train", origin=origin)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\nversion = "0"\nchannels = [8, 8]\nsteps = 2\nbatch = 2\ncrop = 128\nreal_share = 1.0\n'
    )
    initial = fit(replace(TrainConfig.read(recipe), real_share=0.0, name="start"), output=tmp_path / "start")
    given = {"initial": initial, "recipe": recipe, "output": tmp_path / "out"}
    rows = origins(data, json_path=tmp_path / "found.json", **given)
    assert {row["set"]: row["origin"] for row in rows} == {"one": "a/b", "two": "a/b", "three": "c/d"}
    assert all(row["left_out_nll"] != row["all_nll"] != row["simulated_nll"] for row in rows)
    records = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/tiny.json")}
    seen = {name: record["training"]["real_sets"] for name, record in records.items()}
    assert seen == {"all": ["one", "three", "two"], "without-0": ["three"], "without-1": ["one", "two"]}
    assert json.loads((tmp_path / "found.json").read_text())["results"] == rows
    # What is there is not trained again.
    assert origins(data, **given) == rows
    (data / "three.h5").unlink()
    with pytest.raises(SymDenoiseError, match="one origin"):
        origins(data, **given)
