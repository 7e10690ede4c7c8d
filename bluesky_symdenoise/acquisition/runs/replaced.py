"""Raw files that a detector may have overwritten under the same name before all their frames were read.

If each staging of a detector, or each run, writes a file of the same name, the frames of the previous file are lost. A
denoiser that keeps pace has read them; one that is behind would read those of the next file. Looking at documents ahead
of the denoiser reveals this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from event_model import unpack_datum_page
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: A file unchanged for so many seconds before its run began has not been replaced, even if the clocks differ.
SLACK_S = 60.0
#: Number of places that are remembered, the latest ones.
MOST = 10_000


class Replaced:
    """Uids of resources whose files may have been replaced; written on one thread, queried on another.

    Each has a time after which its file must not have changed if it is to be the original.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, found: Mapping[str, float]) -> None:
        """Add resources, each with its time; of two times the earlier is kept."""
        for uid, since in found.items():
            self._since[uid] = min(since, self._since.get(uid, since))
        while len(self._since) > MOST:
            del self._since[next(iter(self._since))]

    @property
    def all(self) -> dict[str, float]:
        """Resources, each with its time."""
        return dict(self._since)

    def read(self, uid: str, paths: Callable[[], Iterable[Path]], read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return what `read` returns, unless a file of the resource may have been replaced before, or meanwhile.

        Parameters
        ----------
        paths
            Returns the files; called only where one may have been replaced.

        Raises
        ------
        SymDenoiseError
            As `check`.
        """
        if uid in self._since:
            self.check(uid, paths())
        image = read()
        if uid in self._since:
            self.check(uid, paths())
        return image

    def check(self, uid: str, paths: Iterable[Path]) -> None:
        """Raise SymDenoiseError if one of these files of a resource may have been replaced by now."""
        since = self._since.get(uid)
        for path in paths if since is not None else ():
            try:
                changed = path.stat().st_mtime
            except OSError:
                continue
            if since is not None and changed > since:
                raise SymDenoiseError(
                    f"a frame of {path}",
                    rule="before this frame was read, the detector announced a file of this name again, from its first "
                    "row, or the file changed after the process that took the run had ended: what it holds now may be "
                    "other frames",
                    remedy="have the detector give each file a name of its own",
                )


class Places:
    """Record of which resource was announced last for each file, over all runs."""

    def __init__(self) -> None:
        self._place: dict[str, str] = {}
        #: Resources of each place whose frames are all there, with the time at which their run began.
        self._there: dict[str, dict[str, float]] = {}
        self._legacy: dict[str, list[Any]] = {}
        self._began = 0.0

    def take(self, name: str, doc: Document) -> dict[str, float]:
        """Take in any document; return the resources that may be replaced now, with their times."""
        try:
            return self._taken(name, doc)
        except (TypeError, ValueError, OverflowError, AttributeError, KeyError, IndexError) as error:
            # Whoever reads the document reports what is wrong with it.
            log.debug("a %s document names no file that could be followed: %s", name, error)
            return {}

    def _taken(self, name: str, doc: Document) -> dict[str, float]:
        match name:
            case "start":
                self._began = float(doc["time"])
            case "stream_resource":
                self._place[str(doc["uid"])] = str(place(doc))
            case "stream_datum":
                uid = str(doc["stream_resource"])
                return self._datum(self._place.get(uid), uid, first=int(doc["indices"]["start"]))
            case "resource":
                self._legacy[str(doc["uid"])] = [
                    doc.get(each) for each in ("spec", "root", "resource_path", "resource_kwargs")
                ]
                while len(self._legacy) > MOST:
                    del self._legacy[next(iter(self._legacy))]
            case "datum":
                uid = str(doc["resource"])
                # Several resources may share a file; it is replaced if a frame that was announced before is announced
                # again.
                where = [*self._legacy[uid], doc.get("datum_kwargs")]
                return self._datum(str(where), uid, first=0)
            case "datum_page" | "bulk_datum":
                found: dict[str, float] = {}
                for datum in unpack_datum_page(doc) if name == "datum_page" else ():
                    found |= self._taken("datum", datum)
                return found
        return {}

    def _datum(self, where: str | None, uid: str, *, first: int) -> dict[str, float]:
        if where is None:
            return {}
        there = self._there.pop(where, {})
        before: dict[str, float] = {}
        if uid not in there:
            if first == 0:
                before, there = there, {}
            there[uid] = self._began - SLACK_S
        # Keep the latest place at the end.
        self._there[where] = there
        while len(self._there) > MOST:
            for gone in self._there.pop(next(iter(self._there))):
                self._place.pop(gone, None)
        return before


def place(resource: Document) -> tuple[str, str]:
    """Return the file, and the part of it, that a stream_resource is for: two of one place have the same rows."""
    parameters = resource.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    of = [parameters.get(name) for name in ("dataset", "template", "filename", "slice", "squeeze")]
    return str(resource.get("uri")), str([resource.get("data_key"), *of])
