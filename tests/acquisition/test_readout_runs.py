"""Runs of integrating detectors whose readout is stated, named or found: the same live, replayed, lazy and computed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from raw_runs import step_scan, written
from test_beamline import Done, a_run
from tiled.client.container import Container

from bluesky_symdenoise import (
    DenoiseCallback,
    ThreadedDenoiseCallback,
    denoised_for,
    evict,
    materialize,
    recompute,
    register,
    replay,
)
from bluesky_symdenoise.acquisition.request.beamline import Beamline
from bluesky_symdenoise.acquisition.request.toml import read_arguments
from bluesky_symdenoise.analysis.ring import Ring
from bluesky_symdenoise.catalog.report.report import _readout
from bluesky_symdenoise.catalog.report.served import ServedStream
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating import Readout

pytestmark = pytest.mark.server

SHAPE = (144, 152)
CCD = Readout(2.4, 3.0, offset=100.0, saturation=60_000)


def rate() -> np.ndarray:
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return 0.5 + 6 * np.exp(-((np.hypot(y - 70, x - 75) - 40) ** 2) / 60)


def ccd(n: int = 3, offset: Any = 100.0) -> np.ndarray:
    """Frames of a camera of 2.4 units per photon; one pixel is saturated."""
    rng = np.random.default_rng(4)
    frames = 2.4 * rng.poisson(rate(), (n, *SHAPE)) + rng.normal(offset, 3, (n, *SHAPE))
    frames[:, 20, 30] = 65_000
    return np.round(frames).astype(np.uint16)


def pixels(run: Any) -> np.ndarray:
    return np.asarray(run["primary"]["det"].read()).squeeze()


def test_live_replayed_lazy_and_computed_again_are_the_same(
    home: Path, client: Container, denoiser: Denoiser, tmp_path: Path
) -> None:
    offset = np.full(SHAPE, 100.0) + np.arange(SHAPE[1]) / 100
    readout = Readout(2.4, 3.0, offset=offset, saturation=60_000)
    options: dict[str, Any] = {"denoiser": denoiser, "symmetry": "1", "readout": readout}
    with ThreadedDenoiseCallback(client["denoised"], **options) as callback:
        raw = written(client, step_scan(home / "frames", ccd(offset=offset)), callback)
    live: Any = denoised_for(client, raw)
    assert live.provenance["outcome"]["failures"] == []
    assert not live.provenance["outcome"].get("doubts")
    stored = pixels(live)
    # Photons, and no photon more or less than the signal has.
    measured = np.ones(SHAPE, bool)
    measured[20, 30] = False
    photons = (ccd(offset=offset).astype(float) - offset)[:, measured].sum(axis=1) / 2.4
    np.testing.assert_allclose(stored[:, measured].sum(axis=1), photons, rtol=2e-3)
    np.testing.assert_allclose(live["primary"]["det_counts_in"].read(), photons, rtol=1e-6)
    assert np.isnan(stored[:, 20, 30]).all()
    assert live["primary"]["det_saturated_pixels"].read().tolist() == [1.0, 1.0, 1.0]
    key = live["primary"].metadata["data_keys"]["det"]
    assert key["units"] == "photons"
    assert key["readout"][:2] == ["gain=2.4", "read_noise=3.0"]
    with h5py.File(
        live["primary"]["det"].data_sources()[0].assets[0].data_uri.removeprefix("file://localhost")
    ) as file:
        assert file["entry/data/det"].attrs["units"] == "photons"
    np.testing.assert_array_equal(recompute(live, 1)["intensity"].values.squeeze(), stored[1])
    in_memory = replay(raw, **options)
    np.testing.assert_array_equal(in_memory["det_denoised"].values.squeeze(), stored)
    live.delete(recursive=True, external_only=False)
    again = replay(raw, into=client["denoised"], **options)
    np.testing.assert_array_equal(pixels(again), stored)
    evict(again)
    np.testing.assert_array_equal(pixels(client["denoised"][again.start["uid"]]), stored)
    materialize(client["denoised"][again.start["uid"]])
    np.testing.assert_array_equal(pixels(client["denoised"][again.start["uid"]]), stored)
    client["denoised"][again.start["uid"]].delete(recursive=True, external_only=False)
    lazy = register(raw, client["denoised"], **options)
    np.testing.assert_array_equal(pixels(lazy), stored)
    assert lazy["primary"].metadata["data_keys"]["det"]["units"] == "photons"


@pytest.mark.process
def test_a_worker_process_has_the_readout_too(
    home: Path, client: Container, denoiser: Denoiser, tmp_path: Path
) -> None:
    np.save(tmp_path / "offset.npy", np.full(SHAPE, 100.0))
    (tmp_path / "found.toml").write_text('[readout]\ngain = 2.4\nread_noise = 3.0\noffset = "offset.npy"\n')
    options: dict[str, Any] = {"symmetry": "1", "readout": tmp_path / "found.toml"}
    settings = DenoiserSettings(threads=1)
    with DenoiseCallback(client["denoised"], denoiser=settings, **options) as callback:
        raw = written(client, step_scan(home / "frames", ccd()), callback)
    live: Any = denoised_for(client, raw)
    stored = pixels(live)
    # One pixel is so bright that it is taken for hot.
    assert np.isnan(stored).sum() == len(stored)
    live.delete(recursive=True, external_only=False)
    again = replay(raw, into=client["denoised"], denoiser=settings, **options)
    np.testing.assert_array_equal(pixels(again), stored)


def test_a_readout_that_does_not_fit_is_doubted(
    home: Path, client: Container, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    raw = written(client, step_scan(home / "frames", ccd()))
    with caplog.at_level(logging.WARNING):
        made: Any = replay(
            raw, into=client["denoised"], denoiser=denoiser, symmetry="1", readout=Readout(0.8, 3.0, offset=100.0)
        )
    assert np.isfinite(pixels(made)).any()
    assert "with the readout that was stated" in made.provenance["outcome"]["doubts"]["primary/det"]


def test_named_gain_and_the_dark_of_the_run(client: Container, denoiser: Denoiser) -> None:
    """Names lead to gain and read noise; the dark stream is the offset, and its noise is part of sigma."""
    rng = np.random.default_rng(7)
    offset = 50 + rng.normal(0, 4, (64, 64))

    def signal(photons: float, n: int) -> np.ndarray:
        frames = 3.0 * rng.poisson(photons, (n, 64, 64)) + rng.normal(offset, 2, (n, 64, 64))
        return np.round(frames).astype(np.uint16)

    columns = {"adu": [3.0, 3.0], "noise": [2.0, 2.0]}
    beamline = Beamline(dark_stream="dark", gain="adu", read_noise="noise")
    done = Done(client, denoiser, a_run(signal(5, 2), signal(0, 1), columns=columns), beamline=beamline)
    assert done.status.ok, done.status
    assert abs(np.mean(done.column("det")) - 5) < 0.1
    assert done.said()["det_units"] == "photons"
    # The dark is one frame, whose noise is that of the frames: sigma knows of it.
    score = (done.column("det") - 5) / done.column("det_sigma")
    assert np.std(score) < 1.3
    assert not done.derived.provenance["outcome"].get("doubts")
    done.is_computed_again()


def test_a_dark_of_another_exposure_time_is_no_offset(client: Container, denoiser: Denoiser) -> None:
    rng = np.random.default_rng(7)
    light, dark = (np.round(rng.normal(level, 2, (1, 64, 64))).astype(np.uint16) for level in (60, 50))
    done = Done(
        client,
        denoiser,
        a_run(light, dark, columns={"seconds": [3.0]}, dark_time=1.0),
        beamline=Beamline(dark_stream="dark", exposure_time="seconds"),
        readout=Readout(1.0, 2.0),
    )
    assert done.status.failed == 1
    assert "does not grow with the exposure time" in done.status.errors[0]


@pytest.mark.parametrize("fractions", [False, True])
def test_means_of_counting_frames(client: Container, denoiser: Denoiser, fractions: bool) -> None:
    """The number of exposures that were averaged is found under its name; one exposure is plain counts."""
    counts = np.random.default_rng(3).poisson(4.0, (2, 10, 64, 64)).mean(axis=1)
    if not fractions:
        counts = np.random.default_rng(3).poisson(4.0, (2, 64, 64)).astype(float)
    documents = a_run(counts, start={"images": {"det": 10 if fractions else 1}})
    for name, doc in documents:
        if name == "descriptor":
            doc["data_keys"]["det"]["dtype_numpy"] = "<f8"
    done = Done(client, denoiser, documents, beamline=Beamline(frames_averaged="images.{key}"))
    assert done.status.ok, done.status
    assert abs(np.mean(done.column("det")) - (40 if fractions else 4)) < 0.5
    assert done.said()["det_frames_averaged"] == (10 if fractions else 1)
    done.is_computed_again()


def test_dark_subtracted_frames_with_negative_values(client: Container, denoiser: Denoiser) -> None:
    rng = np.random.default_rng(5)
    signal = 2.0 * rng.poisson(0.5, (1, 64, 64)) + rng.normal(0, 3, (1, 64, 64))
    documents = a_run(signal)
    for name, doc in documents:
        if name == "descriptor":
            doc["data_keys"]["det"]["dtype_numpy"] = "<f8"
    done = Done(client, denoiser, documents, readout=Readout(2.0, 3.0))
    assert done.status.ok, done.status
    np.testing.assert_allclose(done.column("det").sum(), signal.sum() / 2, rtol=1e-2)
    done.is_computed_again()


def test_rings_are_measured_in_photons(home: Path, client: Container, denoiser: Denoiser) -> None:
    raw = written(client, step_scan(home / "frames", ccd()))
    ring = Ring(25, 55, name="ring")
    made = replay(raw, denoiser=denoiser, symmetry="1", beam_center=(70, 75), readout=CCD, analysis=ring)
    assert abs(float(made["det_ring_peak_position"][0]) - 40) < 1


def test_the_dark_stream_is_read_whatever_streams_are_chosen(client: Container, denoiser: Denoiser) -> None:
    rng = np.random.default_rng(7)
    light, dark = (np.round(rng.normal(level, 2, (1, 64, 64))).astype(np.uint16) for level in (60, 50))
    beamline = Beamline(dark_stream="dark")
    done = Done(client, denoiser, a_run(light, dark), beamline=beamline, readout=Readout(1.0, 2.0), streams=["primary"])
    assert done.status.ok, done.status
    assert abs(np.mean(done.column("det")) - 10) < 0.2


def test_a_run_of_another_detector_is_nan_with_the_reason(client: Container, denoiser: Denoiser) -> None:
    counts = np.random.default_rng(7).poisson(7.0, (2, 64, 64)).astype(np.uint16)
    done = Done(client, denoiser, a_run(counts), readout=CCD)
    assert np.isnan(done.column("det")).all()
    assert "far below the offset of 100" in done.status.errors[0]


def test_stated_twice_is_refused(client: Container, denoiser: Denoiser) -> None:
    with pytest.raises(SymDenoiseError, match="the dark is the offset"):
        ThreadedDenoiseCallback(
            client["denoised"], denoiser=denoiser, readout=CCD, beamline=Beamline(dark_stream="dark")
        )
    with pytest.raises(SymDenoiseError, match="not the value"):
        Beamline(gain=2.4)  # type: ignore[arg-type]
    with pytest.raises(SymDenoiseError, match="state one of them"):
        ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, readout=CCD, noise="poisson")


@pytest.mark.process
def test_report_page_compares_with_photons(home: Path, client: Container, denoiser: Denoiser) -> None:
    raw = written(client, step_scan(home / "frames", ccd()))
    made: Any = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", readout=CCD)
    page = made.context.http_client.get(
        made.item["links"]["full"].replace("/array/full", "/container/full"), params={"format": "text/html"}
    )
    assert page.status_code == 200, page.text
    assert "raw frames are not shown" not in page.text


def test_report_page_subtracts_a_dark_from_a_file(
    home: Path, client: Container, denoiser: Denoiser, tmp_path: Path
) -> None:
    """With the noise of the dark: its readout, not the offset alone, is what frames were denoised with."""
    np.save(tmp_path / "dark.npy", np.round(np.random.default_rng(2).normal(100, 3, (2, *SHAPE))).astype(np.uint16))
    raw = written(client, step_scan(home / "frames", ccd()))
    made: Any = replay(
        raw,
        into=client["denoised"],
        denoiser=denoiser,
        symmetry="1",
        readout=Readout(2.4, 3.0),
        beamline=Beamline(dark_file=tmp_path / "dark.npy"),
    )
    assert not made.provenance["outcome"].get("doubts")
    stream = ServedStream("primary", None, made["primary"].metadata, {})
    dark = np.load(tmp_path / "dark.npy").sum(axis=0, dtype=float)
    with pytest.MonkeyPatch.context() as patch:

        async def stored(*_: Any) -> Any:
            return dark

        patch.setattr("bluesky_symdenoise.catalog.report.report.stored_array", stored)
        found = asyncio.run(_readout(stream, "det", made.provenance["recipe"]))
    assert found == Readout(2.4, 3.0, offset=dark / 2, offset_error=3.0 / np.sqrt(2))


def test_plain_files_and_settings_take_the_file_that_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "frame.npy", ccd(1))
    (tmp_path / "found.toml").write_text(
        "[readout]\ngain = 2.4\nread_noise = 3.0\noffset = 100.0\nsaturation = 60000\n"
    )
    (tmp_path / "settings.toml").write_text('readout = "found.toml"\n')
    assert read_arguments(tmp_path / "settings.toml")["readout"] == CCD
    given = ["--symmetry", "1", "--readout", str(tmp_path / "found.toml")]
    with pytest.raises(SystemExit) as end:
        main(["denoise", str(tmp_path / "frame.npy"), "-o", str(tmp_path / "out.h5"), *given])
    assert not end.value.code, capsys.readouterr().err
    with h5py.File(tmp_path / "out.h5") as file:
        intensity = file["entry/data/intensity"]
        assert intensity.attrs["units"] == "photons"
        expected = (ccd(1).astype(float) - 100).sum() - (65_000 - 100)
        np.testing.assert_allclose(np.nansum(intensity[()]), expected / 2.4, rtol=2e-3)
