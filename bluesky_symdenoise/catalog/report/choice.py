"""Frames of a run that a request asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import HTTPException


@dataclass(frozen=True)
class Choice:
    """Ranges of frame numbers, counted from 0; none if nothing was chosen."""

    parts: tuple[range, ...] = ()

    def refuse_missing(self, rows: Iterable[int]) -> None:
        """Raise 416 if a chosen frame is in no stream, given how many frames each stream has."""
        most, last = max(rows, default=0), max((part[-1] for part in self.parts), default=-1)
        if last >= most:
            there = f"0 to {most - 1}" if most else "none yet"
            raise HTTPException(416, f"frame {last} is not there; the run has {there}")

    def of(self, rows: int, *, otherwise: Iterable[int]) -> list[int]:
        """Return the chosen frames of a stream of this many rows, ascending, each once; else the default ones."""
        if not self.parts:
            return sorted(set(otherwise))
        return sorted({number for part in self.parts for number in range(part.start, min(part.stop, rows))})
