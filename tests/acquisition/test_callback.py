"""The callback on a RunEngine: what it writes while a scan runs, and that no error of its own stops a scan."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import hdf5plugin
import numpy as np
import ophyd
import pytest
import tiled.client.utils
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from callback_runs import (
    CENTER,
    HEIGHT,
    WIDTH,
    Documents,
    Scan,
    column,
    composed,
    derived_of,
    fed,
    images_of,
    outcome,
    rings,
    write,
)
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from tiled.client import from_uri
from tiled.client.container import Container
from tiled.queries import Key, SpecsQuery
from tiled.structures.core import Spec
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback as DenoiseCallback
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.acquisition.runs import frames as frames_module
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import Recipe

pytestmark = pytest.mark.server

SCALARS = ("counts_in", "counts_out", "symmetry", "center_y", "center_x", "ms")


@pytest.fixture(scope="module")
def scan(engine: RunEngine, client: Container) -> Callable[..., Scan]:
    """Function that runs a plan with the raw writer and a callback subscribed, and waits for both."""

    def run(plan: Any, callback: DenoiseCallback) -> Scan:
        documents: Documents = []
        subscribers = (
            TiledWriter(client["raw"]),
            callback,
            lambda name, doc: documents.append((name, dict(doc))),
        )
        tokens = [engine.subscribe(subscriber) for subscriber in subscribers]
        try:
            engine(plan)
        except RuntimeError as error:
            if str(error) != "beam lost":
                raise
        finally:
            for token in tokens:
                engine.unsubscribe(token)
        return Scan(documents, callback.close(timeout=60))

    return run


@pytest.fixture(scope="module")
def det(engine: RunEngine, home: Path, client: Container) -> PlayDetector:
    return detector(rings(), home / "frames")


def detector(frames: np.ndarray, folder: Path, name: str = "det") -> PlayDetector:
    with init_devices():
        det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder), name=name)
    return det


def file_of(run: Any, key: str = "det") -> Path:
    (source,) = run["primary"][key].data_sources()
    return Path(path_from_uri(source.assets[0].data_uri))


@pytest.fixture(scope="module")
def counted(
    scan: Callable[..., Scan], det: PlayDetector, client: Container, denoiser: Denoiser
) -> tuple[Scan, Any, Any]:
    """A scan of three frames with a sample name in its metadata; its raw and its derived run."""
    callback = DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="2mm", beam_center=CENTER)
    done = scan(bp.count([det], num=3, md={"sample": "collagen"}), callback)
    return done, client["raw"][done.uid], derived_of(client, done)


class TestDerivedRun:
    """One scan, watched: the derived run beside the raw one."""

    def test_nothing_fails_and_nothing_waits(self, counted: tuple[Scan, Any, Any]) -> None:
        status = counted[0].status
        assert status.ok
        assert (status.frames, status.failed, status.waiting, status.errors) == (3, 0, 0, ())
        assert status.runs == ((counted[0].uid, "3 frames denoised"),)

    def test_derived_run_reads_like_the_raw_run(self, counted: tuple[Scan, Any, Any]) -> None:
        """Same stream, data key, shape and dimensions, so that code written for the raw run reads it."""
        _, raw, derived = counted
        assert list(derived) == list(raw) == ["primary"]
        assert derived["primary"]["det"].shape == raw["primary"]["det"].shape == (3, 1, HEIGHT, WIDTH)
        assert derived["primary"]["det_sigma"].shape == (3, 1, HEIGHT, WIDTH)
        assert derived["primary"]["det"].dtype == np.float32
        left, right = raw["primary"].read(), derived["primary"].read()
        assert left["det"].dims == right["det"].dims == right["det_sigma"].dims

    def test_events_have_the_raw_times_and_numbers(self, counted: tuple[Scan, Any, Any]) -> None:
        done, raw, derived = counted
        np.testing.assert_array_equal(column(derived, "time"), column(raw, "time"))
        np.testing.assert_array_equal(column(derived, "seq_num"), [doc["seq_num"] for doc in done.of("event")])

    def test_every_event_has_its_scalars(self, counted: tuple[Scan, Any, Any]) -> None:
        derived = counted[2]
        assert {f"det_{name}" for name in SCALARS} <= set(derived["primary"])
        np.testing.assert_array_equal(column(derived, "det_counts_in"), rings().sum(axis=(1, 2)))
        np.testing.assert_allclose(column(derived, "det_counts_out"), images_of(derived).sum(axis=(1, 2, 3)), rtol=1e-3)
        assert set(column(derived, "det_symmetry")) == {"2mm"}
        assert set(column(derived, "det_center_y")) == {CENTER[0]}
        assert set(column(derived, "det_center_x")) == {CENTER[1]}
        assert (column(derived, "det_ms") > 0).all()

    def test_denoised_and_raw_subtract_pixel_by_pixel(self, counted: tuple[Scan, Any, Any]) -> None:
        _, raw, derived = counted
        left, right = raw["primary"].read(), derived["primary"].read()
        difference = left["det"] - right["det"]
        assert difference.shape == (3, 1, HEIGHT, WIDTH)
        np.testing.assert_array_equal(difference, rings()[:, np.newaxis] - images_of(derived))

    def test_denoised_images_scatter_less_than_raw_ones(self, counted: tuple[Scan, Any, Any]) -> None:
        """The three frames show the same sample, so their scatter is noise, most of which is removed."""
        raw, denoised = rings().astype(float), images_of(counted[2])[:, 0]
        assert denoised.std(axis=0).mean() < 0.5 * raw.std(axis=0).mean()
        assert (images_of(counted[2], "det_sigma") > 0).all()

    def test_names_its_raw_run(self, counted: tuple[Scan, Any, Any]) -> None:
        done, raw, derived = counted
        start = derived.start
        assert (start["raw_uid"], start["raw_time"]) == (done.uid, raw.start["time"])
        assert start["raw_scan_id"] == raw.start["scan_id"]
        assert "scan_id" not in start
        assert (start["sample"], start["plan_name"]) == ("collagen", "count")
        assert derived.metadata["stop"]["exit_status"] == "success"

    def test_provenance_says_how_it_was_made(self, counted: tuple[Scan, Any, Any], denoiser: Denoiser) -> None:
        done, _, derived = counted
        made = derived.start["provenance"]
        assert made["wasDerivedFrom"] == [{"run": done.uid, "stream": "primary", "data_key": "det"}]
        assert made["wasGeneratedBy"]["activity"] == "callback"
        assert made["wasAssociatedWith"]["name"] == "bluesky-symdenoise"
        assert made["model"] == denoiser.model.identity()
        assert {"python", "torch", "device", "dtype", "threads"} <= set(made["environment"])
        recipe = Recipe.from_dict(made["recipe"])
        assert (recipe.symmetry, recipe.beam_center) == ("2mm", CENTER)
        assert made["recipe_sha256"] == recipe.sha256
        assert derived.start["uid"] == recipe.derived_uid(done.uid)
        ended = outcome(derived)
        assert (ended["frames"], ended["failures"]) == (3, [])
        assert ended["seconds"] > 0
        assert ended["bytes"] == file_of(derived).stat().st_size

    @pytest.mark.parametrize("key", ["provenance.model.sha256", "start.provenance.model.sha256"])
    def test_is_found_by_model_and_by_spec(
        self, counted: tuple[Scan, Any, Any], client: Container, denoiser: Denoiser, key: str
    ) -> None:
        _, raw, derived = counted
        uid = derived.start["uid"]
        assert [spec.name for spec in derived.specs] == ["SymDenoised", "BlueskyRun"]
        assert uid in client["denoised"].search(Key(key) == denoiser.model.sha256)
        assert uid not in client["denoised"].search(Key(key) == "0" * 64)
        assert uid in client["denoised"].search(SpecsQuery(["SymDenoised"]))
        assert raw.start["uid"] not in client["raw"].search(SpecsQuery(["SymDenoised"]))

    def test_file_is_compressed_nexus_that_other_tools_open(self, counted: tuple[Scan, Any, Any]) -> None:
        derived = counted[2]
        with h5py.File(file_of(derived), "r", swmr=True) as file:
            data = file["entry/data"]
            assert (file["entry"].attrs["NX_class"], file["entry"].attrs["default"]) == ("NXentry", "data")
            assert (data.attrs["NX_class"], data.attrs["signal"]) == ("NXdata", "det")
            for name in ("det", "det_sigma"):
                assert str(hdf5plugin.BSHUF_ID) in data[name]._filters
                assert data[name].chunks == (1, 1, HEIGHT, WIDTH)
            np.testing.assert_array_equal(data["det"][:], images_of(derived))
            np.testing.assert_array_equal(data["det_sigma"][:], images_of(derived, "det_sigma"))

    def test_second_callback_of_the_same_recipe_leaves_it_alone(
        self, counted: tuple[Scan, Any, Any], client: Container, denoiser: Denoiser
    ) -> None:
        done, _, derived = counted
        before = file_of(derived).read_bytes()
        again = fed(
            DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="2mm", beam_center=CENTER),
            done.documents,
        )
        (line,) = again.status.errors
        assert "has one with the same recipe already" in line
        assert "\n" not in line
        assert not again.status.ok
        assert len(client["denoised"].search(Key("raw_uid") == done.uid)) == 1
        assert file_of(derived).read_bytes() == before


def test_raw_file_and_documents_are_byte_for_byte_what_they_were(
    client: Container, denoiser: Denoiser, tmp_path: Path
) -> None:
    path = write(rings(2), tmp_path / "raw.h5")
    path.chmod(0o444)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    documents = composed(rings(2), path, start={"sample": {"name": "x"}})
    written = repr(documents)
    done = fed(DenoiseCallback(client["denoised"], denoiser=denoiser), documents)
    assert done.status.frames == 2
    assert repr(documents) == written
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


def test_two_runs_at_once_do_not_mix(client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
    stacks = rings(4)[:2], rings(4)[2:]
    each = [composed(stack, write(stack, tmp_path / f"{i}.h5")) for i, stack in enumerate(stacks)]
    callback = DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1")
    for pair in zip(*each, strict=True):
        for name, doc in pair:
            callback(name, doc)
    assert callback.close(timeout=60).ok
    for documents, stack in zip(each, stacks, strict=True):
        derived = denoised_for(client, documents[0][1]["uid"])
        assert derived is not None
        np.testing.assert_array_equal(column(derived, "det_counts_in"), stack.sum(axis=(1, 2)))


def test_bulk_announcement_after_all_events(client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
    """As Tiled exports them: one stream_datum for all frames, after the last event."""
    path = write(rings(), tmp_path / "raw.h5")
    done = [
        fed(
            DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1"),
            composed(rings(), path, bulk=bulk),
        )
        for bulk in (True, False)
    ]
    bulk, single = (derived_of(client, each) for each in done)
    np.testing.assert_array_equal(images_of(bulk), images_of(single))
    np.testing.assert_array_equal(column(bulk, "time"), column(single, "time"))


def test_several_frames_per_event_keep_their_shape(client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
    frames = rings(6).reshape(2, 3, HEIGHT, WIDTH)
    done = fed(
        DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1"),
        composed(frames, write(frames, tmp_path / "raw.h5")),
    )
    derived = derived_of(client, done)
    images = images_of(derived)
    assert images.shape == (2, 3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(column(derived, "det_counts_in"), frames.sum(axis=(1, 2, 3)))
    alone = denoiser(frames[1, 2], symmetry="1")
    step = alone["sigma"].values / 8
    assert (np.abs(images[1, 2] - alone["intensity"].values) <= step).all()
    other = denoiser(frames[1, 1], symmetry="1")["intensity"].values
    assert not (np.abs(images[1, 2] - other) <= step).all()


def test_images_inside_events_are_denoised(scan: Callable[..., Scan], client: Container, denoiser: Denoiser) -> None:
    camera = ophyd.Signal(name="camera", value=rings()[0].astype(float))
    done = scan(bp.count([camera], num=2), DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1"))
    assert done.status.ok
    derived = derived_of(client, done)
    assert images_of(derived, "camera").shape == (2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(column(derived, "camera_counts_in"), [rings()[0].sum()] * 2)


def test_only_the_data_keys_asked_for(
    scan: Callable[..., Scan], det: PlayDetector, client: Container, denoiser: Denoiser
) -> None:
    camera = ophyd.Signal(name="camera", value=rings()[0].astype(float))
    callback = DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1", data_keys=["camera"])
    derived = derived_of(client, scan(bp.count([det, camera]), callback))
    assert "camera" in derived["primary"]
    assert "det" not in derived["primary"]


def test_stream_that_is_configured_anew_goes_on_in_the_same_derived_stream(
    client: Container, denoiser: Denoiser, tmp_path: Path
) -> None:
    """A detector that is configured within a run gets a second descriptor."""
    done = fed(
        DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1"),
        composed(rings(), write(rings(), tmp_path / "raw.h5"), descriptors=2),
    )
    assert done.status.ok
    derived = derived_of(client, done)
    np.testing.assert_array_equal(column(derived, "det_counts_in"), rings().sum(axis=(1, 2)))


def test_single_name_is_refused_where_a_list_is_needed(client: Container, denoiser: Denoiser) -> None:
    with pytest.raises(SymDenoiseError, match="det"):
        DenoiseCallback(client["denoised"], denoiser=denoiser, data_keys="det").close()


def test_run_without_images_has_no_derived_run(
    scan: Callable[..., Scan], client: Container, denoiser: Denoiser
) -> None:
    motor = ophyd.Signal(name="temperature", value=1.5)
    done = scan(bp.count([motor]), DenoiseCallback(client["denoised"], denoiser=denoiser))
    assert done.status.ok
    (ended,) = done.status.runs
    assert ended[0] == done.uid
    assert ended[1].startswith("nothing to denoise: no 2D image")
    assert denoised_for(client, done.uid) is None


def test_aborted_scan_has_the_frames_taken_until_then(
    scan: Callable[..., Scan], det: PlayDetector, client: Container, denoiser: Denoiser
) -> None:
    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for _ in range(2):
            yield from bps.trigger_and_read([det])
        raise RuntimeError("beam lost")

    done = scan(plan(), DenoiseCallback(client["denoised"], denoiser=denoiser))
    derived = derived_of(client, done)
    stop = derived.metadata["stop"]
    (raw_stop,) = done.of("stop")
    assert stop["exit_status"] == raw_stop["exit_status"] == "fail"
    assert stop["reason"] == raw_stop["reason"] == "beam lost"
    announced = {number for doc in done.of("stream_datum") for number in range(*doc["seq_nums"].values())}
    assert list(column(derived, "seq_num")) == sorted(announced) == [1, 2]
    assert derived["primary"].read()["det"].shape == (2, 1, HEIGHT, WIDTH)


def test_frame_announced_without_event_has_a_row(client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
    documents = composed(rings(), write(rings(), tmp_path / "raw.h5"))
    last = max(i for i, (name, _) in enumerate(documents) if name == "event")
    done = fed(DenoiseCallback(client["denoised"], denoiser=denoiser), documents[:last] + documents[last + 1 :])
    derived = derived_of(client, done)
    assert list(column(derived, "seq_num")) == [1, 2, 3]
    assert derived["primary"].read()["det"].shape[0] == 3


class TestTrouble:
    """Errors of denoising are reported, and stop neither the scan nor other frames."""

    @staticmethod
    def only_second_row_is_nan(derived: Any, reason: str) -> None:
        images, sigma = images_of(derived), images_of(derived, "det_sigma")
        assert [bool(np.isnan(image).all()) for image in images] == [False, True, False]
        assert np.isfinite(images[[0, 2]]).all()
        assert np.isnan(sigma[1]).all()
        assert np.isnan(column(derived, "det_counts_out")[1])
        assert column(derived, "det_symmetry")[1] == ""
        (failure,) = outcome(derived)["failures"]
        assert failure["frames"] == 1
        assert reason in failure["reason"]
        assert derived["primary"].read()["det"].shape[0] == 3

    def test_frame_that_the_denoiser_cannot_take(
        self, scan: Callable[..., Scan], det: PlayDetector, client: Container, denoiser: Denoiser
    ) -> None:
        class Fails(Denoiser):
            def __call__(self, counts: Any, **options: Any) -> Any:
                if np.array_equal(np.squeeze(counts), rings()[1]):
                    raise RuntimeError("out of memory")
                return super().__call__(counts, **options)

        failing = Fails(denoiser.model, threads=1)
        done = scan(bp.count([det], num=3), DenoiseCallback(client["denoised"], denoiser=failing))
        assert done.of("stop")[0]["exit_status"] == "success"
        assert (done.status.frames, done.status.failed, done.status.ok) == (2, 1, False)
        assert done.status.runs == ((done.uid, "2 frames denoised, 1 failed"),)
        self.only_second_row_is_nan(derived_of(client, done), "primary/det: out of memory")

    def test_frame_with_all_pixels_masked(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        frames = rings().copy()
        frames[1] = 65535
        done = fed(
            DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1"),
            composed(frames, write(frames, tmp_path / "raw.h5")),
        )
        self.only_second_row_is_nan(derived_of(client, done), "all pixels masked")

    def test_frame_that_never_reaches_its_file(
        self, client: Container, denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(frames_module, "PATIENCE_S", 0.05)
        path = write(rings()[:2], tmp_path / "raw.h5")
        done = fed(DenoiseCallback(client["denoised"], denoiser=denoiser), composed(rings(), path))
        derived = derived_of(client, done)
        assert [bool(np.isnan(image).all()) for image in images_of(derived)] == [False, False, True]
        (failure,) = outcome(derived)["failures"]
        assert "the dataset has 2 rows so far" in failure["reason"]

    def test_raw_file_that_is_gone(
        self, client: Container, denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(frames_module, "PATIENCE_S", 0.05)
        done = fed(
            DenoiseCallback(client["denoised"], denoiser=denoiser),
            composed(rings(1), tmp_path / "deleted.h5"),
        )
        assert (done.status.frames, done.status.failed) == (0, 1)
        derived = derived_of(client, done)
        assert np.isnan(images_of(derived)).all()
        assert outcome(derived)["failures"][0]["frames"] == 1
        assert "replay the run" in outcome(derived)["failures"][0]["reason"]

    def test_frame_that_comes_late_is_waited_for(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        path = tmp_path / "raw.h5"
        callback = DenoiseCallback(client["denoised"], denoiser=denoiser)
        documents = composed(rings(1), path)
        for name, doc in documents:
            callback(name, doc)
        time.sleep(0.3)
        write(rings(1), tmp_path / "hidden.h5").rename(path)
        assert callback.close(timeout=60).frames == 1

    def test_event_whose_frame_was_never_announced(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        path = write(rings(), tmp_path / "raw.h5")
        done = fed(
            DenoiseCallback(client["denoised"], denoiser=denoiser),
            composed(rings(), path, announced=range(2)),
        )
        derived = derived_of(client, done)
        assert [bool(np.isnan(image).all()) for image in images_of(derived)] == [False, False, True]
        assert "never announced" in outcome(derived)["failures"][0]["reason"]

    def test_beam_centre_off_the_detector(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        callback = DenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="2", beam_center=(5000.0, 5000.0))
        done = fed(callback, composed(rings(2), write(rings(2), tmp_path / "raw.h5")))
        (line,) = done.status.errors
        assert "5000" in line
        assert denoised_for(client, done.uid) is None

    def test_mask_of_another_detector(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        callback = DenoiseCallback(client["denoised"], denoiser=denoiser, mask=np.zeros((8, 8), bool))
        done = fed(callback, composed(rings(1), write(rings(1), tmp_path / "raw.h5")))
        (line,) = done.status.errors
        assert "mask of shape (8, 8)" in line
        assert denoised_for(client, done.uid) is None

    def test_server_of_derived_runs_is_gone(
        self, engine: RunEngine, denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """During one scan and before the next: both scans complete, and each has an error line."""
        monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 1)
        det = detector(rings(), tmp_path / "raw")
        (tmp_path / "raw").mkdir()
        ends: list[str] = []
        engine_said = engine.subscribe(lambda _, doc: ends.append(doc["exit_status"]), "stop")

        @bpp.stage_decorator([det])
        @bpp.run_decorator()
        def plan() -> Any:
            yield from bps.trigger_and_read([det])
            while not callback.status().frames:
                yield from bps.sleep(0.02)
            server.close()
            yield from bps.trigger_and_read([det])

        with ExitStack() as server:
            embedded = server.enter_context(embedded_catalog(tmp_path / "catalogue"))
            # A client of its own: the embedded catalogue closes its client with the server.
            client = from_uri(embedded.uri, api_key=embedded.context.api_key, trust_env=False)
            with client.context:
                callback, later = (DenoiseCallback(client["denoised"], denoiser=denoiser) for _ in range(2))
                for subscribed, scanned in ((callback, plan()), (later, bp.count([det]))):
                    token = engine.subscribe(subscribed)
                    engine(scanned)
                    engine.unsubscribe(token)
                    status = subscribed.close(timeout=60)
                    (line,) = status.errors
                    assert "\n" not in line
                    assert len(status.runs) == 1
                    assert status.runs[0][0][:8] in line
                    assert "replay" in line
                    assert not status.ok
                    assert status.waiting == 0
        engine.unsubscribe(engine_said)
        assert ends == ["success", "success"]

    def test_closing_with_a_run_open_leaves_a_finished_derived_run(
        self, client: Container, denoiser: Denoiser, tmp_path: Path
    ) -> None:
        documents = composed(rings(1), write(rings(1), tmp_path / "raw.h5"))
        done = fed(DenoiseCallback(client["denoised"], denoiser=denoiser), documents[:-1])
        derived = derived_of(client, done)
        assert derived.metadata["stop"]["exit_status"] == "fail"
        assert "before the run's stop document" in derived.metadata["stop"]["reason"]
        assert images_of(derived).shape[0] == 1
        (line,) = done.status.errors
        assert done.uid[:8] in line

    def test_documents_after_closing_are_not_taken(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        callback = DenoiseCallback(client["denoised"], denoiser=denoiser)
        callback.close()
        done = fed(callback, composed(rings(), write(rings(), tmp_path / "raw.h5")))
        assert done.status == Status(0, 0, 0, (), ())
        assert denoised_for(client, done.uid) is None

    def test_closing_says_what_still_waits(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        class Gated(Denoiser):
            gate = threading.Event()

            def __call__(self, counts: Any, **options: Any) -> Any:
                self.gate.wait(30)
                return super().__call__(counts, **options)

        slow = Gated(denoiser.model, threads=1)
        callback = DenoiseCallback(client["denoised"], denoiser=slow)
        documents = composed(rings(1), write(rings(1), tmp_path / "raw.h5"))
        begun = time.monotonic()
        for name, doc in documents:
            callback(name, doc)
        handed_over = time.monotonic() - begun
        status = callback.close(timeout=0.01)
        assert status.waiting > 0
        assert not status.ok
        assert handed_over < 0.5
        slow.gate.set()
        status = callback.close(timeout=60)
        assert status.ok
        assert status.frames == 1


class TestConstructor:
    """Invalid arguments are refused before a scan starts, in one line with the remedy."""

    @staticmethod
    def refused(match: str, *arguments: Any, **options: Any) -> None:
        threads = threading.active_count()
        with pytest.raises(SymDenoiseError, match=match) as caught:
            DenoiseCallback(*arguments, **options)
        assert "\n" not in str(caught.value)
        assert threading.active_count() == threads

    def test_root_client(self, client: Container, denoiser: Denoiser) -> None:
        self.refused('client\\["denoised"\\]', client, denoiser=denoiser)

    def test_unknown_symmetry(self, client: Container, denoiser: Denoiser) -> None:
        self.refused("6mm", client["denoised"], denoiser=denoiser, symmetry="6mm")

    def test_invalid_beam_centre_is_refused(self, client: Container, denoiser: Denoiser) -> None:
        for center in ((1.0,), (1.0, float("nan"))):
            self.refused("beam centre", client["denoised"], denoiser=denoiser, beam_center=center)

    def test_mask_of_three_dimensions(self, client: Container, denoiser: Denoiser) -> None:
        self.refused("mask of shape", client["denoised"], denoiser=denoiser, mask=np.zeros((1, 2, 2)))

    def test_negative_exposure(self, client: Container, denoiser: Denoiser) -> None:
        self.refused("exposure", client["denoised"], denoiser=denoiser, exposure=np.full((2, 2), -1.0))

    def test_folder_that_is_a_file(self, client: Container, denoiser: Denoiser, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.touch()
        for folder in (path, path / "below"):
            self.refused("cannot be written", client["denoised"], denoiser=denoiser, directory=folder)

    def test_container_that_names_no_folder(self, client: Container, denoiser: Denoiser) -> None:
        """A container of raw runs is a catalogue of Bluesky runs too, but no place for denoised frames."""
        other = client.create_container("other", specs=[Spec("CatalogOfBlueskyRuns", "3.0")])
        try:
            self.refused("pass directory=", other, denoiser=denoiser)
            other.create_container("run", specs=[Spec("BlueskyRun", "3.0")], metadata={"start": {"uid": "raw run"}})
            self.refused("it holds raw runs", client["other"], denoiser=denoiser)
        finally:
            other.delete(recursive=True)
