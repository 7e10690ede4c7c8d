"""Runs that are given as documents, in memory or in a backup file."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.acquisition.runs.documents import plain, refuse_unreadable
from bluesky_symdenoise.acquisition.runs.frames import AnnouncedFrames, FrameSource
from bluesky_symdenoise.acquisition.runs.replaced import Places, Replaced
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.request.request import Request

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]
Named = tuple[str, Document]


@dataclass(frozen=True)
class Layout:
    """Layout of an image in an array of all rows.

    Attributes
    ----------
    dims
        Names of the dimensions, that of the rows included.
    shape
        Shape of one row.
    known
        Whether the shape was seen on the images, and is not only what their data key states.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    known: bool = True


class GivenRun:
    """A run given as documents, whose frames are in the documents or in files that this computer can read.

    The documents are read once; those in a list or a backup are searched beforehand for files that were replaced.
    """

    def __init__(self, documents: Iterable[Any], *, replaced: Replaced | None = None) -> None:
        self._documents = iter(documents)
        first = next(self._documents, None)
        if not (isinstance(first, tuple | list) and len(first) == 2 and first[0] == "start"):
            raise SymDenoiseError(
                f"{type(documents).__name__} that begins with {str(first)[:40]!r}",
                rule="a run begins with its start document",
                remedy="give all its (name, document) pairs",
            )
        self._replaced = replaced or Replaced()
        if isinstance(documents, Sequence):
            self._foresee(documents)
        self.start: Document = plain(first[1])
        refuse_unreadable("start", self.start)
        self.stop: Document | None = None
        self.last_seen: float | None = None

    def documents(self) -> Iterator[Named]:
        """Yield the documents as they were given; the stop document is kept in `stop`."""
        for name, given in self._documents:
            doc = plain(given)
            if name == "start":
                raise SymDenoiseError(
                    f"run {doc['uid']}",
                    rule="a second start document came",
                    remedy="give the documents of one run at a time",
                )
            if name == "stop":
                self.stop = doc
                return
            self.last_seen = _last_moment(doc) or self.last_seen
            yield name, doc

    def frames(self, descriptor: Document) -> FrameSource:
        """Return the frames in the files that the documents announce."""
        return AnnouncedFrames(descriptor, replaced=self._replaced)

    def _foresee(self, documents: Iterable[Any]) -> None:
        places = Places()
        for name, doc in documents:
            self._replaced.add(places.take(name, doc))

    def layout(self, descriptor: Document, key: str) -> Layout:
        """Return the layout that the data key states."""
        said = descriptor["data_keys"][key]
        dims = said.get("dims") or [f"{key}_dim{i + 1}" for i in range(len(said["shape"]))]
        return Layout(("time", *dims), tuple(said["shape"]), np.dtype(said.get("dtype_numpy", "<f8")), known=False)

    def images(self, asked: Request) -> None:
        """Return None: the number is known only after the documents have been read."""


class Backup(GivenRun):
    """A run in a JSON Lines file, as TiledWriter's ``backup_directory`` writes it.

    A last line that a crash cut off is ignored, and a run that has not ended is logged.
    """

    def __init__(self, path: Path) -> None:
        first, _ = next(_json_lines(path), (None, None))
        if first != "start":
            said = "is empty" if first is None else f"begins with {first!r}"
            raise SymDenoiseError(
                f"{path}",
                rule=f"a run begins with its start document, and this file {said}",
                remedy="give a file of TiledWriter's backup_directory",
            )
        super().__init__(_json_lines(path))
        self._foresee(_json_lines(path))
        name, doc = deque(_json_lines(path), maxlen=1).pop()
        self.stop, self.last_seen = doc if name == "stop" else None, _last_moment(doc) or self.start["time"]
        if self.stop is None:
            torn = ", and its last line was cut off" if _is_torn(path) else ""
            log.warning("%s has no stop document%s: the run may have had more frames", path, torn)


def _json_lines(path: Path) -> Iterator[Named]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    said = json.loads(line)
                    yield said["name"], said["doc"]
                except (ValueError, KeyError, TypeError) as error:
                    if not line.endswith(b"\n"):
                        return
                    raise SymDenoiseError(
                        f"{path}, line {number + 1}",
                        rule='it is not {"name": ..., "doc": ...}',
                        remedy="give a file of TiledWriter's backup_directory",
                    ) from error
    except OSError as error:
        uid = path.suffix == "" and len(path.parts) == 1
        raise SymDenoiseError(
            f"{path}",
            rule=f"it cannot be read as the file of a backup ({error.strerror})",
            remedy=f"give the run itself, client['raw']['{path}']" if uid else "give a .jsonl backup, or a run",
        ) from error


def _is_torn(path: Path) -> bool:
    """Return whether the last line is incomplete."""
    with path.open("rb") as file:
        last = deque(file, maxlen=1).pop()
    try:
        json.loads(last)
    except ValueError:
        return True
    return False


def _last_moment(doc: Document) -> float | None:
    """Return when a document was made, the latest of a page; None for one without time."""
    return float(np.max(doc["time"])) if "time" in doc else None
