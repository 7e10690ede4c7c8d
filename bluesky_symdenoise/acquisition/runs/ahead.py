"""Read-ahead of the frames of a stored run: the next frame is read while the present one is denoised."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.runs.frames import FrameSource


class Ahead:
    """A frame source that reads the next frame of a data key in a background thread.

    The next frame is guessed from the last two; a wrong guess costs the reading of one frame that is not used.
    """

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symdenoise-ahead")
        self._coming: dict[str, tuple[int, Future[NDArray[Any]]]] = {}
        self._last: dict[str, int] = {}

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
        number, coming = self._coming.pop(key, (None, None))
        if coming is None or number != seq_num or turn:
            # Read in the same thread, after its current work: a source must not be read by two threads.
            coming = self._reader.submit(self._source.read, key, seq_num, turn)
        following = seq_num + max(1, seq_num - self._last.get(key, seq_num - 1))
        self._last[key] = seq_num
        try:
            return coming.result()
        finally:
            if self._source.has(key, following):
                self._coming[key] = following, self._reader.submit(self._source.read, key, following)

    def close(self) -> None:
        """Wait for the read in progress, and close the files."""
        self._reader.shutdown(cancel_futures=True)
        self._source.close()
