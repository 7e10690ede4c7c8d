"""Callback whose denoiser runs in a thread of the same process, for a denoiser object of one's own."""

from __future__ import annotations

import atexit
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bluesky_symdenoise.acquisition.live.engine import Engine
from bluesky_symdenoise.acquisition.live.status import Status, Tally
from bluesky_symdenoise.acquisition.request.options import Options
from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.documents import plain
from bluesky_symdenoise.acquisition.runs.replaced import Places, Replaced

if TYPE_CHECKING:
    from tiled.client.container import Container

    from bluesky_symdenoise.denoiser.infer import Denoiser

Document = dict[str, Any]


class ThreadedDenoiseCallback:
    """Denoise as `DenoiseCallback` does, but in a thread that shares cores, memory and crashes with the RunEngine.

    For a denoiser object of your own, in tests and notebooks; at a beamline, use `DenoiseCallback`. What Tiled does
    not accept is not kept on disk: such a run has to be replayed.

    Parameters
    ----------
    client, directory, mask, exposure, symmetry, beam_center, streams, data_keys, beamline, analysis
        See `DenoiseCallback`.
    denoiser
        The denoiser to use.
    """

    def __init__(
        self,
        client: Container,
        *,
        denoiser: Denoiser,
        directory: str | Path | Place | None = None,
        **options: Unpack[Options],
    ) -> None:
        work = Work.planned(client, activity="callback", denoiser=denoiser, directory=directory, **options)
        self._queue: queue.SimpleQueue[tuple[str, Document] | None] = queue.SimpleQueue()
        self._lock, self._tally = threading.Lock(), Tally()
        self._places, self._replaced = Places(), Replaced()
        self._engine = Engine(work, self, replaced=self._replaced)
        self._closing, self._busy, self._alive = False, False, True
        self._worker = threading.Thread(target=self._run, name="symdenoise", daemon=True)
        self._worker.start()
        atexit.register(self.close)

    def __call__(self, name: str, doc: Document) -> None:
        """Take a document; called by the RunEngine."""
        if not self._closing:
            taken = plain(doc)
            self._replaced.add(self._places.take(name, taken))
            self._queue.put((name, taken))

    def __enter__(self) -> ThreadedDenoiseCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> Status:
        """Return how far the worker has come, now."""
        with self._lock:
            waiting = max(0, self._queue.qsize() - (self._closing and self._alive)) + self._busy
            return self._tally.status(waiting=waiting)

    def close(self, timeout: float | None = None) -> Status:
        """Take no more documents, and wait at most `timeout` seconds until all that came are processed."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        self._worker.join(timeout)
        if not self._worker.is_alive():
            atexit.unregister(self.close)
        return self.status()

    def frame(self, raw_uid: str, reason: str | None) -> None:
        """Count a frame; called by the engine."""
        with self._lock:
            self._tally.frame(raw_uid, reason)

    def ended(self, raw_uid: str, outcome: str, derived_uid: str | None) -> None:
        """Note the outcome of a run; called by the engine."""
        with self._lock:
            self._tally.ended(raw_uid, outcome)

    def error(self, line: str) -> None:
        """Note an error; called by the engine."""
        with self._lock:
            self._tally.error(line)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._busy = True
            self._engine.take(*item)
            self._busy = False
        self._alive, self._busy = False, True
        self._engine.close("the callback was closed before the run's stop document came")
        self._busy = False
