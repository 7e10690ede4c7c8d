"""What several test modules share: a real Tiled server on a temporary folder, and runs in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import raw_runs
from tiled.client.container import Container

from bluesky_symdenoise.catalog.server.serve import embedded_catalog


@pytest.fixture(autouse=True, scope="session")
def no_tiled_environment() -> Iterator[None]:
    """A developer's own Tiled settings must not decide whether a test passes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("TILED_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Folder of the catalogue that a module's tests share."""
    return tmp_path_factory.mktemp(request.module.__name__)


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    """Client of that catalogue, with containers ``raw`` and ``denoised``."""
    with embedded_catalog(home) as client:
        yield client


@pytest.fixture(scope="module")
def denoiser() -> Any:
    """The default model on one thread."""
    from bluesky_symdenoise.denoiser.infer import Denoiser

    return Denoiser.pretrained(threads=1)


@pytest.fixture(scope="module")
def engine() -> Any:
    """A RunEngine."""
    from bluesky import RunEngine

    return RunEngine(call_returns_result=True)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Container]:
    """Client of a served catalogue with empty containers ``raw`` and ``denoised``."""
    with embedded_catalog(tmp_path / "catalog") as client:
        yield client


@pytest.fixture
def frames_folder(tmp_path: Path) -> Path:
    """Folder from which the server of `catalog` reads frames."""
    return tmp_path / "catalog" / "frames"


@pytest.fixture
def write_run() -> Callable[..., str]:
    """Function that writes one run; see `raw_runs.write_run`."""
    return raw_runs.write_run
