"""Raw files that a detector may have written anew, under their name, before all their frames were read.

Where each staging of a detector, or each run, writes a file of the same name, the frames of the one before are gone. A
denoiser that keeps pace has read them; one that is behind would show those of the next. The documents tell it to who
sees them before the denoiser does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]

#: A file that was last changed so many seconds before its run began is as it was, whatever the clock of its server.
SLACK_S = 60.0
#: Places that are remembered, latest last.
MOST = 10_000


class Replaced:
    """Uids of resources whose files may be others by now; told on one thread, asked on another."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, found: Mapping[str, float]) -> None:
        """Take in resources, each with when its run began."""
        for uid in list(self._since)[: max(0, len(self._since) + len(found) - MOST)]:
            del self._since[uid]
        self._since.update(found)

    @property
    def all(self) -> dict[str, float]:
        """The resources, each with when its run began."""
        return dict(self._since)

    def check(self, uid: str, paths: Iterable[Path]) -> None:
        """Raise SymDenoiseError if one of these files of a resource may be another by now."""
        since = self._since.get(uid)
        for path in paths if since is not None else ():
            try:
                changed = path.stat().st_mtime
            except OSError:
                continue
            if since is not None and changed > since - SLACK_S:
                raise SymDenoiseError(
                    f"a frame of {path}",
                    rule="the detector announced a file of this name again, from its first row, before this frame was "
                    "read: what the file holds now may be other frames",
                    remedy="have the detector give each file a name of its own",
                )


class Places:
    """Follows which resource was announced last for each file, over all runs."""

    def __init__(self) -> None:
        self._place: dict[str, str] = {}
        #: Resources of each place whose frames are there together, with when their runs began.
        self._there: dict[str, dict[str, float]] = {}
        self._began = 0.0

    def take(self, name: str, doc: Document) -> dict[str, float]:
        """Take in a document, whatever it is; return the resources that may be replaced now, with when they began."""
        match name:
            case "start" if isinstance(doc.get("time"), int | float):
                self._began = float(doc["time"])
            case "stream_resource":
                self._place[str(doc.get("uid"))] = str(place(doc))
            case "stream_datum":
                return self._datum(str(doc.get("stream_resource")), doc.get("indices"))
            case "resource":
                uid = str(doc.get("uid"))
                where = [doc.get(each) for each in ("root", "resource_path", "resource_kwargs")]
                self._place[uid] = str(where)
                return self._datum(uid, {"start": 0})
        return {}

    def _datum(self, uid: str, indices: Any) -> dict[str, float]:
        where = self._place.get(uid)
        if where is None:
            return {}
        there = self._there.setdefault(where, {})
        if uid in there:
            return {}
        before: dict[str, float] = {}
        if isinstance(indices, dict) and indices.get("start") == 0:
            before, there = there, {}
        there[uid] = self._began
        # Latest last.
        self._there.pop(where, None)
        self._there[where] = there
        if len(self._there) > MOST:
            for gone in self._there.pop(next(iter(self._there))):
                self._place.pop(gone, None)
        return before


def place(resource: Document) -> tuple[str, str]:
    """Return the file and what of it a stream_resource is for: two of one place are of one file."""
    parameters = resource.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    return str(resource.get("uri")), str([parameters.get(name) for name in ("dataset", "template", "filename")])
