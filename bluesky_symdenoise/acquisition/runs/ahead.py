"""Read-ahead of the frames of a stored run: the next frames are read while the present one is denoised."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.runs.frames import TOGETHER, FrameSource

#: Most frames of a data key that are read ahead, and their bytes: those that one request fetches.
MOST, MOST_BYTES = 32, TOGETHER


@dataclass
class _Coming:
    """Frames of one data key that are being read, with their numbers, and how many may be."""

    frames: deque[tuple[int, Future[NDArray[Any]]]] = field(default_factory=deque)
    last: int | None = None
    most: int = 1


class Ahead:
    """A frame source that reads the next frames of a data key in a background thread.

    The next frames are guessed from the last two. At first, one is read ahead, and twice as many after each that was
    guessed rightly: a wrong guess costs the reading of one frame, or of those that were already fetched together.
    """

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symdenoise-ahead")
        self._coming: dict[str, _Coming] = {}

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Return whether the run has this row."""
        return self._source.has(key, seq_num, turn)

    def announced(self) -> Sequence[int]:
        """Return all seq_nums, in order."""
        return self._source.announced()

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """Return the image, in the shape of the data key.

        Raises
        ------
        SymDenoiseError
            If it cannot be read.
        """
        coming = self._coming.setdefault(key, _Coming())
        if coming.frames and coming.frames[0][0] == seq_num and not turn:
            _, found = coming.frames.popleft()
            coming.most = min(MOST, 2 * coming.most)
        else:
            for _, unwanted in coming.frames:
                unwanted.cancel()
            coming.frames.clear()
            coming.most = 1
            # Read in the same thread, after its current work: a source must not be read by two threads.
            found = self._reader.submit(self._source.read, key, seq_num, turn)
        step = 1 if coming.last is None else max(1, seq_num - coming.last)
        coming.last = seq_num
        try:
            image = found.result()
            coming.most = min(coming.most, max(1, MOST_BYTES // max(1, image.nbytes)))
            return image
        finally:
            following = (coming.frames[-1][0] if coming.frames else seq_num) + step
            while len(coming.frames) < coming.most and self._source.has(key, following):
                coming.frames.append((following, self._reader.submit(self._source.read, key, following)))
                following += step

    def close(self) -> None:
        """Wait for the read in progress, and close the files."""
        self._reader.shutdown(cancel_futures=True)
        self._source.close()
