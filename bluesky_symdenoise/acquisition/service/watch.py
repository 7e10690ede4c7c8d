"""Service that follows raw runs, writes their derived runs, and returns to those that it missed."""

from __future__ import annotations

import hashlib
import logging
import threading
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from bluesky_symdenoise.acquisition.deliver.delivery import send_spooled
from bluesky_symdenoise.acquisition.derive.reader import RunReader
from bluesky_symdenoise.acquisition.derive.run import run_denoiser
from bluesky_symdenoise.acquisition.request.earlier import as_begun
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.routing import Owners
from bluesky_symdenoise.acquisition.service.catchup import begun_before, finish, tidy, unfinished
from bluesky_symdenoise.acquisition.service.health import Health
from bluesky_symdenoise.acquisition.service.sources import DocumentSource
from bluesky_symdenoise.catalog.store.lock import hold
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


class _Stopped(Exception):  # noqa: N818
    """The service was asked to stop; raised between two frames."""


@contextmanager
def only_one(work: Work) -> Iterator[None]:
    """Hold the lock of this catalogue among services that write to the same folder.

    Raises
    ------
    HeldError
        If another service is at work.
    """
    catalogue = hashlib.sha256(str(work.container.uri).encode()).hexdigest()[:12]
    with hold(work.folder / f".symdenoise-watch-{catalogue}.lock"):
        yield


class Watch:
    """Follow one source with one worker, in the calling thread.

    Rows of a run that is still acquired can borrow from rows before them only: with ``borrow="both"`` a run is left to
    the sweep, which follows its end.

    Parameters
    ----------
    raw
        Catalogue of the raw runs, for the sweeps.
    sweep_every
        Seconds between sweeps for raw runs that ended without a complete derived run; the first is at once.
    older_than
        Seconds after which a raw run without a stop document counts as ended; None: never.
    since, redo_older
        Of the sweeps: only runs that began after this time, in seconds since 1970; also runs that were denoised before
        an upgrade.
    stop
        Set from outside, by a signal: the present frame is finished, unfinished runs are left for the next start.
    """

    def __init__(
        self,
        work: Work,
        source: DocumentSource,
        raw: Container,
        *,
        health: Health,
        stop: threading.Event,
        sweep_every: float = 300.0,
        older_than: float | None = None,
        since: float | None = None,
        redo_older: bool = False,
    ) -> None:
        self._work, self._source, self._raw, self._health, self._stop = work, source, raw, health, stop
        self._sweep_every, self._older_than = sweep_every, older_than
        self._since, self._redo_older = since, redo_older
        self._after_its_end = work.borrow is not None and work.borrow.side == "both"
        self._owners, self._started = Owners(), clock.time()
        self._open: dict[str, RunReader] = {}
        self._swept = float("-inf")
        self._frame_begun = clock.perf_counter()

    def run(self) -> None:
        """Work until asked to stop."""
        try:
            for item in self._source:
                if self._stop.is_set():
                    break
                self._health.beat(queue=self._source.waiting(), open_runs=len(self._open))
                if item is not None:
                    self._take(*item)
                elif clock.monotonic() - self._swept > self._sweep_every:
                    self._sweep()
        except _Stopped:
            log.info("asked to stop: %d unfinished runs are left for the next start", len(self._open))
        finally:
            for run in self._open.values():
                run.leave()
            self._source.close()

    def _take(self, name: str, doc: Document) -> None:
        uid = self._owners.of(name, doc) or ""
        if self._after_its_end:
            if name == "stop":
                self._owners.forget(uid)
                self._source.settled(uid)
                self._swept = float("-inf")
            return
        if name == "start" and uid not in self._open and "raw_uid" not in doc:
            try:
                work = self._work if doc["time"] >= self._started else self._as_begun(uid)
            except httpx.HTTPError as error:
                self._failed(uid, error)
                return
            self._open[uid] = run_denoiser(work, source=self._source.frames, finished_frame=self._finished)
        run = self._open.get(uid)
        if run is None:
            return
        if not any(each.busy for each in self._open.values()):
            self._frame_begun = clock.perf_counter()
        try:
            run(name, doc)
        except _Stopped:
            raise
        except Exception as error:
            # The sweep resumes the run after its end, from the rows that are written, if the cause has been fixed.
            self._failed(uid, error)
            run.leave()
            if name != "stop":
                return
        if name == "event" and run.derived_uid is not None:
            self._health.lag(clock.time() - doc["time"])
        if name == "stop":
            self._end(uid, run)

    def _as_begun(self, uid: str) -> Work:
        """Return the work of a run that began before this service: an earlier version may have begun to denoise it."""
        begun = begun_before(self._work, uid)
        return self._work if begun is None else as_begun(self._work, begun)

    def _end(self, uid: str, run: RunReader) -> None:
        del self._open[uid]
        self._owners.forget(uid)
        if run.complete:
            self._health.run("live")
            log.info("run %s: %s", uid[:8], run.outcome)
        self._source.settled(uid)

    def _failed(self, uid: str, error: Exception) -> None:
        self._health.error()
        line = (str(error) or type(error).__name__).splitlines()[0]
        log.error("run %s is left for the sweep: %s", uid[:8], line, exc_info=log.isEnabledFor(logging.DEBUG))

    def _finished(self, reason: str | None) -> None:
        now = clock.perf_counter()
        self._health.frame(reason, seconds=now - self._frame_begun)
        self._frame_begun = now
        if self._stop.is_set():
            raise _Stopped

    def _sweep(self) -> None:
        """Finish one run after another, as long as nothing live waits."""
        try:
            send_spooled(self._work)
            for item in unfinished(
                self._raw,
                self._work,
                since=self._since,
                older_than=self._older_than,
                redo_older=self._redo_older,
            ):
                if item.uid in self._open or not item.ready:
                    continue
                self._frame_begun = clock.perf_counter()
                outcome = finish(item, self._work, older_than=self._older_than, finished_frame=self._finished)
                if outcome.frames and outcome.ok:
                    self._health.run("sweep")
                if not outcome.ok:
                    self._health.error()
                log.info("run %s, %s: %s", item.uid[:8], outcome.state, outcome.result)
                if self._source.waiting():
                    return
            tidy(self._work)
        except (httpx.TransportError, httpx.HTTPStatusError, SymDenoiseError) as error:
            self._health.trouble(f"the server does not answer, or refuses ({error})")
            return
        self._health.trouble(None)
        self._swept = clock.monotonic()
