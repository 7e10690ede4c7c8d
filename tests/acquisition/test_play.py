"""A detector that plays given frames: what a plan, a document consumer and a file reader see of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import hdf5plugin
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd_async.core import (
    StaticFilenameProvider,
    StaticPathProvider,
    TriggerInfo,
    UUIDFilenameProvider,
    init_devices,
)

from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files import open_frames

Docs = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def frames() -> np.ndarray:
    frames = np.random.default_rng(2).poisson(2, (4, 20, 30)).astype(np.uint16)
    frames.flags.writeable = False
    return frames


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the detector writes, apart from what a test writes itself."""
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def play(engine: RunEngine, folder: Path) -> Callable[..., PlayDetector]:
    def make(frames: Any, **options: Any) -> PlayDetector:
        with init_devices():
            det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder), name="det", **options)
        return det

    return make


def run(engine: RunEngine, plan: Any) -> Docs:
    docs: Docs = []
    engine(plan, lambda name, doc: docs.append((name, dict(doc))))
    return docs


def named(docs: Docs, name: str) -> list[dict[str, Any]]:
    return [doc for each, doc in docs if each == name]


def read(resource: dict[str, Any]) -> np.ndarray:
    with h5py.File(urlparse(resource["uri"]).path, "r") as file:
        values: np.ndarray = file[resource["parameters"]["dataset"]][:]
    return values


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def closed_by_writer(path: Path) -> bool:
    """Whether another process may open the file for writing, which HDF5 refuses while a writer has it."""
    code = f"import h5py; h5py.File({str(path)!r}, 'r+').close()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_count_plays_the_frames_and_announces_them(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray
) -> None:
    docs = run(engine, bp.count([play(frames)], num=5))
    assert Counter(name for name, _ in docs) == {
        "start": 1,
        "descriptor": 1,
        "stream_resource": 1,
        "stream_datum": 5,
        "event": 5,
        "stop": 1,
    }
    (descriptor,) = named(docs, "descriptor")
    key = descriptor["data_keys"]["det"]
    assert key["shape"] == [1, 20, 30]
    assert (key["dtype"], key["dtype_numpy"], key["external"]) == ("array", "<u2", "STREAM:")
    assert descriptor["hints"]["det"]["fields"] == ["det"]
    (resource,) = named(docs, "stream_resource")
    assert resource["mimetype"] == "application/x-hdf5"
    assert resource["data_key"] == "det"
    assert [doc["indices"] for doc in named(docs, "stream_datum")] == [{"start": i, "stop": i + 1} for i in range(5)]
    np.testing.assert_array_equal(read(resource), frames[[0, 1, 2, 3, 0]])
    assert named(docs, "stop")[0]["exit_status"] == "success"


@pytest.mark.process
def test_file_is_compressed_like_an_eigers_and_closed_after_the_run(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray, folder: Path
) -> None:
    run(engine, bp.count([play(frames)], num=2))
    path = only_file(folder)
    with h5py.File(path, "r") as file:
        dataset = file["entry/data/data"]
        assert dataset.chunks == (1, 20, 30)
        assert dataset._filters[str(hdf5plugin.BSHUF_ID)][4] == hdf5plugin.Bitshuffle(cname="lz4").filter_options[1]
    assert closed_by_writer(path)


def test_every_run_gets_its_own_file_and_starts_with_the_first_frame(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray, folder: Path
) -> None:
    det = play(frames)
    for _ in range(2):
        (resource,) = named(run(engine, bp.count([det], num=2)), "stream_resource")
        np.testing.assert_array_equal(read(resource), frames[:2])
    assert len(list(folder.iterdir())) == 2


def test_plays_a_lazy_stack_from_files(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "recorded.h5", "w") as file:
        file["counts"] = frames
    with open_frames(tmp_path / "recorded.h5") as stack:
        (resource,) = named(run(engine, bp.count([play(stack)], num=4)), "stream_resource")
        np.testing.assert_array_equal(read(resource), frames)


@pytest.mark.process
def test_frames_can_be_read_while_the_run_goes_on(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray, folder: Path
) -> None:
    seen = []

    def look(name: str, doc: dict[str, Any]) -> None:
        if name == "event":
            code = (
                "import h5py, hdf5plugin, sys;"
                f"print(h5py.File({str(only_file(folder))!r}, 'r', swmr=True)['entry/data/data'][-1].sum())"
            )
            result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seen.append(int(result.stdout))

    engine(bp.count([play(frames)], num=2), look)
    assert seen == [frames[0].sum(), frames[1].sum()]


def test_several_frames_per_trigger(engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray) -> None:
    det = play(frames)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(collections_per_event=3), wait=True)
        for _ in range(2):
            yield from bps.trigger_and_read([det])

    docs = run(engine, plan())
    assert named(docs, "descriptor")[0]["data_keys"]["det"]["shape"] == [3, 20, 30]
    assert len(named(docs, "event")) == 2
    (resource,) = named(docs, "stream_resource")
    np.testing.assert_array_equal(read(resource), frames[[0, 1, 2, 3, 0, 1]])


def test_fly_scan(engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray) -> None:
    det = play(frames)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(number_of_events=4), wait=True)
        yield from bps.declare_stream(det, name="main", collect=True)
        yield from bps.kickoff(det, wait=True)
        yield from bps.complete(det, wait=True)
        yield from bps.collect(det, name="main")

    docs = run(engine, plan())
    assert named(docs, "stream_datum")[-1]["indices"]["stop"] == 4
    np.testing.assert_array_equal(read(named(docs, "stream_resource")[0]), frames)


@pytest.mark.parametrize(("period", "livetime"), [(0.1, 0.0), (0.0, 0.1), (0.1, 0.05)])
def test_frames_are_at_least_one_period_apart(
    engine: RunEngine,
    play: Callable[..., PlayDetector],
    frames: np.ndarray,
    period: float,
    livetime: float,
) -> None:
    det = play(frames, period=period)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(livetime=livetime), wait=True)
        for _ in range(3):
            yield from bps.trigger_and_read([det])

    start = time.monotonic()
    run(engine, plan())
    assert time.monotonic() - start >= 0.3


class SlowFrames:
    """Frames that take a while to fetch, as from a busy disk."""

    def __init__(self, frames: np.ndarray, seconds: float) -> None:
        self.frames, self.seconds = frames, seconds
        self.shape, self.dtype = frames.shape, frames.dtype
        self.threads: set[str] = set()
        self.fetching = threading.Event()

    def __getitem__(self, index: int, /) -> np.ndarray:
        self.fetching.set()
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        frame: np.ndarray = self.frames[index]
        return frame


def test_a_slow_frame_does_not_hold_up_the_event_loop(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray
) -> None:
    slow = SlowFrames(frames, 0.3)
    det = play(slow)
    late = []

    def plan() -> Any:
        def beat(due: float) -> None:
            now = engine.loop.time()
            late.append(now - due)
            if len(late) < 30:
                engine.loop.call_later(0.01, beat, now + 0.01)

        engine.loop.call_soon_threadsafe(beat, engine.loop.time())
        yield from bp.count([det], num=2)

    run(engine, plan())
    assert not any(name.startswith("bluesky") for name in slow.threads)
    assert len(late) > 10
    assert max(late) < 0.25


@pytest.mark.process
def test_abort_closes_the_file_with_the_frames_so_far(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray, folder: Path
) -> None:
    """Aborted while a frame is being written, which then must not reach a closed file."""
    slow = SlowFrames(frames, 2.0)
    det = play(slow)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.trigger_and_read([det])
        slow.fetching.clear()
        yield from bps.trigger(det, wait=False, group="never")
        yield from bps.sleep(0.1)
        yield from bps.pause()

    docs: Docs = []
    with pytest.raises(RunEngineInterrupted):
        engine(plan(), lambda *each: docs.append(each))
    assert slow.fetching.is_set()
    engine.abort("a user's wish")
    assert named(docs, "stop")[0]["exit_status"] == "abort"
    path = only_file(folder)
    assert closed_by_writer(path)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["entry/data/data"], frames[:1])
    (resource,) = named(run(engine, bp.count([det], num=2)), "stream_resource")  # and it works again
    np.testing.assert_array_equal(read(resource), frames[:2])


class FailingFrames(SlowFrames):
    def __getitem__(self, index: int, /) -> np.ndarray:
        if index == 1:
            raise SymDenoiseError("frame 1", rule="cannot be read", remedy="copy it again")
        return super().__getitem__(index)


@pytest.mark.process
def test_a_frame_that_cannot_be_read_fails_the_run_at_once_with_its_reason(
    engine: RunEngine, play: Callable[..., PlayDetector], frames: np.ndarray, folder: Path
) -> None:
    det = play(FailingFrames(frames, 0.0))
    docs: Docs = []
    start = time.monotonic()
    with pytest.raises(FailedStatus) as caught:
        engine(bp.count([det], num=3), lambda *each: docs.append(each))
    assert time.monotonic() - start < 5  # ophyd-async alone would wait 10 s and then say "timeout"
    assert "frame 1: cannot be read; copy it again" in str(caught.value.__cause__)
    assert len(named(docs, "event")) == 1
    assert [doc["indices"]["stop"] for doc in named(docs, "stream_datum")] == [1]
    assert closed_by_writer(only_file(folder))


def test_an_existing_file_is_never_replaced(engine: RunEngine, frames: np.ndarray, folder: Path) -> None:
    with init_devices():
        det = PlayDetector(frames, StaticPathProvider(StaticFilenameProvider("same"), folder), name="det")
    run(engine, bp.count([det], num=2))
    before = only_file(folder).read_bytes()
    with pytest.raises(FailedStatus):
        run(engine, bp.count([det], num=3))
    assert only_file(folder).read_bytes() == before


def test_arrays_of_other_shapes_are_refused(folder: Path) -> None:
    provider = StaticPathProvider(UUIDFilenameProvider(), folder)
    for shape in ((20, 30), (0, 20, 30), (4, 1, 20, 30)):
        with pytest.raises(SymDenoiseError, match="at least one"):
            PlayDetector(np.zeros(shape, np.uint16), provider)
    for period in (-1.0, float("nan")):
        with pytest.raises(SymDenoiseError, match="not be negative"):
            PlayDetector(np.zeros((1, 2, 2), np.uint16), provider, period=period)
