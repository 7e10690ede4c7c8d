"""Put the access tags of a file into Tiled's catalogue; the server need not stop, and uses them at once.

    python compile_tags.py tags.yml sqlite:///symdenoise-catalog.db

Environment variables in the file are expanded. Run it again whenever proposals come or go.
"""

import asyncio
import os
import sys
from pathlib import Path

import yaml
from tiled.access_control.access_tags import AccessTagsCompiler
from tiled.access_control.scopes import ALL_SCOPES
from tiled.server.connection_pool import close_database_connection_pool
from tiled.server.settings import DatabaseSettings


async def compile_tags(tags: str, catalog: str) -> None:
    definitions = yaml.safe_load(os.path.expandvars(Path(tags).read_text()))
    database = DatabaseSettings(uri=catalog)
    compiler = AccessTagsCompiler(ALL_SCOPES, definitions, database, group_parser=lambda group: [])
    compiler.load_tag_config()
    await compiler.compile()
    await close_database_connection_pool(database)


if __name__ == "__main__":
    asyncio.run(compile_tags(*sys.argv[1:]))
