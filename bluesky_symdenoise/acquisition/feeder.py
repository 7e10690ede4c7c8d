"""Feeds a worker process, and starts another one with the documents of all unfinished runs if it dies."""

from __future__ import annotations

import logging
import pickle
import queue
import signal
import threading
import time
from collections import deque
from typing import Any

from bluesky_symdenoise.acquisition.backlog import Backlog
from bluesky_symdenoise.acquisition.process import WorkerProcess
from bluesky_symdenoise.acquisition.spool import spool_folder
from bluesky_symdenoise.acquisition.status import Status, Tally
from bluesky_symdenoise.acquisition.worker import Setup
from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Documents that the worker holds and has not done; it reads ahead no further.
WINDOW, WINDOW_BYTES = 32, 2**25
#: How often a worker is started again before the runs that it fails at are given up.
RESTARTS = 3
#: Seconds that a worker may take to start.
START_S = 300.0


class Feeder:
    """Takes documents from the RunEngine's thread, and does everything else on a thread of its own.

    Parameters
    ----------
    setup
        What the worker is told.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._lock, self._tally = threading.Lock(), Tally()
        self._backlog = Backlog(spool_folder(setup.work.folder))
        self._owners = _Owners()
        self._unsent: deque[int] = deque()
        self._in_flight: dict[int, int] = {}
        self._given_up: set[str] = set()
        self._crashes = self._failed_starts = self._put = self._taken_in = 0
        self._close_asked = self._close_sent = self._closed = self._again = False
        self._ready = threading.Event()
        self._refused: SymDenoiseError | None = None
        # Loading takes seconds of one core, and no scan waits for it yet.
        self._process = WorkerProcess(setup, nice=0, said=self._inbox.put)
        self._thread = threading.Thread(target=self._run, name="symdenoise", daemon=True)
        self._thread.start()

    def put(self, name: str, doc: Document) -> None:
        """Take a document: all that happens on the RunEngine's thread."""
        self._put += 1
        self._inbox.put(("document", name, doc, time.monotonic()))

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether documents are still worked off."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Documents that the worker has not finished."""
        return self._put - self._taken_in + len(self._unsent) + len(self._in_flight)

    def status(self) -> Status:
        """How far the worker has come."""
        with self._lock:
            return self._tally.status(waiting=self.waiting)

    def wait_until_ready(self) -> None:
        """Wait until the worker has loaded the model.

        Raises
        ------
        SymDenoiseError
            If it cannot.
        """
        ready = self._ready.wait(START_S)
        if self._refused is None and not ready:
            self._process.stop()
            self._refused = SymDenoiseError(
                "worker process",
                rule=f"it was not ready after {START_S:g} s",
                remedy="look at the load of this computer, and whether its disks answer",
            )
        if self._refused is not None:
            self._thread.join()
            raise self._refused

    def close(self, timeout: float | None) -> bool:
        """Have all that came worked off; whether that is done."""
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
                # The RunEngine must not notice, and the next document may be well.
                log.exception("a document was not handed to the denoiser")
                with self._lock:
                    self._tally.error(f"{message[0]}: {type(error).__name__}: {error}; replay the run")

    def _handle(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("document", name, doc, came):
                self._taken_in += 1
                uid = self._owners.of(name, doc)
                if uid not in self._given_up:
                    self._unsent.append(self._backlog.add(uid, pickle.dumps((name, doc), protocol=5), came))
            case ("taken", number):
                self._in_flight.pop(number, None)
                if self._backlog.uid(number) is None:
                    self._backlog.forget(number)
            case ("finished", raw_uid):
                self._backlog.forget_run(raw_uid)
                self._owners.forget(raw_uid)
                self._crashes = 0
            case ("log", level, text):
                log.log(level, "%s", text)
            case ("ready",):
                self._failed_starts = 0
                self._ready.set()
            case ("refused", value, rule, remedy):
                self._refused = SymDenoiseError(value, rule=rule, remedy=remedy)
            case ("close",):
                self._close_asked = True
            case ("closed",):
                self._closed = True
                self._process.wait()
            case ("gone",):
                self._ended()
            case _:
                self._count(message)

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
        """Hand over what the worker has room for."""
        while self._unsent and len(self._in_flight) < WINDOW and sum(self._in_flight.values()) < WINDOW_BYTES:
            number = self._unsent.popleft()
            payload = self._backlog.payload(number)
            self._in_flight[number] = len(payload)
            came = time.monotonic() if self._again else self._backlog.time(number)
            self._process.send(("document", number, payload, came, self._again))
        if not self._unsent:
            self._again = False
            if self._close_asked and not self._close_sent:
                self._close_sent = True
                self._process.send(("close",))

    def _ended(self) -> None:
        """The worker is gone: start another one, with all documents of the runs that it had not finished."""
        status = self._process.wait()
        why = signal.Signals(-status).name if status < 0 else f"status {status}"
        if not self._ready.is_set():
            self._refused = self._refused or SymDenoiseError(
                "worker process", rule=f"it ended before it was ready ({why})", remedy="see its own words above"
            )
            self._closed = True
            self._ready.set()
            return
        self._crashes += 1
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
            self._closed = True
            with self._lock:
                self._tally.error(
                    f"the denoiser's process does not start any more ({self._refused or why}): nothing is denoised; "
                    "mend that, make a new callback, and finish the runs with `symdenoise catch-up`"
                )
            return
        log.warning(
            "the denoiser's process ended (%s) and is started again; %d documents are worked off once more",
            why,
            len(self._backlog),
        )
        self._in_flight.clear()
        self._unsent = deque(self._backlog)
        self._close_sent, self._again = False, True
        self._failed_starts += 1
        try:
            self._process = WorkerProcess(self._setup, nice=self._setup.nice, said=self._inbox.put)
        except OSError as error:
            log.error("the denoiser's process cannot be started (%s)", error)
            time.sleep(1)
            self._inbox.put(("gone",))

    def _give_up(self, runs: set[str], why: str) -> None:
        line = f"given up: the denoiser's process ended {self._crashes} times at it, last with {why}; "
        line += "mend the cause, then finish the run with `symdenoise catch-up` or replay"
        with self._lock:
            for uid in runs:
                self._tally.ended(uid, line)
                self._tally.error(f"run {uid[:8]}: {line}")
        log.error("runs %s: %s", ", ".join(uid[:8] for uid in sorted(runs)), line)
        self._given_up |= runs
        for number in list(self._backlog):
            self._backlog.forget(number)
        self._crashes = 0


class _Owners:
    """Which run a document belongs to."""

    def __init__(self) -> None:
        self._run: dict[str, str] = {}

    def of(self, name: str, doc: Document) -> str | None:
        """Uid of the run; None if it is of none that is known."""
        if name == "start":
            return str(doc.get("uid"))
        owner = doc.get("run_start")
        for key in ("descriptor", "resource", "stream_resource"):
            owner = owner or self._run.get(doc.get(key, ""))
        if owner is not None and name in ("descriptor", "resource", "stream_resource"):
            self._run[doc["uid"]] = owner
        return owner

    def forget(self, uid: str) -> None:
        """A run is over."""
        self._run = {key: owner for key, owner in self._run.items() if owner != uid}
