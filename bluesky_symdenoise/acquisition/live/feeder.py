"""Feeder of a worker process; if that dies, another one is started with the documents of all unfinished runs."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import weakref
from collections import deque
from typing import Any

import numpy as np

from bluesky_symdenoise.acquisition.deliver.spool import spool_folder
from bluesky_symdenoise.acquisition.live.backlog import FORKING, Backlog, Head
from bluesky_symdenoise.acquisition.live.pool import Pool
from bluesky_symdenoise.acquisition.live.process import StartedDenoiser, WorkerProcess
from bluesky_symdenoise.acquisition.live.status import Status, Tally
from bluesky_symdenoise.acquisition.live.worker import WorkerSetup
from bluesky_symdenoise.acquisition.runs.documents import packed, plain
from bluesky_symdenoise.acquisition.runs.replaced import Places, Replaced
from bluesky_symdenoise.acquisition.runs.routing import Owners
from bluesky_symdenoise.catalog.store.lock import HeldError
from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Most documents that the worker holds unprocessed; it reads no further ahead.
WINDOW, WINDOW_BYTES = 32, 2**25
#: How often the worker is restarted before the runs on which it crashes are given up.
RESTARTS = 3
#: Seconds allowed for the worker to start.
START_S = 300.0


class Feeder:
    """Take documents from the RunEngine's thread, and do everything else in a background thread.

    Parameters
    ----------
    setup
        Settings for the worker.
    denoiser
        The worker's process, which may still be loading.
    """

    def __init__(self, setup: WorkerSetup, denoiser: StartedDenoiser) -> None:
        self._setup = setup
        self._settings = denoiser.settings
        self._process, self._inbox = denoiser.taken()
        self._lock, self._tally = threading.Lock(), Tally()
        self._backlog, self._pool = Backlog(spool_folder(setup.work.folder)), Pool()
        self._owners, self._places, self._replaced = Owners(), Places(), Replaced()
        self._unsent: deque[int] = deque()
        self._in_flight: dict[int, int] = {}
        self._begun: set[str] = set()
        self._given_up: set[str] = set()
        #: Runs whose documents are all processed, but whose derived run may not be in Tiled yet.
        self._finished: set[str] = set()
        self._crashes = self._failed_starts = self._put = self._taken_in = 0
        self._close_asked = self._close_sent = self._closed = self._again = False
        self._ready = threading.Event()
        self._refused: SymDenoiseError | None = None
        #: Whether somebody waits for the worker to be ready, and is told if it cannot be started.
        self._awaited = False
        self._process.begin(setup)
        self._thread = threading.Thread(target=self._run, name="symdenoise", daemon=True)
        self._thread.start()
        _ALIVE.add(self)

    def put(self, name: str, doc: Document) -> None:
        """Take a document; nothing else happens on the RunEngine's thread.

        It is copied, because devices reuse their buffers and callers change their dicts.
        """
        self._put += 1
        self._inbox.put(("document", name, plain(doc, self._pool.copy), time.monotonic()))

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether documents are still processed."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Documents that the worker has not finished."""
        return self._put - self._taken_in + len(self._unsent) + len(self._in_flight)

    def status(self) -> Status:
        """Return how far the worker has come."""
        with self._lock:
            return self._tally.status(waiting=self.waiting)

    def wait_until_ready(self) -> None:
        """Wait until the worker has loaded the model.

        Raises
        ------
        SymDenoiseError
            If it cannot.
        """
        self._awaited = True
        ready = self._ready.wait(START_S)
        if self._refused is None and not ready:
            self._process.stop()
            self._refused = SymDenoiseError(
                "worker process",
                rule=f"it was not ready after {START_S:g} s",
                remedy="check the load of this computer and whether its disks respond",
            )
        if self._refused is not None:
            self._thread.join()
            raise self._refused

    @property
    def unfinished(self) -> str:
        """Description of the work that is not done yet."""
        if self.waiting:
            runs = ", ".join(sorted(uid[:8] for uid in self._backlog.runs)) or "no run"
            return f"{self.waiting} documents of {runs} are not processed yet"
        with self._lock:
            sending = ", ".join(sorted(uid[:8] for uid in self._finished - set(self._tally.runs)))
        return f"rows of runs {sending} are being sent to Tiled" if sending else "the worker process has not ended"

    def flush(self, timeout: float) -> bool:
        """Wait until all documents that came are on disk; return whether they are."""
        written = threading.Event()
        self._inbox.put(("flush", written))
        return written.wait(timeout)

    def forget_in_fork(self) -> None:
        """Release, in a process forked from this one, what would keep the worker waiting or a file locked."""
        self._process.forget_in_fork()
        self._backlog.close()

    def close(self, timeout: float | None) -> bool:
        """Process all that came; return whether that is done."""
        self._inbox.put(("close",))
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closed:
            message = self._inbox.get()
            try:
                self._handle(message)
                self._feed()
            except Exception as error:
                # The RunEngine must not be disturbed, and the next document may be good.
                log.exception("a document was not handed to the denoiser")
                with self._lock:
                    self._tally.error(f"{message[0]}: {type(error).__name__}: {error}; replay the run")
        self._backlog.close()

    def _handle(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("document", name, doc, came):
                self._taken_in += 1
                self._take(name, doc, came)
            case ("taken", number):
                self._in_flight.pop(number, None)
                if self._backlog.uid(number) is None:
                    self._backlog.forget(number)
            case ("finished", raw_uid):
                self._finish(raw_uid)
                self._crashes = 0
            case ("log", level, text):
                log.log(level, "%s", text)
            case ("ready",):
                self._failed_starts, self._refused = 0, None
                self._ready.set()
            case ("refused", value, rule, remedy):
                self._refused = SymDenoiseError(value, rule=rule, remedy=remedy)
            case ("flush", written):
                written.set()
            case ("close",):
                self._close_asked = True
            case ("closed",):
                self._closed = True
                self._process.wait()
            case ("gone",):
                self._ended()
            case _:
                self._count(message)

    def _take(self, name: str, doc: Document, came: float) -> None:
        """Keep a document of a run that is denoised here, and have it sent to the worker."""
        uid = self._owners.of(name, doc)
        if replaced := self._places.take(name, doc):
            # Send it at once: the worker may be many documents behind.
            self._replaced.add(replaced)
            self._process.send(("replaced", replaced))
        if name == "start" and uid is not None and uid not in self._begun | self._given_up:
            self._begin(uid)
        document = packed(name, doc)
        if uid not in self._given_up:
            # A run that began before the callback was attached is neither denoised nor kept.
            owner = uid if uid in self._begun else None
            self._unsent.append(self._backlog.add(owner, document, came))
        for array in document.arrays:
            self._pool.give_back(array)
        if name == "descriptor":
            self._prepare(doc)

    def _prepare(self, descriptor: Document) -> None:
        """Allocate memory for the frames that events will hold, as far as the data keys can be understood."""
        try:
            for nbytes in _array_sizes(descriptor):
                self._pool.prepare(nbytes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.debug("memory for the frames of a stream cannot be prepared: %s", error)

    def _begin(self, uid: str) -> None:
        self._begun.add(uid)
        work = self._setup.work
        head = Head(
            raw_uid=uid,
            derived_uid=work.recipe.derived_uid(uid),
            recipe_sha256=work.recipe.sha256,
            container=str(work.container.uri),
        )
        try:
            self._backlog.begin(head)
        except HeldError:
            self._begun.discard(uid)
            self._given_up.add(uid)
            line = (
                "not denoised here: another callback with the same settings, of this or another process, denoises it; "
                "give one of them other settings, or unsubscribe it"
            )
            with self._lock:
                self._tally.ended(uid, line)
                self._tally.error(f"run {uid[:8]}: {line}")
            log.warning("run %s: %s", uid[:8], line)
        except (OSError, SymDenoiseError) as error:
            log.error("run %s: its documents stay in memory, and are lost if this process ends: %s", uid[:8], error)

    def _finish(self, uid: str) -> None:
        self._backlog.forget_run(uid)
        self._owners.forget(uid)
        self._begun.discard(uid)
        with self._lock:
            self._finished.add(uid)

    def _count(self, message: tuple[Any, ...]) -> None:
        with self._lock:
            match message:
                case ("frame", raw_uid, reason):
                    self._tally.frame(raw_uid, reason)
                case ("error", line):
                    self._tally.error(line)
                case ("kept", lines):
                    self._tally.kept = lines
                case ("ended", raw_uid, outcome, frames, failed):
                    self._tally.ended(raw_uid, outcome)
                    if frames is not None:
                        self._tally.frames[raw_uid], self._tally.failed[raw_uid] = frames, failed
                    log.info("run %s: %s", raw_uid[:8], outcome)

    def _feed(self) -> None:
        """Send what the worker has room for."""
        while self._unsent and len(self._in_flight) < WINDOW and sum(self._in_flight.values()) < WINDOW_BYTES:
            number = self._unsent.popleft()
            uid = self._backlog.uid(number)
            self._in_flight[number] = self._backlog.size(number)
            came = time.monotonic() if self._again else self._backlog.time(number)
            path = None if uid is None else self._backlog.path(uid)
            message = ("document", number, uid, None if path is None else str(path), came, self._again)
            self._process.send(message, self._backlog.pieces(number))
        if not self._unsent:
            self._again = False
            if self._close_asked and not self._close_sent:
                self._close_sent = True
                self._process.send(("close",))

    def _ended(self) -> None:
        """Start another worker after one has ended, with all documents of the runs that it had not finished."""
        status = self._process.wait()
        why = signal.Signals(-status).name if status < 0 else f"status {status}"
        if not self._ready.is_set() and self._awaited:
            self._not_started(why)
            return
        # While it was loading, no run can have been the cause.
        self._crashes += self._ready.is_set()
        open_runs = {uid for number in self._backlog if (uid := self._backlog.uid(number)) is not None}
        with self._lock:
            self._tally.restarts += 1
            for uid in open_runs:
                self._tally.frames.pop(uid, None)
                self._tally.failed.pop(uid, None)
        if self._crashes > RESTARTS:
            self._give_up(open_runs, why)
        if self._failed_starts > RESTARTS:
            self._unsent.clear()
            self._in_flight.clear()
            line = (
                f"the denoiser's process cannot be started any more ({self._refused or why}): nothing is denoised; "
                "fix that, make a new callback, and finish the runs with `symdenoise catch-up`"
            )
            with self._lock:
                self._tally.error(line)
            log.error("%s", line)
            self._not_started(why)
            return
        log.warning(
            "the denoiser's process ended (%s) and is started again; %d documents are processed again",
            why,
            len(self._backlog),
        )
        self._in_flight.clear()
        self._unsent = deque(self._backlog)
        self._close_sent, self._again = False, True
        self._failed_starts += 1
        try:
            self._process = WorkerProcess(self._settings, nice=self._setup.nice, said=self._inbox.put)
            self._process.begin(self._setup)
            self._process.send(("replaced", self._replaced.all))
        except OSError as error:
            log.error("the denoiser's process cannot be started (%s)", error)
            time.sleep(1)
            self._inbox.put(("gone",))

    def _not_started(self, why: str) -> None:
        """Take no more documents; whoever waits for the worker is told the reason."""
        self._refused = self._refused or SymDenoiseError(
            "worker process", rule=f"it ended before it was ready ({why})", remedy="see its output above"
        )
        self._closed = True
        self._ready.set()

    def _give_up(self, runs: set[str], why: str) -> None:
        line = f"given up: the denoiser's process ended {self._crashes} times while processing it, last with {why}; "
        line += "fix the cause, then finish the run with `symdenoise catch-up` or replay"
        with self._lock:
            for uid in runs:
                self._tally.ended(uid, line)
                self._tally.error(f"run {uid[:8]}: {line}")
        log.error("runs %s: %s", ", ".join(uid[:8] for uid in sorted(runs)), line)
        self._given_up |= runs
        self._begun -= runs
        for uid in runs:
            self._backlog.forget_run(uid)
        for number in list(self._backlog):
            self._backlog.forget(number)
        self._crashes = 0


def _array_sizes(descriptor: Document) -> list[int]:
    """Return the sizes in bytes of the arrays that events of a stream will hold, as far as its data keys say."""
    sizes = []
    for key in descriptor["data_keys"].values():
        known = "external" not in key and all(isinstance(size, int) and size >= 0 for size in key["shape"])
        if known and isinstance(key.get("dtype_numpy"), str):
            sizes.append(math.prod(key["shape"]) * np.dtype(key["dtype_numpy"]).itemsize)
    return sizes


#: Feeders of this process, which a fork of it must forget.
_ALIVE: weakref.WeakSet[Feeder] = weakref.WeakSet()


def _forget_in_fork() -> None:
    FORKING.release()
    for feeder in list(_ALIVE):
        feeder.forget_in_fork()


os.register_at_fork(before=FORKING.acquire, after_in_parent=FORKING.release, after_in_child=_forget_in_fork)
