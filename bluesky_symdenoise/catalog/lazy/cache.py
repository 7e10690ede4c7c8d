"""Cache of rows that were read recently: bounded in bytes, and each computed once for simultaneous readers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

#: Read frames by outcome: ``hit`` in the cache, ``computed``, ``joined`` a computation in progress, ``failed``.
FRAMES = Counter("symdenoise_lazy_frames", "Frames read from lazy denoised runs", ["outcome"])
HELD = Gauge("symdenoise_lazy_cache_bytes", "Bytes of denoised frames held in memory")
#: Raw frames that lend photons, by the same outcomes.
RAW_FRAMES = Counter("symdenoise_lazy_raw_frames", "Raw frames of rows that lend photons to others", ["outcome"])
RAW_HELD = Gauge("symdenoise_lazy_raw_cache_bytes", "Bytes of raw frames held in memory")


class Sized(Protocol):
    """Value that takes memory."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...


T = TypeVar("T", bound=Sized)


@dataclass(frozen=True)
class Pair:
    """Intensity and sigma of one row, which one computation gives; read-only."""

    intensity: NDArray[np.float32]
    sigma: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Size of both in bytes."""
        return self.intensity.nbytes + self.sigma.nbytes


class RowCache(Generic[T]):
    """Cache of the most recently used rows, up to a number of bytes.

    Parameters
    ----------
    limit
        Limit in bytes. A row larger than that is returned but not kept.
    frames, size
        Metrics of its rows by outcome, and of the bytes that are held.
    """

    def __init__(self, limit: int, *, frames: Counter = FRAMES, size: Gauge = HELD) -> None:
        self._limit, self._held = limit, 0
        self._frames, self._size = frames, size
        self._rows: OrderedDict[Hashable, T] = OrderedDict()
        self._pending: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the row of a key: from the cache, from another caller that computes it now, or computed by this one.

        An exception of `compute` is raised in all callers that wait for it, and is not cached.
        """
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
                self._frames.labels("hit").inc()
                return row
            pending = self._pending.get(key)
            mine = pending is None
            if pending is None:
                pending = self._pending[key] = Future()
        if not mine:
            self._frames.labels("joined").inc()
            return pending.result()
        try:
            row = compute()
        except BaseException as error:
            self._frames.labels("failed").inc()
            with self._lock:
                del self._pending[key]
            pending.set_exception(error)
            raise
        self._frames.labels("computed").inc()
        with self._lock:
            self._keep(key, row)
            del self._pending[key]
        pending.set_result(row)
        return row

    def _keep(self, key: Hashable, row: T) -> None:
        if row.nbytes > self._limit:
            return
        self._rows[key] = row
        self._held += row.nbytes
        while self._held > self._limit:
            self._held -= self._rows.popitem(last=False)[1].nbytes
        self._size.set(self._held)
