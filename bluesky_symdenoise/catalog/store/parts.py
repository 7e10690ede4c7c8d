"""Compressed rows of a derived stream, in a file that waits to be copied into the run's file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import numpy as np

from bluesky_symdenoise.catalog.store.writer import COMPRESSION
from bluesky_symdenoise.derived.row import CompressedFrame, CompressedRow, Row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.nexus import add_entry, add_images

#: Outcome of each image of a row by data key: the stored row, or the reason why there is none.
Outcomes = Mapping[str, Row | Exception]


class PartWriter:
    """Writer of the rows of a part; the file gets its name when it is whole, even if another process writes the same.

    Parameters
    ----------
    path
        Path of the part.
    shapes
        (..., y, x) of one row of each image.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self._path, self._temporary = path, path.with_name(f"{path.stem}.{uuid4().hex}.h5")
        self._file = h5py.File(self._temporary, "x", libver="v110")
        self._datasets = add_images(add_entry(self._file), shapes, **COMPRESSION)
        self._said: list[dict[str, Any]] = []

    def append(self, outcomes: Outcomes) -> None:
        """Write one row."""
        index = len(self._said)
        said: dict[str, Any] = {}
        for dataset in self._datasets.values():
            dataset.resize(index + 1, axis=0)
        for key, outcome in outcomes.items():
            if isinstance(outcome, Row):
                self._datasets[key][index] = outcome.intensity
                self._datasets[f"{key}_sigma"][index] = outcome.sigma
                said[key] = {"scalars": dict(outcome.scalars), "crc32": outcome.crc32}
            elif isinstance(outcome, SymDenoiseError):
                said[key] = {"value": outcome.value, "rule": outcome.rule, "remedy": outcome.remedy}
            else:
                said[key] = {"error": str(outcome) or type(outcome).__name__}
        self._said.append(said)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        try:
            if exc_type is None:
                self._file["rows"] = json.dumps(self._said, default=_plain)
            self._file.close()
            if exc_type is None:
                with self._temporary.open("rb") as file:
                    os.fsync(file.fileno())
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


class PartReader:
    """A complete part."""

    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path, "r")
        self._said: list[dict[str, Any]] = json.loads(self._file["rows"][()])

    @property
    def failed(self) -> bool:
        """Whether an image of it could not be denoised."""
        return any("scalars" not in said for row in self._said for said in row.values())

    def rows(self) -> Iterator[dict[str, CompressedRow | Exception]]:
        """Yield the rows in order, as they were appended; frames are read when they are copied."""
        data = self._file["entry/data"]
        for index, row in enumerate(self._said):
            yield {key: _outcome(data, key, index, said) for key, said in row.items()}

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _outcome(data: Any, key: str, index: int, said: dict[str, Any]) -> CompressedRow | Exception:
    if "error" in said:
        return RuntimeError(said["error"])
    if "rule" in said:
        return SymDenoiseError(said["value"], rule=said["rule"], remedy=said["remedy"])
    return CompressedRow(
        intensity=CompressedFrame(data[key], index),
        sigma=CompressedFrame(data[f"{key}_sigma"], index),
        scalars=said["scalars"],
        crc32=said["crc32"],
    )


def _plain(value: np.generic) -> Any:
    return value.item()
