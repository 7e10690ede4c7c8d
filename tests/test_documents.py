"""What beamlines put into a run, through a real RunEngine: each kind of document ends in one row per announced frame."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
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
from bluesky.utils import FailedPause, RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run, pack_event_page
from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices
from tiled.client.container import Container

from bluesky_symdenoise.acquisition import frames as frames_module
from bluesky_symdenoise.acquisition.beamline import Beamline
from bluesky_symdenoise.acquisition.callback import DenoiseCallback, Status
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.acquisition.replay import recompute, replay
from bluesky_symdenoise.catalog.query import aligned, denoised_for
from bluesky_symdenoise.catalog.serve import embedded_catalog
from bluesky_symdenoise.denoiser.infer import Denoiser

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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    with embedded_catalog(home) as client:
        yield client


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.pretrained(threads=1)


@pytest.fixture(scope="module")
def engine() -> RunEngine:
    return RunEngine(call_returns_result=True)


@pytest.fixture
def detector(engine: RunEngine, home: Path) -> Callable[..., PlayDetector]:
    def made(frames: np.ndarray, name: str = "det", **options: Any) -> PlayDetector:
        with init_devices():
            det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), home / "frames"), name=name, **options)
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
    kept = {
        (stream, name): column(derived, name, stream) for stream in derived for name in derived[stream]
    }
    derived.delete(recursive=True, external_only=False)
    again = replay(seen.raw(run), seen.client["denoised"], denoiser=seen.denoiser, **seen.options)
    for (stream, name), values in kept.items():
        if not name.endswith("_ms"):
            np.testing.assert_array_equal(column(again, name, stream), values, err_msg=f"{stream}/{name}")
    return again


class TestFlyScan:
    """No events and no times: rows by number alone."""

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
