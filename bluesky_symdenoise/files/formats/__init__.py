"""Formats of raw files, registered once: plain, live, replayed and lazily read frames all look here."""

from __future__ import annotations

from pathlib import Path

from bluesky_symdenoise.files.format import Format
from bluesky_symdenoise.files.formats.hdf5 import HDF5
from bluesky_symdenoise.files.formats.images import CBF, FABIO, NPY
from bluesky_symdenoise.files.formats.tiff import TIFF
from bluesky_symdenoise.files.formats.zarr import ZARR

#: All formats; the first that accepts a file is used.
FORMATS: tuple[Format, ...] = (HDF5, TIFF, ZARR, NPY, CBF)


def by_mimetype(mimetype: str) -> Format | None:
    """Return the format of a media type; None if it has none."""
    return next((each for each in FORMATS if each.mimetype == mimetype), None)


def of_file(path: Path) -> Format:
    """Return the format of a file, by its content or the ending of its name; fabio's, if it is no other."""
    for each in FORMATS:
        if each.recognised is not None and each.recognised(path):
            return each
    ending = path.suffix.lower()
    return next((each for each in FORMATS if ending in each.suffixes), FABIO)


def stored_mimetypes() -> tuple[str, ...]:
    """Return the media types of images that are denoised when they are read."""
    return tuple(each.mimetype for each in FORMATS if each.mimetype and each.stored)
