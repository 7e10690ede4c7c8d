"""Runs of databroker's catalogues, read as runs of the Tiled server behind them, which has them in SQL or MongoDB."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun


def tiled_run(run: object) -> BlueskyRun | None:
    """Return the run behind a ``databroker.v1`` Header or a ``v2`` run; None if it is neither."""
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun, BlueskyRunV2SQL

    if not isinstance(run, BlueskyRun):
        # A databroker v1 Header; recognised without importing databroker.
        run = getattr(run, "v2", None)
    if isinstance(run, BlueskyRunV2SQL):
        return run.v3
    return run if isinstance(run, BlueskyRun) else None


def stream_arrays(run: BlueskyRun, name: str) -> Columns:
    """Return the columns of one stream by name, images among them."""
    return columns_of(run, run[name])


def columns_of(run: BlueskyRun, stream: Any) -> Columns:
    """Return the columns of a stream of a run by name, images among them."""
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRunV2Mongo

    return _Blocks(stream["data"]) if isinstance(run, BlueskyRunV2Mongo) else _Parts(stream)


def descriptors_of(run: BlueskyRun, stream: Any, name: str) -> list[dict[str, Any]]:
    """Return the descriptors of a stream of a run in order."""
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRunV2Mongo
    from bluesky_tiled_plugins.exporters import build_descriptor_docs

    if isinstance(run, BlueskyRunV2Mongo):
        return list(stream.descriptors)
    # As `stream.descriptors` does, but without requesting the run again.
    return build_descriptor_docs(dict(stream.metadata), name, run_start_uid=run.start["uid"])


class Columns(Mapping[str, Any]):
    """Clients of the columns of one stream by name."""

    def values_of(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Read some of the columns as a whole."""
        return {name: np.asarray(self[name].read()) for name in names}


class _Parts(Columns):
    """Columns of a stream in SQL, looked up with one request: Tiled's own client makes three for each.

    The shapes are those that the arrays have now.
    """

    def __init__(self, stream: Any) -> None:
        self._parts: dict[str, Any] = {}
        self._tables: dict[str, Any] = {}
        for name, part in stream.base.items():
            if part.structure_family == "table":
                self._tables |= dict.fromkeys(part.columns, part)
            else:
                self._parts[name] = part

    def __getitem__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else self._tables[name][name]

    def __iter__(self) -> Iterator[str]:
        return chain(self._parts, self._tables)

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in self._tables

    def __len__(self) -> int:
        return len(self._parts) + len(self._tables)

    def values_of(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for table in {id(table): table for table in self._tables.values()}.values():
            if wanted := [name for name in names if self._tables.get(name) is table]:
                read = table.read(wanted)
                # Numbers only: other values have another form in tables.
                found |= {name: np.asarray(read[name]) for name in wanted if read[name].dtype.kind in "iuf"}
        return found | super().values_of([name for name in names if name not in found])


class _Blocks(Columns):
    """Columns of a stream in MongoDB; of an image, the block that was read last is kept.

    To return one row, the server reads all rows of a block, up to 100 MB, opening each with a legacy handler.
    """

    def __init__(self, arrays: Any) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Any:
        array = self._arrays[name]
        return _Block(array) if len(array.shape) > 1 else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class _Block:
    def __init__(self, array: Any) -> None:
        self._array, self.shape, self.dims, self.dtype = array, array.shape, array.dims, array.dtype
        self._rows, self._held = range(0), np.empty(0)

    def __getitem__(self, rows: slice) -> Any:
        """Return the first of these rows."""
        if rows.start not in self._rows:
            start = 0
            for size in self._array.chunks[0]:
                if rows.start < start + size:
                    break
                start += size
            self._rows, self._held = range(start, start + size), self._array[start : start + size]
        row = rows.start - self._rows.start
        return self._held[row : row + 1]
