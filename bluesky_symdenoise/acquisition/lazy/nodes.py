"""Array nodes of a derived run on its server, and what they refer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiled.utils import safe_json_dump

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.structures.data_source import DataSource

Document = dict[str, Any]


def data_source(run: BlueskyRun, stream: str, name: str) -> DataSource[Any]:
    """Return what an array node refers to."""
    found: DataSource[Any] = run[stream][name].data_sources()[0]
    return found


def descriptor(run: BlueskyRun, stream: str) -> Document:
    """Return the descriptor of a stream."""
    return dict(next(each for each in run.descriptors if each["name"] == stream))


def put(run: BlueskyRun, stream: str, name: str, source: DataSource[Any]) -> None:
    """Make an array node refer to other data, with one request that takes effect wholly or not at all."""
    from tiled.client.utils import handle_error

    node = run[stream][name]
    source.id = node.data_sources()[0].id
    url = node.uri.replace("/metadata/", "/data_source/", 1)
    handle_error(node.context.http_client.put(url, content=safe_json_dump({"data_source": source})))
