"""Reusable memory for copies of frames: copying into memory that was never touched takes far longer."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of free memory to keep.
KEEP = 2**26
#: Smaller arrays, in bytes, are copied without the pool.
LEAST = 2**16
#: Number of copies of one size whose memory is allocated in advance.
AHEAD = 8


class Pool:
    """Copy arrays into memory that earlier copies have released.

    One thread copies while another one prepares and gives back.

    Parameters
    ----------
    keep
        Bytes of free memory at most.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._keep, self._kept = keep, 0
        self._free: defaultdict[int, deque[NDArray[np.uint8]]] = defaultdict(deque)

    def prepare(self, nbytes: int) -> None:
        """Provide memory for the next copies of arrays of this many bytes, and touch each page of it."""
        if nbytes < LEAST:
            return
        while len(self._free[nbytes]) < AHEAD and self._kept + nbytes <= self._keep:
            memory = np.empty(nbytes, np.uint8)
            # Unlike `fill`, this releases the GIL.
            np.copyto(memory, 0)
            self._add(memory)

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a C-contiguous copy of an array."""
        if array.nbytes < LEAST:
            return np.array(array, order="C")
        try:
            memory = self._free[array.nbytes].popleft()
            self._kept -= memory.nbytes
        except IndexError:
            memory = np.empty(array.nbytes, np.uint8)
        made = memory.view(array.dtype).reshape(array.shape)
        np.copyto(made, array)
        return made

    def give_back(self, array: NDArray[Any]) -> None:
        """Take back the memory of a copy that is no longer needed, for later copies."""
        memory = array.base
        if isinstance(memory, np.ndarray) and memory.ndim == 1 and memory.dtype == np.uint8 and memory.base is None:
            self._add(memory)

    def _add(self, memory: NDArray[np.uint8]) -> None:
        if self._kept + memory.nbytes <= self._keep:
            self._kept += memory.nbytes
            self._free[memory.nbytes].append(memory)
