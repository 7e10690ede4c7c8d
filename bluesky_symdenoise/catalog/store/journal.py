"""Journal of the writer of one derived run: it tells a living writer from a dead one, and whole rows from torn.

The journal lies beside the run's HDF5 files while the run is unfinished. Its writer holds its lock, which ends with the
process. Each row is entered with a checksum after its frames were written and before it is announced; the next writer
takes over the rows whose frames still have their checksum, whatever the crash or the power cut did to the files.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import hdf5plugin  # noqa: F401  (registers the filter that frames are written with)

from bluesky_symdenoise.catalog.store.lock import hold
from bluesky_symdenoise.derived.row import CompressedRow, Row
from bluesky_symdenoise.files.opened import open_for_reading

Document = dict[str, Any]
#: Identity of an image: stream, data key, number of its event, and how many rows of this number came before it.
Entered = tuple[str, str, int, int]

#: HDF5 group of the frames in a derived run's files.
DATA = "entry/data"


class Journal:
    """The journal of one derived run, held by this process until it is closed or finished.

    Parameters
    ----------
    path
        ``<uid>.journal`` in the folder of the run's HDF5 files.
    made_with
        Everything that decides the bits of a row besides the raw frame: rows made with anything else are not kept.

    Raises
    ------
    HeldError
        If a living writer holds it.
    """

    def __init__(self, path: Path, *, made_with: Document) -> None:
        self.path = path
        self._file = hold(path)
        self._entered = False
        self._readers: dict[str, Any] = {}
        self._own: set[Path] = set()
        self._file.seek(0)
        self._entries = _entries(self._file.read(), made_with)
        # Begin with a newline: a power cut may have left an incomplete line, which must not merge with this one.
        self._write(b"\n" + _line({"made_with": made_with, "pid": os.getpid(), "host": socket.gethostname()}))

    def new_file(self, stream: str) -> Path:
        """Return a path for a stream's HDF5 file; earlier writers' files are kept until this writer has finished."""
        first = self.path.with_name(f"{self.path.stem}-{stream}.h5")
        path, attempt = first, 1
        while path.exists():
            attempt += 1
            path = first.with_stem(f"{first.stem}-{attempt}")
        self._own.add(path)
        return path

    def enter(
        self, *, file: Path, index: int, stream: str, seq_num: int, turn: int, rows: Mapping[str, Row | CompressedRow]
    ) -> None:
        """Enter a row whose frames are in the file; images that could not be denoised are left out.

        ``turn`` counts the earlier rows with this number: a RunEngine may repeat points.
        """
        keys = {
            key: {"crc32": row.crc32, "scalars": dict(row.scalars)}
            for key, row in rows.items()
            if row.scalars["symmetry"]
        }
        entry = {"file": file.name, "index": index, "stream": stream, "seq_num": seq_num, "turn": turn, "keys": keys}
        self._write(_line(entry))
        self._entered = True

    def kept(self, stream: str, key: str, seq_num: int, turn: int = 0) -> Row | None:
        """Return the row that an earlier writer finished, if its frames are as they were entered."""
        entry = self._entries.get((stream, key, seq_num, turn))
        if entry is None:
            return None
        try:
            data = self._reader(entry["file"])[DATA]
            intensity, sigma = (data[name][entry["index"]] for name in (key, f"{key}_sigma"))
        except (OSError, KeyError, ValueError, IndexError, RuntimeError):
            # h5py raises any of these for a torn file; the row is computed again.
            return None
        row = Row(intensity=intensity, sigma=sigma, scalars=entry["scalars"])
        return row if row.crc32 == entry["crc32"] else None

    def close(self) -> None:
        """Release the journal, whose rows the next writer finds. A journal without rows is removed."""
        if not (self._file.closed or self._entries or self._entered):
            self.path.unlink(missing_ok=True)
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._file.close()

    def forget_parts(self) -> None:
        """Remove what workers had denoised of rows that are written now."""
        for path in self.path.parent.glob(f"{self.path.stem}-*.part-*.h5"):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove what earlier writers left, and the journal: the run is complete."""
        self.tidy(keep=self._own)

    def tidy(self, *, keep: Collection[Path]) -> None:
        """Remove the files of this run except those to keep, and the journal."""
        for path in self.path.parent.glob(f"{self.path.stem}-*.h5"):
            if path not in keep:
                path.unlink(missing_ok=True)
        # Remove it while it is still locked, when no other process can use it.
        self.path.unlink(missing_ok=True)
        self.close()

    def _reader(self, name: str) -> Any:
        if name not in self._readers:
            self._readers[name] = open_for_reading(self.path.with_name(name))
        return self._readers[name]

    def _write(self, line: bytes) -> None:
        written = self._file.write(line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes could be written to {self.path}: is the disk full?")


def finished(path: Path, *, made_with: Document) -> Collection[Entered]:
    """Return the images in a journal, without taking its lock or checking that their frames are whole."""
    return _entries(path.read_bytes(), made_with) if path.exists() else ()


def _entries(content: bytes, made_with: Document) -> dict[Entered, Document]:
    found: dict[Entered, Document] = {}
    usable, ours = False, json.loads(_line(made_with))
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            if "made_with" in entry:
                usable = entry["made_with"] == ours
                continue
            place = {"file": entry["file"], "index": entry["index"]}
            if usable:
                for key, row in entry["keys"].items():
                    found[entry["stream"], key, entry["seq_num"], entry["turn"]] = place | row
        except (ValueError, KeyError, TypeError, AttributeError):
            # After a power cut, a line may hold anything.
            continue
    return found


def _line(entry: Document) -> bytes:
    return json.dumps(entry, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return NumPy's scalars as Python's."""
    return value.item()
