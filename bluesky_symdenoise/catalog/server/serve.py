"""A Tiled server for one folder of runs, reachable from this computer only."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise.catalog.store.containers import FRAMES_FOLDER as FRAMES_FOLDER
from bluesky_symdenoise.catalog.store.containers import prepare
from bluesky_symdenoise.catalog.store.lock import locked
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container
    from tiled.config import Config

KEY_VARIABLE = "TILED_SINGLE_USER_API_KEY"
# pydantic-settings gives these precedence over the file and over values set in code.
_REDIRECTING = (
    "TILED_CATALOG",
    "TILED_STREAMING_CACHE",
    "TILED_TREES",
    "TILED_AUTH",
    "TILED_MEDIA_TYPES",
    "TILED_ROUTERS",
    "ACCESS_CONTROL",
)
_CHATTY = ("tiled", "tiled.server.app", "uvicorn", "uvicorn.access", "uvicorn.asgi", "uvicorn.error")
_GRACE_S = 5


def config_path() -> Path:
    """Return the ``tiled_config.yml`` of this package: inside it if installed, beside it in a source tree."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "tiled_config.yml"
    return installed if installed.is_file() else package.parent / "tiled_config.yml"


def embedded_config(directory: str | Path, *, api_key: str, readable: Sequence[str | Path] = ()) -> Config:
    """Return the server configuration of ``tiled_config.yml``, with its storage inside ``directory``.

    Parameters
    ----------
    directory
        Folder of ``catalog.db``, ``tables.db``, ``arrays``, ``frames`` and ``denoised``; nothing is made here.
    api_key
        The one key that opens the server: ASCII letters and digits.
    readable
        Further folders with detector files that the server may read.

    Raises
    ------
    SymDenoiseError
        If an environment variable redirects the storage: a demo must not write into a facility's catalogue.
    """
    from tiled.config import Config
    from tiled.utils import parse

    if not (api_key.isascii() and api_key.isalnum()):
        raise SymDenoiseError(
            "API key",
            rule="Tiled takes letters and digits only",
            remedy=f"pass another or set {KEY_VARIABLE}, for example to the output of `openssl rand -hex 32`",
        )
    home = Path(directory).resolve()
    for folder in (home, *map(Path, readable)):
        if unusable := sorted(set("#;?") & set(str(folder))):
            raise SymDenoiseError(
                str(folder),
                rule=f"Tiled cannot address a folder with {' '.join(unusable)} in its path",
                remedy="choose another",
            )
    storage = {
        "uri": f"sqlite:///{home}/catalog.db",
        "writable_storage": [f"{home}/arrays", f"sqlite:///{home}/tables.db"],
        "readable_storage": [
            f"{home}/frames",
            f"{home}/denoised",
            *(str(Path(folder).resolve()) for folder in readable),
        ],
    }
    authentication = {"single_user_api_key": api_key, "allow_anonymous_access": False, "providers": []}
    asked = parse(config_path())
    asked |= {"catalog": asked["catalog"] | storage, "authentication": authentication}
    redirects = sorted(name for name in os.environ if name.upper().startswith(_REDIRECTING))
    try:
        with warnings.catch_warnings():
            # Tiled dumps the adapters' classes, although its model expects strings.
            warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
            config = Config.model_validate(asked)
    except ValueError:
        if not redirects:
            raise
        config = None
    if config is None or not _is_as_asked(config, asked):
        raise SymDenoiseError(
            ", ".join(redirects),
            rule=f"the environment redirects the server of {home} elsewhere",
            remedy=f"unset {' '.join(redirects)} for this command",
        ) from None
    # SQLite refuses a second writer at once ("database is locked"), and there are two: one for the raw run and one for
    # the denoised run. With a single connection to the tables, the second waits for the first. Tiled's file does not
    # accept 0 here.
    config.trees[0].args |= {"storage_pool_size": 1, "storage_max_overflow": 0}
    return config


def _is_as_asked(config: Config, asked: dict[str, Any]) -> bool:
    """Return whether the environment leaves unchanged who may read, what code runs and where things are stored."""
    storage, imported = config.trees[0].args, _imported(asked)
    given = {name: storage[name] for name in ("uri", "writable_storage", "readable_storage")}
    return (
        given == {name: asked["catalog"][name] for name in given}
        and all(storage[name] is None for name in ("mount_node", "metadata", "specs", "top_level_access_tags"))
        and (storage["adapters_by_mimetype"] or {}) == imported["catalog"].get("adapters_by_mimetype", {})
        and config.media_types == imported["media_types"]
        and config.routers == imported.get("routers", [])
        and config.access_policy is None
        and config.streaming_cache.uri == asked["streaming_cache"]["uri"]
        and {name: getattr(config.authentication, name) for name in asked["authentication"]} == asked["authentication"]
    )


def _imported(asked: Any) -> Any:
    """Return the configuration with objects in place of their names, ``package.module:name``."""
    from tiled.utils import import_object

    if isinstance(asked, dict):
        return {key: _imported(value) for key, value in asked.items()}
    if isinstance(asked, list):
        return [_imported(value) for value in asked]
    is_name = isinstance(asked, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", asked)
    return import_object(asked) if is_name else asked


@contextmanager
def embedded_catalog(
    directory: str | Path, *, port: int = 0, api_key: str | None = None, readable: Sequence[str | Path] = ()
) -> Iterator[Container]:
    """Serve a folder on 127.0.0.1 while the context lasts, and yield a client of its root.

    The root holds two catalogues of Bluesky runs, ``client["raw"]`` and ``client["denoised"]``. Runs stay in
    the folder: opening it again shows them. Detector files belong in its ``frames``, denoised frames in ``denoised``.

    Parameters
    ----------
    directory
        Folder of the catalogue; made if it does not exist.
    port
        Port to listen on; 0 takes a free one.
    api_key
        Key that opens the server: this one, else the one in ``TILED_SINGLE_USER_API_KEY``, else a random one.
    readable
        Further folders with detector files that the server may read.

    Raises
    ------
    SymDenoiseError
        If the folder cannot be written or has a server already, if the port is in use, or if the environment
        redirects the storage.
    """
    from tiled.client import from_uri

    key = api_key or os.environ.get(KEY_VARIABLE) or secrets.token_hex(32)
    with _running(Path(directory), port=port, api_key=key, readable=readable) as url:
        client = from_uri(f"{url}/api/v1", api_key=key, trust_env=False)
        with closing(client.context.http_client):
            prepare(client, frames=Path(directory) / "denoised")
            yield client


def serve(
    directory: str | Path,
    *,
    port: int = 8000,
    api_key: str | None = None,
    announce: Callable[[str], None] = partial(print, flush=True),  # noqa: B008
) -> None:
    """Serve the catalogue in a folder until Ctrl-C or SIGTERM, and say how to open it.

    The key is ``api_key``, else that in ``TILED_SINGLE_USER_API_KEY``, else a random one; only the random one
    is shown, because it is known nowhere else, and only on a terminal. Call this from the main thread, where signals
    arrive.

    Parameters
    ----------
    directory
        Folder that `embedded_catalog` made.
    port
        Port to listen on; 0 takes a free one.
    api_key
        Key that opens the server.
    announce
        Called with each line for the terminal.

    Raises
    ------
    SymDenoiseError
        If the folder holds no catalogue, if a key would have to be shown and the output is not a terminal, and as for
        `embedded_catalog`.
    """
    home = Path(directory)
    if not (home / "catalog.db").is_file():
        raise SymDenoiseError(
            str(home),
            rule="holds no catalogue (catalog.db)",
            remedy=f"make one with `symdenoise demo --output {home}`",
        )
    known = api_key or os.environ.get(KEY_VARIABLE)
    if not (known or sys.stdout.isatty()):
        raise SymDenoiseError(
            "API key",
            rule=f"{KEY_VARIABLE} is not set, and one made here would be written to the log that this output goes to",
            remedy=f"set {KEY_VARIABLE}, for example to the output of `openssl rand -hex 32`",
        )
    key = known or secrets.token_hex(32)
    with stop_signal() as stop, _running(home, port=port, api_key=key) as url:
        spelled = "..." if api_key else f'os.environ["{KEY_VARIABLE}"]' if known else f'"{key}"'
        announce(f"Serving {home} until Ctrl-C.")
        announce(f"Browser: {url}/?api_key={'...' if known else key}")
        announce("Python:")
        if known and not api_key:
            announce("    import os")
        announce("    from tiled.client import from_uri")
        announce(f'    client = from_uri("{url}/api/v1", api_key={spelled})')
        stop.wait()


@contextmanager
def _running(directory: Path, *, port: int, api_key: str, readable: Sequence[str | Path] = ()) -> Iterator[str]:
    config = embedded_config(directory, api_key=api_key, readable=readable)
    with _only_server(directory):
        storage = config.trees[0].args
        _initialize(storage["uri"])
        storage["init_if_not_exists"] = False
        with running(config, port=port, api_key=api_key) as url:
            yield url


def _initialize(uri: str) -> None:
    """Initialize the database as ``tiled catalog init --if-not-exists`` does, without a process that takes seconds."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from tiled.alembic_utils import UninitializedDatabase, check_database, stamp_head
    from tiled.catalog.alembic_constants import ALEMBIC_DIR, ALEMBIC_INI_TEMPLATE_PATH
    from tiled.catalog.core import ALL_REVISIONS, REQUIRED_REVISION, initialize_database
    from tiled.utils import ensure_specified_sql_driver

    address = ensure_specified_sql_driver(uri)

    async def is_new() -> bool:
        engine = create_async_engine(address)
        try:
            await check_database(engine, REQUIRED_REVISION, ALL_REVISIONS)
        except UninitializedDatabase:
            await initialize_database(engine)
            return True
        finally:
            await engine.dispose()
        return False

    def make() -> None:
        if asyncio.run(is_new()):
            with warnings.catch_warnings():
                # Alembic warns about Tiled's template of its configuration.
                warnings.filterwarnings("ignore", "No path_separator found", DeprecationWarning)
                stamp_head(ALEMBIC_INI_TEMPLATE_PATH, ALEMBIC_DIR, address)

    # In a notebook, this thread already runs an event loop, and a thread can run only one.
    with ThreadPoolExecutor(1) as aside:
        aside.submit(make).result()


@contextmanager
def running(config: Config, *, port: int, api_key: str) -> Iterator[str]:
    """Serve what a configuration describes on 127.0.0.1 while the context lasts, and yield the URL."""
    import uvicorn
    from tiled.server.app import build_app_from_config
    from tiled.server.settings import DatabaseSettings, Settings, get_settings
    from tiled.server.simple import ThreadedServer

    with ExitStack() as stack:
        listener = stack.enter_context(_listening(port))
        stack.enter_context(_quiet())
        app = build_app_from_config(config)
        # Tiled keeps one Settings object per process: a second server would change the key of the first.
        settings = Settings(single_user_api_key=api_key, allow_anonymous_access=False)
        settings.database_settings = DatabaseSettings()
        app.dependency_overrides[get_settings] = lambda: settings
        server = ThreadedServer(
            uvicorn.Config(app, loop="asyncio", log_config=None, timeout_graceful_shutdown=_GRACE_S)
        )
        # Give it a bound socket: left to itself, uvicorn only logs that a port is in use.
        server.run = partial(server.run, sockets=[listener])
        yield stack.enter_context(server.run_in_thread())


@contextmanager
def _only_server(directory: Path) -> Iterator[None]:
    """Make the folders and hold their lock, because two servers would each take the database for their own."""
    try:
        for name in ("arrays", "frames", "denoised"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a+")
    except OSError as error:
        raise SymDenoiseError(
            str(directory),
            rule=f"cannot hold a catalogue ({error.strerror})",
            remedy="choose a folder that you may write to",
        ) from error
    with lock:
        if not locked(lock):
            lock.seek(0)
            raise SymDenoiseError(
                str(directory),
                rule=f"process {lock.read().strip()} serves this folder already",
                remedy="stop that server first, or connect to it",
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    # asyncio sets TCP_NODELAY only on sockets that state their protocol; without it, every answer takes 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise SymDenoiseError(
                f"port {port}",
                rule=f"cannot listen there ({getattr(error, 'strerror', None) or error})",
                remedy="choose another port, or 0 for any that is free",
            ) from error
        yield listener


@contextmanager
def _quiet() -> Iterator[None]:
    """Log only warnings while the server runs: messages about requests and start-up are of no use to the program."""
    before = {name: logging.getLogger(name).level for name in _CHATTY}
    try:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set instead of their usual effect; for the main thread only."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
