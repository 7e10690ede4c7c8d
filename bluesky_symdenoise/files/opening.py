"""From the names that a user gives to the frames in those files, whatever the format."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.format import Part, readable
from bluesky_symdenoise.files.formats import of_file
from bluesky_symdenoise.files.stack import FrameStack
from bluesky_symdenoise.physics.frame import mostly_masked

log = logging.getLogger("bluesky_symdenoise")


def open_frames(source: str | Path | Sequence[str | Path]) -> FrameStack:
    """Open detector files as one lazy sequence of frames.

    Reads HDF5 (``counts``; Eiger and NeXus with linked, virtual and compressed data; any file with a single
    image dataset), TIFF, ``.npy``, and through fabio CBF, EDF and the rest. Nothing but headers and masks is
    read before a frame is accessed.

    Parameters
    ----------
    source
        A file, a glob pattern, or a list of both; ``file.h5::group/counts`` chooses an HDF5 dataset. Files
        are read in natural order (``frame_2`` before ``frame_10``), whatever the order of the list.

    Raises
    ------
    SymDenoiseError
        If nothing matches, a file cannot be read or is empty, the images are coloured, the frames differ in
        shape, no or several datasets could be meant, or a mask does not fit.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    files = sorted((file for each in sources for file in _matching(str(each))), key=_natural)
    if not files:
        raise SymDenoiseError("an empty list", rule="there is no file to open", remedy="name at least one")
    return FrameStack([part for path, dataset in files for part in _parts(path, dataset)])


def _matching(source: str) -> list[tuple[Path, str | None]]:
    """Return the files that a name or pattern matches, each with the dataset to read."""
    name, _, dataset = (source, "", "") if Path(source).exists() else source.partition("::")
    if Path(name).is_dir():
        raise SymDenoiseError(name, rule="is a folder", remedy=f"give a pattern such as '{name}/*.cbf'")
    names = [name] if Path(name).exists() else glob.glob(name, recursive=True)
    files = [(Path(name), dataset or None) for name in names if Path(name).is_file()]
    if not files:
        raise SymDenoiseError(name, rule="no file matches", remedy="check the name or the pattern")
    return files


def _natural(file: tuple[Path, str | None]) -> list[str | int]:
    return [int(text) if text.isdecimal() else text for text in re.split(r"([0-9]+)", str(file[0]))]


def _parts(path: Path, dataset: str | None) -> list[Part]:
    with readable(path):
        found = of_file(path)
        if dataset is not None and not found.has_datasets:
            raise SymDenoiseError(f"{path}::{dataset}", rule="only HDF5 files have datasets", remedy=f"write {path}")
        if path.stat().st_size == 0:
            raise SymDenoiseError(f"{path}", rule="the file is empty", remedy="copy or write it again")
        return found.parts(path, dataset) if found.parts is not None else []


def mask_from(path: str | Path) -> NDArray[np.bool_]:
    """Return the mask (y, x) in a file with one image: not 0 = bad."""
    with open_frames(path) as frames:
        mask = np.asarray(frames[0] != 0)
    if said := mostly_masked(mask, f"{path}"):
        log.warning("%s", said)
    return mask


def inverted_mask_from(path: str | Path) -> NDArray[np.bool_]:
    """Return the mask (y, x) in a file with one image in which 0 = bad, as some acquisition programs write it."""
    with open_frames(path) as frames:
        return np.asarray(frames[0] == 0)
