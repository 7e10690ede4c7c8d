"""Many files as one lazy sequence of frames."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.format import Array, Part, ReadFrames, readable

T = TypeVar("T")


class FrameStack:
    """A lazy sequence of equally shaped frames from one or more files, of which at most one is open.

    ``stack[i]`` is a frame (H, W), ``stack[i:j]`` an array (k, H, W). Several threads may read one stack.
    `close` releases the open file; a later read opens it again.

    Attributes
    ----------
    shape
        (n, H, W).
    dtype
        Type of every frame, in native byte order.
    mask
        Pixels (H, W) that any of the files marks as bad; None if no file has a mask.
    beam_center
        (y, x) in pixels, or None.
    symmetry
        Point group that the files state, or None.
    sources
        The files, and those that they link to.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        first = parts[0]
        for part in parts:
            if part.shape[1:] != first.shape[1:]:
                raise SymDenoiseError(
                    f"{part.path} with frames of shape {part.shape[1:]}",
                    rule=f"all frames must have the same shape, {first.path} has {first.shape[1:]}",
                    remedy="open the files of each shape separately",
                )
        files = dict.fromkeys(part.path for part in parts)
        linked = dict.fromkeys(path for part in parts for path in part.linked)
        if twice := files.keys() & linked.keys():
            raise SymDenoiseError(
                f"{min(twice)}",
                rule="another file of the list links to it, so its frames would be read twice",
                remedy="name the master files only, for instance '*_master.h5'",
            )
        masks = [part.mask for part in parts if part.mask is not None]
        self._parts = tuple(parts)
        self._starts = list(accumulate((part.shape[0] for part in parts), initial=0))
        self._lock = threading.Lock()
        self._open_file = ExitStack()
        self._open_part: tuple[int, ReadFrames] | None = None
        self.shape = (self._starts[-1], *first.shape[1:])
        self.dtype: np.dtype[Any] = np.result_type(*(part.dtype for part in parts)).newbyteorder("=")
        self.mask: NDArray[np.bool_] | None = np.any(masks, axis=0) if masks else None
        self.beam_center = _agreed("beam_center", ((part.path, part.beam_center) for part in parts))
        self.symmetry = _agreed("symmetry", ((part.path, part.symmetry) for part in parts))
        self.sources = (*files, *linked)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Array:
        if isinstance(index, slice):
            wanted = range(len(self))[index]
            if wanted.step == 1:
                return self._read(wanted.start, max(wanted.start, wanted.stop))
            return np.stack([self[i] for i in wanted]) if wanted else self._read(0, 0)
        i = range(len(self))[index]
        frame: Array = self._read(i, i + 1)[0]
        return frame

    def __iter__(self) -> Iterator[Array]:
        for i in range(len(self)):
            yield self[i]

    def __enter__(self) -> FrameStack:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file that is open."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._open_part = None
        self._open_file.close()

    def _read(self, start: int, stop: int) -> Array:
        frames = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._lock:
            done = 0
            while done < len(frames):
                k = bisect_right(self._starts, start + done) - 1
                part = self._parts[k]
                first = start + done - self._starts[k]
                last = min(first + len(frames) - done, part.shape[0])
                with readable(part.path, f"frames {first} to {last - 1} of "):
                    block = self._reader(k)(first, last)
                if block.shape != (last - first, *self.shape[1:]):
                    raise SymDenoiseError(
                        f"frames {first} to {last - 1} of {part.path} with shape {block.shape[1:]}",
                        rule=f"all frames must have the same shape, the first has {self.shape[1:]}",
                        remedy="open the frames of each shape separately",
                    )
                frames[done : done + len(block)] = block
                done += len(block)
        return frames

    def _reader(self, k: int) -> ReadFrames:
        if self._open_part is None or self._open_part[0] != k:
            self._release()
            self._open_part = k, self._open_file.enter_context(self._parts[k].open())
        return self._open_part[1]


def _agreed(name: str, stated: Iterable[tuple[Path, T | None]]) -> T | None:
    """Return the one value that the files state; None if none does."""
    known = [(path, value) for path, value in stated if value is not None]
    for path, value in known:
        if value != known[0][1]:
            raise SymDenoiseError(
                f"{path} with {name} {value}",
                rule=f"the files of one stack must agree, {known[0][0]} has {known[0][1]}",
                remedy="open them separately",
            )
    return known[0][1] if known else None
