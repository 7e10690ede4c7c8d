"""Documents of unfinished runs on disk, one file per run: they survive however the process that took them ends.

A file holds records: a line of text, ``number head body``, and so many bytes of a head and a body (see `documents`).
It is locked while a process writes or processes it, and removed when its run is finished. Nothing in it is ever
executed.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from bluesky_symdenoise.acquisition.deliver.spool import spool_folder
from bluesky_symdenoise.acquisition.runs.documents import PackedDocument, unpacked
from bluesky_symdenoise.acquisition.runs.replaced import SLACK_S, Places, Replaced
from bluesky_symdenoise.catalog.store.lock import HeldError, hold, is_held

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.request.request import Work

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]
#: Head and body of a document.
Pieces = tuple[bytes, bytes]

SUFFIX = ".documents"
#: Maximum length of a line of sizes.
_LINE = 80
#: Number of the first record, the head, which says whose documents follow.
_HEAD = -1


@dataclass(frozen=True)
class Head:
    """Header of the documents of one run: what they are for.

    Attributes
    ----------
    raw_uid, derived_uid
        The runs.
    recipe_sha256
        sha256 of the recipe under which they came.
    container
        Address of the catalogue of derived runs.
    """

    raw_uid: str
    derived_uid: str
    recipe_sha256: str
    container: str

    def path(self, folder: Path) -> Path:
        """Return the path of the file in a folder."""
        return folder / f"{self.derived_uid}{SUFFIX}"


#: Held while this process forks, and while a file is locked and not yet known: a fork closes the files that are known,
#: and would keep the lock of another one as long as it lives.
FORKING = threading.Lock()


class RunFile:
    """The documents of one run, locked by this process until `close` or `remove`.

    Raises
    ------
    HeldError
        If a living process writes or processes them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = hold(path)

    @classmethod
    def begin(cls, folder: Path, head: Head) -> RunFile:
        """Return the file of a run, emptied of what an earlier process left in it."""
        made = cls(head.path(folder))
        os.ftruncate(made._file.fileno(), 0)
        made.append(_HEAD, PackedDocument(json.dumps(vars(head)).encode(), ()))
        return made

    def append(self, number: int, document: PackedDocument) -> int:
        """Add a record, and return where it begins.

        Raises
        ------
        OSError
            If the disk is full; the file is then unchanged.
        """
        begin = self._file.seek(0, os.SEEK_END)
        line = f"{number} {len(document.head)} {document.size}\n".encode()
        try:
            for part in (memoryview(line), memoryview(document.head), *document.parts):
                while part.nbytes:
                    part = part[self._file.write(part) :]
        except OSError:
            os.ftruncate(self._file.fileno(), begin)
            raise
        return begin

    def read(self, offset: int) -> Pieces:
        """Return head and body of the record that begins at this position."""
        self._file.seek(offset)
        found = _record(self._file)
        if found is None:
            raise OSError(f"{self.path}: the record at {offset} is gone")
        return found[1]

    def close(self) -> None:
        """Release the file for the next process."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file: its run is finished."""
        self.path.unlink(missing_ok=True)
        self.close()


def head_of(path: Path) -> Head | None:
    """Return what a file of documents is for, or None if it is unreadable, as after a crash at its beginning."""
    try:
        with path.open("rb") as file:
            found = _record(file)
        said = json.loads(found[1][0]) if found is not None and found[0] == _HEAD else {}
        return Head(**{name: str(said[name]) for name in Head.__annotations__})
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def documents_in(path: Path, *, after: int = _HEAD) -> Iterator[tuple[int, str, Document]]:
    """Yield number, name and content of the documents above a number, up to the first incomplete one."""
    with path.open("rb") as file:
        while (found := _record(file)) is not None:
            number, pieces = found
            if number > after:
                try:
                    name, doc = unpacked(*pieces)
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    log.error("%s: document %d cannot be read (%s)", path, number, error)
                    return
                yield number, name, doc


def merged_documents(paths: Sequence[Path], *, after: int) -> Iterator[tuple[int, str, Document]]:
    """Yield the documents of several runs in the order in which they came."""
    return heapq.merge(*(documents_in(path, after=after) for path in paths), key=lambda each: each[0])


def foresee(paths: Sequence[Path], places: Places, replaced: Replaced, *, after: int = _HEAD) -> None:
    """Find out, before documents are processed, which raw files may have been replaced since they were received.

    The process that received them ended after the last one: whatever changes its files some time later belongs to
    another run.

    Parameters
    ----------
    after
        Number of the last document that `places` has seen.
    """
    ended = max((path.stat().st_mtime for path in paths), default=0.0) + SLACK_S
    for number, name, doc in merged_documents(paths, after=_HEAD):
        if number > after:
            replaced.add(places.take(name, doc))
        if name in ("resource", "stream_resource"):
            replaced.add({str(doc.get("uid")): ended})


def left_files(work: Work) -> Iterator[tuple[RunFile, Head]]:
    """Yield the files of this request's documents that no living process holds, locked now, with their headers."""
    for path in sorted(spool_folder(work.folder).glob(f"*{SUFFIX}")):
        head = head_of(path)
        if head is not None and not _is_for(head, work):
            continue
        try:
            file = RunFile(path)
        except HeldError:
            continue
        if head is not None:
            yield file, head
        elif path.stat().st_size == 0:
            # The process crashed before it wrote anything.
            file.remove()
        else:
            file.close()
            log.error("%s cannot be read and is kept: its run can only be finished from the catalogue", path)


def recipes_left(work: Work) -> set[str]:
    """Return the sha256 of the recipe of each file of documents."""
    heads = (head_of(path) for path in spool_folder(work.folder).glob(f"*{SUFFIX}"))
    return {head.recipe_sha256 for head in heads if head is not None}


def left_with_other_settings(work: Work, *, but: Collection[str] = ()) -> Iterator[str]:
    """Yield a message for each file of documents received for another request that no living process holds.

    Parameters
    ----------
    but
        Sha256 of other recipes whose documents are no others'.
    """
    for path in sorted(spool_folder(work.folder).glob(f"*{SUFFIX}")):
        head = head_of(path)
        if head is not None and head.recipe_sha256 not in but and not _is_for(head, work) and not is_held(path):
            yield (
                f"documents of run {head.raw_uid[:8]}, taken with other settings by a process that has ended, wait in "
                f"{path}: finish them with `symdenoise catch-up` and those settings"
            )


def _is_for(head: Head, work: Work) -> bool:
    # Compare the path in the catalogue only: a server that was restarted may have another address.
    places = (urlsplit(uri).path for uri in (head.container, str(work.container.uri)))
    return head.recipe_sha256 == work.recipe.sha256 and len(set(places)) == 1


def _record(file: BinaryIO) -> tuple[int, Pieces] | None:
    line = file.readline(_LINE)
    if not line.endswith(b"\n"):
        return None
    try:
        number, *sizes = (int(each) for each in line.split())
        head, body = (_exactly(file, size) for size in sizes)
    except ValueError:
        return None
    return (number, (head, body)) if [len(head), len(body)] == sizes else None


def _exactly(file: BinaryIO, size: int) -> bytes:
    """Return this many bytes; fewer at the end of the file."""
    parts, left = [], size
    while left > 0 and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(slots=True)
class _Entry:
    uid: str | None
    offset: int
    size: int
    #: The document itself, if there is no file to read it from.
    pieces: Pieces | None
    time: float


class Backlog:
    """Numbered documents, each of a run or of none, kept until they are removed.

    Parameters
    ----------
    folder
        Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, RunFile] = {}
        self._entries: dict[int, _Entry] = {}
        self._next = 0
        self._complained = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers, in order."""
        return iter(sorted(self._entries))

    @property
    def runs(self) -> set[str]:
        """Uids of the raw runs that have begun and are not finished."""
        return set(self._files)

    def begin(self, head: Head) -> None:
        """Make the file of a run.

        Raises
        ------
        HeldError
            If a living process has it.
        OSError
            If it cannot be made; the run's documents then stay in memory.
        """
        with FORKING:
            self._files[head.raw_uid] = RunFile.begin(self._folder, head)

    def path(self, uid: str) -> Path | None:
        """Return the path of a run's file."""
        return self._files[uid].path if uid in self._files else None

    def add(self, uid: str | None, document: PackedDocument, time: float) -> int:
        """Keep a document of a run, and return its number."""
        number, self._next = self._next, self._next + 1
        entry = _Entry(uid, -1, len(document.head) + document.size, None, time)
        if uid in self._files:
            try:
                entry.offset = self._files[uid].append(number, document)
            except OSError as error:
                if not self._complained:
                    log.error(
                        "documents stay in memory: %s cannot hold them (%s); free disk space", self._folder, error
                    )
                self._complained = True
        if entry.offset < 0:
            entry.pieces = document.head, b"".join(document.parts)
        self._entries[number] = entry
        return number

    def pieces(self, number: int) -> Pieces:
        """Return the document that was kept."""
        entry = self._entries[number]
        if entry.pieces is not None:
            return entry.pieces
        assert entry.uid is not None
        return self._files[entry.uid].read(entry.offset)

    def size(self, number: int) -> int:
        """Return the size of a document in bytes."""
        return self._entries[number].size

    def time(self, number: int) -> float:
        """Return when a document came."""
        return self._entries[number].time

    def uid(self, number: int) -> str | None:
        """Return the uid of a document's run."""
        entry = self._entries.get(number)
        return None if entry is None else entry.uid

    def forget(self, number: int) -> None:
        """Remove one document."""
        self._entries.pop(number, None)

    def forget_run(self, uid: str) -> None:
        """Remove the documents of a run."""
        for number in [number for number, entry in self._entries.items() if entry.uid == uid]:
            del self._entries[number]
        if uid in self._files:
            self._files.pop(uid).remove()

    def close(self) -> None:
        """Release the files; those of unfinished runs stay."""
        for file in self._files.values():
            file.close()
