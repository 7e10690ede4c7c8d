"""A run whose frames are no photon counts: said and not denoised, live, in replay and lazily, unless it is stated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_runs import step_scan, written
from tiled.client.container import Container

from bluesky_symdenoise import ThreadedDenoiseCallback, denoised_for, recompute, register, replay
from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.stored import stored_run
from bluesky_symdenoise.catalog.report.page import run_warnings
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = pytest.mark.server

SHAPE = (144, 152)
REASON = "frame that is not photon counts: its variance is 0."


def rate() -> np.ndarray:
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return 0.5 + 6 * np.exp(-((np.hypot(y - 70, x - 75) - 40) ** 2) / 60)


def ccd(n: int = 3) -> np.ndarray:
    """Frames of a camera with an offset of 100 and 2.4 units per photon."""
    rng = np.random.default_rng(4)
    frames = 2.4 * rng.poisson(rate(), (n, *SHAPE)) + rng.normal(100, 3, (n, *SHAPE))
    return np.round(frames).astype(np.uint16)


def test_live_rows_are_nan_with_the_reason_and_the_remedy(
    home: Path, client: Container, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
        raw = written(client, step_scan(home / "frames", ccd()), callback)
    made = denoised_for(client, raw)
    assert made is not None
    assert np.isnan(made["primary"]["det"].read()).all()
    (failure,) = made.provenance["outcome"]["failures"]
    assert REASON in str(failure)
    assert "noise='poisson'" in str(failure)
    assert REASON in caplog.text


def test_stated_counts_are_denoised_and_the_statement_is_in_the_recipe(
    home: Path, client: Container, denoiser: Denoiser
) -> None:
    raw = written(client, step_scan(home / "frames", ccd()))
    refused = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    assert np.isnan(refused["primary"]["det"].read()).all()
    made = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", noise="poisson")
    assert np.isfinite(made["primary"]["det"].read()).all()
    assert made.provenance["recipe"]["noise"] == "poisson"
    assert "noise" not in refused.provenance["recipe"]
    again = recompute(made, 1)["intensity"].values
    np.testing.assert_array_equal(again, np.asarray(made["primary"]["det"][1]))
    in_memory = replay(raw, denoiser=denoiser, symmetry="1", noise="poisson")
    np.testing.assert_array_equal(in_memory["det_denoised"][1].values.squeeze(), again.squeeze())


@pytest.mark.parametrize("noise", [None, "poisson"])
def test_a_lazy_run_says_the_same(home: Path, client: Container, denoiser: Denoiser, noise: str | None) -> None:
    raw = written(client, step_scan(home / "frames", ccd()))
    made = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", noise=noise)
    frames = np.asarray(made["primary"]["det"].read())
    assert np.isnan(frames).all() if noise is None else np.isfinite(frames).all()


def test_the_first_frame_decides_for_those_that_follow(home: Path, client: Container, denoiser: Denoiser) -> None:
    """What is written is not decided again, as when a run is continued or denoised in parts."""
    frames = ccd()
    frames[0] = np.random.default_rng(3).poisson(rate())
    raw = written(client, step_scan(home / "frames", frames))
    made = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    part = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", rows=[2])
    assert np.isfinite(made["primary"]["det"].read()).all()
    np.testing.assert_array_equal(np.asarray(part["primary"]["det"][0]), np.asarray(made["primary"]["det"][2]))


def test_a_frame_that_says_nothing_lifts_no_refusal(home: Path, client: Container, denoiser: Denoiser) -> None:
    """After plain no counts, an empty-looking frame decides nothing for those that follow; lazily, too."""
    frames = ccd(4)
    frames[1] = 0
    frames[1, 70, 75] = 3
    raw = written(client, step_scan(home / "frames", frames))
    made = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    stored = np.asarray(made["primary"]["det"].read())
    assert [bool(np.isnan(row).all()) for row in stored] == [True, False, True, True]
    lazy = register(raw, client["denoised"], denoiser=denoiser, symmetry="m", beam_center=(70, 75))
    assert [bool(np.isnan(row).all()) for row in np.asarray(lazy["primary"]["det"].read())] == [True, False, True, True]


def test_a_doubt_is_said_once(
    home: Path, client: Container, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    frames = np.round(1.6 * np.random.default_rng(3).poisson(20 * rate(), (3, *SHAPE))).astype(np.uint16)
    raw = written(client, step_scan(home / "frames", frames))
    with caplog.at_level(logging.WARNING):
        made: Any = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    assert np.isfinite(made["primary"]["det"].read()).all()
    assert caplog.text.count("are these photon counts? its variance is 1.6 times its mean") == 1
    doubt = made.provenance["outcome"]["doubts"]["primary/det"]
    assert doubt.startswith("its variance is 1.6 times its mean")
    assert f"Is primary/det photon counts? {doubt}" in run_warnings(made.metadata)
    lazy = register(raw, client["denoised"], denoiser=denoiser, symmetry="m", beam_center=(70, 75))
    assert lazy.provenance["outcome"]["doubts"] == {"primary/det": doubt}
    assert doubt in made._repr_html_()


class _CutOff(Exception):  # noqa: N818
    """Stands for the death of the writer between two frames."""


def test_a_continued_run_repeats_the_doubt_of_the_rows_that_it_keeps(
    home: Path, client: Container, denoiser: Denoiser
) -> None:
    frames = np.round(1.6 * np.random.default_rng(3).poisson(20 * rate(), (3, *SHAPE))).astype(np.uint16)
    raw = written(client, step_scan(home / "frames", frames))
    work = Work.planned(client["denoised"], activity="replay", denoiser=denoiser, symmetry="1")

    def die(_: str | None) -> None:
        raise _CutOff

    with pytest.raises(_CutOff):
        replay_with(work, stored_run(raw), finished_frame=die)
    made: Any = replay_with(work, stored_run(raw))
    assert made.stop is not None
    doubts = made.stop["provenance"]["doubts"]
    assert doubts["primary/det"].startswith("its variance is 1.6 times its mean")


def test_a_later_frame_may_be_doubted_and_no_row_changes(
    home: Path, client: Container, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    """The fourth frame with counts is tested; what is written is not decided again."""
    counts = np.random.default_rng(5).poisson(rate(), (5, *SHAPE)).astype(np.uint16)
    frames = np.concatenate([np.zeros_like(counts[:1]), counts])
    frames[4] *= 3
    with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
        raw = written(client, step_scan(home / "frames", frames), callback)
    live: Any = denoised_for(client, raw)
    pixels = np.asarray(live["primary"]["det"].read())
    assert np.isfinite(pixels).all()
    said = "frame 4 of those with counts: all its values are multiples of 3: counts are multiples of 1"
    assert live.provenance["outcome"]["doubts"] == {"primary/det": said}
    assert caplog.text.count(said) == 1
    other = client.create_container("other", specs=list(client["denoised"].specs))
    (home / "frames" / "other").mkdir()
    again: Any = replay(raw, into=other, denoiser=denoiser, symmetry="1", directory=home / "frames" / "other")
    assert again.provenance["outcome"]["doubts"] == {"primary/det": said}
    np.testing.assert_array_equal(np.asarray(again["primary"]["det"].read()), pixels)
    stated: Any = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", noise="poisson")
    assert "doubts" not in stated.provenance["outcome"]
    np.testing.assert_array_equal(np.asarray(stated["primary"]["det"].read()), pixels)
