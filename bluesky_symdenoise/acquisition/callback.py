"""The callback that a RunEngine takes: it hands references to one background worker and returns."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_model import RunRouter
from numpy.typing import ArrayLike

from bluesky_symdenoise.acquisition.plan import Work
from bluesky_symdenoise.acquisition.run import RunDenoiser
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


@dataclass(frozen=True)
class Status:
    """How far a callback has come.

    Attributes
    ----------
    frames, failed
        Frames written as denoised, and as NaN.
    waiting
        Documents that the worker has not finished.
    runs
        Raw uid and outcome in one line of each run that has ended.
    errors
        What went wrong, one line each, the remedy included.
    """

    frames: int
    failed: int
    waiting: int
    runs: tuple[tuple[str, str], ...]
    errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed and nothing waits."""
        return not (self.failed or self.waiting or self.errors)


class DenoiseCallback:
    """Denoise the images of each run while it is acquired, and write a derived run beside it.

    ``RE.subscribe(DenoiseCallback(client["denoised"]))``. On the RunEngine's thread a document is put into a queue
    and nothing else is done; nothing is raised there. One worker thread reads the frames from their files, denoises
    them and writes to Tiled. The raw run is only read.

    Parameters
    ----------
    client
        Tiled client of the catalogue for derived runs; its key needs the scopes to create and register.
    denoiser
        By default the pretrained one.
    directory
        Folder for the denoised frames; the server must be able to read it. By default the one that the container
        names in its metadata (``symdenoise_frames``), as an embedded catalogue does.
    mask
        (y, x), True = bad, for all images.
    exposure
        (y, x) relative exposure for all images, 0 = masked.
    symmetry
        ``1``, ``2``, ``m``, ``my``, ``2mm`` or ``auto``: decided with the first frame of each run.
    beam_center
        (y, x) in pixels.
    streams, data_keys
        Names of those to denoise; by default every 2D image of every stream.

    Raises
    ------
    SymDenoiseError
        From the constructor only, for what could not work whatever the frames are.
    """

    def __init__(
        self,
        client: Container,
        *,
        denoiser: Denoiser | None = None,
        directory: str | Path | None = None,
        mask: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        symmetry: str = "auto",
        beam_center: Sequence[float] | None = None,
        streams: Sequence[str] | None = None,
        data_keys: Sequence[str] | None = None,
    ) -> None:
        self._work = Work.planned(
            client,
            activity="callback",
            denoiser=denoiser,
            directory=directory,
            mask=mask,
            exposure=exposure,
            symmetry=symmetry,
            beam_center=beam_center,
            streams=streams,
            data_keys=data_keys,
        )
        self._queue: queue.SimpleQueue[tuple[str, Document] | None] = queue.SimpleQueue()
        self._router = RunRouter([self._begin])
        self._open: dict[str, RunDenoiser] = {}
        self._lock = threading.Lock()
        self._frames, self._failed = 0, 0
        self._runs: list[tuple[str, str]] = []
        self._errors: list[str] = []
        self._closing, self._busy, self._alive = False, False, True
        self._worker = threading.Thread(target=self._run, name="symdenoise", daemon=True)
        self._worker.start()
        atexit.register(self.close)

    def __call__(self, name: str, doc: Document) -> None:
        """Take a document; called by the RunEngine."""
        if not self._closing:
            self._queue.put((name, doc))

    def __enter__(self) -> DenoiseCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> Status:
        """How far the worker has come, now."""
        with self._lock:
            return Status(
                frames=self._frames,
                failed=self._failed,
                waiting=max(0, self._queue.qsize() - (self._closing and self._alive)) + self._busy,
                runs=tuple(self._runs),
                errors=tuple(self._errors),
            )

    def close(self, timeout: float | None = None) -> Status:
        """Take no more documents and wait until all that came are worked off.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as it takes. What is unfinished then goes on in the background.

        Returns
        -------
        Status
            With ``waiting`` above 0 if the time did not suffice.
        """
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        self._worker.join(timeout)
        if not self._worker.is_alive():
            atexit.unregister(self.close)
        return self.status()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._busy = True
            name, doc = item
            try:
                self._router(name, doc)
            except Exception as error:
                self._give_up(name, doc, error)
            if name == "stop":
                self._end(doc.get("run_start", ""))
            self._busy = False
        self._alive, self._busy = False, bool(self._open)
        for uid in list(self._open):
            self._abandon(uid, "the callback was closed before the run's stop document came")
        self._busy = False

    def _begin(self, name: str, doc: Document) -> tuple[list[RunDenoiser], list[Any]]:
        run = RunDenoiser(self._work, finished_frame=self._count)
        self._open[doc["uid"]] = run
        return [run], []

    def _count(self, reason: str | None) -> None:
        with self._lock:
            self._frames += reason is None
            self._failed += reason is not None
            if reason is not None and reason not in self._errors:
                self._errors.append(reason)

    def _end(self, uid: str) -> None:
        run = self._open.pop(uid, None)
        if run is not None:
            with self._lock:
                self._runs.append((uid, run.outcome))
            log.info("run %s: %s", uid[:8], run.outcome)

    def _abandon(self, uid: str, reason: str) -> None:
        run = self._open.pop(uid)
        try:
            run.abandon(reason)
        except Exception as error:
            reason = f"{reason}; closing it failed too: {error}"
        with self._lock:
            self._runs.append((uid, reason))
            self._errors.append(f"run {uid[:8]}: {reason}")

    def _give_up(self, name: str, doc: Document, error: Exception) -> None:
        """Leave a run that cannot be written, and say so once; other runs go on."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        if not isinstance(error, SymDenoiseError):
            line = f"{type(error).__name__}: {line}; the raw run is as it was: replay it when the cause is mended"
        uid = self._uid_of(name, doc)
        # A document may be malformed in any way: what is said of it must not fail in turn.
        log.error("run %s is not denoised: %s", str(uid or "?")[:8], line, exc_info=log.isEnabledFor(logging.DEBUG))
        if uid in self._open:
            self._abandon(uid, line)
        else:
            with self._lock:
                self._errors.append(f"{name} document: {line}")

    def _uid_of(self, name: str, doc: Document) -> str | None:
        if name == "start":
            return doc.get("uid")
        if "run_start" in doc:
            return str(doc["run_start"])
        for uid, run in self._open.items():
            if run.owns(doc.get("descriptor")):
                return uid
        return None
