"""What a request may see of a derived run and its raw run: found before a page is read, drawn or taken from memory.

Whoever sees the same of the same run gets the same page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bluesky_symdenoise import __version__
from bluesky_symdenoise.catalog.report.choice import Choice
from bluesky_symdenoise.catalog.report.served import (
    Filter,
    ServedFrames,
    ServedStream,
    raw_stream,
    served_frames,
    served_streams,
    with_columns,
)


@dataclass(frozen=True)
class SeenImage:
    """One image of a stream: denoised frames, sigma and raw counts, each None if it is not there for this user."""

    key: str
    denoised: ServedFrames | None
    sigma: ServedFrames | None
    counts: ServedFrames | None


@dataclass(frozen=True)
class SeenStream:
    """One stream with denoised images, and that of the raw run if the user may read it."""

    stream: ServedStream
    raw: ServedStream | None
    images: tuple[SeenImage, ...]

    async def with_columns(self) -> SeenStream:
        """Return it with the scalars of both streams, as their tables are now."""
        raw = None if self.raw is None else await with_columns(self.raw)
        return replace(self, stream=await with_columns(self.stream), raw=raw)


@dataclass(frozen=True)
class PageKey:
    """All that decides what a page shows, and nothing else: neither who asks nor when.

    Attributes
    ----------
    path
        Path of the run in its catalogue.
    uid, recipe_sha256
        Derived run, and the recipe that its frames are made by.
    frames
        Frames that were chosen; none for the default ones.
    version
        Version of this package.
    growing
        Whether the run has no stop document yet.
    seen
        Sha256 of what else the page is made of, see `page_key`.
    """

    path: tuple[str, ...]
    uid: str
    recipe_sha256: str
    frames: tuple[int, ...]
    version: str
    growing: bool
    seen: str


async def seen_streams(run: Any, metadata: Mapping[str, Any], filter_for_access: Filter) -> list[SeenStream]:
    """Return the streams with images of a run that a request may read; with columns if the run is growing."""
    found = []
    for stream in await served_streams(run, filter_for_access):
        if not stream.images:
            continue
        raw = await raw_stream(run, stream.name, filter_for_access)
        images = [
            SeenImage(
                key,
                await served_frames(stream, key),
                await served_frames(stream, f"{key}_sigma"),
                None if raw is None else await served_frames(raw, key),
            )
            for key in stream.images
        ]
        seen = SeenStream(stream, raw, tuple(images))
        found.append(await seen.with_columns() if _growing(metadata) else seen)
    return found


async def page_key(run: Any, metadata: Mapping[str, Any], seen: Sequence[SeenStream], choice: Choice) -> PageKey:
    """Return the key of a page.

    Beside what it names, it covers the metadata of the run and of all streams that are seen, the shapes of their
    arrays, and which of them are not seen; of a growing run also the rows of the tables.
    """
    start = metadata.get("start", {})
    provenance = start.get("provenance")
    parts = [_text(metadata)]
    for each in seen:
        for stream in (each.stream, each.raw):
            parts.append("" if stream is None else _text([stream.name, stream.metadata, stream.table is not None]))
            columns = {} if stream is None else stream.columns
            parts += [_text([name, values.tolist()]) for name, values in columns.items()]
        for image in each.images:
            frames = (image.denoised, image.sigma, image.counts)
            parts.append(_text([image.key, *(None if one is None else [one.shape, str(one.dtype)] for one in frames)]))
    return PageKey(
        path=tuple(await run.path_segments()),
        uid=str(start.get("uid", "")),
        recipe_sha256=str(provenance.get("recipe_sha256", "")) if isinstance(provenance, Mapping) else "",
        frames=tuple(sorted({number for part in choice.parts for number in part})),
        version=__version__,
        growing=_growing(metadata),
        seen=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
    )


def _growing(metadata: Mapping[str, Any]) -> bool:
    return not metadata.get("stop")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
