"""Frames that were prepared for one row and will lend to the next ones: kept in little memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.defects import Defects
from bluesky_symdenoise.physics.frame import Frame

#: Most bytes of frames that are kept.
MOST_BYTES = 2**27

Prepared = tuple[Frame, Defects]


@dataclass(frozen=True, eq=False)
class _Packed:
    """A frame with its counts in the smallest type that holds them, and its exposure unless it is the common one."""

    counts: NDArray[Any]
    exposure: NDArray[np.float64] | None
    reference: float
    defects: Defects

    @classmethod
    def of(cls, prepared: Prepared, common: NDArray[np.float64]) -> _Packed:
        frame, defects = prepared
        counts: NDArray[Any] = frame.counts
        for dtype in (np.uint8, np.uint16, np.uint32):
            if counts.size and counts.max() <= np.iinfo(dtype).max and np.array_equal(counts, counts.astype(dtype)):
                counts = counts.astype(dtype)
                break
        own = None if np.array_equal(frame.exposure, common) else frame.exposure
        return cls(counts, own, frame.reference, defects)

    @property
    def nbytes(self) -> int:
        masks = self.defects.hot.nbytes + self.defects.dead.nbytes
        return self.counts.nbytes + masks + (0 if self.exposure is None else self.exposure.nbytes)

    def unpacked(self, common: NDArray[np.float64]) -> Prepared:
        exposure = common if self.exposure is None else self.exposure
        return Frame(self.counts.astype(np.float64), exposure, self.reference), self.defects


class PreparedFrames:
    """Prepared frames by their content, for one mask and exposure at a time. May be used by several threads."""

    def __init__(self) -> None:
        self._frames: OrderedDict[tuple[Any, ...], _Packed] = OrderedDict()
        self._for: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._common: NDArray[np.float64] | None = None
        self._bytes = 0
        self._lock = threading.Lock()

    def get(
        self,
        image: NDArray[Any],
        prepare: Callable[[NDArray[Any]], Prepared],
        *,
        mask: NDArray[np.bool_],
        exposure: NDArray[np.float64],
    ) -> Prepared:
        """Return what ``prepare`` returns for a raw frame, from memory if it was asked for lately.

        Parameters
        ----------
        mask, exposure
            Those that frames are prepared with.
        """
        digest = hashlib.sha1(np.ascontiguousarray(image).data, usedforsecurity=False).digest()
        content = digest, image.shape, image.dtype.str
        with self._lock:
            self._begin(mask, exposure)
            packed, common = self._frames.get(content), self._common
            if packed is not None and common is not None:
                self._frames.move_to_end(content)
                return packed.unpacked(common)
        made = prepare(image)
        with self._lock:
            self._begin(mask, exposure)
            if self._common is None:
                self._common = made[0].exposure
            if content not in self._frames:
                kept = self._frames[content] = _Packed.of(made, self._common)
                self._bytes += kept.nbytes
            while self._bytes > MOST_BYTES and len(self._frames) > 1:
                _, dropped = self._frames.popitem(last=False)
                self._bytes -= dropped.nbytes
        return made

    def _begin(self, mask: NDArray[np.bool_], exposure: NDArray[np.float64]) -> None:
        """Forget the frames of another mask or exposure."""
        if self._for is not None and all(
            np.array_equal(one, other) for one, other in zip(self._for, (mask, exposure), strict=True)
        ):
            return
        self._frames.clear()
        self._for, self._common, self._bytes = (mask.copy(), exposure.copy()), None, 0
