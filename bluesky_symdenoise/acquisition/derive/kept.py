"""Raw frames of recent rows that other rows may borrow from: in memory up to a limit, beyond it in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

#: Bytes of frames that are kept in memory for each stream.
MEMORY = 2**25
#: Fast, and counts of few photons shrink to a tenth and less.
_CODEC = Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)


@dataclass(frozen=True)
class _Packed:
    """A compressed frame."""

    content: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, image: NDArray[Any]) -> _Packed:
        return cls(bytes(_CODEC.encode(np.ascontiguousarray(image).reshape(-1))), image.dtype, image.shape)

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def unpacked(self) -> NDArray[Any]:
        return np.frombuffer(_CODEC.decode(self.content), self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Place:
    """Where a compressed frame is in a file."""

    file: IO[bytes]
    offset: int
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class KeptFrames:
    """Raw frames by data key and row, bit for bit as they were given.

    The newest are kept as they are, older ones compressed. Beyond the limit of memory the oldest are dropped if they
    can be read again from where they came, and otherwise written, compressed, to a file without a name, which is gone
    with the process however that ends.

    Parameters
    ----------
    folder
        Returns the folder for that file.
    most
        Bytes in memory.
    rows
        Rows after which a file is begun anew, so that the one before can be dropped when its rows are forgotten.
    """

    def __init__(self, folder: Callable[[], Path], *, most: int = MEMORY, rows: int = 1024) -> None:
        self._folder, self._most, self._rows = folder, most, max(1, rows)
        #: Frames in memory, oldest first, and whether each can be read again.
        self._held: dict[tuple[str, int], tuple[NDArray[Any] | _Packed, bool]] = {}
        self._bytes = 0
        self._placed: dict[tuple[str, int], _Place] = {}
        self._files: dict[int, IO[bytes]] = {}

    @property
    def in_memory(self) -> int:
        """Bytes of the frames in memory."""
        return self._bytes

    def keep(self, key: str, row: int, image: NDArray[Any], *, readable: bool) -> None:
        """Keep a copy of an image, unless it is kept already.

        Parameters
        ----------
        readable
            Whether it can be read again.
        """
        if (key, row) in self._held or (key, row) in self._placed:
            return
        own = np.array(image)
        own.flags.writeable = False
        self._hold((key, row), own, readable)
        self._make_room()

    def get(self, key: str, row: int) -> NDArray[Any] | None:
        """Return an image that is kept; None if it is not."""
        if (key, row) in self._held:
            image, _ = self._held[key, row]
            return image.unpacked() if isinstance(image, _Packed) else image
        place = self._placed.get((key, row))
        if place is None:
            return None
        place.file.seek(place.offset)
        content = place.file.read(place.size)
        if len(content) != place.size:
            raise OSError(f"only {len(content)} of {place.size} bytes of row {row} of {key} are in the file")
        return _Packed(content, place.dtype, place.shape).unpacked()

    def forget(self, before: int) -> None:
        """Drop all rows before this one."""
        for key, row in [each for each in self._held if each[1] < before]:
            self._drop((key, row))
        for each in [each for each in self._placed if each[1] < before]:
            del self._placed[each]
        for number in [number for number in self._files if (number + 1) * self._rows <= before]:
            self._files.pop(number).close()

    def close(self) -> None:
        """Drop everything."""
        self._held.clear()
        self._placed.clear()
        self._bytes = 0
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _hold(self, place: tuple[str, int], image: NDArray[Any] | _Packed, readable: bool) -> None:
        self._held[place] = image, readable
        self._bytes += image.nbytes

    def _drop(self, place: tuple[str, int]) -> None:
        image, _ = self._held.pop(place)
        self._bytes -= image.nbytes

    def _make_room(self) -> None:
        """Compress the oldest frames, then drop or write them, until all fit."""
        for place, (image, readable) in list(self._held.items()):
            if self._bytes <= self._most:
                return
            if not isinstance(image, _Packed):
                packed = _Packed.of(image)
                self._bytes += packed.nbytes - image.nbytes
                # Replaced in its place: the order is that of age.
                self._held[place] = packed, readable
        for place, (image, readable) in list(self._held.items()):
            if self._bytes <= self._most:
                return
            if not readable:
                assert isinstance(image, _Packed)
                self._write(place, image)
            self._drop(place)

    def _write(self, place: tuple[str, int], image: _Packed) -> None:
        number = place[1] // self._rows
        if number not in self._files:
            self._files[number] = tempfile.TemporaryFile(dir=self._folder(), prefix="symdenoise-")  # noqa: SIM115
        file = self._files[number]
        offset = file.seek(0, 2)
        file.write(image.content)
        file.flush()
        self._placed[place] = _Place(file, offset, image.nbytes, image.dtype, image.shape)
