"""A catalogue that an earlier version wrote, before the modules moved, with its server."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiled.client.container import Container

from bluesky_symdenoise import embedded_catalog

ARCHIVE = Path(__file__).parents[1] / "data" / "catalogue-0.1.0.tar.gz"
#: Key of its server.
KEY = "5ec2e7"


@dataclass(frozen=True)
class Earlier:
    """The catalogue with its server; `raw` are uids of raw runs by what was done with them."""

    client: Container
    raw: dict[str, str]
    sums: dict[str, tuple[str, float]]


def _moved(folder: Path, old: str, new: str) -> None:
    """Have all that names the folder name the one where it is now."""
    for path in (folder / "denoised").rglob("*.jsonl"):
        path.write_text(path.read_text().replace(old, new))
    with sqlite3.connect(folder / "catalog.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            triggers = database.execute(
                "select name, sql from sqlite_master where type = 'trigger' and tbl_name = ?", [table]
            ).fetchall()
            for name, _ in triggers:
                database.execute(f'drop trigger "{name}"')
            for column in database.execute(f'pragma table_info("{table}")').fetchall():
                if not column[5]:
                    database.execute(
                        f'update "{table}" set "{column[1]}" = replace("{column[1]}", ?, ?) '
                        f'where typeof("{column[1]}") = \'text\' and instr("{column[1]}", ?)',
                        [old, new, old],
                    )
            for _, sql in triggers:
                database.execute(sql)


@contextmanager
def earlier_catalogue(home: Path) -> Iterator[Earlier]:
    """Unpack the catalogue into an empty folder, and serve it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(home, filter="data")
    (folder,) = home.iterdir()
    about = json.loads((folder / "about.json").read_text())
    _moved(folder, about["home"], str(folder))
    with embedded_catalog(folder, api_key=about["key"]) as client:
        yield Earlier(client, about["raw"], about["sums"])
