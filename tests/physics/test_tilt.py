"""On a tilted detector mates are those of scattering directions: pyFAI's own angles say where they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import frozen
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
from raw_runs import step_scan, written
from tiled.client.container import Container

from bluesky_symdenoise import Beamline, Denoiser, SymDenoiseError, Symmetry, find, recompute, register, replay
from bluesky_symdenoise.acquisition.request.beamline import Settings
from bluesky_symdenoise.acquisition.request.poni import poni_beam_center
from bluesky_symdenoise.bench.truth.tilt import PIXEL, expected_counts, main, tilted_detector
from bluesky_symdenoise.physics.evidence import asymmetry, pair_sums
from bluesky_symdenoise.physics.exposure import exposure_from_geometry
from bluesky_symdenoise.physics.fold import gated_mates, mated, pair_terms, supported_symmetry, symmetry_gate
from bluesky_symdenoise.physics.frame import Frame, frame_from_counts
from bluesky_symdenoise.physics.mates import first_of_pair, mate
from bluesky_symdenoise.physics.symmetry import checked_point_group, checked_symmetry
from bluesky_symdenoise.physics.tilt import Tilt, split_tilt

SHAPE = (192, 208)


def frame_of(counts: np.ndarray, symmetry: Symmetry) -> Frame:
    shape = (counts.shape[0], counts.shape[1])
    return frame_from_counts(counts, mask=np.zeros(shape, bool), exposure=symmetry.exposure(None, shape))


def untilted(symmetry: Symmetry) -> Symmetry:
    """Mates as computed without a tilt."""
    return Symmetry(symmetry.group, symmetry.beam_center)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
@pytest.mark.parametrize(("degrees", "azimuth"), [(0.5, 10), (10, 0), (25, 90), (40, 215)])
def test_directions_and_solid_angles_are_those_of_pyfai(degrees: float, azimuth: float, orientation: int) -> None:
    """So are, with them, the beam centre and the tilt of all four orientations."""
    geometry = tilted_detector(degrees, azimuth=azimuth, orientation=orientation, rot3=1.1)
    symmetry = Symmetry.on(geometry, "2")
    tilt, center = symmetry.tilt, symmetry.beam_center
    assert tilt is not None
    assert center is not None
    y, x = np.indices(SHAPE)
    uy, ux = tilt.flattened(y - center[0], x - center[1])
    radius = tilt.distance * np.tan(geometry.center_array(SHAPE, unit="2th_rad"))
    np.testing.assert_allclose(np.hypot(uy, ux), radius, atol=0.01)
    # Azimuths agree but for a turn and, seen from behind, the way round.
    turned = [np.exp(1j * (np.arctan2(uy, ux) - way * geometry.center_array(SHAPE, unit="chi_rad"))) for way in (1, -1)]
    assert min((np.abs(each / each[0, 0] - 1) * radius).max() for each in turned) < 0.01
    # pyFAI's solid angle is 1 at another pixel.
    ratio = symmetry.exposure(None, SHAPE) / exposure_from_geometry(geometry, SHAPE)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    # Control: distances on the detector itself are not.
    assert np.abs(np.hypot(y - center[0], x - center[1]) - radius).max() > 0.3


def test_from_pixels_to_directions_and_back() -> None:
    tilt = Tilt(25.0, 35.0, 150.0)
    dy, dx = np.meshgrid(np.linspace(-150, 150, 31), np.linspace(-140, 160, 31))
    back = tilt.unflattened(*tilt.flattened(dy, dx))
    np.testing.assert_allclose(back, (dy, dx), atol=1e-9)


def test_what_scatters_sideways_or_back_has_no_mate(rng: np.random.Generator) -> None:
    """At 60 degrees, 40 pixels away, the lower side of a detector is behind the sample."""
    symmetry = Symmetry("2~60:0:40", (95.5, 103.5))
    behind = 40 + np.sin(np.radians(60)) * (np.arange(SHAPE[0]) - 95.5) <= 0
    assert 0 < behind.sum() < 90
    counts = rng.poisson(3.0 * symmetry.exposure(None, SHAPE))
    for group in ("2", "inf"):
        mates = gated_mates(frame_of(counts, symmetry), Symmetry(f"{group}~60:0:40", symmetry.beam_center))
        assert not mates.exposure[behind].any()
        assert mates.exposure[~behind].any()


@pytest.mark.parametrize("degrees", [10, 25])
def test_each_count_is_moved_to_one_pixel_at_most(degrees: float) -> None:
    """Pixels and their mates are one to one, each less than a pixel from its place; a mate's mate is the pixel."""
    symmetry = Symmetry.on(tilted_detector(degrees), "4mm")
    center = symmetry.beam_center
    assert center is not None
    assert symmetry.grid_center == center
    index = frozen(np.arange(1, 1 + SHAPE[0] * SHAPE[1]).reshape(SHAPE))
    for operation in symmetry.operations:
        moved = mate(index, operation, center)
        y, x = np.nonzero(moved)
        there = moved[y, x] - 1
        assert len(np.unique(there)) == len(there)
        back = mate(index, operation.inverse(), center)
        np.testing.assert_array_equal(back.ravel()[there], index[y, x])
        true = np.stack(operation.moved(y - center[0], x - center[1])) + np.array(center)[:, None]
        assert np.hypot(*(true - np.divmod(there, SHAPE[1]))).max() <= 0.71
        assert len(y) > 0.5 * index.size
        first = first_of_pair(SHAPE, operation, center)
        ones, others = index[first], moved[first]
        assert len(set(ones) | set(others)) == 2 * first.sum()
        assert first.sum() > 0.2 * index.size


@pytest.mark.parametrize("group", ["2", "inf"])
@pytest.mark.parametrize("degrees", [10, 25])
def test_mates_agree_where_the_tilt_is_known_and_not_without(
    rng: np.random.Generator, degrees: float, group: str
) -> None:
    geometry = tilted_detector(degrees)
    symmetry = Symmetry.on(geometry, group)
    counts = rng.poisson(expected_counts(geometry, group, level=3.0))
    let_in, chi, p = {}, {}, {}
    for known in (symmetry, untilted(symmetry)):
        frame = frame_of(counts, known)
        operation, center = known.operations[0], known.grid_center
        assert center is not None
        other = mated(frame, operation, center)
        pairs = other.exposure > 0
        _, variance, excess, _, _ = pair_terms(frame, other)
        let_in[known] = symmetry_gate(frame, other)[pairs].mean()
        chi[known] = 1 + excess[variance > 0].mean()
        p[known] = asymmetry(pair_sums(frame, operation, center)).p_value
    assert let_in[symmetry] > 0.9
    assert abs(chi[symmetry] - 1) < 0.05
    assert p[symmetry] > 1e-3
    wrong = untilted(symmetry)
    assert let_in[wrong] < 0.3
    assert chi[wrong] > 1.3
    assert p[wrong] < 1e-10


def test_auto_finds_the_group_of_directions(rng: np.random.Generator) -> None:
    geometry = tilted_detector(15)
    asked = Symmetry.on(geometry)
    assert asked.group == "auto"
    for group, found in (("2", "2"), ("inf", "2mm")):
        counts = rng.poisson(expected_counts(geometry, group, level=5.0))
        with_tilt = supported_symmetry(frame_of(counts, asked), asked.beam_center, asked.tilt)
        assert (with_tilt.group, with_tilt.tilt) == (found, asked.tilt)
        assert supported_symmetry(frame_of(counts, untilted(asked)), asked.beam_center) == Symmetry()


@pytest.mark.parametrize("group", ["2", "inf"])
def test_a_known_tilt_denoises_better(rng: np.random.Generator, denoiser: Denoiser, group: str) -> None:
    """The error is smaller than without the tilt, and than without symmetry."""
    geometry = tilted_detector(15)
    truth = expected_counts(geometry, group, level=0.5)
    counts = rng.poisson(truth)
    symmetry = Symmetry.on(geometry, group)
    error = {}
    for known in (symmetry, untilted(symmetry), Symmetry()):
        result = denoiser(counts, symmetry=known)
        error[known] = float(np.mean((result["intensity"].values - truth) ** 2 / truth))
        assert result.attrs["symmetry"] == known.point_group
    assert error[symmetry] < 0.85 * error[untilted(symmetry)]
    assert error[symmetry] < 0.85 * error[Symmetry()]


def test_the_benchmark_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bluesky_symdenoise.bench.truth.tilt.TILTS", (15.0,))
    monkeypatch.setattr("bluesky_symdenoise.bench.truth.tilt.LEVELS", (1.0,))
    report = main(json_path=tmp_path / "tilt.json", frames=1)
    stored = json.loads((tmp_path / "tilt.json").read_text())
    assert stored.pop("header")["model"]["name"] == "fast"
    assert stored == report
    for row in report["denoised"]:
        assert row["error"]["known"] < min(row["error"]["flat"], row["error"]["none"])
        assert row["gain"]["known"] > max(row["gain"]["flat"], 0)
    assert all(0.5 < row["share"] < 1 for row in report["mates"])


def test_a_tilt_that_moves_no_mate_is_left_out() -> None:
    """0.01 degrees on a detector of 200 pixels; on 4000 pixels, the same tilt is used."""
    assert Symmetry.on(tilted_detector(0.0), "2mm").point_group == "2mm"
    assert Symmetry.on(tilted_detector(0.01, dist=0.1), "2mm").point_group == "2mm"
    assert Symmetry.on(tilted_detector(0.1, dist=0.1, shape=(4000, 4000)), "2mm").tilt is not None
    assert Symmetry.on(tilted_detector(25), "1") == Symmetry()


def test_a_tilt_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(SymDenoiseError, match="its pixels are not square"):
        Symmetry.on(tilted_detector(10, pixel=(PIXEL, 2 * PIXEL)), "2")
    with pytest.raises(SymDenoiseError, match="up to 60 degrees"):
        Symmetry.on(tilted_detector(65, azimuth=0), "2")
    # Control: without a tilt such pixels have the mates that they had.
    assert Symmetry.on(tilted_detector(0, pixel=(PIXEL, 2 * PIXEL)), "2").tilt is None


@pytest.mark.parametrize(
    "written", ["", "15", "15:90", "15:90:0", "0:90:100", "60.001:0:100", "15:90:100:1", "-5:0:100", "1.0001:0:100"]
)
@pytest.mark.parametrize("group", ["2", "auto"])
def test_invalid_tilts_are_refused(group: str, written: str) -> None:
    with pytest.raises(SymDenoiseError, match=r"a tilt is GROUP~TILT:AXIS:DISTANCE"):
        checked_symmetry(f"{group}~{written}")


@pytest.mark.parametrize("group", ["1", "3", "", "2mm@x"])
def test_unknown_groups_are_refused_on_a_tilted_detector_too(group: str) -> None:
    with pytest.raises(SymDenoiseError, match="symmetry"):
        checked_symmetry(f"{group}~15:90:100")


@pytest.mark.parametrize("symbol", ["2~15:90:1200", "2mm@-30~0.001:-35.5:99.25", "inf~60:359.999:1"])
def test_symbols_that_say_one_are_taken_and_written_back(symbol: str) -> None:
    """With all digits, so that one tilt has one name in recipes and searches."""
    group, tilt = split_tilt(symbol)
    assert checked_point_group(symbol) == f"{group}~{tilt}" == checked_point_group(f"{group}~{tilt}")
    assert split_tilt(f"{group}~{tilt}") == (group, tilt)
    assert len(Symmetry(symbol).operations) == len(Symmetry(group).operations)


def test_a_tilted_group_needs_its_centre(denoiser: Denoiser) -> None:
    for symbol in ("2~15:90:1200", "auto~15:90:1200"):
        with pytest.raises(SymDenoiseError, match="without a beam centre: on a tilted detector"):
            denoiser.resolve(np.ones((32, 32)), symmetry=symbol)


class TestBeamline:
    """A .poni file, or its words in the run, tilts what the run or the user says of the symmetry."""

    # As small as `auto` can still test.
    SHAPE = (160, 168)

    def geometry(self, degrees: float = 25.0, **options: Any) -> AzimuthalIntegrator:
        return tilted_detector(degrees, shape=self.SHAPE, dist=0.02, **options)

    def settings(self, beamline: Beamline, *, start: Any = None, **given: Any) -> Settings:
        descriptor = {"data_keys": {"det": {"shape": [1, *self.SHAPE]}}, "configuration": {}}
        return Settings(beamline, key="det", start=start or {}, descriptor=descriptor, given=given)

    def saved(self, folder: Path, geometry: AzimuthalIntegrator) -> Path:
        geometry.save(str(folder / "at.poni"))
        return folder / "at.poni"

    def test_the_file_tilts_every_group_but_1(self, tmp_path: Path) -> None:
        geometry = self.geometry()
        known = Symmetry.on(geometry, "2mm")
        path = self.saved(tmp_path, geometry)
        beamline = Beamline(symmetry="group", poni_file=path)
        for said, used in (({}, f"auto~{known.tilt}"), ({"group": "2mm"}, known.point_group), ({"group": "1"}, "1")):
            assert self.settings(beamline, start=said).symmetry({}) == used
        given = "2~5:0:100"
        assert self.settings(beamline, symmetry=given).symmetry({}) == "2~5.000:0.000:100.00"
        record = self.settings(beamline).record()
        assert record["det_tilt"] == pytest.approx([25.0, known.tilt.axis, known.tilt.distance])
        assert record["det_tilt_source"] == "poni file at.poni"
        np.testing.assert_allclose(poni_beam_center(path), known.beam_center, atol=1e-6)

    def test_the_words_of_the_run_say_the_same(self) -> None:
        geometry = self.geometry(orientation=2)
        names = ("dist", "poni1", "poni2", "rot1", "rot2", "rot3")
        words = {**{name: getattr(geometry, name) for name in names}, "detector": "Detector"}
        words["detector_config"] = {"pixel1": PIXEL, "pixel2": PIXEL, "orientation": 2}
        settings = self.settings(Beamline(poni="poni"), start={"poni": words}, symmetry="2mm")
        known = Symmetry.on(geometry, "2mm")
        assert settings.symmetry({}) == known.point_group
        np.testing.assert_allclose(settings.beam_center({}), known.beam_center, atol=1e-6)
        assert settings.record()["det_tilt_source"] == "start metadata poni"
        with pytest.raises(SymDenoiseError, match="a geometry has dist, poni1"):
            self.settings(Beamline(poni="poni"), start={"poni": {"dist": 1.0}})

    def test_without_a_tilt_that_matters_nothing_changes(self, tmp_path: Path) -> None:
        settings = self.settings(Beamline(poni_file=self.saved(tmp_path, self.geometry(0.005))), symmetry="2mm")
        assert settings.symmetry({}) == "2mm"
        assert not [name for name in settings.record() if "tilt" in name]

    def test_a_tilt_that_cannot_be_used_is_recorded_and_not_used(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, self.geometry(pixel=(PIXEL, 1.5 * PIXEL)))
        settings = self.settings(Beamline(poni_file=path), symmetry="2mm")
        assert settings.symmetry({}) == "2mm"
        assert "its pixels are not square" in settings.record()["det_tilt_source"]
        assert settings.record()["det_beam_center"] is not None
        # Nobody misses it who has no mates.
        assert self.settings(Beamline(poni_file=path), symmetry="1").unused_tilt is None

    @pytest.mark.server
    @pytest.mark.parametrize("asked", ["auto", "2"])
    def test_a_run_is_denoised_with_the_tilt_of_its_detector(
        self, client: Container, denoiser: Denoiser, home: Path, tmp_path: Path, asked: str
    ) -> None:
        """The derived run says so, can be computed again and found, and reads the same if the server computes it."""
        geometry = self.geometry()
        rng = np.random.default_rng(5)
        counts = rng.poisson(expected_counts(geometry, "2", level=8.0), (2, *self.SHAPE)).astype(np.uint16)
        known = Symmetry.on(geometry, "2")
        raw = written(client, step_scan(home / "frames", counts))
        beamline = Beamline(poni_file=self.saved(tmp_path, geometry))
        run = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry=asked, beamline=beamline)
        stream = run["primary"]
        assert set(np.asarray(stream["det_symmetry"].read()).tolist()) == {known.point_group}
        configuration = stream.metadata["configuration"]["symdenoise"]["data"]
        assert configuration["det_tilt_source"] == "poni file at.poni"
        stored = {name: np.asarray(stream[f"det{name}"].read()) for name in ("", "_sigma")}
        direct = denoiser(counts, symmetry=known)
        assert np.abs(stored[""].reshape(counts.shape) - direct["intensity"].values).max() < 1
        for row in range(2):
            again = recompute(run, row, denoiser=denoiser)
            np.testing.assert_array_equal(again["intensity"], stored[""][row])
            np.testing.assert_array_equal(again["sigma"], stored["_sigma"][row])
        for symbol in ("2", known.point_group):
            assert run.start["uid"] in set(find(client, symmetry=symbol))
        assert run.start["uid"] not in set(find(client, symmetry="2mm"))
        lazy = register(
            raw,
            client["denoised"],
            denoiser=denoiser,
            symmetry=known.point_group if asked == "2" else f"auto~{known.tilt}",
            beam_center=known.beam_center,
        )
        np.testing.assert_array_equal(np.asarray(lazy["primary"]["det"]), stored[""])
