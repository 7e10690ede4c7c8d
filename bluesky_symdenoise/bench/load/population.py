"""Many runs at once in Tiled's own tables: copies of one raw and one denoised run of its server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import make_url

#: Access tags (proposals) over which copies of the raw run are spread, and models over which copies of the denoised
#: run are.
TAGS, MODELS = 100, 4
#: Seconds from one run to the next.
INTERVAL_S = 60
_CHUNK = 2000

Row = tuple[Any, ...]
_NODE = ("id", "key", "parent", "structure_family", "metadata", "specs")
_SOURCE = (
    "node_id",
    "structure_id",
    "mimetype",
    "parameters",
    "properties",
    "management",
    "structure_family",
)
_TAG = ("node_id", "tag_id", "parent_id")
_CLOSURE = """
INSERT INTO nodes_closure (ancestor, descendant, depth)
WITH RECURSIVE up (descendant, ancestor, depth) AS (
    SELECT id, id, 0 FROM nodes WHERE id >= {first}
    UNION ALL
    SELECT up.descendant, nodes.parent, up.depth + 1 FROM up JOIN nodes ON nodes.id = up.ancestor
    WHERE nodes.parent IS NOT NULL
)
SELECT ancestor, descendant, depth FROM up"""


@dataclass(frozen=True)
class Tree:
    """The rows of one run and all below it, parents first.

    Attributes
    ----------
    container
        Id of the node that contains the run.
    nodes
        Rows of ``nodes``.
    sources
        Rows of ``data_sources``.
    """

    container: int
    nodes: list[Row]
    sources: list[Row]

    @property
    def uid(self) -> str:
        """Uid of the run."""
        return str(self.nodes[0][1])

    @property
    def time(self) -> float:
        """Time of the run's start document."""
        return float(json.loads(self.nodes[0][4])["start"]["time"])


@dataclass(frozen=True)
class Population:
    """What was inserted.

    Attributes
    ----------
    nodes
        Rows of ``nodes`` that the database holds now.
    raw, denoised
        Copies of each run.
    """

    nodes: int
    raw: int
    denoised: int


def raw_uid(index: int) -> str:
    """Return the uid of the raw run with this number."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"raw {index}"))


def derived_uid(index: int) -> str:
    """Return the uid of the denoised run of the raw run with this number."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"denoised {index}"))


def tag(index: int) -> str:
    """Return the access tag of the raw run with this number, and of its denoised run."""
    return f"proposal-{index % TAGS:03d}"


def model(index: int) -> str:
    """Return the name of the model of the denoised run with this number."""
    return f"model-{index % MODELS}"


def populate(uri: str, *, raw: str, denoised: str, raw_runs: int, denoised_runs: int) -> Population:
    """Copy a raw and its denoised run, with everything below them, a number of times.

    Each copy has uids, time, access tag and model of its own, in every document that names them; the closure table
    and the access tags are what Tiled's triggers would have made. Assets are not copied: no search looks at them.

    Parameters
    ----------
    uri
        URI of Tiled's catalogue database: ``sqlite:///...`` or ``postgresql+asyncpg://...``; no server may use it.
    raw, denoised
        Uids of the two runs to copy.
    raw_runs, denoised_runs
        How many; the denoised runs are of the last raw ones.
    """
    if make_url(uri).get_backend_name() == "sqlite":
        with sqlite3.connect(str(make_url(uri).database)) as connection:
            return _into_sqlite(connection, (raw, denoised), (raw_runs, denoised_runs))
    return asyncio.run(_into_postgres(uri, (raw, denoised), (raw_runs, denoised_runs)))


def _copies(trees: Sequence[Tree], counts: Sequence[int], first_id: int) -> Iterator[tuple[list[Row], list[Row], int]]:
    """Yield rows of the nodes and data sources of each copy, and the number of its tag."""
    raw, denoised = trees
    earliest = raw.time - counts[0] * INTERVAL_S
    skipped = counts[0] - counts[1]
    identity = json.loads(denoised.nodes[0][4])["start"]["provenance"]["model"]
    for index in range(counts[0]):
        time = earliest + index * INTERVAL_S
        new = {raw.uid: raw_uid(index), denoised.uid: derived_uid(index)}
        yield *_copy(raw, first_id, new, {repr(raw.time): repr(time)}), index % TAGS
        first_id += len(raw.nodes)
        if index >= skipped:
            named = f'"name": "{identity["name"]}"', f'"name": "{model(index)}"'
            sha256 = identity["sha256"], uuid.uuid5(uuid.NAMESPACE_OID, model(index)).hex * 2
            times = {repr(raw.time): repr(time), repr(denoised.time): repr(time + 1.5)}
            yield *_copy(denoised, first_id, new | dict((named, sha256)), times), index % TAGS
            first_id += len(denoised.nodes)


def _copy(tree: Tree, first_id: int, texts: dict[str, str], times: dict[str, str]) -> tuple[list[Row], list[Row]]:
    ids = {tree.container: tree.container} | {row[0]: first_id + i for i, row in enumerate(tree.nodes)}

    def renamed(text: str) -> str:
        for old, new in (texts | times).items():
            text = text.replace(old, new)
        return text

    nodes = [
        (ids[id_], renamed(key), ids[parent], family, renamed(metadata), specs)
        for id_, key, parent, family, metadata, specs in tree.nodes
    ]
    return nodes, [(ids[row[0]], *row[1:]) for row in tree.sources]


def _chunks(
    trees: Sequence[Tree], counts: Sequence[int], first_id: int
) -> Iterator[tuple[list[Row], list[Row], list[Row]]]:
    nodes: list[Row] = []
    sources: list[Row] = []
    tags: list[Row] = []
    for more_nodes, more_sources, number in _copies(trees, counts, first_id):
        nodes += more_nodes
        sources += more_sources
        tags += [(row[0], number, row[2]) for row in more_nodes]
        if len(nodes) >= _CHUNK:
            yield nodes, sources, tags
            nodes, sources, tags = [], [], []
    yield nodes, sources, tags


_BELOW = "SELECT descendant FROM nodes_closure WHERE ancestor = (SELECT id FROM nodes WHERE key = {key})"
_SELECT_NODES = f"SELECT {', '.join(_NODE)} FROM nodes WHERE id IN ({_BELOW}) ORDER BY id"
_SELECT_SOURCES = f"SELECT {', '.join(_SOURCE)} FROM data_sources WHERE node_id IN ({_BELOW}) ORDER BY id"


def _into_sqlite(connection: sqlite3.Connection, uids: Sequence[str], counts: Sequence[int]) -> Population:
    def rows(statement: str, uid: str) -> list[Row]:
        return connection.execute(statement.format(key="?"), (uid,)).fetchall()

    def insert(table: str, columns: Sequence[str], values: list[Row]) -> None:
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", values)

    trees = [_tree(rows(_SELECT_NODES, uid), rows(_SELECT_SOURCES, uid)) for uid in uids]
    (first_id,) = connection.execute("SELECT max(id) + 1 FROM nodes").fetchone()
    (first_tag,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM access_tags").fetchone()
    insert("access_tags", ("id", "name"), [(first_tag + i, tag(i)) for i in range(TAGS)])
    # Tiled's triggers fill the closure table, the full-text index and the parent of each tag.
    for nodes, sources, tags in _chunks(trees, counts, first_id):
        insert("nodes", _NODE, nodes)
        insert("data_sources", _SOURCE, sources)
        insert("node_access_tags_association", _TAG[:2], [(node, first_tag + number) for node, number, _ in tags])
    (total,) = connection.execute("SELECT count(*) FROM nodes").fetchone()
    return Population(nodes=total, raw=counts[0], denoised=counts[1])


async def _into_postgres(uri: str, uids: Sequence[str], counts: Sequence[int]) -> Population:
    # An extra, which the command's help does not need.
    import asyncpg

    connection = await asyncpg.connect(uri.replace("+asyncpg", ""))
    try:
        trees = [
            _tree(
                [tuple(row) for row in await connection.fetch(_SELECT_NODES.format(key="$1"), uid)],
                [tuple(row) for row in await connection.fetch(_SELECT_SOURCES.format(key="$1"), uid)],
            )
            for uid in uids
        ]
        first_id = await connection.fetchval("SELECT max(id) + 1 FROM nodes")
        first_tag = await connection.fetchval("SELECT coalesce(max(id), 0) + 1 FROM access_tags")
        await connection.copy_records_to_table(
            "access_tags", records=[(first_tag + i, tag(i)) for i in range(TAGS)], columns=("id", "name")
        )
        # With triggers and indices per row, this would take most of an hour; filled in one go it takes minutes, with
        # the same result.
        indices = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'nodes' AND indexdef LIKE '%USING gin%'"
        )
        for index in indices:
            await connection.execute(f'DROP INDEX "{index["indexname"]}"')
        tables = ("nodes", "node_access_tags_association")
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for nodes, sources, tags in _chunks(trees, counts, first_id):
            await connection.copy_records_to_table("nodes", records=nodes, columns=_NODE)
            await connection.copy_records_to_table("data_sources", records=sources, columns=_SOURCE)
            numbered = [(node, first_tag + number, parent) for node, number, parent in tags]
            await connection.copy_records_to_table("node_access_tags_association", records=numbered, columns=_TAG)
        await connection.execute("ANALYZE nodes")
        await connection.execute(_CLOSURE.format(first=first_id))
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        for table in ("nodes", "access_tags"):
            await connection.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")
        for index in indices:
            await connection.execute(index["indexdef"])
        await connection.execute("VACUUM ANALYZE")
        total = await connection.fetchval("SELECT count(*) FROM nodes")
        return Population(nodes=total, raw=counts[0], denoised=counts[1])
    finally:
        await connection.close()


def _tree(nodes: list[Row], sources: list[Row]) -> Tree:
    return Tree(container=nodes[0][2], nodes=nodes, sources=sources)
