"""A Tiled server in a separate process, as a beamline has one; it can be killed and started again."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from tiled.client import from_uri

from bluesky_symdenoise.catalog.server.serve import KEY_VARIABLE, embedded_catalog
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

#: Seconds allowed for the server to answer.
_START_S = 300.0
_SERVE = "import sys; from bluesky_symdenoise.cli import main; main(['serve', sys.argv[1], '--port', sys.argv[2]])"


class ServerProcess:
    """A process that serves the catalogue of a folder on a fixed port.

    Parameters
    ----------
    environment
        Variables that it has beside those of this process.

    Attributes
    ----------
    client
        Client of the root; it outlives the server.
    key
        Key of its API.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str]) -> None:
        self._folder, self._environment, self.key = folder, environment, secrets.token_hex(16)
        with embedded_catalog(folder, api_key=self.key) as client:
            self._port = int(client.uri.split(":")[2].split("/")[0])
        self.start()
        self.client: Container = from_uri(self.url, api_key=self.key, trust_env=False)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def url(self) -> str:
        """URL of its API."""
        return f"http://127.0.0.1:{self._port}/api/v1"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(self._folder), str(self._port)],
            env={**os.environ, **self._environment, KEY_VARIABLE: self.key},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                if httpx.get(self.url + "/", trust_env=False).is_success:
                    return
            except httpx.TransportError as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self.kill()
                    raise SymDenoiseError(
                        self.url, rule="the server did not start", remedy="see its output above"
                    ) from error
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it without warning, as a power cut would."""
        self._process.kill()
        self._process.wait()


@contextmanager
def served(folder: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """Run a server process on a folder, with these environment variables, while the context lasts."""
    server = ServerProcess(folder, environment=environment or {})
    try:
        with closing(server.client.context.http_client):
            yield server
    finally:
        server.kill()
