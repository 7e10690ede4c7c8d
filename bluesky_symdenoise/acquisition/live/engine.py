"""Routing of the documents of any number of runs to one `RunReader` each; outcomes are reported, nothing is raised."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from bluesky_symdenoise.acquisition.deliver.outlet import STRAIGHT, Outlet
from bluesky_symdenoise.acquisition.derive.reader import RunReader
from bluesky_symdenoise.acquisition.derive.run import run_denoiser
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.documents import refuse_unreadable
from bluesky_symdenoise.acquisition.runs.replaced import Replaced
from bluesky_symdenoise.acquisition.runs.routing import Owners
from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Message for a run whose start document was never received.
MISSED = (
    "not denoised: it began before the callback was attached; when it has ended, finish it with "
    "`symdenoise catch-up` or replay"
)


class RunListener(Protocol):
    """Interface of an object that is informed of what became of frames and runs."""

    def frame(self, raw_uid: str, reason: str | None) -> None:
        """Take note that a frame is written; as NaN if there is a reason."""
        ...

    def ended(self, raw_uid: str, outcome: str, derived_uid: str | None) -> None:
        """Take note that everything of a run that will be written is written."""
        ...

    def error(self, line: str) -> None:
        """Take note of an error that the user should know about."""
        ...


class FinishedError(SymDenoiseError):
    """The derived run is complete already: its raw run's documents have been processed before."""


class Engine:
    """Route documents to the `RunReader` of their run.

    Parameters
    ----------
    work
        What to do with every run.
    report
        Informed of what became of frames and runs.
    outlet, too_late, replaced
        See `run_denoiser`.
    """

    def __init__(
        self,
        work: Work,
        listener: RunListener,
        *,
        outlet: Outlet = STRAIGHT,
        too_late: Callable[[], str | None] = lambda: None,
        replaced: Replaced | None = None,
    ) -> None:
        self._replaced = replaced
        self._work, self._listener, self._outlet, self._too_late = work, listener, outlet, too_late
        self._owners = Owners()
        self._open: dict[str, RunReader] = {}
        #: Runs whose start document was received and whose stop document was not, including runs that were given up.
        self._begun: set[str] = set()
        #: Runs that stopped recently: a callback that was subscribed twice receives the stop document twice.
        self._over: deque[str] = deque(maxlen=1000)
        #: Runs that began before the first document was received, and (`_stray`) whether a document belonged to an
        #: unknown run.
        self._missed: set[str] = set()
        self._stray = False
        #: Document uids of the runs that are received twice because the callback was subscribed twice.
        self._doubled: dict[str, set[str]] = {}

    def take(self, name: str, doc: Document) -> None:
        """Take a document and do what can be done now."""
        uid = self._owners.of(name, doc)
        try:
            if name == "start" and uid is not None and not self._again(uid):
                self._begin(uid, doc)
            elif uid in self._open:
                if not self._is_repeated(uid, doc):
                    self._open[uid](name, doc)
            elif uid is None:
                self._unowned(name, doc)
            elif uid not in self._begun and uid not in self._over:
                self._miss(uid)
        except FinishedError as error:
            if uid is not None:
                self._open[uid].closed = True
                self._end(uid, str(error.rule))
        except Exception as error:
            self._give_up(name, doc, error, uid)
        if name == "stop" and uid is not None:
            self._begun.discard(uid)
            self._over.append(uid)
            self._stopped(uid)
            # Not earlier: documents that follow for a run that was given up must still be assigned to it.
            self._owners.forget(uid)

    def refuse(self, uid: str | None, reason: str) -> None:
        """Stop denoising a run, for this reason."""
        if uid in self._open:
            self._abandon(uid, reason)
        else:
            self._listener.error(reason)

    def settle(self) -> None:
        """Wait until all rows that were denoised are written."""
        for uid, run in list(self._open.items()):
            try:
                run.settle()
            except Exception as error:
                self._give_up("event", {}, error, uid)

    def close(self, reason: str) -> None:
        """Close the derived runs whose stop document never came."""
        for uid in list(self._open):
            self._abandon(uid, reason)

    def end(self, uid: str, reason: str) -> None:
        """Close the derived run of one run, unless its stop document came."""
        if uid in self._open:
            self._abandon(uid, reason)

    def leave(self, uid: str) -> None:
        """Release a run that another process continues."""
        if uid in self._open:
            self._open.pop(uid).leave()
            self._owners.forget(uid)

    def _begin(self, uid: str, doc: Document) -> None:
        self._begun.add(uid)
        run = self._open[uid] = run_denoiser(
            self._work,
            finished_frame=lambda reason: self._listener.frame(uid, reason),
            too_late=self._too_late,
            outlet=self._outlet,
            replaced=self._replaced,
        )
        refuse_unreadable("start", doc)
        run("start", doc)

    def _again(self, uid: str) -> bool:
        """Return whether this run has begun already: from now on each of its documents is taken once."""
        if uid not in self._open:
            return False
        if uid not in self._doubled:
            self._doubled[uid] = set()
            line = f"run {uid[:8]}: its documents come twice, each is used once; is the callback subscribed twice?"
            log.warning("%s", line)
            self._listener.error(line)
        return True

    def _is_repeated(self, uid: str, doc: Document) -> bool:
        seen = self._doubled.get(uid)
        own = doc.get("uid", doc.get("datum_id"))
        key = str(own if own is not None else doc.get("time"))
        if seen is None or key not in seen:
            if seen is not None:
                seen.add(key)
            return False
        return True

    def _unowned(self, name: str, doc: Document) -> None:
        """Pass on a document that names no run: all open runs get old resources; other kinds are ignored."""
        if name in ("resource", "datum", "datum_page", "bulk_datum"):
            for run in self._open.values():
                run(name, doc)
        elif not self._stray:
            self._stray = True
            line = (
                f"a document of kind {name} is ignored: it belongs to no run that began while the callback was attached"
            )
            log.warning("%s", line)

    def _miss(self, uid: str) -> None:
        """Report, once for each run, that it began before this callback."""
        if uid not in self._missed:
            self._missed.add(uid)
            line = f"run {uid[:8]}: {MISSED}"
            log.warning("%s", line)
            self._listener.error(line)

    def _stopped(self, uid: str) -> None:
        if uid in self._missed:
            self._missed.discard(uid)
            self._end(uid, MISSED)
        elif uid in self._open:
            run = self._open[uid]
            if run.complaint is not None:
                self._listener.error(f"run {uid[:8]}: {run.complaint}")
            self._end(uid, run.outcome)

    def _end(self, uid: str, outcome: str) -> None:
        run = self._open.pop(uid, None)
        self._doubled.pop(uid, None)
        self._listener.ended(uid, outcome, None if run is None else run.derived_uid)

    def _abandon(self, uid: str, reason: str) -> None:
        try:
            self._open[uid].abandon(reason)
        except Exception as error:
            reason = f"{reason}; closing it failed too: {error}"
        self._listener.error(f"run {uid[:8]}: {reason}")
        self._end(uid, reason)

    def _give_up(self, name: str, doc: Document, error: Exception, uid: str | None) -> None:
        """Give up a run that cannot be written, and report it once; other runs continue."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, KeyError):
            line = f"{name} document without {error}, which the event model requires; fix the device or the plan"
        elif not isinstance(error, SymDenoiseError):
            line = f"{type(error).__name__}: {line}; the raw run is unchanged: replay it when the cause is fixed"
        # A document may be malformed in any way; describing it must not fail, too.
        log.error("run %s is not denoised: %s", str(uid or "?")[:8], line, exc_info=log.isEnabledFor(logging.DEBUG))
        if uid in self._open:
            self._abandon(uid, line)
        else:
            self._listener.error(f"{name} document: {line}")
