"""The bench of series: its truth is true, its peers do what they say, and its figures count what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from bluesky_symdenoise.bench.measured.page import texts
from bluesky_symdenoise.bench.quality.cases import image_sets
from bluesky_symdenoise.bench.quality.stabilised import bm4d
from bluesky_symdenoise.bench.series import costs, lag, mapped
from bluesky_symdenoise.bench.series.borrowing import OURS
from bluesky_symdenoise.bench.series.compared import compared
from bluesky_symdenoise.bench.series.exposures import effective_exposure
from bluesky_symdenoise.bench.series.figures import figures
from bluesky_symdenoise.bench.series.methods import PEERS, QUICK, mean_of_points, points_of, truncated_svd
from bluesky_symdenoise.bench.series.scores import differences, mean_difference, scored
from bluesky_symdenoise.bench.series.stacks import Stack, known, repeats, thinned
from bluesky_symdenoise.bench.simulated.series import SERIES, ring_map, transition
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.neighbours.window import Scan

SIDE = 32


def stack_of(name: str = "still", *, level: float = 2.0, rows: int = 5, side: int = SIDE, **options: Any) -> Stack:
    rates = SERIES[name](np.random.default_rng(1), rows, (side, side))
    return known(name, rates, level=level, seed=0, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of six repeats with 40 counts per pixel."""
    with h5py.File(tmp_path / "still.h5", "w") as file:
        rate = SERIES["still"](np.random.default_rng(2), 1, (SIDE, SIDE))[0]
        file["counts"] = np.random.default_rng(3).poisson(rate * 40 / rate.mean(), (6, SIDE, SIDE)).astype(np.uint16)
        file["mask"] = np.zeros((SIDE, SIDE), bool)
        file.attrs.update(role="test", noise="counting", symmetry="1", notes="repeats")
    return tmp_path


@pytest.mark.parametrize("name", SERIES)
def test_series_have_rows_of_positive_rates(name: str) -> None:
    rates = SERIES[name](np.random.default_rng(0), 6, (SIDE, SIDE))
    assert rates.shape == (6, SIDE, SIDE)
    assert (rates > 0).all()
    change = np.abs(np.diff(rates / rates.mean(axis=(1, 2), keepdims=True), axis=0)).mean(axis=(1, 2))
    if name in ("still", "changing flux"):
        assert change == pytest.approx(0, abs=1e-12)
    elif "jump" in name:
        assert change[2] > 1e-3
        assert np.delete(change, 2) == pytest.approx(0, abs=1e-12)
    else:
        assert change.min() > 1e-3


def test_thinned_rows_keep_their_fluxes_and_are_scored_by_photons_that_no_input_has(folder: Path) -> None:
    (image_set,) = image_sets(folder, ("test",))
    (stack,) = thinned(image_set, (1.0,), rows=6, crop=SIDE, seed=0, exposures=(1.0, 4.0))
    assert stack.counts.mean() == pytest.approx(1.0, rel=0.1)
    assert stack.longer[4.0].mean() == pytest.approx(4.0, rel=0.1)
    with h5py.File(folder / "still.h5") as file:
        raw = file["counts"][:].astype(float)
    assert (stack.longer[4.0] + stack.target <= raw).all()
    assert (stack.counts + stack.target <= raw).all()
    assert stack.target.mean() / stack.k[0] == pytest.approx(1.0, rel=0.05)
    # Control: more than the counts allow.
    assert not list(thinned(image_set, (30.0,), rows=6, crop=SIDE, seed=0))


def test_repeats_are_scored_by_all_rows_and_other_scenes_are_no_repeats(folder: Path) -> None:
    (image_set,) = image_sets(folder, ("test",))
    (stack,) = repeats(image_set, (1.0,), rows=6, crop=SIDE, seed=0)
    np.testing.assert_allclose(stack.target.mean(axis=(1, 2)) / stack.k, 1.0, rtol=0.1)
    with h5py.File(folder / "still.h5", "a") as file:
        file["counts"][4] = file["counts"][4][::-1]
    assert not list(repeats(image_set, (1.0,), rows=6, crop=SIDE, seed=0))


def test_the_truth_has_no_loss_and_an_error_of_a_tenth_is_found() -> None:
    stack = stack_of()
    truth, off = scored(stack.target, stack), scored(1.1 * stack.target, stack)
    assert truth.loss == pytest.approx(0, abs=1e-12)
    assert truth.square == pytest.approx(0, abs=1e-12)
    assert off.mean_loss == pytest.approx(stack.level * (0.1 - np.log(1.1)), rel=1e-6)
    assert off.mean_square == pytest.approx(0.01 * (stack.target**2).mean())
    assert mean_difference(off, truth).value == pytest.approx(off.mean_loss)
    assert all(value > 3 * error > 0 for value, error in differences(off, truth))


def test_noise_of_the_target_does_not_change_the_squared_error() -> None:
    stack = stack_of(rows=40)
    counted = Stack(
        stack.name,
        stack.level,
        stack.counts,
        np.random.default_rng(5).poisson(4 * stack.target).astype(float),
        np.full(40, 4.0),
        False,
        stack.mask,
    )
    exact, found = scored(stack.counts, stack, floor=0.1), scored(stack.counts, counted, floor=0.1)
    assert found.mean_square == pytest.approx(exact.mean_square, rel=0.05)
    assert found.mean_square == pytest.approx(stack.level, rel=0.05)


def test_effective_exposure_is_where_a_lone_frame_has_the_same_error() -> None:
    stack = stack_of(rows=8, side=64, exposures=(0.5, 1.0, 2.0, 4.0))
    lone = {each: scored(counts / each, stack) for each, counts in stack.longer.items()}
    triple = scored(np.random.default_rng(7).poisson(3 * stack.target) / 3, stack)
    found = effective_exposure(triple, lone)
    assert found["value"] == pytest.approx(3, rel=0.15)
    assert not found["beyond"]
    # Counts of 8 exposures are beyond the curve, which falls as 1 / exposure.
    far = effective_exposure(scored(np.random.default_rng(8).poisson(8 * stack.target) / 8, stack), lone)
    assert far["value"] == pytest.approx(8, rel=0.2)
    assert far["beyond"]


# Peers


def test_means_of_a_still_scene_beat_its_rows_and_the_mean_of_a_jump_does_not() -> None:
    for name, better in (("still", True), ("jump", False)):
        stack = stack_of(name, rows=7, level=20.0)
        raw, mean = (
            scored(np.asarray(PEERS[peer].estimate(stack)), stack).square.sum(axis=1) for peer in ("raw", "mean_3")
        )
        assert (mean[3] < raw[3]) == better


def test_svd_finds_the_rank_of_two_scenes() -> None:
    stack = stack_of("jump", rows=8, level=20.0)
    estimate = truncated_svd(stack)
    assert np.linalg.matrix_rank(estimate.reshape(8, -1), tol=1e-3 * estimate.max() * SIDE) == 2
    assert scored(estimate, stack).mean_square < 0.5 * scored(stack.counts, stack).mean_square


def test_points_of_a_snake_turn_round_in_every_other_line() -> None:
    snake = points_of(Scan((3, 3), (False, True)))
    assert snake[:, 1].tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert points_of(Scan((3, 3), (False, False)))[:, 1].tolist() == [0, 1, 2] * 3


def test_the_mean_of_3_x_3_points_takes_the_points_around_and_is_for_maps_alone() -> None:
    counts = np.zeros((9, 4, 4))
    counts[4] = 9.0
    target = np.ones_like(counts)
    of_map = Stack("", 1.0, counts, target, np.ones(9), True, np.zeros((4, 4), bool), Scan((3, 3), (False, True)))
    estimate = mean_of_points(of_map)
    assert estimate is not None
    assert estimate[4, 0, 0] == 1.0
    assert estimate[0, 0, 0] == 9 / 4
    assert mean_of_points(stack_of()) is None


@pytest.mark.parametrize("name", ["bm4d", "bmnd"])
def test_block_matching_beats_the_counts(name: str) -> None:
    stack = stack_of(rows=5, level=1.0, side=24)
    estimate = PEERS[name].estimate(stack)
    assert estimate is not None
    assert estimate.shape == stack.counts.shape
    assert (estimate >= 0).all()
    assert scored(estimate, stack).mean_square < 0.5 * scored(stack.counts, stack).mean_square


def test_without_bm4d_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm4d", None)
    with pytest.raises(SymDenoiseError, match=r"bluesky-symdenoise\[bench\]"):
        bm4d(np.ones((3, 8, 8)), np.zeros((8, 8), bool))


# Ours


def test_every_method_is_scored_on_a_stack(denoiser: Denoiser) -> None:
    row = compared(stack_of(exposures=(1.0, 2.0)), denoiser, QUICK, part="simulated")
    assert set(row["methods"]) == {*OURS, *QUICK} - {"mean_3x3"}
    assert row["methods"]["alone"]["gain"] == 0
    assert len(row["against_alone"]["both"]) == 5
    assert row["methods"]["both"]["loss"] < row["methods"]["raw"]["loss"]
    names = [each.name for each in figures([row])]
    assert names[0] == "simulated series: likelihood better than every peer's"


def test_likelihood_counts_wins_over_peers_alone(denoiser: Denoiser) -> None:
    row = compared(stack_of(), denoiser, QUICK, part="real")
    row["methods"]["raw"]["loss"] = -1.0
    lost = figures([row])[0]
    assert lost.value.startswith("0 of 1")
    assert lost.met is False


def test_a_row_that_loses_by_more_than_its_error_is_said(denoiser: Denoiser) -> None:
    row = compared(stack_of(), denoiser, {}, part="simulated")
    row["against_alone"]["both"][2] = (4e-4, 1e-5)
    (found,) = (each for each in figures([row]) if each.name.startswith("loss of both"))
    assert found.met is False
    assert "rows above: 1 of 5" in found.value


def test_raw_counts_have_no_lag() -> None:
    rates, first, second = transition(np.random.default_rng(0), 15, (SIDE, SIDE), 6.8, 1.0)
    middle, width = lag._midpoint(lag._shares(rates, first, second), 7.0, 1.5)
    assert middle == pytest.approx(6.8, abs=1e-3)
    assert width == pytest.approx(1.0, abs=1e-3)
    # Control: rows that are averaged with the two before are late by one.
    late = np.stack([rates[max(0, row - 2) : row + 1].mean(axis=0) for row in range(15)])
    assert lag._midpoint(lag._shares(late, first, second), 7.0, 1.5)[0] == pytest.approx(7.8, abs=0.05)


def test_lags_and_spots_of_one_row_are_measured(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"levels": (2.0,), "frames": 1, "side": 32, "seed": 0}
    monkeypatch.setattr(lag, "ROWS", 7)
    monkeypatch.setattr(lag, "SIGNIFICANCES", (10.0,))
    monkeypatch.setattr(lag, "WIDTHS", (0.5,))
    lags = list(lag.transitions(denoiser, **options))
    assert {row["method"] for row in lags} == {"raw", *OURS}
    assert all(row["over_raw"] == 0 for row in lags if row["method"] == "raw")
    spots = list(lag.in_one_row(denoiser, **options))
    assert all(row["of_alone"] == 1 and row["beside"] == 0 for row in spots if row["method"] == "alone")


def test_the_truth_of_a_map_is_what_many_counts_say() -> None:
    made = ring_map(np.random.default_rng(0), (2, 4), jump={"position": 3.0})
    read = mapped._read(made.rates * 1e4, np.ones(8))
    for name, away in mapped._away(read, made, 1e4).items():
        # Gaps let harmonics into the moment.
        assert np.abs(away / made.truth[name]).max() < (0.05 * 1e4 if name == "peak_area" else 0.05), name
    assert made.beside.tolist() == [False, True, True, False] * 2
    # The second line runs backwards: it begins on the far side of the boundary.
    assert np.diff(made.truth["position" if "position" in made.truth else "peak_position"])[3] == pytest.approx(
        0, abs=1
    )


def test_a_map_is_read_off_by_every_method(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SHAPE", (2, 4))
    monkeypatch.setattr(mapped, "RAW_EXPOSURES", (1.0, 4.0))
    rows = [
        *mapped._rows("smooth", denoiser, [{}], 1.0, 0),
        *mapped._rows("jump", denoiser, [{"position": 3.0}], 1.0, 0, jump=8.0, of="peak_position"),
    ]
    assert {row["method"] for row in rows} == {"raw counts", *OURS, mapped.MEAN}
    assert {row["where"] for row in rows} == {"all", "inside", "beside"}
    assert all(row["ratio"] == 1 for row in rows if row["method"] == "raw counts")


def test_costs_are_measured(denoiser: Denoiser) -> None:
    assert costs.speed(denoiser, side=32, repeats=1)["ratio"] > 0
    assert costs.memory(denoiser, rows=10, side=16)["rows"] == 10


# The command


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "series.json"
    command = ["bench", "series", "--data", str(folder), "--part", "real", "--part", "still", "--quick"]
    command += ["--peers", "raw", "--peers", "mean_1", "--levels", "1", "--crop", "32", "-o", str(path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_command_writes_figures_and_the_page_shows_them(written: dict[str, Any]) -> None:
    assert [row["series"] for row in written["gains"]] == ["still", "still, repeats", "simulated, still"]
    shown = texts(written)
    assert "better than every peer" in shown["figures"]
    assert "| still |" in shown["series"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SymDenoiseError, match="must be one of real, still"):
        CliRunner().invoke(app, ["bench", "series", "--part", "everything"], catch_exceptions=False)
