"""Destination of the documents of a derived run: straight to Tiled, or a spool first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from bluesky_symdenoise.acquisition.deliver.claim import Claim, doubled
from bluesky_symdenoise.acquisition.deliver.spool import clear_spool
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.catalog.store.marks import marking
from bluesky_symdenoise.catalog.store.writer import Emit
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.utils import ClientError

#: Function that returns where the documents of a derived run go. Its arguments are the work, the derived run's uid and
#: the path of its journal.
Outlet = Callable[[Work, str, Path], Emit]


def tiled_writer(work: Work, *, batch_size: int = 1) -> Emit:
    """Return a callback that writes one derived run to Tiled, with its raw run's access tags and its images marked."""
    from bluesky_symdenoise.catalog.store.access import derived_writer

    write = marking(work.container, derived_writer(work.container, batch_size=batch_size))
    if work.frames == "files":
        return write
    from bluesky_symdenoise.acquisition.deliver.upload import Upload

    upload = Upload(work.container)

    def emit(name: str, doc: dict[str, Any]) -> None:
        if not upload.take(name, doc):
            write(name, doc)

    return emit


def straight_to_tiled(claim: Claim, *, batch_size: int = 1) -> Outlet:
    """Return an outlet straight to Tiled, if the claim allows it; documents of ``batch_size`` rows are sent at a time.

    They raise SymDenoiseError at the start document if the derived run exists and may not be replaced, and at each
    document if the server cannot be reached or refuses it.
    """

    def outlet(work: Work, uid: str, journal: Path) -> Emit:
        writers: list[Emit] = []

        def send(name: str, doc: dict[str, Any]) -> None:
            if name == "start":
                claim.make_way(work.container, uid, journal=journal)
                writers.append(tiled_writer(work, batch_size=batch_size))
            writers[0](name, doc)

        clear_spool(work.folder, uid)
        return lambda name, doc: _said_plainly(work, uid, lambda: send(name, doc))

    return outlet


#: Whether the run is denoised while it is acquired: an existing derived run is not replaced then.
STRAIGHT = straight_to_tiled(Claim())


def _said_plainly(work: Work, uid: str, ask: Callable[[], Any]) -> Any:
    from tiled.client.utils import ClientError

    try:
        return ask()
    except ClientError as error:
        raise refusal(error, uid, work.container.uri) from error
    except httpx.TransportError as error:
        raise SymDenoiseError(
            f"container {work.container.uri}",
            rule=f"the server cannot be reached ({str(error) or type(error).__name__})",
            remedy="start it again, then replay the run; the raw run is unchanged",
        ) from error


def refusal(error: ClientError, uid: str, uri: str) -> SymDenoiseError:
    """Return an error that explains why the server refused, with the remedy."""
    status = error.response.status_code
    if status == 409:
        return doubled(uid)
    if status in (401, 403):
        return SymDenoiseError(
            f"container {uri}",
            rule=f"the server refuses to let this client write ({status})",
            remedy="use an API key with the scopes create, write:metadata, write:data and register",
        )
    return SymDenoiseError(
        f"container {uri}",
        rule=f"the server did not take a document ({str(error).splitlines()[0]})",
        remedy="check its log, then replay the run",
    )
