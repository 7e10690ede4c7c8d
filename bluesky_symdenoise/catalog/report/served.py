"""Server-side access: what an exporter may read of a derived run and, under the same rights, of its raw run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiled.catalog.adapter import CatalogContainerAdapter, RootNode
from tiled.ndslice import NDSlice
from tiled.server.core import NoEntry
from tiled.utils import BrokenLink, ensure_awaitable, path_from_uri

from bluesky_symdenoise.derived.columns import denoised_images
from bluesky_symdenoise.files.opened import open_for_reading
from bluesky_symdenoise.recipe import array_sha256

#: What is said of a run without a stream of images.
NO_IMAGES = "this run has no denoised images yet; ask again when it has events"

#: Function that Tiled passes to every exporter of a container: it filters a node to what the requesting user may see.
Filter = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True)
class ServedStream:
    """One stream of a run.

    Attributes
    ----------
    metadata
        Metadata of the stream's node: its descriptor.
    columns
        Scalars, one value a row; none before they are read, see `with_columns`.
    table
        Node of the table that holds the scalars; None if there is none that the requesting user may read.
    """

    name: str
    node: Any
    metadata: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    table: Any = None

    @property
    def images(self) -> list[str]:
        """Data keys of denoised images: those that have a sigma."""
        return denoised_images(self.metadata.get("data_keys", {}))


class ServedFrames:
    """Frames of one array node, whatever dimensions come before (y, x)."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.shape = tuple(int(size) for size in node.structure().shape)
        self.dtype = node.structure().data_type.to_numpy_dtype()

    def __len__(self) -> int:
        return int(np.prod(self.shape[:-2], dtype=np.int64))

    async def read(self, index: int) -> NDArray[Any]:
        """Read one frame (y, x), and only that one."""
        place = np.unravel_index(index, self.shape[:-2])
        # Ask for a slice of one row instead of its index, because not every adapter drops the dimension of an index.
        wanted = NDSlice(*(slice(int(at), int(at) + 1) for at in place))
        frame: NDArray[Any] = np.asarray(await ensure_awaitable(self._node.read, wanted)).reshape(self.shape[-2:])
        return frame


async def served_streams(run: Any, filter_for_access: Filter) -> list[ServedStream]:
    """Return the streams of a run that the requesting user may read, without their columns."""
    allowed = await filter_for_access(run)
    names = await allowed.keys_range(0, None)
    return [await _stream(await allowed.lookup_adapter([name]), name, filter_for_access) for name in names]


async def _stream(node: Any, name: str, filter_for_access: Filter) -> ServedStream:
    node = await filter_for_access(node)
    return ServedStream(name=name, node=node, metadata=node.metadata(), table=await _child(node, "internal"))


async def with_columns(stream: ServedStream) -> ServedStream:
    """Return the stream with the scalars of its table as they are now."""
    if stream.table is None:
        return stream
    table = await ensure_awaitable(stream.table.read)
    return replace(stream, columns={column: np.asarray(table[column]) for column in table.columns})


async def _child(node: Any, key: str) -> Any | None:
    try:
        return await node.lookup_adapter([key])
    except NoEntry:
        return None


async def served_frames(stream: ServedStream, key: str) -> ServedFrames | None:
    """Return the frames of a data key; None if no frame has been written yet."""
    node = await _child(stream.node, key)
    return None if node is None else ServedFrames(node)


async def raw_stream(run: Any, name: str, filter_for_access: Filter) -> ServedStream | None:
    """Return the stream of the raw run that a derived run names, without columns, if its user may read it too.

    An exporter gets no tree and no request, only its own node and the filter of the request. The raw run is the one in
    ``raw`` beside the derived run's container. The server's access policy must allow this principal every node on the
    way that the request has not passed yet, checked as Tiled's own routes do: the container must be visible, and run,
    stream and images must be readable. Without a policy, the server's users may read everything, and the request was
    accepted. In every other case the result is None: rights that cannot be checked are not granted.
    """
    asked = getattr(filter_for_access, "keywords", {})
    if not {"access_policy", "principal", "authn_access_tags", "authn_scopes"} <= asked.keys():
        return None
    policy = asked["access_policy"]

    async def may(node: Any, *scopes: str) -> bool:
        if policy is None:
            return True
        allowed = await policy.allowed_scopes(
            node, asked["principal"], asked["authn_access_tags"], asked["authn_scopes"]
        )
        return set(scopes) <= set(allowed)

    raw_uid = run.metadata().get("start", {}).get("raw_uid")
    path = await run.path_segments()
    if not isinstance(raw_uid, str) or len(path) < 2:
        return None
    root = CatalogContainerAdapter(run.context, RootNode({}, [], []))
    folder = [*path[:-2], "raw"]
    try:
        container = await root.lookup_adapter(folder)
        raw = await root.lookup_adapter([*folder, raw_uid])
        node = await root.lookup_adapter([*folder, raw_uid, name])
        if not (
            await may(container, "read:metadata")
            and await may(raw, "read:metadata", "read:data")
            and await may(node, "read:metadata", "read:data")
        ):
            return None
        return await _stream(node, name, filter_for_access)
    except (NoEntry, BrokenLink):
        return None


async def stored_array(stream: ServedStream, key: str, name: str, sha256: str) -> NDArray[Any] | None:
    """Return mask or exposure from the derived run's own file, verified by its sha256; None if it is not there.

    Call it after a frame was read: only then has the server checked that the file lies in its storage.
    """
    node = await stream.node.lookup_adapter([key])
    sources = await node.data_sources(include_assets=True)
    for asset in sources[0].assets if sources else []:
        if not asset.data_uri.startswith("file:"):
            continue
        found: NDArray[Any] | None = await ensure_awaitable(_verified, path_from_uri(asset.data_uri), name, sha256)
        if found is not None:
            return found
    return None


def _verified(path: Any, name: str, sha256: str) -> NDArray[Any] | None:
    try:
        with open_for_reading(path) as file:
            array: NDArray[Any] = file[f"entry/process/{name}"][()]
    except (OSError, KeyError, ValueError):
        return None
    return array if array_sha256(array) == sha256 else None
