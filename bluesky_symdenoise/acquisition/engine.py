"""Documents of any number of runs in, one `RunDenoiser` each, and word of what became of them; nothing is raised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from event_model import RunRouter

from bluesky_symdenoise.acquisition.outlet import STRAIGHT, Outlet
from bluesky_symdenoise.acquisition.plan import Work
from bluesky_symdenoise.acquisition.run import RunDenoiser
from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


class Report(Protocol):
    """Who wants to know what became of frames and runs."""

    def frame(self, raw_uid: str, reason: str | None) -> None:
        """A frame is written; as NaN if there is a reason."""
        ...

    def ended(self, raw_uid: str, outcome: str, derived_uid: str | None) -> None:
        """All that will be written of a run is written."""
        ...

    def error(self, line: str) -> None:
        """Something went wrong that the user should know."""
        ...


class FinishedError(SymDenoiseError):
    """The derived run is complete already: what comes of its raw run has been worked off before."""


class Engine:
    """Routes documents to the denoiser of their run.

    Parameters
    ----------
    work
        What to do with every run.
    report
        Told what became of frames and runs.
    outlet, too_late
        As `RunDenoiser`.
    """

    def __init__(
        self,
        work: Work,
        report: Report,
        *,
        outlet: Outlet = STRAIGHT,
        too_late: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._work, self._report, self._outlet, self._too_late = work, report, outlet, too_late
        self._router = RunRouter([self._begin])
        self._open: dict[str, RunDenoiser] = {}

    def take(self, name: str, doc: Document) -> None:
        """Take a document and do what can be done now."""
        try:
            self._router(name, doc)
        except FinishedError:
            self._open.pop(self._uid_of(name, doc) or "").closed = True
        except Exception as error:
            self._give_up(name, doc, error)
        if name == "stop":
            self._end(doc.get("run_start", ""))

    def settle(self) -> None:
        """Wait until all rows that were denoised are written."""
        for uid, run in list(self._open.items()):
            try:
                run.settle()
            except Exception as error:
                self._give_up("event", {"run_start": uid}, error)

    def close(self, reason: str) -> None:
        """Close the derived runs whose stop document never came."""
        for uid in list(self._open):
            self._abandon(uid, reason)

    def _begin(self, name: str, doc: Document) -> tuple[list[RunDenoiser], list[Any]]:
        uid = doc["uid"]
        run = RunDenoiser(
            self._work,
            finished_frame=lambda reason: self._report.frame(uid, reason),
            too_late=self._too_late,
            outlet=self._outlet,
        )
        self._open[uid] = run
        return [run], []

    def _end(self, uid: str) -> None:
        run = self._open.pop(uid, None)
        if run is not None:
            if run.complaint is not None:
                self._report.error(f"run {uid[:8]}: {run.complaint}")
            self._report.ended(uid, run.outcome, run.derived_uid)

    def _abandon(self, uid: str, reason: str) -> None:
        run = self._open.pop(uid)
        try:
            run.abandon(reason)
        except Exception as error:
            reason = f"{reason}; closing it failed too: {error}"
        self._report.error(f"run {uid[:8]}: {reason}")
        self._report.ended(uid, reason, run.derived_uid)

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
            self._report.error(f"{name} document: {line}")

    def _uid_of(self, name: str, doc: Document) -> str | None:
        if name == "start":
            return doc.get("uid")
        if "run_start" in doc:
            return str(doc["run_start"])
        for uid, run in self._open.items():
            if run.owns(doc.get("descriptor")):
                return uid
        return None
