"""Export of a derived run as one NeXus file, written frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fastapi import HTTPException
from tiled.utils import ensure_awaitable

from bluesky_symdenoise.catalog.report.choice import Choice
from bluesky_symdenoise.catalog.report.served import ServedFrames, ServedStream, served_frames
from bluesky_symdenoise.files.nexus import add_entry, add_images, add_parameters, add_process

#: Most bytes of pixels in one export, before compression: about two minutes of work.
MOST_BYTES = 2**30
#: Filters that every HDF5 library can read; the run's own file needs the bitshuffle plugin.
STORAGE: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


async def write_nexus(path: Path, metadata: Mapping[str, Any], streams: Sequence[ServedStream], choice: Choice) -> None:
    """Write images, sigma, scalars and provenance of a derived run, with one NXentry per stream.

    Parameters
    ----------
    path
        The file to write.
    metadata
        Metadata of the run: its start and stop documents.
    streams
        Streams to write; ``entry`` is the first, others are ``entry_<name>``.
    choice
        Rows to write; without a choice, all of them.

    Raises
    ------
    fastapi.HTTPException
        413 if the pixels are more than `MOST_BYTES`, 416 if a chosen row is not there; errors of reading a frame pass.
    """
    images = {stream.name: await _images(stream) for stream in streams}
    there = {name: min(len(each) for each in frames.values()) for name, frames in images.items()}
    choice.refuse_missing(there.values())
    rows = {name: choice.of(count, otherwise=range(count)) for name, count in there.items()}
    _check_size(images, rows)
    with h5py.File(path, "w") as file:
        for stream in streams:
            entry = add_entry(file, "entry" if stream is streams[0] else f"entry_{stream.name}")
            _describe(entry, metadata)
            shapes = {key: frames.shape[-2:] for key, frames in images[stream.name].items() if key in stream.images}
            described = stream.metadata.get("data_keys", {})
            units = {key: str(described.get(key, {}).get("units", "counts")) for key in shapes}
            datasets = add_images(entry, shapes, units=units, **STORAGE)
            chosen = rows[stream.name]
            for name, dataset in datasets.items():
                dataset.resize(len(chosen), axis=0)
                for to, row in enumerate(chosen):
                    frame = await images[stream.name][name].read(row)
                    await ensure_awaitable(dataset.__setitem__, to, frame)
            _columns(entry, stream, chosen)


async def _images(stream: ServedStream) -> dict[str, ServedFrames]:
    frames = {}
    for name in [f"{key}{part}" for key in stream.images for part in ("", "_sigma")]:
        found = await served_frames(stream, name)
        if found is None:
            raise HTTPException(422, f"{name} of stream {stream.name} has no frame yet; ask again later")
        frames[name] = found
    return frames


def _check_size(images: Mapping[str, Mapping[str, ServedFrames]], rows: Mapping[str, Sequence[int]]) -> None:
    if not any(map(len, rows.values())):
        raise HTTPException(416, "the run has no frame yet")
    per_row = {
        name: sum(4 * int(np.prod(each.shape[-2:])) for each in frames.values()) for name, frames in images.items()
    }
    size = sum(len(rows[name]) * each for name, each in per_row.items())
    if size > MOST_BYTES:
        fits = MOST_BYTES // sum(per_row.values())
        raise HTTPException(
            413,
            f"{size / 2**20:.0f} MiB of pixels are too many for one export ({MOST_BYTES / 2**20:.0f} MiB); "
            f"ask for parts, format=application/x-nexus;frames=0-{max(0, fits - 1)} and so on, "
            "or take the run's own file, which is NeXus too, with raw_export",
        )


def _describe(entry: Any, metadata: Mapping[str, Any]) -> None:
    start = metadata.get("start", {})
    provenance = dict(start.get("provenance", {}))
    ended = (metadata.get("stop") or {}).get("provenance")
    entry["title"] = f"Denoised from run {start.get('raw_uid', 'unknown')}"
    entry["entry_identifier"] = str(start.get("uid", ""))
    begun = datetime.fromtimestamp(start.get("time", 0), UTC).isoformat(timespec="seconds")
    entry["start_time"] = begun
    software = provenance.get("wasAssociatedWith", {})
    process = add_process(entry, version=str(software.get("version", "unknown")), date=begun)
    add_parameters(process, provenance if ended is None else provenance | {"outcome": ended})


def _columns(entry: Any, stream: ServedStream, chosen: list[int]) -> None:
    """Write the scalars of the rows as NXcollection."""
    group = entry.create_group("events")
    group.attrs["NX_class"] = "NXcollection"
    for name, column in stream.columns.items():
        if name.startswith("ts_") or len(column) <= max(chosen, default=-1):
            continue
        values = column[chosen]
        if values.dtype.kind in "biuf":
            group[name] = values
        else:
            group.create_dataset(name, data=[str(value) for value in values], dtype=h5py.string_dtype())
