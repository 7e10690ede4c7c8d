"""Report page of a derived run: what was measured, what was made of it, and how far to trust it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

from bluesky_symdenoise.catalog.report import page
from bluesky_symdenoise.catalog.report.choice import Choice
from bluesky_symdenoise.catalog.report.picture import draw_panels, panels, png
from bluesky_symdenoise.catalog.report.profile import Profile, profile, stated_geometry
from bluesky_symdenoise.catalog.report.served import (
    Filter,
    ServedFrames,
    ServedStream,
    raw_stream,
    served_frames,
    stored_array,
)
from bluesky_symdenoise.catalog.report.transfer import draw_transfer
from bluesky_symdenoise.derived.columns import PENDING
from bluesky_symdenoise.derived.stated_readout import from_recipe, map_sha256s
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.agreement import PairTest, pair_tests
from bluesky_symdenoise.physics.counts.doubts import readout_verdict
from bluesky_symdenoise.physics.counts.verdict import Verdict, verdict
from bluesky_symdenoise.physics.dark import dark_from_stored
from bluesky_symdenoise.physics.frame import frame_from_counts, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_point_group
from bluesky_symdenoise.recipe import rows_of

#: Largest frame in pixels: a 4M detector. Its report takes about 1 GiB and, on one busy core, a minute per frame.
MOST_PIXELS = 5_000_000
#: matplotlib shares caches between figures, so only one thread draws at a time.
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class Shown:
    """A derived run as an exporter receives it, with its streams that hold images."""

    run: Any
    metadata: Mapping[str, Any]
    streams: Sequence[ServedStream]
    filter_for_access: Filter


@dataclass(frozen=True)
class FrameFigures:
    """Figures and pictures of one frame on the page; `raw_row` is set if the run is a part of its raw run."""

    number: int
    raw_row: int | None
    picture: bytes
    tests: tuple[PairTest, ...]
    scalars: Mapping[str, Any]
    note: str


@dataclass(frozen=True)
class _Frame:
    """One frame as read; raw counts are None if the user may not read them or they do not exist."""

    counts: NDArray[Any] | None
    intensity: NDArray[Any]
    sigma: NDArray[Any]
    mask: NDArray[np.bool_] | None
    exposure: NDArray[np.float64] | None
    symmetry: Symmetry
    readout: Readout | None = None


async def report_page(shown: Shown, choice: Choice) -> str:
    """Return the whole page as HTML; everything from metadata is escaped, and pictures are embedded.

    Parameters
    ----------
    shown
        The run.
    choice
        Frames to show; without a choice the first, the middle and the last one.

    Raises
    ------
    fastapi.HTTPException
        413 if frames are larger than `MOST_PIXELS`, 416 if a chosen frame is not there.
    """
    images = [await served_frames(stream, key) for stream in shown.streams for key in stream.images]
    choice.refuse_missing(len(frames) for frames in images if frames is not None)
    sections, warnings = [], page.run_warnings(shown.metadata)
    for stream in shown.streams:
        raw = await raw_stream(shown.run, stream.name, shown.filter_for_access)
        for key in stream.images:
            frames, said = await _frames(shown, stream, raw, key, choice)
            warnings += said
            sections.append(page.image_section(f"{stream.name} / {key}", frames, stream.columns, key))
    return page.whole(shown.metadata, list(dict.fromkeys(warnings)), sections)


async def _frames(
    shown: Shown, stream: ServedStream, raw: ServedStream | None, key: str, choice: Choice
) -> tuple[list[FrameFigures], list[str]]:
    denoised, sigma = await served_frames(stream, key), await served_frames(stream, f"{key}_sigma")
    if denoised is None or sigma is None or not len(denoised):
        return [], [f"{stream.name}/{key} has no frame yet."]
    if int(np.prod(denoised.shape[-2:])) > MOST_PIXELS:
        raise HTTPException(
            413, f"frames of {denoised.shape[-2:]} pixels are too large for a report; read them with the Tiled client"
        )
    numbers = choice.of(len(denoised), otherwise=(0, len(denoised) // 2, len(denoised) - 1))
    counts = await served_frames(raw, key) if raw is not None else None
    warnings = []
    if counts is None or counts.shape[-2:] != denoised.shape[-2:]:
        counts = None
        warnings.append(
            "The raw frames are not shown: the raw run is not beside this one, or you may not read it. "
            "Without them there is no residual and no test of the symmetry."
        )
    configuration = (raw or stream).metadata.get("configuration", {})
    geometry = stated_geometry(shown.metadata.get("start", {}), configuration, key)
    recipe = shown.metadata.get("start", {}).get("provenance", {}).get("recipe", {})
    chosen = _chosen(recipe)
    figures = []
    for number in numbers:
        try:
            frame, said = await _read(stream, raw, key, number, (denoised, sigma, counts), recipe, chosen)
        except HTTPException as error:
            warnings.append(f"Frame {number} of {stream.name}/{key} could not be read: {error.detail}")
            continue
        warnings += said
        row = number * len(stream.columns.get(f"{key}_ms", ())) // len(denoised)
        scalars = {
            name: stream.columns[f"{key}_{name}"][row]
            for name in PENDING
            if row < len(stream.columns.get(f"{key}_{name}", ()))
        }
        raw_row = None if chosen is None else _nth(chosen, number // _per_row(stream, key, len(denoised)))
        figures.append(await anyio.to_thread.run_sync(_drawn, number, raw_row, frame, geometry, scalars))
    return figures, warnings


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
) -> tuple[_Frame, list[str]]:
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
    return _Frame(image, intensity, spread, arrays["mask"], arrays["exposure"], symmetry, readout), warnings


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


def _drawn(number: int, raw_row: int | None, frame: _Frame, geometry: Any, scalars: Mapping[str, Any]) -> FrameFigures:
    """Compute and draw one frame; runs in a thread."""
    shape = (frame.intensity.shape[0], frame.intensity.shape[1])
    measured = np.isfinite(frame.intensity)
    counts, lift = frame.counts, None
    if frame.counts is not None and frame.readout is not None:
        counts, background = frame.readout.equivalent(frame.counts, frame.mask, frame.exposure)
        lift = background.expected
    if counts is not None:
        measured &= ~sentinel_mask(counts)
    if frame.mask is not None:
        measured &= ~frame.mask
    exposure = frame.symmetry.exposure(frame.exposure, shape)
    measured &= exposure > 0
    note = ""
    tests: tuple[PairTest, ...] = ()
    if not np.isfinite(frame.intensity).any():
        note = "This frame was not denoised: all of it is NaN. The reason is among the failures above."
    try:
        if counts is not None and measured.any():
            seen = frame_from_counts(counts, mask=~measured, exposure=exposure)
            tests = pair_tests(seen, frame.symmetry)
    except SymDenoiseError as error:
        counts, note = None, str(error)
    # Of the frame as it came: where it was refused, nothing of it is denoised.
    found = None
    if frame.counts is not None:
        stated = frame.readout
        found = (
            verdict(frame.counts, frame.mask) if stated is None else readout_verdict(frame.counts, stated, frame.mask)
        )
    center = frame.symmetry.beam_center
    around = profile(counts, frame.intensity, measured, geometry=geometry, beam_center=center, lift=lift)
    with _DRAWING:
        picture = _picture(counts, frame, measured, exposure, around, found, lift)
    return FrameFigures(number, raw_row, picture, tests, scalars, note)


def _picture(
    counts: NDArray[Any] | None,
    frame: _Frame,
    measured: NDArray[np.bool_],
    exposure: NDArray[np.float64],
    around: Profile | None,
    found: Verdict | None,
    lift: NDArray[np.float32] | None,
) -> bytes:
    from matplotlib.figure import Figure

    drawn = panels(
        counts, frame.intensity, frame.sigma, measured, frame.symmetry, exposure=exposure, most=512, lift=lift
    )
    transfer = found is not None and found.curve is not None
    number = len(drawn) + (around is not None) + transfer
    columns = 2 if frame.intensity.shape[1] > 2 * frame.intensity.shape[0] else 3
    rows = -(-number // columns)
    figure = Figure(figsize=(13, 13 / columns * 0.86 * rows), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    draw_panels(axes[: len(drawn)], drawn)
    if around is not None:
        _draw_profile(axes[len(drawn)], around)
    if transfer and found is not None:
        draw_transfer(axes[number - 1], found)
    for unused in axes[number:]:
        unused.set_axis_off()
    return png(figure, dpi=100)


def _draw_profile(axis: Any, around: Profile) -> None:
    if around.raw is not None and around.error is not None:
        low, high = around.raw - around.error, around.raw + around.error
        axis.fill_between(around.radial, low, high, color="0.7", linewidth=0, label="raw, Poisson error of its counts")
        axis.plot(around.radial, around.raw, color="0.35", linewidth=0.8)
    axis.plot(around.radial, around.denoised, color="tab:blue", linewidth=1.2, label="denoised, same pixels")
    values = around.denoised if around.raw is None else np.concatenate([around.denoised, around.raw])
    positive = values[values > 0]
    if positive.size and positive.max() > 20 * np.percentile(positive, 5):
        axis.set_yscale("log")
        axis.set_ylim(np.percentile(positive, 1) / 2, positive.max() * 2)
    axis.set_xlabel(around.unit)
    axis.set_title("mean counts per pixel in rings", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
