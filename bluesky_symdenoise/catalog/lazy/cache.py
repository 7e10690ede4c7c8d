"""Cache of denoised rows that were read recently: bounded in bytes, and each computed once for simultaneous readers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

#: Read frames by outcome: ``hit`` in the cache, ``computed``, ``joined`` a computation in progress, ``failed``.
FRAMES = Counter("symdenoise_lazy_frames", "Frames read from lazy denoised runs", ["outcome"])
HELD = Gauge("symdenoise_lazy_cache_bytes", "Bytes of denoised frames held in memory")


@dataclass(frozen=True)
class Pair:
    """Intensity and sigma of one row, which one computation gives; read-only."""

    intensity: NDArray[np.float32]
    sigma: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Size of both in bytes."""
        return self.intensity.nbytes + self.sigma.nbytes


class RowCache:
    """Cache of the most recently used rows, up to a number of bytes.

    Parameters
    ----------
    limit
        Limit in bytes. A row larger than that is returned but not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._rows: OrderedDict[Hashable, Pair] = OrderedDict()
        self._pending: dict[Hashable, Future[Pair]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Pair]) -> Pair:
        """Return the row of a key: from the cache, from another caller that computes it now, or computed by this one.

        An exception of `compute` is raised in all callers that wait for it, and is not cached.
        """
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
                FRAMES.labels("hit").inc()
                return row
            pending = self._pending.get(key)
            mine = pending is None
            if pending is None:
                pending = self._pending[key] = Future()
        if not mine:
            FRAMES.labels("joined").inc()
            return pending.result()
        try:
            row = compute()
        except BaseException as error:
            FRAMES.labels("failed").inc()
            with self._lock:
                del self._pending[key]
            pending.set_exception(error)
            raise
        FRAMES.labels("computed").inc()
        with self._lock:
            self._keep(key, row)
            del self._pending[key]
        pending.set_result(row)
        return row

    def _keep(self, key: Hashable, row: Pair) -> None:
        if row.nbytes > self._limit:
            return
        self._rows[key] = row
        self._held += row.nbytes
        while self._held > self._limit:
            self._held -= self._rows.popitem(last=False)[1].nbytes
        HELD.set(self._held)
