"""A survey says what denoising runs and files would gain, and one that is broken does not end it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiled.client.container import Container

from bluesky_symdenoise import survey
from bluesky_symdenoise.acquisition.past.window import found_symmetry, window_of, within
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.selfcheck.worth import halves, worth

Y, X = (each - 40.0 for each in np.mgrid[:96, :88])


def rate(level: float = 1.0) -> np.ndarray:
    ring = np.exp(-((np.hypot(Y, X) - 20) ** 2) / 20) * (1 + 0.6 * np.cos(2 * np.arctan2(Y, X)))
    return level * (0.2 + 2 * ring)


def scan(number: int = 7, level: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rate(level), (number, *Y.shape)).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "few.npy", scan(level=0.2))
    np.save(tmp_path / "many.npy", scan(level=20))
    np.save(tmp_path / "dark.npy", np.zeros((3, 32, 32), np.uint16))
    np.save(tmp_path / "scaled.npy", scan(level=5) * np.uint16(7))
    (tmp_path / "broken.h5").write_text("this is no HDF5 file")
    return tmp_path


def test_files_are_sorted_by_their_gain_and_a_broken_one_says_why(folder: Path, denoiser: Denoiser) -> None:
    names = ["broken.h5", "dark.npy", "many.npy", "few.npy", "scaled.npy"]
    rows = survey([str(folder / name) for name in names], denoiser=denoiser)
    assert rows[0].gain > rows[1].gain > 3
    others = rows[2:]
    few, many = sorted(rows[:2], key=lambda row: row.level)
    assert [Path(row.name).name for row in (few, many)] == ["few.npy", "many.npy"]
    assert few.counts == many.counts == "too few to say"
    for row in (few, many):
        assert row.alone is not None
        assert row.borrowed is not None
        assert min(row.alone.above_raw, row.alone.above_gaussian) > 0
    assert few.shape == Y.shape
    assert few.level == pytest.approx(rate(0.2).mean(), rel=0.05)
    assert few.minutes > 0
    assert 0 < few.gigabytes < 0.01
    said = {Path(row.name).name: row for row in others}
    assert str(said["broken.h5"].failure).startswith("not readable: ")
    assert str(said["dark.npy"].failure).startswith("no counts")
    assert said["scaled.npy"].counts.startswith("no: all its values are multiples of 7")
    assert not any(row.gain > 0 for row in others)


def test_a_pattern_is_one_series_and_the_seed_decides(folder: Path, denoiser: Denoiser) -> None:
    for at, frame in enumerate(scan(6, level=0.2)):
        np.save(folder / f"scan_{at}.npy", frame[None])
    once, again, other = (survey(str(folder / "scan_*.npy"), denoiser=denoiser, seed=seed) for seed in (0, 0, 1))
    assert once[0].frames == 6
    assert once[0].gain == again[0].gain != other[0].gain


def test_the_exposure_is_that_of_raw_counts_with_the_same_error() -> None:
    """Of counts themselves 1, of the mean of k more exposures k + 1, of the truth more than can be measured."""
    rng = np.random.default_rng(4)
    kept, held = halves(rng.poisson(4.0, (3, 128, 128)), rng)
    everywhere = np.ones((128, 128), bool)
    assert all(np.array_equal(one + other, (one + other).round()) for one, other in zip(kept, held, strict=True))
    own = worth(kept, held, [1], lambda row: kept[row], everywhere)
    assert own.exposure == pytest.approx(1, abs=0.1)
    assert own.exposure_error < 0.1
    mean = worth(kept, held, [1], lambda row: np.mean(kept, axis=0), everywhere)
    assert mean.exposure == pytest.approx(3, abs=0.4)
    assert mean.decibel == pytest.approx(10 * np.log10(mean.exposure))
    assert worth(kept, held, [1], lambda row: np.full((128, 128), 2.0), everywhere).exposure > 15
    assert worth(kept, held, [1], lambda row: np.full((128, 128), 5.0), everywhere).exposure < 0.5


@pytest.mark.parametrize("center", [None, (400.0, 612.0)])
def test_the_symmetry_of_large_frames_has_an_exact_centre(
    center: tuple[float, float] | None, denoiser: Denoiser
) -> None:
    """It is found in sums of blocks, and the centre then in the pixels."""
    y, x = (each.astype(float) for each in np.mgrid[:820, :1100])
    radius = np.hypot(y - 400, x - 612)
    lit = 0.05 + 3 * np.exp(-((radius - 60) ** 2) / 200) * (1 + 0.7 * np.cos(2 * np.arctan2(y - 400, x - 612)))
    frames = np.random.default_rng(2).poisson(lit, (3, *y.shape)).astype(np.uint16)
    bad = np.zeros(y.shape, bool)
    found = found_symmetry(denoiser, frames, bad, symmetry="auto", center=center)
    assert found.point_group == "2mm"
    assert found.beam_center == pytest.approx((400, 612), abs=0.6)
    at = window_of(frames, bad, found)
    assert within(found, at).beam_center == pytest.approx((128, 128), abs=1)


def test_a_window_without_symmetry_has_the_mean_of_the_frame() -> None:
    frames = np.ones((1, 700, 700), np.uint16)
    frames[:, :300] = 50
    frames[:, :, :300] = 50
    bad = np.zeros((700, 700), bool)
    bad[444:, 444:] = True
    at = window_of(frames, bad, Symmetry())
    inside, whole = frames[0][at][~bad[at]].mean(), frames[0][~bad].mean()
    assert abs(np.log(inside / whole)) < 0.5


@pytest.mark.server
def test_the_command_surveys_runs_of_a_catalogue(
    catalog: Container,
    frames_folder: Path,
    write_run: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named or searched for; a run whose file is gone is a row, and the exit status says so."""
    monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))
    wanted = write_run(catalog["raw"], frames_folder, {"det": scan(level=0.2)}, start={"plan_name": "scan"})
    write_run(catalog["raw"], frames_folder, {"det": scan()}, start={"plan_name": "count"})
    gone = write_run(catalog["raw"], frames_folder, {"det": scan()}, start={"plan_name": "lost"})
    (frames_folder / f"{gone}.h5").unlink()

    def command(*options: str) -> tuple[int, list[dict[str, object]]]:
        status = 0
        try:
            main(["survey", catalog.uri, *options, "--threads", "1", "--json"])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, json.loads(capsys.readouterr().out)

    status, rows = command(wanted)
    assert (status, [row["name"] for row in rows]) == (0, [f"{wanted[:8]} det"])
    assert rows[0]["alone"] is not None
    assert command("--plan", "scan")[1][0]["name"] == f"{wanted[:8]} det"
    status, rows = command()
    assert (status, len(rows)) == (1, 3)
    assert [bool(row["failure"]) for row in rows] == [False, False, True]
