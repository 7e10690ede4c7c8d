"""A detector that plays given frames into HDF5, as an Eiger would."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from ophyd_async.core import (
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    PathProvider,
    StandardDetector,
    StreamResourceDataProvider,
    StreamResourceInfo,
    soft_signal_r_and_setter,
)

from bluesky_symdenoise.errors import SymDenoiseError

__all__ = ["Frames", "PlayDetector"]

DATASET = "/entry/data/data"


class Frames(Protocol):
    """Frames (n, H, W): an array, or a lazy stack such as `bluesky_symdenoise.files.FrameStack`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


class _Player:
    """Writes frames, from the first one again after the last, to one HDF5 file at a time."""

    def __init__(self, frames: Frames, period: float) -> None:
        self.frames = frames
        self.period = period
        self.interval = period
        self.requested = 1
        self.written, self._set_written = soft_signal_r_and_setter(int)
        self._played = 0
        self._dataset: Any = None
        # Cancelling `asyncio.to_thread` leaves its thread running: the file must not be closed under it, and a frame
        # that it fetched for one file must not be written into the next.
        self._lock = threading.Lock()

    def open(self, path: Path) -> None:
        shape = self.frames.shape[1:]
        with self._lock:
            file = h5py.File(path, "x", libver="v110")
            self._dataset = file.create_dataset(
                DATASET,
                (0, *shape),
                self.frames.dtype,
                maxshape=(None, *shape),
                chunks=(1, *shape),
                **hdf5plugin.Bitshuffle(cname="lz4"),
            )
            file.swmr_mode = True
            self._played = 0
        self._set_written(0)

    def close(self) -> None:
        with self._lock:
            if self._dataset is not None:
                self._dataset.file.close()
                self._dataset = None

    async def play(self) -> None:
        for _ in itertools.repeat(None, self.requested) if self.requested else itertools.count():
            started = time.monotonic()
            try:
                played = await asyncio.to_thread(self._write_next)
            except Exception:
                # Code that waits for frames watches this signal only: end the wait, so that it meets the exception.
                self._set_written(self._played + self.requested)
                self._set_written(self._played)
                raise
            self._set_written(played)
            await asyncio.sleep(max(0.0, self.interval - (time.monotonic() - started)))

    def _write_next(self) -> int:
        dataset, i = self._dataset, self._played
        frame = self.frames[i % self.frames.shape[0]]
        with self._lock:
            if dataset is not None and dataset is self._dataset:
                dataset.resize(i + 1, axis=0)
                dataset[i] = frame
                dataset.flush()
                self._played = i + 1
            return self._played


class _Trigger(DetectorTriggerLogic):  # type: ignore[misc]
    def __init__(self, player: _Player) -> None:
        self.player = player

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        self.player.requested = num
        self.player.interval = max(self.player.period, livetime + deadtime)


class _Acquire(DetectorAcquireLogic):  # type: ignore[misc]
    def __init__(self, player: _Player) -> None:
        self.player = player
        self.task: asyncio.Task[None] | None = None

    async def start_acquiring(self) -> None:
        self.task = asyncio.create_task(self.player.play())

    async def wait_for_idle(self) -> None:
        if self.task is not None:
            await self.task

    async def ensure_stopped(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            # `wait` does not raise: the code that waited for the frames has got the exception already.
            await asyncio.wait([task])


class _Data(DetectorDataLogic):  # type: ignore[misc]
    def __init__(self, player: _Player, path_provider: PathProvider) -> None:
        self.player = player
        self.path_provider = path_provider

    async def prepare_unbounded(self, datakey_name: str) -> StreamResourceDataProvider:
        info = self.path_provider(datakey_name)
        await asyncio.to_thread(self.player.open, Path(info.directory_path) / f"{info.filename}.h5")
        shape = self.player.frames.shape[1:]
        return StreamResourceDataProvider(
            uri=f"{info.directory_uri}{info.filename}.h5",
            mimetype="application/x-hdf5",
            collections_written_signal=self.player.written,
            resources=[
                StreamResourceInfo(
                    data_key=datakey_name,
                    shape=shape,
                    chunk_shape=(1, *shape),
                    dtype_numpy=np.dtype(self.player.frames.dtype).str,
                    parameters={"dataset": DATASET},
                )
            ],
        )

    async def stop(self) -> None:
        await asyncio.to_thread(self.player.close)

    def get_hinted_fields(self, datakey_name: str) -> list[str]:
        return [datakey_name]


class PlayDetector(StandardDetector):  # type: ignore[misc]
    """Play given frames over and over as an ophyd-async detector, announced as a real detector announces its own.

    Each run gets one HDF5 file: dataset ``/entry/data/data`` (n, H, W), one bitshuffle/LZ4 chunk per frame,
    readable while it grows (SWMR). Every run starts with the first frame. An existing file is never replaced.

    Parameters
    ----------
    frames
        Array or lazy stack (n, H, W). Frames are fetched one by one, away from the event loop.
    path_provider
        Folder and name of each run's file.
    period
        Least time from frame to frame in seconds. A prepared ``livetime + deadtime`` lengthens it. A plan
        that does not prepare the detector waits at most 10 s for a frame.
    name
        Name of the device and of its data key.

    Raises
    ------
    SymDenoiseError
        If `frames` is not (n, H, W) with at least one frame, or `period` is negative.
    """

    def __init__(self, frames: Frames, path_provider: PathProvider, *, period: float = 0.0, name: str = "") -> None:
        if len(frames.shape) != 3 or 0 in frames.shape:
            raise SymDenoiseError(
                f"frames of shape {frames.shape}",
                rule="a detector plays frames (n, y, x), at least one",
                remedy="add the missing dimension or give other frames",
            )
        if not period >= 0:
            raise SymDenoiseError(
                f"period={period}", rule="it must not be negative", remedy="give seconds between frames"
            )
        player = _Player(frames, period)
        self.add_detector_logics(_Trigger(player), _Acquire(player), _Data(player, path_provider))
        super().__init__(name=name)
