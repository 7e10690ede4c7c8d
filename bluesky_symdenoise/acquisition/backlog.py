"""Documents of runs that are not finished: in memory up to a bound, beyond it in a file."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

log = logging.getLogger("bluesky_symdenoise")


@dataclass(slots=True)
class _Entry:
    uid: str | None
    payload: bytes | None
    offset: int
    size: int
    time: float


class Backlog:
    """Numbered payloads, each of a run or of none, until they are forgotten.

    Parameters
    ----------
    folder
        Where the file is made when it is needed; it has no name and vanishes with the process.
    memory_bytes
        Payloads beyond this go to the file.
    """

    def __init__(self, folder: Path, *, memory_bytes: int = 2**26) -> None:
        self._folder, self._memory_bytes = folder, memory_bytes
        self._entries: dict[int, _Entry] = {}
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._spilled = 0
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        """Numbers, in order."""
        return iter(sorted(self._entries))

    @property
    def spilled_bytes(self) -> int:
        """How much lies in the file."""
        return self._spilled

    def add(self, uid: str | None, payload: bytes, time: float) -> int:
        """Keep a payload of a run; its number."""
        number, self._next = self._next, self._next + 1
        entry = _Entry(uid, payload, -1, len(payload), time)
        self._entries[number] = entry
        if self._in_memory + entry.size > self._memory_bytes:
            self._spill(entry, payload)
        if entry.payload is not None:
            self._in_memory += entry.size
        return number

    def payload(self, number: int) -> bytes:
        """What was kept."""
        entry = self._entries[number]
        if entry.payload is not None:
            return entry.payload
        assert self._file is not None
        self._file.seek(entry.offset)
        return self._file.read(entry.size)

    def time(self, number: int) -> float:
        """When it came."""
        return self._entries[number].time

    def uid(self, number: int) -> str | None:
        """Of which run it is."""
        entry = self._entries.get(number)
        return None if entry is None else entry.uid

    def forget(self, number: int) -> None:
        """Keep one no longer."""
        entry = self._entries.pop(number, None)
        if entry is None:
            return
        if entry.payload is not None:
            self._in_memory -= entry.size
        else:
            self._spilled -= entry.size
            if self._spilled == 0 and self._file is not None:
                self._file.close()
                self._file = None

    def forget_run(self, uid: str) -> None:
        """Keep a run's no longer."""
        for number in [number for number, entry in self._entries.items() if entry.uid == uid]:
            self.forget(number)

    def _spill(self, entry: _Entry, payload: bytes) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            entry.offset = self._file.seek(0, 2)
            self._file.write(payload)
            self._file.flush()
        except OSError as error:
            log.error("documents stay in memory: %s cannot hold them (%s); make room there", self._folder, error)
            return
        entry.payload = None
        self._spilled += entry.size
