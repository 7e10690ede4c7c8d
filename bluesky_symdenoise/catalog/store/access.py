"""Access control: a derived run is as restricted as its raw run, or it is not written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
from bluesky_tiled_plugins import TiledWriter
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer
from event_model import DocumentNames
from tiled.client.constructors import from_context
from tiled.client.utils import ClientError

from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

Document = dict[str, Any]

#: Documents that come with each row.
_OF_ROWS = frozenset({DocumentNames.event, DocumentNames.stream_datum})


def derived_writer(container: Container, *, batch_size: int = 1) -> Callable[[str, Document], Any]:
    """Return a TiledWriter for one derived run that stops at once if the run would not get its raw run's access tags.

    A server without an access policy silently drops the tags of raw and derived runs alike; if the raw run has none
    either, that is accepted.

    Parameters
    ----------
    container
        Catalogue of derived runs; the raw runs are in ``raw`` beside it, or elsewhere.
    batch_size
        Rows that are sent at a time; the first is sent at once.

    Returns
    -------
    callable
        Takes (name, document). For the start document it raises SymDenoiseError if the server does not let this client
        apply the tags, or drops them; nothing is left on the server then, or the error says what is.
    """
    refusals: list[Exception] = []
    writer = TiledWriter(container, normalizer=partial(_Normalizer, refusals), batch_size=batch_size)

    def write(name: str, doc: Document) -> None:
        writer(name, doc)
        if name != "start":
            return
        if refusals:
            error = refusals[0]
            if isinstance(error, ClientError) and _about_tags(error):
                raise _refused(error, container, doc) from error
            raise error
        _require_tags(container, doc)

    return write


class _Normalizer(RunNormalizer):  # type: ignore[misc]
    """Keep the server's answer to a start document, because event-model's router would blame its factories for it.

    The documents of the first row create the nodes of a stream, so they are sent at once, even in a short run.
    """

    def __init__(self, refusals: list[Exception], **options: Any) -> None:
        super().__init__(**options)
        self._refusals = refusals
        self._resources: set[str] = set()
        self._checked: set[tuple[str, ...] | None] = set()

    def subscribe(self, func: Any, name: str = "all") -> Any:
        # TiledWriter has no public method that sends its buffered documents.
        self._writer, self._batch_size = func, func._batch_size
        func._batch_size = 1
        return super().subscribe(func, name)

    def emit(self, name: DocumentNames, doc: Document) -> None:
        """Send a document; check it, unless one of the same descriptor and keys was checked before."""
        form = (doc["descriptor"], doc.get("stream_resource"), *doc.get("data", ())) if name in _OF_ROWS else None
        if form is None or form not in self._checked:
            super().emit(name, doc)
            self._checked.add(form)
        else:
            # To check the documents of every row would take as long as all else that is done to send them.
            self.dispatcher.process(name, doc)

    def stream_datum(self, doc: Document) -> None:
        if doc["stream_resource"] in self._resources:
            self._writer._batch_size = self._batch_size
        self._resources.add(doc["stream_resource"])
        super().stream_datum(doc)

    def start(self, doc: Document) -> None:
        try:
            super().start(doc)
        except (ClientError, httpx.HTTPError) as error:
            self._refusals.append(error)


def _require_tags(container: Container, start: Document) -> None:
    """Delete a derived run that was just made, and raise, unless it carries its raw run's access tags."""
    run = container[start["uid"]]
    given, wanted = set(run.access_tags), set(start.get("tiled_access_tags") or ())
    if given == wanted or given == _raw_tags(container, start["raw_uid"]):
        return
    try:
        run.delete(recursive=True, external_only=False)
        left = "it was deleted again"
    except (ClientError, httpx.TransportError) as error:
        left = f"it could not be deleted again ({error}): delete it by hand"
    raise SymDenoiseError(
        f"derived run {start['uid']}",
        rule=f"the server gave it the access tags {_names(given)} where {_names(wanted)} were asked for; {left}",
        remedy="name tags in the raw run's start document (`tiled_access_tags`), and write to a server that has the "
        "raw run's access policy",
    )


def _about_tags(error: ClientError) -> bool:
    return error.response.status_code == httpx.codes.FORBIDDEN and "access tags" in str(error)


def _refused(error: ClientError, container: Container, start: Document) -> SymDenoiseError:
    lines = [line.strip() for line in error.response.json()["detail"].splitlines() if line.strip()]
    return SymDenoiseError(
        f"access tags {_names(set(start.get('tiled_access_tags') or ()))}",
        rule=f"the server of {container.uri} does not let this client put them on a run ({lines[-1]}), and nothing is "
        "written without them",
        remedy="make the principal of this API key an owner of the tags; `symdenoise doctor` names the missing ones",
    )


def _raw_tags(container: Container, raw_uid: str) -> set[str] | None:
    try:
        folder = [*container.path_parts[:-1], "raw"]
        raw = from_context(container.context, container.structure_clients, node_path_parts=[*folder, raw_uid])
    except (KeyError, ClientError):
        return None
    return set(raw.access_tags)


def _names(tags: set[str]) -> str:
    return ", ".join(sorted(tags)) or "none"
