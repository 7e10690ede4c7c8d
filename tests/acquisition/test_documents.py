"""What beamlines put into a run, through a real RunEngine: one row per announced frame, whatever the documents."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import ophyd
import ophyd.sim
import pytest
import tifffile
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run, pack_event_page
from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices
from tiled.client.container import Container

from bluesky_symdenoise import aligned, denoised_for
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback as DenoiseCallback
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.acquisition.request.beamline import Beamline
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.rows import Patience

pytestmark = pytest.mark.server

Documents = list[tuple[str, dict[str, Any]]]
SIZE = 64


def counted(n: int, seed: int = 5) -> np.ndarray:
    """Frames (n, y, x) of Poisson counts, each with a number of its own in the first pixel."""
    y, x = np.ogrid[:SIZE, :SIZE]
    rate = 0.5 + 6 * np.exp(-((np.hypot(y - 31.5, x - 31.5) - 15) ** 2) / 20)
    frames = np.random.default_rng(seed).poisson(rate, (n, SIZE, SIZE)).astype(np.uint16)
    frames.flags.writeable = False
    return frames


def sums(frames: np.ndarray) -> list[float]:
    return [float(frame.sum()) for frame in frames]


@pytest.fixture
def detector(engine: RunEngine, home: Path) -> Callable[..., PlayDetector]:
    def made(frames: np.ndarray, name: str = "det", **options: Any) -> PlayDetector:
        with init_devices():
            det = PlayDetector(
                frames, StaticPathProvider(UUIDFilenameProvider(), home / "frames"), name=name, **options
            )
        return det

    return made


class Seen:
    """Documents of scans and the callback that saw them."""

    def __init__(self, client: Container, denoiser: Denoiser, **options: Any) -> None:
        self.client, self.denoiser = client, denoiser
        self.options = {"symmetry": "1"} | options
        self.callback = DenoiseCallback(client["denoised"], denoiser=denoiser, **self.options)
        self.documents: Documents = []

    def run(self, engine: RunEngine, act: Callable[[], Any]) -> Status:
        subscribers = (
            TiledWriter(self.client["raw"], batch_size=1),
            self.callback,
            lambda name, doc: self.documents.append((name, dict(doc))),
        )
        tokens = [engine.subscribe(each) for each in subscribers]
        try:
            act()
        finally:
            for token in tokens:
                engine.unsubscribe(token)
        return self.callback.close(timeout=120)

    def feed(self, documents: Documents, *, raw: bool = False) -> Status:
        writer = TiledWriter(self.client["raw"], batch_size=1)
        for name, doc in documents:
            self.documents.append((name, doc))
            if raw:
                writer(name, doc)
            self.callback(name, doc)
        return self.callback.close(timeout=120)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [doc for each, doc in self.documents if each == name]

    @property
    def uids(self) -> list[str]:
        return [doc["uid"] for doc in self.of("start")]

    def raw(self, run: int = 0) -> Any:
        return self.client["raw"][self.uids[run]]

    def derived(self, run: int = 0) -> Any:
        found = denoised_for(self.client, self.uids[run])
        assert found is not None
        return found


@pytest.fixture
def seen(client: Container, denoiser: Denoiser) -> Callable[..., Seen]:
    return lambda **options: Seen(client, denoiser, **options)


def column(run: Any, name: str, stream: str = "primary") -> np.ndarray:
    return np.asarray(run[stream][name].read())


def same_pixels(left: Any, right: Any, stream: str = "primary", key: str = "det") -> None:
    for name in (key, f"{key}_sigma", f"{key}_counts_in", f"{key}_symmetry"):
        np.testing.assert_array_equal(column(left, name, stream), column(right, name, stream))


def replayed(seen: Seen, run: int = 0) -> Any:
    """The same run again through replay, in place of the derived run that the callback wrote."""
    derived = seen.derived(run)
    kept = {(stream, name): column(derived, name, stream) for stream in derived for name in derived[stream]}
    derived.delete(recursive=True, external_only=False)
    again = replay(seen.raw(run), into=seen.client["denoised"], denoiser=seen.denoiser, **seen.options)
    for (stream, name), values in kept.items():
        if not name.endswith("_ms"):
            np.testing.assert_array_equal(column(again, name, stream), values, err_msg=f"{stream}/{name}")
    return again


class TestFlyScan:
    """Without events and times, rows are identified by number."""

    @staticmethod
    def plan(dets: list[PlayDetector], frames: int) -> Any:
        @bpp.stage_decorator(dets)
        @bpp.run_decorator()
        def fly() -> Any:
            for det in dets:
                yield from bps.prepare(det, TriggerInfo(number_of_events=frames), wait=True)
            yield from bps.declare_stream(*dets, name="main", collect=True)
            yield from bps.kickoff_all(*dets, wait=True)
            yield from bps.collect_while_completing(flyers=dets, dets=dets, flush_period=0.1, stream_name="main")

        return fly()

    def test_has_one_row_per_frame_and_no_time(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        frames = counted(7)
        done = seen()
        status = done.run(engine, lambda: engine(self.plan([detector(frames, period=0.06)], 7)))
        assert status.ok, status
        assert not done.of("event")
        raw, derived = done.raw(), done.derived()
        assert "time" not in derived["main"]
        assert derived["main"]["det"].shape == raw["main"]["det"].shape
        assert list(column(derived, "det_counts_in", "main")) == sums(frames)
        assert set(column(derived, "det_symmetry", "main")) == {b"1"}
        assert derived["main"].read()["det_counts_in"].shape == (7,)

    def test_aligns_with_the_raw_run_by_position(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        frames = counted(3)
        done = seen()
        done.run(engine, lambda: engine(self.plan([detector(frames)], 3)))
        both = aligned(done.raw(), done.derived(), stream="main")
        difference = (both.det - both.det_denoised).values
        np.testing.assert_array_equal(difference[:, 0], frames - column(done.derived(), "det", "main")[:, 0])

    def test_is_replayed_and_computed_again_bit_for_bit(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        done = seen()
        done.run(engine, lambda: engine(self.plan([detector(counted(3))], 3)))
        again = replayed(done)
        found = recompute(again, 2, denoiser=done.denoiser)
        np.testing.assert_array_equal(found["intensity"], column(again, "det", "main")[2])


def test_step_scan_of_the_detector_alone_has_events(
    engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
) -> None:
    """The negative control of the fly scans: the same data keys, and events after each announcement."""
    done = seen()
    status = done.run(engine, lambda: engine(bp.count([detector(counted(3))], num=3)))
    assert status.ok
    np.testing.assert_array_equal(column(done.derived(), "time"), [doc["time"] for doc in done.of("event")])
    replayed(done)


class TestInterrupted:
    """Aborted, rewound and interleaved runs have the right rows and exit status."""

    def test_rewound_point_is_a_row_of_its_own_and_the_last_one_wins(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        """As in the raw run, both events with the same number are rows, so that the two runs align."""
        det, frames, paused = detector(counted(4)), counted(4), []

        @bpp.stage_decorator([det])
        @bpp.run_decorator()
        def plan() -> Any:
            yield from bps.checkpoint()
            for _ in range(2):
                yield from bps.trigger_and_read([det])
            if not paused:
                paused.append(True)
                yield from bps.pause()
            yield from bps.checkpoint()
            yield from bps.trigger_and_read([det])

        def act() -> None:
            with pytest.raises(RunEngineInterrupted):
                engine(plan())
            engine.resume()

        done = seen()
        assert done.run(engine, act).ok
        numbers = [doc["seq_num"] for doc in done.of("event")]
        assert len(numbers) > len(set(numbers)), "the plan was to be rewound"
        raw, derived = done.raw(), done.derived()
        assert list(column(derived, "seq_num")) == list(column(raw, "seq_num")) == numbers
        np.testing.assert_array_equal(column(derived, "det_counts_in"), column(raw, "det").sum(axis=(1, 2, 3)))
        assert column(derived, "det_counts_in")[-1] == frames[(len(numbers) - 1) % 4].sum()
        assert aligned(raw, derived).sizes["time"] == len(numbers)
        replayed(done)

    def test_pause_and_resume_between_points_changes_nothing(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        det = detector(counted(3))

        @bpp.stage_decorator([det])
        @bpp.run_decorator()
        def plan() -> Any:
            for _ in range(3):
                yield from bps.checkpoint()
                yield from bps.trigger_and_read([det])
                yield from bps.pause() if not done.of("event")[1:] else bps.null()

        def act() -> None:
            with pytest.raises(RunEngineInterrupted):
                engine(plan())
            while engine.state == "paused":
                try:
                    engine.resume()
                except RunEngineInterrupted:
                    continue

        done = seen()
        assert done.run(engine, act).ok
        assert list(column(done.derived(), "seq_num")) == list(column(done.raw(), "seq_num"))
        assert done.derived().metadata["stop"]["exit_status"] == "success"

    def test_abort_from_another_thread(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        det = detector(counted(3), period=0.02)
        two = threading.Event()

        def watch(name: str, doc: dict[str, Any]) -> None:
            if name == "event" and doc["seq_num"] == 2:
                two.set()

        def abort() -> None:
            two.wait(60)
            engine.abort(reason="shutter closed")

        @bpp.stage_decorator([det])
        @bpp.run_decorator()
        def plan() -> Any:
            for _ in range(2):
                yield from bps.trigger_and_read([det])
            yield from bps.sleep(60)

        def act() -> None:
            token = engine.subscribe(watch)
            aborter = threading.Thread(target=abort)
            aborter.start()
            with pytest.raises(RunEngineInterrupted):
                engine(plan())
            aborter.join()
            engine.unsubscribe(token)

        done = seen()
        assert done.run(engine, act).ok
        stop = done.derived().metadata["stop"]
        assert (stop["exit_status"], stop["reason"]) == ("abort", done.of("stop")[0]["reason"])
        assert list(column(done.derived(), "det_counts_in")) == sums(counted(3)[:2])
        replayed(done)

    def test_interleaved_runs_of_one_plan(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        left, right = (
            ophyd.sim.SynSignal(name=name, func=iter(stack).__next__)
            for name, stack in (("left", counted(9, 1).astype(float)), ("right", counted(9, 2).astype(float)))
        )

        @bpp.set_run_key_decorator("outer")
        @bpp.run_decorator(md={"which": "outer"})
        def outer() -> Any:
            yield from bps.trigger_and_read([left])
            yield from inner()
            yield from bps.trigger_and_read([left])

        @bpp.set_run_key_decorator("inner")
        @bpp.run_decorator(md={"which": "inner"})
        def inner() -> Any:
            yield from bps.trigger_and_read([right])
            yield from bps.trigger_and_read([right])

        done = seen()
        assert done.run(engine, lambda: engine(outer())).ok
        assert [doc["which"] for doc in done.of("start")] == ["outer", "inner"]
        for run, key in enumerate(("left", "right")):
            images = column(done.raw(run), key)
            assert list(column(done.derived(run), f"{key}_counts_in")) == sums(images)
            assert images.shape[0] == 2


class TestStreams:
    def test_baseline_monitor_and_primary_each_have_their_rows(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        camera = ophyd.Signal(name="camera", value=counted(1, 3)[0].astype(float))
        watched = ophyd.Signal(name="watched", value=counted(1, 4)[0].astype(float))
        det = detector(counted(2))

        @bpp.stage_decorator([det])
        @bpp.run_decorator()
        def scan() -> Any:
            yield from bps.trigger_and_read([det])
            yield from bps.mv(watched, counted(1, 6)[0].astype(float))
            yield from bps.trigger_and_read([det])

        plan = bpp.monitor_during_wrapper(bpp.baseline_wrapper(scan(), [camera]), [watched])
        done = seen()
        status = done.run(engine, lambda: engine(plan))
        assert status.ok, status
        derived, raw = done.derived(), done.raw()
        assert set(derived) == {"primary", "baseline", "watched_monitor"}
        for stream in derived:
            np.testing.assert_array_equal(column(derived, "time", stream), column(raw, "time", stream))
        assert len(column(derived, "camera", "baseline")) == 2
        replayed(done)

    def test_only_the_streams_asked_for(
        self, engine: RunEngine, detector: Callable[..., PlayDetector], seen: Callable[..., Seen]
    ) -> None:
        camera = ophyd.Signal(name="camera", value=counted(1, 3)[0].astype(float))
        done = seen(streams=["baseline"])
        plan = bpp.baseline_wrapper(bp.count([detector(counted(1))]), [camera])
        assert done.run(engine, lambda: engine(plan)).ok
        assert list(done.derived()) == ["baseline"]

    def test_event_pages_of_inline_images(self, seen: Callable[..., Seen]) -> None:
        run = compose_run()
        frames = counted(3)
        key = {"source": "sim", "dtype": "array", "shape": [SIZE, SIZE], "dtype_numpy": "<u2"}
        described = run.compose_descriptor(name="primary", data_keys={"det": key})
        events = [
            described.compose_event(data={"det": frame}, timestamps={"det": 0.0}, validate=False) for frame in frames
        ]
        done = seen()
        status = done.feed(
            [
                ("start", run.start_doc),
                ("descriptor", described.descriptor_doc),
                ("event_page", pack_event_page(*events)),
                ("stop", run.compose_stop()),
            ]
        )
        assert status.ok, status
        assert list(column(done.derived(), "det_counts_in")) == sums(frames)


def announced(
    resources: list[tuple[str, str, dict[str, Any]]],
    data: list[tuple[int, range, range]],
    *,
    shape: list[int],
    dtype: str = "<u2",
    events: int,
    late: bool = False,
) -> Documents:
    """Documents of a run whose frames lie in `resources` (uri, mimetype, parameters).

    Each datum is (resource, indices, seq_nums), emitted before its events, or `late`, after all events.
    """
    run = compose_run()
    key = {"source": "test", "dtype": "array", "dtype_numpy": dtype, "shape": shape, "external": "STREAM:"}
    described = run.compose_descriptor(
        name="primary", data_keys={"det": key, "motor": {"source": "test", "dtype": "number", "shape": []}}
    )
    made = [
        run.compose_stream_resource(uri=uri, mimetype=mimetype, data_key="det", parameters=parameters)
        for uri, mimetype, parameters in resources
    ]
    documents: Documents = [("start", run.start_doc), ("descriptor", described.descriptor_doc)]
    taken: Documents = [
        (
            "event",
            described.compose_event(data={"motor": i}, timestamps={"motor": 0.0}, seq_num=i, time=1e9 + i),
        )
        for i in range(1, events + 1)
    ]
    told: Documents = []
    for each in made:
        told.append(("stream_resource", each.stream_resource_doc))
        told += [
            (
                "stream_datum",
                each.compose_stream_datum(
                    {"start": indices.start, "stop": indices.stop},
                    {"start": seq_nums.start, "stop": seq_nums.stop},
                    described.descriptor_doc,
                ),
            )
            for which, indices, seq_nums in data
            if made[which] is each
        ]
    documents += [*taken, *told] if late else [*told, *taken]
    return [*documents, ("stop", run.compose_stop())]


class TestFiles:
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("second", [range(0, 2), range(3, 5)])
    def test_second_hdf5_file_of_a_key(self, seen: Callable[..., Seen], home: Path, late: bool, second: range) -> None:
        """It may count its rows from 0, or go on where the first one ended; more rows than announced are not read."""
        frames = counted(5)
        files = []
        for name, stack in (("a", frames[:3]), ("b", frames[3:])):
            path = home / "frames" / f"roll-{name}-{late}-{second.start}.h5"
            with h5py.File(path, "w") as file:
                # With more rows than that, nothing would tell how the second file counts.
                file["counts"] = np.concatenate([stack, counted(4 if second.start == 0 else 2, 99)])
            files.append((f"file://localhost{path}", "application/x-hdf5", {"dataset": "counts"}))
        data = [(0, range(0, 1), range(1, 2)), (0, range(1, 3), range(2, 4)), (1, second, range(4, 6))]
        done = seen()
        status = done.feed(announced(files, data, shape=[1, SIZE, SIZE], events=5, late=late))
        assert status.ok, status
        assert list(column(done.derived(), "det_counts_in")) == sums(frames)

    def test_second_hdf5_file_that_may_count_either_way_is_left_out_with_the_reason(
        self, seen: Callable[..., Seen], home: Path
    ) -> None:
        """Its first index is the number of rows before it, and the file has that row: both counts give a frame."""
        frames, files = counted(9), []
        for name, stack in (("a", frames[:3]), ("b", frames[3:])):
            path = home / "frames" / f"either-{name}.h5"
            with h5py.File(path, "w") as file:
                file["counts"] = stack
            files.append((f"file://localhost{path}", "application/x-hdf5", {"dataset": "counts"}))
        data = [(0, range(0, 3), range(1, 4)), (1, range(3, 5), range(4, 6))]
        done = seen()
        status = done.feed(announced(files, data, shape=[1, SIZE, SIZE], events=5))
        assert (status.frames, status.failed) == (3, 2)
        (line,) = status.errors
        assert "the start of its rows is unknown" in line
        np.testing.assert_array_equal(column(done.derived(), "det_counts_in"), [*sums(frames[:3]), np.nan, np.nan])

    def test_tiff_sequence_with_a_file_that_comes_late(self, seen: Callable[..., Seen], home: Path) -> None:
        folder = home / "tiffs"
        folder.mkdir()
        frames = counted(3)
        for i, frame in enumerate(frames[:2]):
            tifffile.imwrite(folder / f"img_{i:04d}.tif", frame)
        resource = (
            f"file://localhost{folder}/",
            "multipart/related;type=image/tiff",
            {"template": "img_{:04d}.tif", "chunk_shape": (1, SIZE, SIZE), "join_method": "stack"},
        )

        def write_last() -> None:
            time.sleep(1.0)
            tifffile.imwrite(folder / "hidden.part", frames[2])
            (folder / "hidden.part").rename(folder / "img_0002.tif")

        writer = threading.Thread(target=write_last)
        writer.start()
        done = seen()
        documents = announced([resource], [(0, range(0, 3), range(1, 4))], shape=[1, SIZE, SIZE], events=3)
        status = done.feed(documents)
        writer.join()
        assert status.ok, status
        assert list(column(done.derived(), "det_counts_in")) == sums(frames)

    def test_file_that_never_comes_is_waited_for_once(self) -> None:
        """Waiting for each frame would take hours for a scan of thousands."""
        patience = Patience(0.05)
        tries: list[int] = []

        def missing() -> np.ndarray:
            tries.append(0)
            raise FileNotFoundError("gone")

        for frame in range(3):
            with pytest.raises(SymDenoiseError, match="gone"):
                patience.read(missing, value=f"frame {frame}", again=lambda: None)
            if frame == 0:
                assert len(tries) > 1
                tries.clear()
        assert len(tries) == 2
        patience.read(lambda: np.zeros(1), value="frame 3", again=lambda: None)
        with pytest.raises(SymDenoiseError):
            patience.read(missing, value="frame 4", again=lambda: None)
        assert len(tries) > 3


class TestLegacy:
    """resource and datum, through the handlers that facilities installed."""

    @staticmethod
    def documents(spec: str, root: Path, path: str, kwargs: dict[str, Any], data: list[dict[str, Any]]) -> Documents:
        run = compose_run()
        shape = [1, SIZE, SIZE] if spec != "NPY_SEQ" else [SIZE, SIZE]
        key = {"source": "test", "dtype": "array", "dtype_numpy": "<u2", "shape": shape, "external": "FILESTORE:"}
        described = run.compose_descriptor(name="primary", data_keys={"det": key})
        resource = run.compose_resource(spec=spec, root=str(root), resource_path=path, resource_kwargs=kwargs)
        documents: Documents = [
            ("start", run.start_doc),
            ("descriptor", described.descriptor_doc),
            ("resource", resource.resource_doc),
        ]
        for i, datum_kwargs in enumerate(data):
            datum = resource.compose_datum(datum_kwargs)
            event = described.compose_event(
                data={"det": datum["datum_id"]}, timestamps={"det": 0.0}, filled={"det": False}, time=1e9 + i
            )
            documents += [("datum", datum), ("event", event)]
        return [*documents, ("stop", run.compose_stop())]

    def written(self, spec: str, home: Path, frames: np.ndarray) -> Documents:
        root = home / f"legacy-{spec}"
        root.mkdir(exist_ok=True)
        points = [{"point_number": i} for i in range(len(frames))]
        if spec == "AD_TIFF":
            for i, frame in enumerate(frames):
                tifffile.imwrite(root / f"scan_{i:03d}.tiff", frame)
            kwargs = {"template": "%s%s_%3.3d.tiff", "filename": "scan", "frame_per_point": 1}
            return self.documents(spec, root, "", kwargs, points)
        if spec == "AD_HDF5":
            with h5py.File(root / "scan.h5", "w") as file:
                file["entry/data/data"] = frames
            return self.documents(spec, root, "scan.h5", {"frame_per_point": 1}, points)
        for i, frame in enumerate(frames):
            np.save(root / f"scan_{i}.npy", frame)
        return self.documents(spec, root, "scan", {}, [{"index": i} for i in range(len(frames))])

    @pytest.mark.parametrize("spec", ["AD_TIFF", "AD_HDF5", "NPY_SEQ"])
    def test_is_denoised_live(self, seen: Callable[..., Seen], home: Path, spec: str) -> None:
        done = seen()
        status = done.feed(self.written(spec, home, counted(3)))
        assert status.ok, status
        assert list(column(done.derived(), "det_counts_in")) == sums(counted(3))

    def test_is_replayed_from_tiled(self, seen: Callable[..., Seen], home: Path) -> None:
        done = seen()
        folder = home / "frames"
        assert done.feed(self.written("AD_HDF5", folder, counted(3)), raw=True).ok
        replayed(done)

    def test_kind_of_file_without_a_handler(self, seen: Callable[..., Seen], home: Path) -> None:
        done = seen()
        status = done.feed(self.documents("ODD", home, "x", {}, [{"point_number": 0}]))
        assert status.failed == 1
        assert "[legacy]" in status.errors[0]

    def test_handler_that_the_beamline_names(self, seen: Callable[..., Seen], home: Path) -> None:
        documents = [
            (name, dict(doc, spec="OUR_OWN") if name == "resource" else doc)
            for name, doc in self.written("NPY_SEQ", home, counted(2))
        ]
        done = seen(beamline=Beamline(handlers={"OUR_OWN": "ophyd.sim:NumpySeqHandler"}))
        assert done.feed(documents).ok
        assert list(column(done.derived(), "det_counts_in")) == sums(counted(2))
