"""Requests are carried out, or refused in one line before anything is written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from raw_runs import step_scan, written
from tiled.client.container import Container

from bluesky_symdenoise import Beamline, Ring, ThreadedDenoiseCallback, denoised_for, recompute, register, replay
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

SHAPE = (48, 56)
CENTER = (23.5, 27.5)
OFF = (23.5, 270.0)


def counts(n: int = 3) -> np.ndarray:
    """Frames (n, y, x) of a ring, with a spot in one pixel."""
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    rate = 0.3 + 6 * np.exp(-((np.hypot(y - CENTER[0], x - CENTER[1]) - 14) ** 2) / 6)
    frames = np.random.default_rng(5).poisson(rate, (n, *SHAPE)).astype(np.uint16)
    frames[:, 5, 7] = 6000
    frames.flags.writeable = False
    return frames


def documents(home: Path, n: int = 3, **options: Any) -> list[tuple[str, Any]]:
    return list(step_scan(home / "frames", counts(n), **options))


# Rows, streams, data keys


def test_rows_of_a_list_must_be_there(home: Path, client: Container, denoiser: Denoiser) -> None:
    """Those of a slice or a range may go beyond the end."""
    with pytest.raises(SymDenoiseError, match=r"rows=50: the run has no such rows; stream 'primary' has 20") as caught:
        replay(documents(home, 20), denoiser=denoiser, rows=[1, 50])
    assert "\n" not in str(caught.value)
    raw = written(client, documents(home, 3))
    with pytest.raises(SymDenoiseError, match="rows=50"):
        replay(raw, into=client["denoised"], denoiser=denoiser, rows=[1, 50])
    assert denoised_for(client, raw, rows="any") is None
    with pytest.raises(SymDenoiseError, match="may go beyond the end, and must hold one of them"):
        replay(raw, denoiser=denoiser, rows=slice(30, 40))
    for frames in (slice(2, 50), range(2, 50)):
        assert replay(raw, denoiser=denoiser, rows=frames).sizes["time"] == 1


def test_rows_missing_from_documents_are_logged(
    home: Path, client: Container, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    made = replay(documents(home), into=client["denoised"], denoiser=denoiser, rows=[1, 50])
    assert made["primary"]["det"].shape[0] == 1
    assert "rows=50: the run has no such rows" in caplog.text


@pytest.mark.parametrize("asked", [{"streams": ["nope"]}, {"data_keys": ["nope"]}])
def test_unknown_names_are_refused_with_the_existing_ones(
    home: Path, denoiser: Denoiser, asked: dict[str, list[str]]
) -> None:
    what = f"{next(iter(asked))}=['nope']"
    with pytest.raises(SymDenoiseError, match="no image fits") as caught:
        replay(documents(home), denoiser=denoiser, **asked)
    assert f"no image fits {what}; there is primary/det" in str(caught.value)


# The catalogue of derived runs


def test_the_raw_catalogue_is_not_offered_for_derived_runs(home: Path, client: Container, denoiser: Denoiser) -> None:
    raw = written(client, documents(home, 1))
    with pytest.raises(SymDenoiseError, match="it holds raw runs") as caught:
        replay(raw, into=client["raw"], denoiser=denoiser)
    assert 'client["denoised"]' in str(caught.value)
    assert "directory=" not in str(caught.value)


# The beam centre


@pytest.mark.parametrize("known", ["argument", "start"])
def test_a_beam_centre_off_the_detector_is_refused(
    home: Path, client: Container, denoiser: Denoiser, known: str
) -> None:
    options: dict[str, Any] = {"beam_center": OFF}
    if known == "start":
        options = {"beamline": Beamline(beam_center_y="cy", beam_center_x="cx")}
    raw = written(client, documents(home, metadata={"cy": OFF[0], "cx": OFF[1]}))
    for into in (None, client["denoised"]):
        with pytest.raises(SymDenoiseError, match="must be on the detector of 48 x 56 pixels"):
            replay(raw, into=into, denoiser=denoiser, **options)
    assert denoised_for(client, raw) is None
    # Without symmetry nobody needs it.
    plain = replay(raw, denoiser=denoiser, symmetry="1", **options).det_denoised.values
    assert np.isnan(plain).sum(axis=(1, 2, 3)).tolist() == [1, 1, 1]  # The spot.


def test_a_beam_centre_off_the_detector_does_not_disturb_a_scan(
    home: Path, client: Container, denoiser: Denoiser
) -> None:
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, beam_center=OFF)
    raw = written(client, documents(home), callback)
    (error,) = callback.close(timeout=120).errors
    assert "must be on the detector" in error
    assert raw.metadata["stop"]["exit_status"] == "success"
    assert denoised_for(client, raw) is None


def test_frames_whose_own_beam_centre_is_off_the_detector_are_nan(home: Path, denoiser: Denoiser) -> None:
    found = replay(
        documents(home, scalars={"cy": [23.5] * 3, "cx": [27.5, 270.0, 27.5]}),
        denoiser=denoiser,
        symmetry="2",
        beamline=Beamline(beam_center_y="cy", beam_center_x="cx"),
    )
    assert np.isnan(found.det_denoised).all(dim=found.det_denoised.dims[1:]).values.tolist() == [False, True, False]


# Mask, exposure, dark


@pytest.mark.parametrize("what", ["mask", "exposure", "mask file", "dark file"])
def test_arrays_of_another_shape_than_the_frames_are_refused(
    home: Path, client: Container, denoiser: Denoiser, tmp_path: Path, what: str
) -> None:
    """Before anything is written; a callback reports it once and leaves the run to a replay."""
    np.save(tmp_path / "small.npy", np.ones((5, 5), np.uint8))
    path = str(tmp_path / "small.npy")
    asked: dict[str, dict[str, Any]] = {
        "mask": {"mask": np.zeros((5, 5), bool)},
        "exposure": {"exposure": np.ones((5, 5))},
        "mask file": {"beamline": Beamline(mask="mask_file")},
        "dark file": {"beamline": Beamline(dark_file=path)},
    }
    options = {"denoiser": denoiser, "symmetry": "1", **asked[what]}
    raw = written(client, documents(home, metadata={"mask_file": path}))
    before = set(home.rglob("*"))
    for into in (None, client["denoised"]):
        with pytest.raises(SymDenoiseError, match=r"of shape \(5, 5\).* \(48, 56\)") as caught:
            replay(raw, into=into, **options)
        assert "\n" not in str(caught.value)
    assert denoised_for(client, raw) is None
    assert set(home.rglob("*")) == before
    callback = ThreadedDenoiseCallback(client["denoised"], **options)
    seen = written(client, documents(home, metadata={"mask_file": path}), callback)
    (error,) = callback.close(timeout=120).errors
    assert "of shape (5, 5)" in error
    assert denoised_for(client, seen) is None
    assert not list(home.rglob("*.journal"))


# Rings


def test_a_ring_off_the_detector_is_logged_once(
    home: Path, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    rings = (Ring(500, 600), Ring(700, 800, name="wide"))
    found = replay(documents(home), denoiser=denoiser, symmetry="2", beam_center=CENTER, analysis=rings)
    with caplog.at_level(logging.WARNING):
        found = found.compute()
    assert np.isnan(found.det_orientation).all()
    assert caplog.text.count("contains no pixel of a detector") == len(rings)


# Hot and dead pixels


def test_a_spot_in_one_pixel_can_be_kept(home: Path, client: Container, denoiser: Denoiser) -> None:
    """A Bragg spot narrower than half a pixel looks as a hot pixel does."""
    keeping = Denoiser(denoiser.model, threads=1, defects="keep")
    raw = written(client, documents(home))
    found = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    kept = replay(raw, into=client["denoised"], denoiser=keeping, symmetry="1")
    assert found.start["uid"] != kept.start["uid"]
    assert np.isnan(np.asarray(found["primary"]["det"].read())[:, 0, 5, 7]).all()
    spot = np.asarray(kept["primary"]["det"].read())[:, 0, 5, 7]
    np.testing.assert_allclose(spot, 6000, rtol=0.01)
    assert set(found["primary"]["det_hot_pixels"].read()) == {1.0}
    assert set(kept["primary"]["det_hot_pixels"].read()) == {0.0}
    # The provenance knows it.
    again = recompute(kept, 1)
    np.testing.assert_array_equal(again["intensity"], np.asarray(kept["primary"]["det"].read())[1])
    with pytest.raises(SymDenoiseError, match="the run was made with another choice"):
        recompute(kept, 1, denoiser=denoiser)
    with pytest.raises(SymDenoiseError, match="servers use defects='find', views=1 and sums='free'"):
        register(written(client, documents(home)), client["denoised"], denoiser=keeping, symmetry="1")


def test_default_choice_of_defects_changes_no_recipe() -> None:
    plain, kept = (
        Request.asked(activity="test", denoiser=DenoiserSettings(defects=choice)).recipe for choice in ("find", "keep")
    )
    assert plain == Request.asked(activity="test").recipe
    assert "defects" not in plain.to_dict()
    assert kept.to_dict() == {**plain.to_dict(), "defects": "keep"}
    assert kept.sha256 != plain.sha256
    with pytest.raises(SymDenoiseError, match="give find or keep"):
        DenoiserSettings(defects="drop")


def test_a_run_remembers_how_many_views_it_was_made_from(home: Path, client: Container, denoiser: Denoiser) -> None:
    raw = written(client, documents(home))
    once = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    averaged = replay(raw, into=client["denoised"], denoiser=Denoiser(denoiser.model, threads=1, views=8), symmetry="1")
    assert "views" not in once.start["provenance"]["recipe"]
    assert averaged.start["provenance"]["recipe"]["views"] == 8
    stored = np.asarray(averaged["primary"]["det"].read())
    assert (stored != np.asarray(once["primary"]["det"].read())).any()
    np.testing.assert_array_equal(recompute(averaged, 1)["intensity"], stored[1])
    with pytest.raises(SymDenoiseError, match="give 1 or 8"):
        DenoiserSettings(views=4)


def test_a_run_remembers_that_its_sums_agree(home: Path, client: Container, denoiser: Denoiser) -> None:
    """Also about a centre that is only in the recipe, because without a symmetry rows have none."""
    raw = written(client, documents(home))
    agreeing = Denoiser(denoiser.model, threads=1, sums="agree")
    free, agreed, elsewhere = (
        replay(raw, into=client["denoised"], denoiser=each, symmetry="1", beam_center=center)
        for each, center in ((denoiser, (3.0, 4.0)), (agreeing, (3.0, 4.0)), (agreeing, (30.0, 20.0)))
    )
    assert "sums" not in free.start["provenance"]["recipe"]
    assert agreed.start["provenance"]["recipe"]["sums"] == "agree"
    stored, there = (np.asarray(each["primary"]["det"].read()) for each in (agreed, elsewhere))
    assert (stored != np.asarray(free["primary"]["det"].read())).any()
    assert (stored != there).any()
    np.testing.assert_array_equal(recompute(agreed, 1)["intensity"], stored[1])
    with pytest.raises(SymDenoiseError, match="the run was made with another choice"):
        recompute(agreed, 1, denoiser=denoiser)
    with pytest.raises(SymDenoiseError, match="servers use defects='find', views=1 and sums='free'"):
        register(written(client, documents(home)), client["denoised"], denoiser=agreeing, symmetry="1")


def test_rows_were_called_frames(home: Path, denoiser: Denoiser) -> None:
    """The former name of the argument works for one release, with a warning, and makes the same derived run."""
    run = documents(home)
    with pytest.warns(DeprecationWarning, match="frames= is called rows= now"):
        made = replay(run, denoiser=denoiser, frames=[1])
    assert made.attrs["denoised_uid"] == replay(run, denoiser=denoiser, rows=[1]).attrs["denoised_uid"]
    with pytest.raises(TypeError, match="give rows"):
        replay(run, denoiser=denoiser, rows=[1], frames=[1])


def test_denoised_runs_are_found_by_rows_under_the_former_name_too(client: Container) -> None:
    with pytest.warns(DeprecationWarning, match="frames= is called rows= now"):
        assert denoised_for(client, str(uuid4()), frames=[1]) is None
