"""Threads that process parts of frames: the parts, and so the results, do not depend on their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

#: Pixels that a thread of a CPU processes at a time, so that temporary arrays stay in its cache.
CACHED_PIXELS = 2**17

#: Seconds within which threads start.
STARTED_S = 60.0

Part = TypeVar("Part")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Crew:
    """A device, and threads that work on parts of frames.

    Each part is the work of one thread, unlike the operators' own threads: there is less to wait for on a busy
    computer, what a part needs stays in one cache, and results have the same bits with any number of threads.

    Attributes
    ----------
    device
        The device.
    threads
        Threads on a CPU.
    """

    device: torch.device
    threads: int

    @property
    def alone(self) -> bool:
        """Whether parts are processed one after another."""
        return self.threads == 1 or self.device.type != "cpu"

    def rows(self, height: int, width: int, *, step: int) -> list[tuple[int, int]]:
        """Return (first, last) rows that are processed at a time: on a GPU all, on a CPU as many as its caches hold.

        Parameters
        ----------
        height, width
            Size of the images, in pixels.
        step
            The first row of each part is a multiple of it.
        """
        rows = max(step, CACHED_PIXELS // width // step * step) if self.device.type == "cpu" else height
        return [(first, min(first + rows, height)) for first in range(0, height, rows)]

    def each(self, task: Callable[[Part], Done], parts: Iterable[Part]) -> list[Done]:
        """Return what a task gives for each part, in their order."""
        if self.alone:
            return [task(part) for part in parts]

        def run(part: Part) -> Done:
            with torch.inference_mode():
                return task(part)

        return list(_pool(self.threads).map(run, parts))


@lru_cache(4)
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "symdenoise", initializer=torch.set_num_threads, initargs=(1,))
    # torch's number of threads is also that of threads yet to come: it is set by all of these now, and by none later,
    # when the caller's number has been restored.
    started = Barrier(threads, timeout=STARTED_S)
    list(pool.map(lambda _: started.wait(), range(threads)))
    return pool


# A forked process has none of the threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
