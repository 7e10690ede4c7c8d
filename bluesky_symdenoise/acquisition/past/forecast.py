"""Forecast of a replay, its time and the bytes that it would write, from denoising one frame of each image."""

from __future__ import annotations

import time as clock
from collections.abc import Collection
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.past.in_memory import DeferredImages, gathered
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.runs.stored import StoredRun
from bluesky_symdenoise.catalog.store.journal import Entered
from bluesky_symdenoise.catalog.store.writer import COMPRESSION
from bluesky_symdenoise.derived.row import Row

#: State of a derived run that needs no more work.
COMPLETE = "complete"


@dataclass(frozen=True)
class Forecast:
    """Forecast of a replay.

    Attributes
    ----------
    raw_uid, derived_uid
        The runs.
    state
        State of the derived run, in words.
    images
        Number of images left to denoise.
    seconds
        How long reading and denoising them would take.
    bytes
        How much would be stored, or, in memory, how much all of them would take.
    finished
        Images of an interrupted run that would be taken over, if their frames are whole and not empty before the first
        with counts.
    """

    raw_uid: str
    derived_uid: str
    state: str
    images: int
    seconds: float
    bytes: int
    finished: int = 0

    def __str__(self) -> str:
        runs = f"run {self.raw_uid[:8]} as {self.derived_uid[:8]}: {self.state}"
        if self.finished:
            runs += f", {self.finished} of {self.finished + self.images} images finished"
        elif not self.images:
            return f"{runs}; nothing to do"
        left = " left" if self.finished else ""
        return f"{runs}; {self.images} images{left}, about {_duration(self.seconds)}, {_size(self.bytes)}"


def forecast(
    run: StoredRun, asked: Request, *, state: str, compressed: bool, kept: Collection[Entered] = ()
) -> Forecast:
    """Read and denoise one frame of each image, twice, because the first time takes longer.

    Parameters
    ----------
    state
        State of the derived run.
    compressed
        Whether the bytes are those of stored frames.
    kept
        Images that need not be denoised again.
    """
    images, finished, seconds, size = 0, 0, 0.0, 0.0
    if state != COMPLETE:
        found = gathered(run, asked)
        for stream, events in found.events.items():
            rows = asked.recipe.rows_among(len(events))
            for key, lazy in found.images(stream).items() if rows else ():
                taken, row = _timed(lazy, rows[len(rows) // 2])
                left = sum((stream, key, events[at].seq_num, events[at].turn) not in kept for at in rows)
                images += left
                finished += len(rows) - left
                seconds += taken * left
                size += (
                    stored_bytes(row.intensity, row.sigma) if compressed else row.intensity.nbytes + row.sigma.nbytes
                ) * len(rows)
    uid = run.start["uid"]
    return Forecast(uid, asked.recipe.derived_uid(uid), state, images, seconds, int(size), finished)


def _timed(images: DeferredImages, row: int) -> tuple[float, Row]:
    images.denoised(row)
    begun = clock.perf_counter()
    made = images.denoised(row)
    return clock.perf_counter() - begun, made


def stored_bytes(intensity: NDArray[np.float32], sigma: NDArray[np.float32]) -> int:
    """Return the bytes that rounded frames take when they are stored."""
    with h5py.File("forecast", "w", driver="core", backing_store=False) as file:
        for name, image in (("intensity", intensity), ("sigma", sigma)):
            file.create_dataset(name, data=image, chunks=image.shape, **COMPRESSION)
        file.flush()
        return sum(int(dataset.id.get_storage_size()) for dataset in file.values())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
