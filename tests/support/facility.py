"""A facility in small: Tiled as a process of its own, PostgreSQL, and a detector that is scanned."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import httpx
import numpy as np
import pytest
import yaml
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from servers import stopped_at_the_end
from tiled.client import from_uri
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.bench.load.postgres import private_postgres
from bluesky_symdenoise.catalog.server.serve import config_path
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

#: Letters and digits, hexadecimal as Tiled makes its own.
KEY = "5ec2e7" * 8


@dataclass(frozen=True)
class TiledProcess:
    """`tiled serve config` in a folder."""

    url: str
    folder: Path
    pid: int
    at_end: ExitStack

    def client(self, key: str = KEY) -> Container:
        """Client of the root."""
        client = from_uri(self.url, api_key=key, trust_env=False)
        self.at_end.callback(client.context.http_client.close)
        return client

    def log(self) -> str:
        """What it has said so far."""
        return (self.folder / "server.log").read_text()


@contextmanager
def tiled_process(folder: Path, config: Mapping[str, Any] | None = None, **environment: str) -> Iterator[TiledProcess]:
    """Serve this package's configuration, word for word, or another; it is stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiled_config.yml"
    if config is None:
        shutil.copyfile(config_path(), path)
    else:
        path.write_text(yaml.safe_dump(dict(config)))
    command = [sys.executable, "-m", "tiled", "serve", "config", path.name, "--port", "0"]
    variables = os.environ | {"TILED_SINGLE_USER_API_KEY": KEY} | environment
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT)
    with stopped_at_the_end(process, seconds=60), ExitStack() as at_end:
        yield TiledProcess(f"{_address(process, folder / 'server.log')}/api/v1", folder, process.pid, at_end)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address in the server's own greeting, once it answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        said = re.sub(r"\x1b\[\d+m", "", log.read_text())
        greeting = re.search(r"Uvicorn running on (http://127\.0\.0\.1:\d+)", said)
        if greeting and httpx.get(f"{greeting[1]}/healthz").is_success:
            return greeting[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """URI of a new PostgreSQL; the test is skipped where that is not installed."""
    with ExitStack() as stack:
        try:
            uri = stack.enter_context(private_postgres(folder))
        except SymDenoiseError as error:
            if "neither on the path" not in error.rule:
                raise
            pytest.skip(str(error))
        yield uri


def threaded(denoised: Container, folder: Path) -> ThreadedDenoiseCallback:
    """A callback whose denoiser is a thread."""
    return ThreadedDenoiseCallback(denoised, denoiser=Denoiser.pretrained(threads=1), symmetry="1", directory=folder)


def worker(denoised: Container, folder: Path) -> DenoiseCallback:
    """A callback whose denoiser is a process, with a journal between it and Tiled."""
    return DenoiseCallback(denoised, denoiser=DenoiserSettings(threads=1), symmetry="1", directory=folder)


def scan(
    raw: Container,
    denoised: Container,
    folder: Path,
    *,
    start: Mapping[str, Any] | None = None,
    frames: int = 2,
    attach: Callable[[Container, Path], DenoiseCallback | ThreadedDenoiseCallback] = threaded,
) -> tuple[str, Status]:
    """Scan a detector that writes into the folder, denoise it live into ``denoised`` beside it.

    Returns
    -------
    Uid of the raw run, and what the callback says.
    """
    counts = np.random.default_rng(5).poisson(3, (frames, 64, 80)).astype(np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    engine = RunEngine(dict(start or {}), call_returns_result=True)
    with init_devices():
        detector = PlayDetector(counts, StaticPathProvider(UUIDFilenameProvider(), folder), name="det")
    engine.subscribe(TiledWriter(raw, batch_size=1))
    with attach(denoised, folder.parent / "denoised") as callback:
        engine.subscribe(callback)
        (uid,) = engine(bp.count([detector], num=frames)).run_start_uids
    return uid, callback.status()
