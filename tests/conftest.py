"""What several test modules share: a real Tiled server on a temporary folder, and runs in it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import raw_runs
import tiled.client.utils
from tiled.client.container import Container

from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.catalog.store.containers import prepare

#: Rooms whose files take longest, which begin first: what is short fills the gaps at the end.
LONGEST = ("system", "acquisition", "catalog", "training", "bench")

_started: list[str] = []


def pytest_configure() -> None:
    """Leave one thread to each process: there are as many processes as processors."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.addaudithook(_note_start)


def _note_start(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        _started.append(f"{event} {arguments[:2]}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the rooms whose files take longest."""

    def place(item: pytest.Item) -> int:
        room = item.path.parent.name
        return LONGEST.index(room) if room in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that starts processes in its fixtures without saying so."""
    yield from _only_if_marked(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that starts processes without saying so."""
    yield from _only_if_marked(item)


def _only_if_marked(item: pytest.Item) -> Generator[None, None, None]:
    before = len(_started)
    yield
    # Training forks to load its data.
    if not any(item.iter_markers("process")) and not any(item.iter_markers("train")):
        assert _started[before:] == [], "a test that starts a process is marked with 'process'"


@pytest.fixture(autouse=True, scope="session")
def few_tries() -> Iterator[None]:
    """What a Tiled server refuses is sent twice more and not for 45 seconds.

    Not without the pauses between: an error of the server breaks the connection, which the next request may meet.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 3)
        yield


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


@pytest.fixture(scope="session")
def catalogs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Client of a server that holds a catalogue for each test that wants an empty one, and may read all their files."""
    base = tmp_path_factory.getbasetemp()
    with embedded_catalog(base / "catalogs", readable=[base]) as client:
        yield client


@pytest.fixture
def catalog(catalogs: Container, frames_folder: Path) -> Container:
    """Client of a served catalogue with empty containers ``raw`` and ``denoised``."""
    made = catalogs.create_container(uuid.uuid4().hex)
    prepare(made, frames=frames_folder.with_name("denoised"))
    return made


@pytest.fixture
def frames_folder(tmp_path: Path) -> Path:
    """Folder from which the server of `catalog` reads frames; beside it lies that of its denoised frames."""
    folder = tmp_path / "catalog" / "frames"
    folder.mkdir(parents=True)
    folder.with_name("denoised").mkdir()
    return folder


@pytest.fixture
def write_run() -> Callable[..., str]:
    """Function that writes one run; see `raw_runs.write_run`."""
    return raw_runs.write_run
