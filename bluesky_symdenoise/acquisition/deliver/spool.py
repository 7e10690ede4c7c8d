"""Documents of derived runs on disk until Tiled has them: one file per run, locked while a process works on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_symdenoise.catalog.store.lock import held, locked
from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]

#: Folder of the spool files, below the root of the derived files.
FOLDER = "symdenoise-spool"


def spool_folder(root: Path) -> Path:
    """Return the folder of the spools, and make it if needed."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Spool:
    """Documents of one derived run, one line of JSON each; the file is removed when Tiled has all of them.

    Made by `begin` or `left`, which lock the file for as long as this process works on it: a file that can be locked
    belongs to no living process.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        last = None
        for last, _ in self.read(0):  # noqa: B007
            pass
        #: Whether the file has the stop document.
        self.complete = last is not None and last[0] == "stop"
        #: Whether the file is still empty.
        self.empty = os.fstat(descriptor).st_size == 0

    @property
    def uid(self) -> str:
        """Uid of the derived run."""
        return self.path.stem

    @classmethod
    def begin(cls, root: Path, uid: str) -> Spool | None:
        """Return a spool to write, or None if another process works on it. One left by a dead process is taken over."""
        return cls._locked(spool_folder(root) / f"{uid}.jsonl", os.O_RDWR | os.O_CREAT)

    @classmethod
    def left(cls, root: Path) -> Iterator[Spool]:
        """Yield the spools on which no process works, complete or not."""
        for path in sorted((root / FOLDER).glob("*.jsonl")):
            spool = cls._locked(path, os.O_RDWR)
            if spool is not None:
                yield spool

    @classmethod
    def _locked(cls, path: Path, flags: int) -> Spool | None:
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            return None
        try:
            # The previous owner may have removed the file between our opening and our locking.
            ours = locked(descriptor) and os.fstat(descriptor).st_ino == os.stat(path).st_ino
        except FileNotFoundError:
            ours = False
        if not ours:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def restart(self) -> None:
        """Discard what a dead process wrote; the run is written again from its beginning."""
        os.ftruncate(self._descriptor, 0)

    def write(self, name: str, doc: Document) -> None:
        """Add a document; the last one, ``stop``, is on the disk when this returns."""
        line = json.dumps([name, doc], default=_plain, separators=(",", ":")).encode() + b"\n"
        before = os.lseek(self._descriptor, 0, os.SEEK_END)
        if os.write(self._descriptor, line) != len(line):
            os.ftruncate(self._descriptor, before)
            raise OSError(f"{self.path}: the disk is full")
        if name == "stop":
            os.fsync(self._descriptor)
            self.complete = True

    def read(self, offset: int) -> Iterator[tuple[tuple[str, Document], int]]:
        """Yield documents from a file position on, each with the position behind it; stop at a torn or damaged line."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    name, doc = json.loads(line)
                except ValueError:
                    return
                yield (name, doc), offset

    def remove(self) -> None:
        """Remove the file: Tiled has all of it."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Release the file for the next process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def clear_spool(root: Path, uid: str) -> None:
    """Remove the documents that a dead process left of a derived run that it had not finished.

    Raises
    ------
    HeldError
        If a living process works on them.
    SymDenoiseError
        If they are complete: the run only needs to be sent.
    """
    path = root / FOLDER / f"{uid}.jsonl"
    if not path.exists():
        return
    spool = Spool.begin(root, uid)
    if spool is None:
        raise held(path)
    if spool.complete:
        spool.release()
        raise SymDenoiseError(
            f"derived run {uid}",
            rule=f"it is finished and waits in {path} for the server",
            remedy="send it with `symdenoise catch-up`",
        )
    spool.remove()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
