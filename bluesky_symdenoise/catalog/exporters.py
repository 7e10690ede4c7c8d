"""Export formats of our nodes beside Tiled's own: picture, report page, NeXus file.

They are named in ``tiled_config.yml``. A parameter of the media type chooses frames, counted from 0; a range includes
its last frame, and several are joined by ``+`` (Tiled itself splits the formats at commas):
``?format=text/html;frames=0+17+99`` and ``?format=application/x-nexus;frames=0-9+17``.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from fastapi import HTTPException
from numpy.typing import NDArray
from tiled.utils import UnsupportedShape, parse_mimetype

from bluesky_symdenoise.catalog.report.choice import Choice
from bluesky_symdenoise.catalog.report.nexus_export import write_nexus
from bluesky_symdenoise.catalog.report.processes import DrawingError
from bluesky_symdenoise.catalog.report.report import report_page
from bluesky_symdenoise.catalog.report.served import (
    NO_IMAGES,
    Filter,
    ServedStream,
    served_streams,
    with_columns,
)
from bluesky_symdenoise.catalog.report.thumbnail import frames_png

#: Maximum number of frames in a report.
MOST_FRAMES = 6
#: Few NeXus exports at a time in each server process.
_BUSY = threading.BoundedSemaphore(2)
_BLOCK = 2**20
_PAGE_BLOCK = 2**17
_MOST_PARTS = 100
_FRAMES = "frames must be numbers and ranges joined by '+', the first frame is 0: frames=0-9 or frames=0+17+99"


def image_png(mimetype: str, array: NDArray[Any], metadata: Mapping[str, Any]) -> bytes:
    """Return ``image/png`` of a node with the spec ``SymDenoisedImage``; see `frames_png`."""
    try:
        return frames_png(array)
    except ValueError as error:
        raise UnsupportedShape(array.shape) from error


async def report_html(
    mimetype: str, run: Any, metadata: Mapping[str, Any], filter_for_access: Filter
) -> AsyncIterator[bytes]:
    """Return ``text/html`` of a derived run: one self-contained page."""
    choice = _chosen(mimetype)
    if (most := sum(map(len, choice.parts or ()))) > MOST_FRAMES:
        raise HTTPException(400, f"{most} frames are requested; a report shows at most {MOST_FRAMES}")
    try:
        page = await report_page(run, metadata, filter_for_access, choice)
    except DrawingError as error:
        # Tiled's client repeats a request that ends with 500 ten times.
        raise HTTPException(422, "a frame of this run could not be drawn; the server's log says why") from error
    return _in_blocks(page)


async def _in_blocks(page: bytes) -> AsyncIterator[bytes]:
    """Yield a page in blocks, between which the server turns to others: Tiled compresses what it sends."""
    for start in range(0, len(page), _PAGE_BLOCK):
        yield page[start : start + _PAGE_BLOCK]
        await anyio.sleep(0)


async def run_nexus(
    mimetype: str, run: Any, metadata: Mapping[str, Any], filter_for_access: Filter
) -> AsyncIterator[bytes]:
    """Return ``application/x-nexus`` of a derived run: written frame by frame to a temporary file, then streamed."""
    choice = _chosen(mimetype)
    streams = await _with_images(run, filter_for_access)
    with _one_of_few():
        folder = tempfile.TemporaryDirectory(prefix="symdenoise-")
        try:
            path = Path(folder.name) / "run.nxs"
            await write_nexus(path, metadata, streams, choice)
        except BaseException:
            folder.cleanup()
            raise
    return _streamed(path, folder)


async def _streamed(path: Path, folder: tempfile.TemporaryDirectory[str]) -> AsyncIterator[bytes]:
    try:
        async with await anyio.open_file(path, "rb") as file:
            while block := await file.read(_BLOCK):
                yield block
    finally:
        folder.cleanup()


async def _with_images(run: Any, filter_for_access: Filter) -> list[ServedStream]:
    streams = [await with_columns(each) for each in await served_streams(run, filter_for_access) if each.images]
    if not streams:
        raise HTTPException(422, NO_IMAGES)
    return streams


def _chosen(mimetype: str) -> Choice:
    """Return the frames of ``;frames=0-9+17+99``."""
    given = parse_mimetype(mimetype)[1].get("frames")
    if given is None:
        return Choice()
    # In a URL, + stands for a space.
    named = re.split(r"[+ ]", given)
    if not all(re.fullmatch(r"\d{1,9}(-\d{1,9})?", part) for part in named) or len(named) > _MOST_PARTS:
        raise HTTPException(400, _FRAMES)
    ends = [[int(number) for number in part.split("-")] for part in named]
    parts = tuple(range(each[0], each[-1] + 1) for each in ends)
    if not all(parts):
        raise HTTPException(400, _FRAMES)
    return Choice(parts)


@contextmanager
def _one_of_few() -> Iterator[None]:
    """Take one of the few places to work at once, so that many requests cannot fill the memory."""
    if not _BUSY.acquire(blocking=False):
        raise HTTPException(503, "the server writes other exports; ask again", headers={"Retry-After": "5"})
    try:
        yield
    finally:
        _BUSY.release()
