"""Raw files that a detector may have written anew, under their name, before all their frames were read.

Where each staging of a detector, or each run, writes a file of the same name, the frames of the one before are gone. A
denoiser that keeps pace has read them; one that is behind would show those of the next. The documents tell it to who
sees them before the denoiser does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from event_model import unpack_datum_page

from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: A file that was last changed so many seconds before its run began is as it was, whatever the clock of its server.
SLACK_S = 60.0
#: Places that are remembered, latest last.
MOST = 10_000


class Replaced:
    """Uids of resources whose files may be others by now; told on one thread, asked on another.

    Each has the moment after which its file must not have changed, if it is to be what it was.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, found: Mapping[str, float]) -> None:
        """Take in resources, each with its moment; of two moments the earlier counts."""
        for uid, since in found.items():
            self._since[uid] = min(since, self._since.get(uid, since))
        while len(self._since) > MOST:
            del self._since[next(iter(self._since))]

    @property
    def all(self) -> dict[str, float]:
        """The resources, each with its moment."""
        return dict(self._since)

    def check(self, uid: str, paths: Iterable[Path]) -> None:
        """Raise SymDenoiseError if one of these files of a resource may be another by now."""
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
    """Follows which resource was announced last for each file, over all runs."""

    def __init__(self) -> None:
        self._place: dict[str, str] = {}
        #: Resources of each place whose frames are there together, with when their runs began.
        self._there: dict[str, dict[str, float]] = {}
        self._legacy: dict[str, list[Any]] = {}
        self._began = 0.0

    def take(self, name: str, doc: Document) -> dict[str, float]:
        """Take in a document, whatever it is; return the resources that may be replaced now, with their moments."""
        try:
            return self._taken(name, doc)
        except (TypeError, ValueError, OverflowError, AttributeError, KeyError, IndexError) as error:
            # Who reads the document says what is wrong with it.
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
                # Several resources may be of one file: it is replaced where the same frame is announced again.
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
        # Latest last.
        self._there[where] = there
        while len(self._there) > MOST:
            for gone in self._there.pop(next(iter(self._there))):
                self._place.pop(gone, None)
        return before


def place(resource: Document) -> tuple[str, str]:
    """Return the file and what of it a stream_resource is for: two of one place are of the same rows."""
    parameters = resource.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    of = [parameters.get(name) for name in ("dataset", "template", "filename", "slice", "squeeze")]
    return str(resource.get("uri")), str([resource.get("data_key"), *of])
