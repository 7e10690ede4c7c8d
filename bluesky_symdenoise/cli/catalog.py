"""Access to the catalogue that a command works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container


@contextmanager
def opened(uri: str, *, raw: str = "raw", denoised: str = "denoised") -> Iterator[Container]:
    """Return a client of a server whose root holds these containers; TILED_API_KEY is the key.

    Raises
    ------
    SymDenoiseError
        If the catalogue cannot be opened, or lacks a container.
    """
    import httpx
    from tiled.client import from_uri
    from tiled.client.context import CannotPrompt
    from tiled.client.utils import ClientError

    try:
        client = from_uri(uri)
        missing = {raw, denoised} - set(client)
    except (ClientError, httpx.HTTPError, CannotPrompt, RuntimeError, ValueError) as error:
        raise SymDenoiseError(
            uri,
            rule=f"the catalogue cannot be opened ({(str(error) or type(error).__name__).splitlines()[0]})",
            remedy="check the URL and that the server runs, and set TILED_API_KEY",
        ) from error
    with closing(client.context.http_client):
        if missing:
            raise SymDenoiseError(
                uri, rule=f"its root has no {' and no '.join(sorted(missing))}", remedy="give the URL of the root"
            )
        yield client
