"""What the worker process does with documents: it writes derived runs, and reports."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise.acquisition.runs.replaced import Places, Replaced

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.deliver.delivery import Delivered
    from bluesky_symdenoise.acquisition.live.backlog import Head, RunFile
    from bluesky_symdenoise.acquisition.request.request import Work
    from bluesky_symdenoise.catalog.store.writer import Emit

Document = dict[str, Any]

#: Reason in the stop document of a derived run whose raw documents ended early.
ENDED_EARLY = (
    "the process that took the run ended before the run's stop document came; if the raw run is over, finish it with "
    "`symdenoise catch-up --older-than 0` and the same settings"
)


@dataclass(frozen=True)
class WorkerSetup:
    """Settings that a worker gets once it has those of its denoiser.

    Attributes
    ----------
    work
        What to do; its client carries the API key.
    tokens
        Tokens of a client that logged in with a name.
    drop_after
        Seconds after which a waiting frame is not denoised any more, not counting those before the worker was ready;
        None: all frames are denoised.
    settled
        Whether rows are written before the next document is taken.
    nice
        Added to the niceness of the RunEngine's process, once it is ready.
    """

    work: Work
    tokens: dict[str, str]
    drop_after: float | None
    settled: bool
    nice: int


class Reports:
    """Reports to the RunEngine's process, from any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        #: Whether the RunEngine's process has ended.
        self.alone = False

    def say(self, *message: Any) -> None:
        """Report to the RunEngine's process or, if that has ended, on this process's stderr."""
        if self.alone:
            _print(message)
            return
        with self._lock:
            try:
                self._pipe.send(message)
            except OSError:
                _print(message)


class Worker:
    """Run the engine and the sender, and report to the process that started this one."""

    def __init__(self, reports: Reports, setup: WorkerSetup, replaced: Replaced) -> None:
        from bluesky_symdenoise.acquisition.deliver.sender import Sender
        from bluesky_symdenoise.acquisition.live.engine import Engine

        self._reports, self._setup = reports, setup
        self.say = reports.say
        self._came, self._taken, self._began = 0.0, -1, time.monotonic()
        self._again: set[str] = set()
        self._kept: dict[str, str] = {}
        #: Files of the documents of open runs: those held by the RunEngine's process, and (`_held`) those held by this
        #: one.
        self._paths: dict[str, Path] = {}
        #: Files of runs that this process has finished, until the RunEngine's process has removed them.
        self._over: set[Path] = set()
        self._held: dict[str, RunFile] = {}
        #: Files of documents left by processes that ended, with their heads.
        self._left_behind: list[tuple[RunFile, Head]] = []
        self._leftover = self._left()
        #: Runs of such files, and those of them whose documents come through the pipe all the same: the RunEngine's
        #: process has ended while this one was loading.
        self._found: set[str] = set()
        self._found_ours: set[str] = set()
        self._sender = Sender(setup.work, listener=self)
        self._places, self._replaced = Places(), replaced
        self._engine = Engine(setup.work, self, outlet=self._outlet, too_late=self._too_late, replaced=self._replaced)

    def run(self, inbox: queue.SimpleQueue[tuple[Any, ...]]) -> None:
        """Work until the pipe is closed."""
        from bluesky_symdenoise.acquisition.deliver.sender import PATIENCE_S
        from bluesky_symdenoise.acquisition.deliver.spool import Spool
        from bluesky_symdenoise.acquisition.live.backlog import left_with_other_settings

        for spool in Spool.left(self._setup.work.folder):
            if spool.complete:
                self._sender.add(spool)
            else:
                spool.release()
        for line in left_with_other_settings(self._setup.work):
            self.say("log", logging.WARNING, line)
        self._find_left()
        while True:
            match _next(inbox, self._leftover):
                case None:
                    continue
                case ("document", number, uid, *_) if uid in self._found:
                    # All of the run's documents are in its file, which was found.
                    self._found_ours.add(uid)
                    self.say("taken", number)
                case ("document", number, uid, path, came, again, pieces):
                    self._came, self._taken = came, number
                    if path is not None:
                        self._paths[uid] = Path(path)
                    self._document(uid, pieces, again=again)
                    self.say("taken", number)
                case ("close",):
                    if self._found_ours:
                        for _ in self._leftover:
                            pass
                    self._leave_others()
                    self._engine.close("the callback was closed before the run's stop document came")
                    self._sender.close()
                    self._remove_finished()
                    self.say("closed")
                    return
                case _:
                    self._finish_alone()
                    self._sender.close(patience=PATIENCE_S)
                    return

    def _document(self, uid: str | None, pieces: tuple[bytes, bytes], *, again: bool) -> None:
        from bluesky_symdenoise.acquisition.runs.documents import unpacked

        try:
            name, doc = unpacked(*pieces)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._engine.refuse(uid, f"a document came in a form that cannot be read ({error})")
            return
        if again and name == "start":
            self._again.add(self._setup.work.recipe.derived_uid(doc["uid"]))
        # Only this process knows the files that earlier processes announced.
        self._replaced.add(self._places.take(name, doc))
        self._engine.take(name, doc)
        if self._setup.settled:
            self._engine.settle()

    def _left(self) -> Iterator[None]:
        """Process the documents that other processes left when they ended, one at each step."""
        from bluesky_symdenoise.acquisition.live.backlog import documents_in

        while self._left_behind:
            file, head = self._left_behind.pop(0)
            uid = head.raw_uid
            self.say("log", logging.WARNING, f"run {uid[:8]}: the process that took it has ended; it is finished now")
            self._held[uid] = file
            self._again.add(head.derived_uid)
            for _, name, doc in documents_in(file.path):
                self._came = time.monotonic()
                self._engine.take(name, doc)
                yield
            self._engine.end(uid, ENDED_EARLY)
            self._found -= {uid} - self._found_ours

    def _finish_alone(self) -> None:
        """Finish what the RunEngine's process took before it ended: its documents are on disk."""
        from bluesky_symdenoise.acquisition.live.backlog import RunFile, foresee, merged_documents
        from bluesky_symdenoise.catalog.store.lock import HeldError

        self._reports.alone = True
        self._remove_finished()
        taken_over = []
        for uid, path in self._paths.items():
            try:
                self._held[uid] = RunFile(path)
            except HeldError:
                # Another callback took the file first, and finishes the run.
                self._engine.leave(uid)
            else:
                taken_over.append(uid)
        if taken_over:
            runs = ", ".join(uid[:8] for uid in taken_over)
            line = f"the RunEngine's process has ended; process {os.getpid()} finishes runs {runs}"
            self.say("log", logging.WARNING, line)
        paths = [self._held[uid].path for uid in taken_over]
        foresee(paths, self._places, self._replaced, after=self._taken)
        for _, name, doc in merged_documents(paths, after=self._taken):
            self._came = time.monotonic()
            self._engine.take(name, doc)
        for uid in taken_over:
            self._engine.end(uid, ENDED_EARLY)
        # Then the runs of which this process has not received any document.
        for _ in self._leftover:
            pass
        self._find_left()
        for _ in self._left():
            pass

    def _find_left(self) -> None:
        """Lock the documents that other processes left when they ended, and examine them."""
        from bluesky_symdenoise.acquisition.live.backlog import foresee, left_files

        found = list(left_files(self._setup.work))
        foresee([file.path for file, _ in found], self._places, self._replaced)
        self._left_behind += found
        self._found |= {head.raw_uid for _, head in found}

    def _remove_finished(self) -> None:
        """Remove the documents of finished runs whose process ended before it heard that they were finished."""
        from bluesky_symdenoise.acquisition.live.backlog import RunFile
        from bluesky_symdenoise.catalog.store.lock import HeldError

        for path in self._over:
            with suppress(HeldError):
                RunFile(path).remove()

    def _leave_others(self) -> None:
        """Release the runs of earlier processes: their documents stay for the next start."""
        for uid, file in self._held.items():
            self._engine.leave(uid)
            file.close()
        self._held.clear()

    def ended(self, raw_uid: str, outcome: str, derived_uid: str | None) -> None:
        path = self._paths.pop(raw_uid, None)
        self._over = {each for each in (*self._over, path) if each is not None and each.exists()}
        if raw_uid in self._held:
            self._held.pop(raw_uid).remove()
        self.say("finished", raw_uid)
        self._sender.wake()
        if derived_uid is None:
            self.say("ended", raw_uid, outcome, None, None)

    def frame(self, raw_uid: str, reason: str | None) -> None:
        self.say("frame", raw_uid, reason)

    def error(self, line: str) -> None:
        self.say("error", line)

    def delivered(self, run: Delivered) -> None:
        self.say("ended", run.raw_uid, run.outcome, run.frames, run.failed)

    def kept(self, lines: dict[str, str]) -> None:
        if lines != self._kept:
            self._kept = lines
            self.say("kept", lines)

    def _too_late(self) -> str | None:
        late = self._setup.drop_after
        if late is None or time.monotonic() - max(self._came, self._began) <= late:
            return None
        return f"dropped: the denoiser was more than {late:g} s behind; use slow='defer', more threads or a GPU"

    def _outlet(self, work: Work, uid: str, journal: Path) -> Emit:
        """Return the spool for a run's documents: Tiled gets them from there, so that a crash here loses none."""
        from bluesky_symdenoise.acquisition.deliver.claim import doubled
        from bluesky_symdenoise.acquisition.deliver.delivery import delivered
        from bluesky_symdenoise.acquisition.deliver.spool import Spool
        from bluesky_symdenoise.acquisition.live.engine import FinishedError

        finished = FinishedError(f"derived run {uid}", rule="it was finished before a crash", remedy="use it")
        if self._sender.has(uid):
            raise finished
        spool = Spool.begin(work.folder, uid)
        if spool is None:
            raise doubled(uid)
        if spool.complete:
            self._sender.add(spool)
            raise finished
        if spool.empty:
            existing = self._existing(uid)
            if existing is not None:
                spool.remove()
                if existing.get("stop") and uid in self._again:
                    self.delivered(delivered(existing["start"], existing["stop"]))
                    raise finished
                raise doubled(uid)
        spool.restart()
        self._sender.add(spool)

        def emit(name: str, doc: Document) -> None:
            spool.write(name, doc)
            self._sender.wake()

        return emit

    def _existing(self, uid: str) -> Document | None:
        """Return the metadata of a derived run in Tiled; None also if Tiled is away."""
        from bluesky_symdenoise.acquisition.deliver.delivery import is_away
        from bluesky_symdenoise.catalog.store.containers import run_in

        container = self._setup.work.container
        try:
            run = run_in(container, uid)
            return None if run is None else dict(run.metadata)
        except Exception as error:
            if is_away(error):
                return None
            raise


def _print(message: tuple[Any, ...]) -> None:
    """Print what concerns users; ignore a closed stderr."""
    match message:
        case ("log", _, line) | ("error", line):
            pass
        case ("ended", raw_uid, outcome, _, _):
            line = f"run {raw_uid[:8]}: {outcome}"
        case _:
            return
    with suppress(OSError, ValueError):
        print(f"symdenoise: {line}", file=sys.stderr, flush=True)


def _next(inbox: queue.SimpleQueue[tuple[Any, ...]], left: Iterator[None]) -> tuple[Any, ...] | None:
    """Return the next message; None after a step of the work that is done while no message waits."""
    try:
        return inbox.get_nowait()
    except queue.Empty:
        for _ in left:
            return None
    return inbox.get()
