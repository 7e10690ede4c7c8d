"""Geometry, masks, exposure times and darks from where beamlines keep them."""

from __future__ import annotations

import json
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from tiled.client.container import Container

from bluesky_symdenoise import denoised_for
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback as DenoiseCallback
from bluesky_symdenoise.acquisition.past.recompute import Again, recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.request.beamline import Beamline, Settings
from bluesky_symdenoise.acquisition.request.poni import check_poni, detector_position, poni_beam_center
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import Recipe

pytestmark = pytest.mark.server

Documents = list[tuple[str, dict[str, Any]]]
SIZE = 64


def frames(n: int, rate: float = 2.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rate, (n, SIZE, SIZE)).astype(np.uint16)


def poni(path: Path, *, orientation: int) -> tuple[str, tuple[float, float]]:
    """A .poni file of a tilted detector, and its pixel of smallest scattering angle."""
    from pyFAI.detectors import Detector
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    detector = Detector(1e-4, 2e-4, max_shape=(100, 140), orientation=orientation)
    geometry = AzimuthalIntegrator(
        dist=0.1, poni1=70e-4, poni2=120e-4, rot1=0.05, rot2=-0.03, rot3=0.1, detector=detector, wavelength=1e-10
    )
    geometry.save(str(path))
    angle = geometry.center_array((100, 140), unit="2th_rad")
    y, x = np.unravel_index(angle.argmin(), angle.shape)
    return str(path), (float(y), float(x))


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_poni_file_gives_the_pixel_that_the_beam_meets(tmp_path: Path, orientation: int) -> None:
    path, lowest = poni(tmp_path / "a.poni", orientation=orientation)
    np.testing.assert_allclose(poni_beam_center(path), lowest, atol=0.51)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_a_generic_detector_without_a_size_has_that_of_the_images(tmp_path: Path, orientation: int) -> None:
    sized, sizeless = (tmp_path / name for name in ("sized.poni", "sizeless.poni"))
    said = {"pixel1": 1e-4, "pixel2": 1e-4, "orientation": orientation}
    for path, config in ((sized, {**said, "max_shape": [200, 240]}), (sizeless, said)):
        path.write_text(
            f"poni_version: 2.1\nDetector: Detector\nDetector_config: {json.dumps(config)}\n"
            "Distance: 0.2\nPoni1: 0.005\nPoni2: 0.007\nRot1: 0.0\nRot2: 0.0\nRot3: 0.0\nWavelength: 1e-10\n"
        )
    found = [detector_position(path, key="det", shape=(200, 240)).beam_center for path in (sized, sizeless)]
    assert found[0] == pytest.approx(found[1])
    check_poni(sizeless)
    if orientation != 3:
        with pytest.raises(SymDenoiseError, match="has no size; write max_shape"):
            poni_beam_center(sizeless)


def test_missing_poni_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SymDenoiseError, match="poni"):
        poni_beam_center(tmp_path / "none.poni")


class TestPrecedence:
    """Arguments, event columns, descriptor configuration, start document, .poni file."""

    BEAMLINE = Beamline(symmetry="group", beam_center_y="cy", beam_center_x="cx", exposure_time="{key}_time")

    def settings(self, levels: set[str], tmp_path: Path) -> tuple[Settings, dict[str, Any]]:
        values = {"argument": 5.0, "column": 4.0, "configuration": 3.0, "start": 2.0}
        holds = {name: {"group": "2", "cy": value, "cx": value, "det_time": value} for name, value in values.items()}
        descriptor = {
            "data_keys": {name: {} for name in holds["column"]} if "column" in levels else {},
            "configuration": {"det": {"data": holds["configuration"] if "configuration" in levels else {}}},
        }
        path = poni(tmp_path / "b.poni", orientation=3)[0] if "poni" in levels else None
        beamline = Beamline(**{**vars(self.BEAMLINE), "poni_file": path})
        settings = Settings(
            beamline,
            key="det",
            start=holds["start"] if "start" in levels else {},
            descriptor=descriptor,
            given={"beam_center": (5.0, 5.0)} if "argument" in levels else {},
        )
        return settings, holds["column"] if "column" in levels else {}

    def test_each_source_takes_precedence_over_those_below_it(self, tmp_path: Path) -> None:
        order = ["argument", "column", "configuration", "start", "poni"]
        sources = [
            "argument",
            "event column cy",
            "descriptor configuration cy",
            "start metadata cy",
            "poni file b.poni",
        ]
        for index, source in enumerate(sources):
            settings, data = self.settings(set(order[index:]), tmp_path)
            center = settings.beam_center(data)
            assert settings.record()["det_beam_center_source"] == source
            if index < 4:
                assert center == (5.0 - index, 5.0 - index)
            else:
                assert center == poni_beam_center(tmp_path / "b.poni")

    def test_missing_values_are_reported(self, tmp_path: Path) -> None:
        settings, data = self.settings(set(), tmp_path)
        assert settings.beam_center(data) is None
        assert settings.symmetry(data) == "auto"
        assert settings.record() == {
            "det_symmetry_source": "not found",
            "det_exposure_time_source": "not found",
            "det_beam_center_source": "not found",
        }

    def test_nested_start_values(self) -> None:
        beamline = Beamline(symmetry="sample.symmetry")
        settings = Settings(
            beamline, key="det", start={"sample": {"symmetry": "2mm"}}, descriptor={"data_keys": {}}, given={}
        )
        assert settings.symmetry({}) == "2mm"
        assert settings.record()["det_symmetry_source"] == "start metadata sample.symmetry"

    def test_list_items_are_found_by_index(self) -> None:
        """In the start document and in a device's configuration; an index beyond the end finds nothing."""
        beamline = Beamline(beam_center_y="beam_center.0", beam_center_x="beam_center.1")
        held = {"beam_center": [31.5, 40.0]}
        for start, configuration in ((held, {}), ({}, {"det": {"data": held}})):
            descriptor = {"data_keys": {}, "configuration": configuration}
            settings = Settings(beamline, key="det", start=start, descriptor=descriptor, given={})
            assert settings.beam_center({}) == (31.5, 40.0)
            assert settings.record()["det_beam_center"] == [31.5, 40.0]
            assert settings.missing() == []
        settings = Settings(beamline, key="det", start={"beam_center": [3.0]}, descriptor={"data_keys": {}}, given={})
        assert settings.beam_center({}) is None
        assert settings.record() == {"det_beam_center_source": "not found"}
        assert settings.missing() == [("beam_center_x", "beam_center.1")]
        given = {"beam_center": (1.0, 2.0)}
        settings = Settings(Beamline(poni="none"), key="det", start={}, descriptor={"data_keys": {}}, given=given)
        assert settings.missing() == []

    def test_value_that_is_not_a_number_is_refused(self) -> None:
        beamline = Beamline(exposure_time="t")
        settings = Settings(beamline, key="det", start={"t": "long"}, descriptor={"data_keys": {}}, given={})
        with pytest.raises(SymDenoiseError, match="start metadata t = 'long'"):
            settings.exposure_time({})


class TestBeamline:
    def test_can_be_pickled_for_another_process(self) -> None:
        beamline = Beamline(symmetry="a", handlers={"X": "a:B"})
        assert pickle.loads(pickle.dumps(beamline)) == beamline

    def test_recipe_names_it_and_round_trips(self) -> None:
        said = Beamline(symmetry="a", dark_stream="dark").to_recipe()
        assert said == ("symmetry=a", "dark_stream=dark")
        recipe = Recipe(model_sha256="0", algorithm="1", beamline=said)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert Beamline.from_recipe(said) == Beamline(symmetry="a", dark_stream="dark")

    def test_recipe_without_it_keeps_its_hash(self) -> None:
        assert "beamline" not in Recipe(model_sha256="0", algorithm="1").to_dict()
        assert Beamline().to_recipe() is None

    def test_file_is_identified_by_its_content(self, tmp_path: Path) -> None:
        said = set()
        for content in (b"a", b"b"):
            (tmp_path / "x.poni").write_bytes(content)
            said.add(Beamline(poni_file=tmp_path / "x.poni").to_recipe())
        assert len(said) == 2

    def test_two_darks_are_refused(self) -> None:
        with pytest.raises(SymDenoiseError, match="one dark"):
            Beamline(dark_stream="dark", dark_run="uid")


def a_run(
    light: np.ndarray,
    dark: np.ndarray | None = None,
    *,
    start: dict[str, Any] | None = None,
    columns: dict[str, list[float]] | None = None,
    dark_time: float = 1.0,
) -> Documents:
    """Documents of a run with inline images: a dark event, where given, and then the light ones."""
    run = compose_run(metadata=start or {})
    key = {"source": "sim", "dtype": "array", "shape": [SIZE, SIZE], "dtype_numpy": "<u2"}
    number = {"source": "sim", "dtype": "number", "shape": []}
    columns = columns or {}
    documents: Documents = [("start", run.start_doc)]
    moment = 1e9

    def stream(name: str, images: np.ndarray, values: dict[str, list[float]]) -> None:
        nonlocal moment
        described = run.compose_descriptor(name=name, data_keys={"det": key, **dict.fromkeys(values, number)})
        documents.append(("descriptor", described.descriptor_doc))
        for i, image in enumerate(images):
            data = {"det": image.tolist(), **{name: value[i] for name, value in values.items()}}
            moment += 1
            event = described.compose_event(data=data, timestamps=dict.fromkeys(data, moment), time=moment)
            documents.append(("event", event))

    if dark is not None:
        stream("dark", dark, {name: [dark_time] * len(dark) for name in columns if name == "seconds"})
    stream("primary", light, columns)
    return [*documents, ("stop", run.compose_stop())]


class Done:
    """A run through the callback, in both catalogues."""

    def __init__(self, client: Container, denoiser: Denoiser, documents: Documents, **options: Any) -> None:
        self.options = {"symmetry": "1", **options}
        self.client, self.denoiser = client, denoiser
        writer = TiledWriter(client["raw"], batch_size=1)
        callback = DenoiseCallback(client["denoised"], denoiser=denoiser, **self.options)
        for name, doc in documents:
            writer(name, doc)
            callback(name, doc)
        self.uid = documents[0][1]["uid"]
        self.status: Status = callback.close(timeout=120)

    @cached_property
    def derived(self) -> Any:
        return denoised_for(self.client, self.uid)

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self.derived["primary"][name].read())

    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = self.derived["primary"].metadata["configuration"]["symdenoise"]["data"]
        return found

    def is_computed_again(self) -> None:
        """Each row by itself and all of them in a replay, bit for bit."""
        intensity, sigma = self.column("det"), self.column("det_sigma")
        for row in range(len(intensity)):
            found = recompute(self.derived, row, denoiser=self.denoiser)
            np.testing.assert_array_equal(found["intensity"], intensity[row])
            np.testing.assert_array_equal(found["sigma"], sigma[row])
        self.derived.delete(recursive=True, external_only=False)
        again = replay(
            self.client["raw"][self.uid], into=self.client["denoised"], denoiser=self.denoiser, **self.options
        )
        np.testing.assert_array_equal(np.asarray(again["primary"]["det"].read()), intensity)
        np.testing.assert_array_equal(np.asarray(again["primary"]["det_sigma"].read()), sigma)


class TestInARun:
    def test_geometry_and_mask_from_the_documents(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, :4] = 1
        np.save(tmp_path / "mask.npy", mask)
        documents = a_run(
            frames(2),
            start={"mask": str(tmp_path / "mask.npy"), "group": "2"},
            columns={"cy": [31.5, 30.0], "cx": [31.5, 31.0], "i0": [1e5, 2e5]},
        )
        beamline = Beamline(symmetry="group", beam_center_y="cy", beam_center_x="cx", mask="mask", i0="i0")
        done = Done(client, denoiser, documents, symmetry="auto", beamline=beamline)
        assert done.status.ok, done.status
        assert set(done.column("det_symmetry")) == {"2"}
        assert list(done.column("det_center_y")) == [31.5, 30.0]
        assert list(done.column("det_counts_in")) == [float(frame[:, 4:].sum()) for frame in frames(2)]
        said = done.said()
        assert said["det_mask_sha256_source"] == "start metadata mask"
        assert said["det_i0_source"] == "event column i0"
        (tmp_path / "mask.npy").unlink()
        found = recompute(done.derived, 1, denoiser=denoiser)
        np.testing.assert_array_equal(found["intensity"], done.column("det")[1])

    def test_names_that_the_run_lacks_are_logged_once(
        self, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Names that the run has, or that an argument overrides, are not logged; the fallback is used."""
        names = {"beam_center_y": "nonsense.name", "beam_center_x": "cx", "i0": "{key}_i0", "symmetry": "none"}
        documents = a_run(frames(2), start={"cx": 30.0}, columns={"det_i0": [1.0, 2.0]})
        found = replay(documents, denoiser=denoiser, symmetry="1", beamline=Beamline(**names)).compute()
        assert np.isfinite(found.det_denoised).all()
        (said,) = [record.getMessage() for record in caplog.records]
        assert "primary/det: beam_center_y='nonsense.name' is not found in any column" in said

    def test_i0_and_transmission_change_no_pixel(self, client: Container, denoiser: Denoiser) -> None:
        images = [
            Done(client, denoiser, a_run(frames(1), columns={"i0": [i0]}), beamline=Beamline(i0="i0")).column("det")
            for i0 in (1.0, 1e6)
        ]
        np.testing.assert_array_equal(*images)

    def test_invalid_symmetry_makes_nan_rows_with_the_reason(self, client: Container, denoiser: Denoiser) -> None:
        done = Done(
            client,
            denoiser,
            a_run(frames(1), start={"group": "7"}),
            symmetry="auto",
            beamline=Beamline(symmetry="group"),
        )
        assert done.status.failed == 1
        assert "'7'" in done.status.errors[0]


class TestDarks:
    def test_from_a_stream_scaled_by_the_exposure_times(self, client: Container, denoiser: Denoiser) -> None:
        """A dark of one second and a frame of three: thrice the dark is in the frame."""
        light, dark = frames(2, rate=2.0 + 3 * 0.5), frames(1, rate=0.5, seed=1)
        done = Done(
            client,
            denoiser,
            a_run(light, dark, columns={"seconds": [3.0, 3.0]}, dark_time=1.0),
            beamline=Beamline(dark_stream="dark", exposure_time="seconds"),
        )
        assert done.status.ok, done.status
        assert list(done.derived) == ["primary"]
        assert abs(np.mean(done.column("det")) - 2.0) < 0.15
        done.is_computed_again()

    def test_is_denoised_once_for_all_rows_that_are_computed_again(
        self, client: Container, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        light = frames(2, rate=3.0)
        done = Done(client, denoiser, a_run(light, frames(1, seed=1)), beamline=Beamline(dark_stream="dark"))
        made, background = [], Denoiser.background
        monkeypatch.setattr(Denoiser, "background", lambda *a, **b: made.append(1) or background(*a, **b))
        again = Again(done.derived, "primary", "det", denoiser)
        for row, image in enumerate(light):
            np.testing.assert_array_equal(again.row(row, image).intensity, done.column("det")[row])
        assert len(made) == 1

    def test_from_another_run(self, client: Container, denoiser: Denoiser) -> None:
        taken = a_run(frames(4, rate=1.0, seed=2))
        writer = TiledWriter(client["raw"], batch_size=1)
        for name, doc in taken:
            writer(name, doc)
        done = Done(
            client,
            denoiser,
            a_run(frames(1, rate=3.0), start={"sc_dk_field_uid": taken[0][1]["uid"]}),
            beamline=Beamline(dark_run="sc_dk_field_uid"),
        )
        assert done.status.ok, done.status
        assert abs(np.mean(done.column("det")) - 2.0) < 0.15
        assert done.said()["det_dark_frames"] == 4
        done.is_computed_again()

    def test_from_a_file(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        np.save(tmp_path / "dark.npy", frames(4, rate=1.0, seed=3))
        done = Done(
            client, denoiser, a_run(frames(1, rate=3.0)), beamline=Beamline(dark_file=str(tmp_path / "dark.npy"))
        )
        assert abs(np.mean(done.column("det")) - 2.0) < 0.15
        done.is_computed_again()

    def test_frame_without_its_dark_is_nan_and_says_so(self, client: Container, denoiser: Denoiser) -> None:
        """Frames with and without dark correction must not look alike."""
        for beamline in (Beamline(dark_stream="dark"), Beamline(dark_run="uid_of_dark")):
            done = Done(client, denoiser, a_run(frames(1)), beamline=beamline)
            assert done.status.failed == 1
            assert "dark" in done.status.errors[0]
            assert np.isnan(done.column("det")).all()

    def test_dark_stream_is_denoised_as_any_other_by_default(self, client: Container, denoiser: Denoiser) -> None:
        done = Done(client, denoiser, a_run(frames(1), frames(1, rate=0.5)))
        assert set(done.derived) == {"dark", "primary"}

    def test_frames_that_are_subtracted_and_cut_are_refused(self, client: Container, denoiser: Denoiser) -> None:
        left = np.clip(frames(1, rate=20.5).astype(int) - 20, 0, None).astype(np.uint16)
        done = Done(client, denoiser, a_run(left))
        assert done.status.failed == 1
        assert "cut at zero" in done.status.errors[0]
