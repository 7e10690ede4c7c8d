"""Progress of a callback."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Number of error messages that are kept.
_LINES = 100


@dataclass(frozen=True)
class Status:
    """Progress of a callback.

    Attributes
    ----------
    frames, failed
        Frames written as denoised, and as NaN.
    waiting
        Documents that the worker has not finished.
    runs
        Raw uid and outcome, in one line, of each run that has ended.
    errors
        What went wrong, one line each, the remedy included.
    restarts
        How often the worker process had to be started again.
    """

    frames: int
    failed: int
    waiting: int
    runs: tuple[tuple[str, str], ...]
    errors: tuple[str, ...]
    restarts: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing failed and nothing waits."""
        return not (self.failed or self.waiting or self.errors)


@dataclass
class Tally:
    """Counters from which `Status` is made."""

    frames: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    runs: dict[str, str] = field(default_factory=dict)
    errors: dict[str, None] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    restarts: int = 0

    def frame(self, raw_uid: str, reason: str | None) -> None:
        """Count a frame."""
        (self.frames if reason is None else self.failed)[raw_uid] += 1
        if reason is not None:
            self.error(reason)

    def ended(self, raw_uid: str, outcome: str) -> None:
        """Note the outcome of a run."""
        self.runs[raw_uid] = outcome

    def error(self, line: str) -> None:
        """Note what went wrong, once."""
        if len(self.errors) < _LINES:
            self.errors[line] = None

    def status(self, *, waiting: int) -> Status:
        """Return the present values."""
        return Status(
            frames=self.frames.total(),
            failed=self.failed.total(),
            waiting=waiting,
            runs=tuple(self.runs.items()),
            errors=(*self.errors, *self.kept.values()),
            restarts=self.restarts,
        )
