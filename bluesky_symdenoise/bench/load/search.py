"""Time to find denoised runs in a large catalogue, through the server and in the database alone."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bluesky.plans as bp
import numpy as np
import typer
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from rich.console import Console
from rich.table import Table
from sqlalchemy import event, make_url
from sqlalchemy.engine import Engine
from tiled.client import from_uri
from tiled.queries import AccessTagsFilter
from tiled.structures.core import Spec

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.bench.load import population
from bluesky_symdenoise.bench.load.postgres import private_postgres
from bluesky_symdenoise.bench.options import JsonPath
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.catalog.find.query import denoised_for, find
from bluesky_symdenoise.catalog.server.serve import embedded_config, running
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

#: Numbers of raw and denoised runs in each database: 90,000 nodes, and one million.
SIZES = {"sqlite": (10_000, 10_000), "postgresql": (125_000, 100_000)}
TARGET_MS = 100.0
_SHOWN = 10
_WARM = 3


@dataclass(frozen=True)
class SearchFigures:
    """One kind of search in one database.

    Attributes
    ----------
    nodes, denoised
        Rows of Tiled's ``nodes``, and denoised runs among them.
    median_ms, worst_ms
        Time from the call in Python to the result, over HTTP.
    database_ms
        Median of the time of all SQL statements of a search.
    statements
        Number of statements.
    found
        Runs that the last search gave.
    plan
        The database's plan for the slowest statement.
    """

    database: str
    nodes: int
    denoised: int
    search: str
    median_ms: float
    worst_ms: float
    database_ms: float
    statements: int
    found: int
    plan: list[str]


@dataclass(frozen=True)
class _Statement:
    sql: str
    parameters: Any
    seconds: float


def measured(database: str, directory: Path, *, raw_runs: int, denoised_runs: int, repeats: int) -> list[SearchFigures]:
    """Fill a new catalogue and search it.

    Parameters
    ----------
    database
        ``sqlite`` or ``postgresql``; of the latter a server is started.
    directory
        Folder with room for it: about 3 kB a node.
    raw_runs, denoised_runs
        How many to insert; each run is four or five nodes.
    repeats
        Searches of each kind, each for another run, proposal or model.

    Raises
    ------
    SymDenoiseError
        If the database is neither, or PostgreSQL is not installed.
    """
    if database == "postgresql":
        with private_postgres(directory) as uri:
            return _measured(uri, directory, raw_runs, denoised_runs, repeats)
    if database != "sqlite":
        raise SymDenoiseError(
            f"database {database!r}", rule=f"it must be one of {', '.join(SIZES)}", remedy="choose one of them"
        )
    return _measured(f"sqlite:///{directory.resolve()}/catalog.db", directory, raw_runs, denoised_runs, repeats)


def _measured(uri: str, directory: Path, raw_runs: int, denoised_runs: int, repeats: int) -> list[SearchFigures]:
    with catalogue(uri, directory) as client:
        raw, denoised = _scan(client, directory / "frames")
    filled = population.populate(uri, raw=raw, denoised=denoised, raw_runs=raw_runs, denoised_runs=denoised_runs)
    rng = np.random.default_rng(0)
    first = raw_runs - denoised_runs
    with catalogue(uri, directory) as client:
        return [
            _timed(uri, client, name, search, [int(i) for i in rng.integers(first, raw_runs, repeats + _WARM)], filled)
            for name, search in _SEARCHES.items()
        ]


@contextmanager
def catalogue(uri: str, directory: Path) -> Iterator[Container]:
    """Serve a Tiled database, made if it is new, with its files in a folder, and yield a client of its root."""
    for name in ("arrays", "frames"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    key = secrets.token_hex(32)
    config = embedded_config(directory, api_key=key)
    config.trees[0].args["uri"] = uri
    with running(config, port=0, api_key=key) as url:
        client = from_uri(f"{url}/api/v1", api_key=key, trust_env=False)
        with closing(client.context.http_client):
            for name in ("raw", "denoised"):
                if name not in client:
                    client.create_container(name, specs=[Spec("CatalogOfBlueskyRuns", "3.0")])
            yield client


def _scan(client: Container, folder: Path) -> tuple[str, str]:
    """Write one raw run and its denoised one as at a beamline; return their uids."""
    RE = RunEngine({"beamline_id": "bench", "proposal": {"id": 1, "title": "-" * 80}}, call_returns_result=True)
    with init_devices():
        frames = np.random.default_rng(0).poisson(1.0, (2, 64, 64)).astype(np.uint16)
        det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder), name="det")
    RE.subscribe(TiledWriter(client["raw"], batch_size=1))
    with DenoiseCallback(client["denoised"], directory=folder.parent / "denoised") as callback:
        RE.subscribe(callback)
        (raw_uid,) = RE(bp.count([det], num=2, md={"sample": {"name": "latex"}})).run_start_uids
    made = denoised_for(client, raw_uid)
    if made is None:
        raise SymDenoiseError(f"run {raw_uid}", rule="it was not denoised", remedy="look at the log above")
    return raw_uid, made.start["uid"]


def _of_tag(runs: Container, index: int) -> list[Any]:
    # The query that a server with access tags adds to every search of a user.
    return list(runs.search(AccessTagsFilter([population.tag(index)])).values().head(_SHOWN))


def _since(index: int) -> float:
    return time.time() - index % 1000 * population.INTERVAL_S


_SEARCHES: dict[str, Callable[[Container, int], list[Any]]] = {
    "denoised_for(client, uid)": lambda client, i: [denoised_for(client, population.raw_uid(i))],
    "denoised_for, there is none": lambda client, i: denoised_for(client, population.derived_uid(i), latest=False),
    "newest 10 of a tag": lambda client, i: _of_tag(find(client), i),
    "newest 10 of a tag and a model": lambda client, i: _of_tag(find(client, model=population.model(i)), i),
    "newest 10 of a tag since a time": lambda client, i: _of_tag(find(client, since=_since(i)), i),
    "newest 10 of a model": lambda client, i: list(find(client, model=population.model(i)).values().head(_SHOWN)),
}


def _timed(
    uri: str,
    client: Container,
    name: str,
    search: Callable[[Container, int], list[Any]],
    indices: Sequence[int],
    filled: population.Population,
) -> SearchFigures:
    seconds: list[float] = []
    inside: list[list[_Statement]] = []
    found: list[Any] = []
    for index in indices:
        with _statements() as statements:
            begun = time.perf_counter()
            found = search(client, index)
            seconds.append(time.perf_counter() - begun)
        inside.append(statements)
    seconds, inside = seconds[_WARM:], inside[_WARM:]
    slowest = max((statement for statements in inside for statement in statements), key=lambda one: one.seconds)
    return SearchFigures(
        database=make_url(uri).get_backend_name(),
        nodes=filled.nodes,
        denoised=filled.denoised,
        search=name,
        median_ms=statistics.median(seconds) * 1e3,
        worst_ms=max(seconds) * 1e3,
        database_ms=statistics.median(sum(one.seconds for one in statements) for statements in inside) * 1e3,
        statements=len(inside[-1]),
        found=len(found),
        plan=_plan(uri, slowest),
    )


@contextmanager
def _statements() -> Iterator[list[_Statement]]:
    """Collect the SQL statements that this process, and thus its Tiled server, executes meanwhile."""
    done: list[_Statement] = []

    def before(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        context.symdenoise_begun = time.perf_counter()

    def after(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        done.append(_Statement(sql, parameters, time.perf_counter() - context.symdenoise_begun))

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    try:
        yield done
    finally:
        event.remove(Engine, "before_cursor_execute", before)
        event.remove(Engine, "after_cursor_execute", after)


def _plan(uri: str, statement: _Statement) -> list[str]:
    if make_url(uri).get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(make_url(uri).database))) as connection:
            rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters).fetchall()
        return [row[-1] for row in rows]

    # An extra, which the command's help does not need.
    import asyncpg

    async def explained() -> list[str]:
        connection = await asyncpg.connect(uri.replace("+asyncpg", ""))
        try:
            rows = await connection.fetch(f"EXPLAIN ANALYZE {statement.sql}", *statement.parameters)
        finally:
            await connection.close()
        return [row[0] for row in rows]

    return asyncio.run(explained())


def main(
    json_path: JsonPath = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where to make the databases, 4 GB in all; else where the system has its own.")
    ] = None,
    database: Annotated[
        list[str] | None, typer.Option(help="sqlite or postgresql; both if not given. PostgreSQL must be installed.")
    ] = None,
    scale: Annotated[float, typer.Option(min=0, help="Factor on 10,000 (SQLite) and 100,000 (PostgreSQL) runs.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Searches of each kind.")] = 20,
) -> list[SearchFigures]:
    """Measure how long it takes to find denoised runs in a large catalogue."""
    about = header()
    figures = []
    for each in database or tuple(SIZES):
        raw_runs, denoised_runs = (max(1, round(scale * count)) for count in SIZES.get(each, (1, 1)))
        with tempfile.TemporaryDirectory(dir=directory, prefix="symdenoise-") as folder:
            # If we are root, PostgreSQL runs as another user, who must be able to enter the folder.
            Path(folder).chmod(0o711)
            figures += measured(each, Path(folder), raw_runs=raw_runs, denoised_runs=denoised_runs, repeats=repeats)
    console = Console()
    table = Table(title=f"Searches over HTTP, {repeats} of each; target {TARGET_MS:g} ms", title_justify="left")
    for column in (
        "database",
        "nodes",
        "denoised runs",
        "search",
        "median ms",
        "worst ms",
        "database ms",
        "statements",
    ):
        table.add_column(column, justify="left" if column in ("database", "search") else "right")
    for one in figures:
        times = (f"{value:.1f}" for value in (one.median_ms, one.worst_ms, one.database_ms))
        colour = None if one.median_ms <= TARGET_MS else "red"
        sizes = f"{one.nodes:,}", f"{one.denoised:,}"
        table.add_row(one.database, *sizes, one.search, *times, str(one.statements), style=colour)
    console.print(table)
    for one in figures:
        console.print(f"\n[bold]{one.database}, {one.search}[/]: plan of its slowest statement")
        console.print("\n".join(one.plan), markup=False, highlight=False, soft_wrap=True)
    write(json_path, about, {"results": [asdict(one) for one in figures]})
    return figures
