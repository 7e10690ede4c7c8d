"""Runs of databroker's catalogues as what they are: runs on a Tiled server, in SQL or in MongoDB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun, BlueskyRunV2Mongo, BlueskyRunV2SQL


def tiled_run(run: object) -> BlueskyRun | None:
    """The run behind a ``databroker.v1`` Header or a ``v2`` run; None if it is nothing of the kind."""
    if not isinstance(run, BlueskyRun):
        # A Header: databroker itself need not be imported for that.
        run = getattr(run, "v2", None)
    if isinstance(run, BlueskyRunV2SQL):
        return run.v3
    return run if isinstance(run, BlueskyRun) else None


def stream_arrays(run: BlueskyRun, name: str) -> Any:
    """The columns of one stream by name, images among them."""
    return _Blocks(run[name]["data"]) if isinstance(run, BlueskyRunV2Mongo) else run[name]


class _Blocks(Mapping[str, Any]):
    """Columns of a stream in MongoDB: of an image the block that was read last is kept.

    For one row its server reads, and with a legacy handler opens, all rows of a block, up to 100 MB of them.
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
        """One row."""
        if rows.start not in self._rows:
            start = 0
            for size in self._array.chunks[0]:
                if rows.start < start + size:
                    break
                start += size
            self._rows, self._held = range(start, start + size), self._array[start : start + size]
        row = rows.start - self._rows.start
        return self._held[row : row + 1]
