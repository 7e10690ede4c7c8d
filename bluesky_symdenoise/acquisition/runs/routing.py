"""Routing of documents to the run that they belong to."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

#: Names of documents that other documents refer to by uid.
_NAMED = frozenset({"descriptor", "resource", "stream_resource"})


class Owners:
    """Find the run of each document from the documents before it."""

    def __init__(self) -> None:
        self._run: dict[str, str] = {}

    def of(self, name: str, doc: Document) -> str | None:
        """Return the uid of the run; None if no earlier document gives it, as for resources without ``run_start``."""
        if name == "start":
            return str(doc.get("uid"))
        if name == "bulk_events":
            return next((self._run[each] for each in doc if each in self._run), None)
        owner = doc.get("run_start")
        for key in ("descriptor", "resource", "stream_resource"):
            owner = owner or self._run.get(doc.get(key, ""))
        if owner is not None and name in _NAMED:
            self._run[str(doc.get("uid"))] = str(owner)
        return None if owner is None else str(owner)

    def forget(self, uid: str) -> None:
        """Forget a run that is over."""
        self._run = {key: owner for key, owner in self._run.items() if owner != uid}
