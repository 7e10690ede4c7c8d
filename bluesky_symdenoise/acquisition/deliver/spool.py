"""Documents of derived runs on disk until Tiled has them: one file a run, locked while somebody works on it."""

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

#: Folder of the files, below the root of the derived files.
FOLDER = "symdenoise-spool"


def spool_folder(root: Path) -> Path:
    """The folder of the spools, made if it was not there."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Spool:
    """The documents of one derived run, a line of JSON each; it is removed when Tiled has all of them.

    Made by `begin` or `left`, which lock the file for as long as this process works on it: a file that can be locked
    belongs to nobody that lives.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        last = None
        for last, _ in self.read(0):  # noqa: B007
            pass
        #: Whether the stop document is in it.
        self.complete = last is not None and last[0] == "stop"
        #: Whether nobody has written to it yet.
        self.empty = os.fstat(descriptor).st_size == 0

    @property
    def uid(self) -> str:
        """Of the derived run."""
        return self.path.stem

    @classmethod
    def begin(cls, root: Path, uid: str) -> Spool | None:
        """A spool to write; None if another process works on it. One that a dead process left is taken over."""
        return cls._locked(spool_folder(root) / f"{uid}.jsonl", os.O_RDWR | os.O_CREAT)

    @classmethod
    def left(cls, root: Path) -> Iterator[Spool]:
        """The spools on which nobody works, complete or not."""
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
            # Who held it may have removed it meanwhile.
            ours = locked(descriptor) and os.fstat(descriptor).st_ino == os.stat(path).st_ino
        except FileNotFoundError:
            ours = False
        if not ours:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def restart(self) -> None:
        """Forget what a dead process wrote; the run is written from its beginning."""
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
        """Documents from a position of the file on, with the position behind each; a torn or damaged line ends them."""
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
        """Tiled has it all."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave it to whoever comes next."""
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
        If they are complete: the run needs sending only.
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
