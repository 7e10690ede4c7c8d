"""Where the documents of a derived run go: straight to Tiled, or elsewhere first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
from tiled.client.utils import ClientError

from bluesky_symdenoise.acquisition.plan import Work
from bluesky_symdenoise.catalog.access import derived_writer
from bluesky_symdenoise.catalog.marks import marking
from bluesky_symdenoise.catalog.writer import Emit
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

#: Gives, for the work and the uid of a derived run, what takes its documents.
Outlet = Callable[[Work, str], Emit]


def tiled_writer(container: Container) -> Emit:
    """What takes the documents of one derived run to Tiled: with its raw run's access tags, its images marked."""
    return marking(container, derived_writer(container))


def straight_to_tiled(work: Work, uid: str) -> Emit:
    """A writer that sends each document as it comes.

    Raises
    ------
    SymDenoiseError
        If the derived run exists, and, from each document, if the server cannot be reached or refuses it.
    """
    writer = tiled_writer(work.container)

    def emit(name: str, doc: dict[str, Any]) -> None:
        _said_plainly(work, uid, lambda: writer(name, doc))

    refuse_doubled(work, uid)
    return emit


def refuse_doubled(work: Work, uid: str) -> None:
    """Raise SymDenoiseError if the catalogue has this derived run, or cannot be asked."""
    if _said_plainly(work, uid, lambda: uid in work.container):
        raise doubled(uid)


def _said_plainly(work: Work, uid: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except ClientError as error:
        raise refusal(error, uid, work.container.uri) from error
    except httpx.TransportError as error:
        raise SymDenoiseError(
            f"container {work.container.uri}",
            rule=f"the server cannot be reached ({str(error) or type(error).__name__})",
            remedy="start it again, then replay the run; the raw run is as it was",
        ) from error


def doubled(uid: str) -> SymDenoiseError:
    """The error of a derived run that exists."""
    return SymDenoiseError(
        f"derived run {uid}",
        rule="this raw run has one with the same recipe already, finished or being written",
        remedy="use it, or delete it first",
    )


def refusal(error: ClientError, uid: str, uri: str) -> SymDenoiseError:
    """What a refusing server means, with the remedy."""
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
