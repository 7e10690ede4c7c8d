"""Report page of a derived run: what was measured, what was made of it, and how far to trust it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import HTTPException

from bluesky_symdenoise.catalog.report import page
from bluesky_symdenoise.catalog.report.choice import Choice
from bluesky_symdenoise.catalog.report.drawn import Drawing, FrameFigures, ReadFrame
from bluesky_symdenoise.catalog.report.processes import PROCESSES, drawn_aside, start_processes
from bluesky_symdenoise.catalog.report.profile import stated_geometry
from bluesky_symdenoise.catalog.report.seen import SeenImage, SeenStream, page_key, seen_streams
from bluesky_symdenoise.catalog.report.served import NO_IMAGES, Filter, ServedFrames, ServedStream, stored_array
from bluesky_symdenoise.catalog.report.shared import Page, pages_of
from bluesky_symdenoise.derived.columns import PENDING
from bluesky_symdenoise.derived.stated_readout import from_recipe, map_sha256s
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import dark_from_stored
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_point_group
from bluesky_symdenoise.recipe import rows_of

#: Largest frame in pixels: a 4M detector. A process that draws one takes about 1 GiB.
MOST_PIXELS = 5_000_000
#: Frames that a page shows of each image if none are chosen.
DEFAULT_FRAMES = 3


async def report_page(run: Any, metadata: Mapping[str, Any], filter_for_access: Filter, choice: Choice) -> bytes:
    """Return the whole page as HTML; everything from metadata is escaped, and pictures are embedded.

    First it is found what the requesting user may see. Only then is the page looked for among those in memory, under a
    key that stands for just that.

    Parameters
    ----------
    run, metadata, filter_for_access
        A derived run as an exporter receives it.
    choice
        Frames to show; without a choice the first, the middle and the last one.

    Raises
    ------
    fastapi.HTTPException
        413 if frames are larger than `MOST_PIXELS`, 416 if a chosen frame is not there, 422 if there is no image yet,
        503 if too many other pages are being drawn.
    DrawingError
        If a frame cannot be drawn.
    """
    seen = await seen_streams(run, metadata, filter_for_access)
    if not seen:
        raise HTTPException(422, NO_IMAGES)
    images = [image.denoised for each in seen for image in each.images if image.denoised is not None]
    choice.refuse_missing(map(len, images))
    for frames in images:
        if len(frames) and int(np.prod(frames.shape[-2:])) > MOST_PIXELS:
            raise HTTPException(
                413, f"frames of {frames.shape[-2:]} pixels are too large for a report; read them with the Tiled client"
            )
    key = await page_key(run, metadata, seen, choice)
    return await pages_of(run.context).get(key, partial(_page, metadata, seen, choice, growing=key.growing))


async def _page(metadata: Mapping[str, Any], seen: Sequence[SeenStream], choice: Choice, *, growing: bool) -> Page:
    """Return the page; of a growing run with the rows that its key has, which is shown once and not kept."""
    await start_processes(min(PROCESSES, sum(map(len, choice.parts)) or DEFAULT_FRAMES))
    sections, warnings, complete = [], page.run_warnings(metadata), not growing
    for each in seen:
        shown = each if growing else await each.with_columns()
        for image in shown.images:
            figures, said, all_read = await _figures(metadata, shown.stream, shown.raw, image, choice)
            warnings += said
            complete &= all_read
            name = f"{shown.stream.name} / {image.key}"
            sections.append(page.image_section(name, figures, shown.stream.columns, image.key))
    return Page(page.whole(metadata, list(dict.fromkeys(warnings)), sections).encode(), lasting=complete)


async def _figures(
    metadata: Mapping[str, Any], stream: ServedStream, raw: ServedStream | None, image: SeenImage, choice: Choice
) -> tuple[list[FrameFigures], list[str], bool]:
    """Return figures of the chosen frames of an image, warnings, and whether all of them could be read.

    A frame is read while those before it are drawn.
    """
    key, denoised, sigma, counts = image.key, image.denoised, image.sigma, image.counts
    if denoised is None or sigma is None or not len(denoised):
        return [], [f"{stream.name}/{key} has no frame yet."], True
    numbers = choice.of(len(denoised), otherwise=(0, len(denoised) // 2, len(denoised) - 1))
    warnings = []
    if counts is None or counts.shape[-2:] != denoised.shape[-2:]:
        counts = None
        warnings.append(
            "The raw frames are not shown: the raw run is not beside this one, or you may not read it. "
            "Without them there is no residual and no test of the symmetry."
        )
    configuration = (raw or stream).metadata.get("configuration", {})
    geometry = stated_geometry(metadata.get("start", {}), configuration, key)
    recipe = metadata.get("start", {}).get("provenance", {}).get("recipe", {})
    chosen = _chosen(recipe)
    # Of large frames no more are held than are drawn, and one that is read meanwhile.
    few = asyncio.Semaphore(PROCESSES + 1)
    drawings: list[asyncio.Task[FrameFigures]] = []
    all_read = True
    try:
        for number in numbers:
            await few.acquire()
            try:
                frame, said = await _read(stream, raw, key, number, (denoised, sigma, counts), recipe, chosen)
            except HTTPException as error:
                few.release()
                warnings.append(f"Frame {number} of {stream.name}/{key} could not be read: {error.detail}")
                all_read = False
                continue
            warnings += said
            row = number * len(stream.columns.get(f"{key}_ms", ())) // len(denoised)
            scalars = {
                name: stream.columns[f"{key}_{name}"][row]
                for name in PENDING
                if row < len(stream.columns.get(f"{key}_{name}", ()))
            }
            raw_row = None if chosen is None else _nth(chosen, number // _per_row(stream, key, len(denoised)))
            drawings.append(asyncio.create_task(drawn_aside(Drawing(number, raw_row, frame, geometry, scalars))))
            drawings[-1].add_done_callback(lambda _: few.release())
        return list(await asyncio.gather(*drawings)), warnings, all_read
    finally:
        for drawing in drawings:
            drawing.cancel()


def _chosen(recipe: Mapping[str, Any]) -> Sequence[int] | None:
    """Return the rows of the raw run that the run is made of, if it is a part; the metadata are untrusted."""
    try:
        return rows_of(recipe["frames"]) if recipe.get("frames") else None
    except (ValueError, AttributeError, TypeError):
        return None


def _nth(rows: Sequence[int], index: int) -> int | None:
    try:
        return rows[index]
    except IndexError:
        return None


def _per_row(stream: ServedStream, key: str, frames: int) -> int:
    """Return how many frames one row holds; a row has one value in each column."""
    return max(1, frames // max(1, len(stream.columns.get(f"{key}_symmetry", ())) or frames))


async def _read(
    stream: ServedStream,
    raw: ServedStream | None,
    key: str,
    number: int,
    sources: tuple[ServedFrames, ServedFrames, ServedFrames | None],
    recipe: Mapping[str, Any],
    chosen: Sequence[int] | None,
) -> tuple[ReadFrame, list[str]]:
    denoised, sigma, counts = sources
    intensity, spread = await denoised.read(number), await sigma.read(number)
    warnings = []
    arrays: dict[str, Any] = {}
    for name in ("mask", "exposure"):
        sha256 = recipe.get(f"{name}_sha256")
        arrays[name] = None if sha256 is None else await stored_array(stream, key, name, sha256)
        if sha256 is not None and arrays[name] is None and counts is not None:
            counts = None
            warnings.append(f"The {name} of this run is not in its file: raw counts cannot be compared without it.")
    readout = None
    if counts is not None:
        try:
            readout = await _readout(stream, key, recipe)
        except SymDenoiseError as error:
            counts = None
            warnings.append(f"The raw frames of {stream.name}/{key} are not shown: {error}")
    image = None
    if counts is not None and raw is not None:
        at = _raw_number(stream, raw, number, len(denoised), len(counts), _per_row(stream, key, len(denoised)), chosen)
        if at is None:
            warnings.append(f"Frame {number} has no row in the raw run.")
        else:
            image = await counts.read(at)
    symmetry = _symmetry(stream, key, number, len(denoised))
    return ReadFrame(image, intensity, spread, arrays["mask"], arrays["exposure"], symmetry, readout), warnings


async def _readout(stream: ServedStream, key: str, recipe: Mapping[str, Any]) -> Readout | None:
    """Return the readout of an integrating detector as its derived run states it, with its dark; None for counts.

    Raises
    ------
    SymDenoiseError
        If it differs from frame to frame, or an array of it is not in the run's file.
    """
    configuration = stream.metadata.get("configuration", {}).get("symdenoise", {}).get("data", {})
    said = configuration.get(f"{key}_readout")
    if configuration.get(f"{key}_units") != "photons":
        return None
    names = recipe.get("beamline") or ()
    if said is None or any(str(each).startswith("dark_stream=") for each in names):
        raise SymDenoiseError(
            "photons of the raw frames",
            rule="gain, exposures or dark are found anew for each frame",
            remedy="compare with the raw run in a notebook",
        )
    wanted = map_sha256s(said)
    dark_sha256 = configuration.get(f"{key}_dark_sha256")
    if dark_sha256 is not None:
        wanted[f"{key}_dark"] = dark_sha256
    held = {name: await stored_array(stream, key, name, sha256) for name, sha256 in wanted.items()}
    missing = [name for name, array in held.items() if array is None]
    if missing:
        raise SymDenoiseError(", ".join(missing), rule="it is not in the run's file", remedy="replay the run again")
    readout = from_recipe(said, lambda name, _sha256: held[name])
    if readout is None or dark_sha256 is None:
        return readout
    return readout.with_dark(
        dark_from_stored(
            np.asarray(held[f"{key}_dark"]),
            frames=configuration[f"{key}_dark_frames"],
            seconds=None,
            averaged=configuration.get(f"{key}_dark_averaged", 1),
        )
    )


def _raw_number(
    stream: ServedStream,
    raw: ServedStream,
    number: int,
    frames: int,
    raw_frames: int,
    per_row: int,
    chosen: Sequence[int] | None,
) -> int | None:
    """Return the number of the raw frame: that of the same event time, or the same position in a fly scan."""
    ours, theirs = stream.columns.get("time", np.empty(0)), raw.columns.get("time", np.empty(0))
    if len(ours) == 0 or len(theirs) == 0 or frames % len(ours) or raw_frames % len(theirs):
        row, part = divmod(number, per_row)
        raw_row = row if chosen is None else _nth(chosen, row)
        at = None if raw_row is None else raw_row * per_row + part
        return at if at is not None and 0 <= at < raw_frames else None
    row, part = divmod(number, frames // len(ours))
    same = np.flatnonzero(theirs == ours[row])
    return int(same[0]) * (raw_frames // len(theirs)) + part if len(same) else None


def _symmetry(stream: ServedStream, key: str, number: int, frames: int) -> Symmetry:
    groups = stream.columns.get(f"{key}_symmetry", np.empty(0))
    row = number * len(groups) // frames
    if row >= len(groups):
        return Symmetry()
    y, x = (float(stream.columns[f"{key}_center_{axis}"][row]) for axis in "yx")
    if not np.isfinite([y, x]).all():
        return Symmetry()
    try:
        return Symmetry(checked_point_group(str(groups[row])), (y, x))
    except SymDenoiseError:
        return Symmetry()
