"""Darks of the images of a run: from a stream of the run, another run, or a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.request.beamline import Settings
from bluesky_symdenoise.acquisition.request.request import Request, Work
from bluesky_symdenoise.catalog.store.containers import run_at
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Dark, summed_dark, summed_signal
from bluesky_symdenoise.physics.integrating.readout import Readout

Document = dict[str, Any]


class Darks:
    """Darks of one run, by data key."""

    def __init__(self, work: Request, start: Document) -> None:
        self._work, self._start = work, start
        self._taken: dict[str, list[tuple[float, Dark]]] = {}

    def fixed(self, key: str) -> Dark | None:
        """Return the dark for all images of a key, from a file or another run; None if a stream has it, or none exists.

        Raises
        ------
        SymDenoiseError
            If the other run is not there or has no such image.
        """
        beamline = self._work.beamline
        if beamline.dark_run is None:
            return self._work.dark
        uid = self._start.get(beamline.dark_run)
        if not isinstance(uid, str):
            raise SymDenoiseError(
                f"start document without {beamline.dark_run!r}",
                rule="it should name the run with the dark",
                remedy="take a dark, then replay the run with its uid, or with dark_file",
            )
        return _dark_of_run(self._work, uid, key)

    def take(self, key: str, time: float, images: NDArray[Any], seconds: float | None, readout: Readout | None) -> None:
        """Keep a dark that a stream holds: the (..., y, x) frames of one event."""
        dark = dark_of(images.reshape(-1, *images.shape[-2:]), seconds=seconds, readout=readout)
        self._taken.setdefault(key, []).append((time, dark))

    @property
    def count(self) -> int:
        """Number of darks from streams so far."""
        return sum(len(taken) for taken in self._taken.values())

    def elsewhere(self, asked: Request) -> Darks:
        """Return a copy without references to open files or clients, for another process."""
        there = Darks(asked, {})
        there._taken = {key: list(taken) for key, taken in self._taken.items()}
        return there

    def before(self, key: str, time: float | None) -> Dark:
        """Return the last dark taken before this time; without a time, the first of the run.

        Raises
        ------
        SymDenoiseError
            If there is none.
        """
        taken = self._taken.get(key, [])
        found = taken[:1] if time is None else [each for each in taken if each[0] <= time][-1:]
        if not found:
            raise SymDenoiseError(
                f"frame of {key!r}",
                rule=f"stream {self._work.beamline.dark_stream!r} has no dark of this image taken before it",
                remedy="take the dark first, or replay the run with dark_file",
            )
        return found[0][1]


def dark_of(frames: Iterable[NDArray[Any]], *, seconds: float | None, readout: Readout | None) -> Dark:
    """Return the dark of frames (y, x): of counts, or of the signal of a detector with a readout."""
    if readout is None:
        return summed_dark(frames, seconds=seconds)
    return summed_signal(frames, seconds=seconds, averaged=readout.frames)


def raw_run(work: Request, uid: str) -> Any:
    """Return a run of the catalogue of raw runs, by default the one named ``raw`` beside the derived runs' container.

    Raises
    ------
    SymDenoiseError
        If the run or the catalogue is not there.
    """
    from tiled.client.utils import ClientError

    if work.raw is not None:
        container, folder = work.raw, work.raw.path_parts
    elif isinstance(work, Work):
        container, folder = work.container, [*work.container.path_parts[:-1], "raw"]
    else:
        raise SymDenoiseError(
            f"run {uid}", rule="documents alone do not say where it is", remedy="pass into=..., or use dark_file"
        )
    try:
        return run_at(container, folder, uid)
    except (KeyError, ClientError, httpx.TransportError) as error:
        raise SymDenoiseError(
            f"run {uid}",
            rule=f"it cannot be read from {'/'.join(folder)} ({error})",
            remedy="write the run there, then replay this one",
        ) from error


def _dark_of_run(work: Request, uid: str, key: str) -> Dark:
    run = raw_run(work, uid)
    for descriptor in run.descriptors:
        stream = descriptor["name"]
        if key not in descriptor["data_keys"] or key not in run[stream]:
            continue
        settings = Settings(work.beamline, key=key, start=dict(run.start), descriptor=descriptor, given=work.given())
        images = run[stream][key]
        frames = (frame for row in range(images.shape[0]) for frame in _frames(images[row : row + 1]))
        return dark_of(frames, seconds=settings.exposure_time({}), readout=settings.readout({}))
    raise SymDenoiseError(f"run {uid}", rule=f"it has no image {key!r}", remedy="name the dark of this detector")


def _frames(rows: Any) -> NDArray[Any]:
    images = np.asarray(rows)
    return images.reshape(-1, *images.shape[-2:])
