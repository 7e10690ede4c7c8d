"""Pixels of a lazy stream, computed and stored as a replay would have stored them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise.acquisition.lazy.lending_source import LendingSource, window_of
from bluesky_symdenoise.acquisition.lazy.nodes import data_source, descriptor, put
from bluesky_symdenoise.acquisition.runs.raw_files import raw_source
from bluesky_symdenoise.catalog.find.query import raw_for
from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE, LazyImage
from bluesky_symdenoise.catalog.store.writer import DerivedStream
from bluesky_symdenoise.derived.columns import SCALARS
from bluesky_symdenoise.derived.row import Row, empty_row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.source import Source

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

    from bluesky_symdenoise.acquisition.past.recompute import Again
    from bluesky_symdenoise.denoiser.infer import Denoiser

Document = dict[str, Any]


def store(run: BlueskyRun, stream: str, keys: list[str], denoiser: Denoiser, folder: Path) -> int:
    """Write the file of one stream, then let its arrays refer to it."""
    from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
    from event_model import compose_run

    from bluesky_symdenoise.acquisition.past.recompute import Again
    from bluesky_symdenoise.catalog.lazy.documents import pending, write_pending

    uid = run.start["uid"]
    images = {key: Again(run, stream, key, denoiser) for key in keys}
    sources = {key: _registered_source(run, stream, key) for key in keys}
    rows = len(next(iter(images.values())).groups)
    documents: list[tuple[str, Document]] = []
    part, final = folder / f"{uid}-{stream}.h5.part", folder / f"{uid}-{stream}.h5"
    raw = raw_for(run)
    some = next(iter(images.values()))
    reads = {key: LendingSource(source, window_of(raw, stream, some.recipe)) for key, source in sources.items()}
    opened = DerivedStream(
        lambda name, doc: documents.append((name, doc)),
        compose_run(uid=uid, time=run.start["time"]),
        descriptor=descriptor(raw, stream),
        keys=keys,
        path=part,
        arrays=some.arrays,
        configuration=dict(run[stream].metadata.get("configuration", {}).get("symdenoise", {}).get("data", {})),
        flown=False,
        entered=lambda **_: None,
        created=lambda _: None,
        start=dict(run.start),
    )
    later = pending(some.recipe)
    columns: dict[str, list[float]] = {f"{key}_{name}": [] for key in keys for name in later}
    try:
        for index in range(rows):
            computed = {key: _computed(image, reads[key], index) for key, image in images.items()}
            for key, row in computed.items():
                for name in later:
                    columns[f"{key}_{name}"].append(row.scalars.get(name, math.nan))
            # Of the columns, those of a readout are in the table already, or nowhere, as a lazy run has none.
            kept = {
                key: replace(row, scalars={name: row.scalars[name] for name in SCALARS})
                for key, row in computed.items()
            }
            opened.append(seq_num=index + 1, time=run.start["time"] + index, rows=kept)
    finally:
        opened.close()
    size = opened.bytes_written
    part.replace(final)
    own = next(doc for name, doc in documents if name == "descriptor")
    for resource in (doc for name, doc in documents if name == "stream_resource"):
        consolidator = consolidator_factory({**resource, "uri": f"file://localhost{final.as_posix()}"}, own)
        for name, doc in documents:
            if name == "stream_datum" and doc["stream_resource"] == resource["uid"]:
                consolidator.consume_stream_datum(doc)
        put(run, stream, resource["data_key"], consolidator.get_data_source())
    node = run.base[stream].base
    if set(columns) <= set(node):  # Otherwise they are still in the table of events, as before the eviction.
        write_pending(node, columns, run.access_tags)
    return size


def _registered_source(run: BlueskyRun, stream: str, key: str) -> Source:
    """Return the raw files, which must be unchanged since the run was registered."""
    data = data_source(run, stream, key)
    raw = raw_for(run)
    source, _ = raw_source(raw, descriptor(raw, stream), key)
    if data.mimetype != MIMETYPE:
        return source
    return replace(source, stamps=LazyImage.from_dict(data.parameters).stamps)


def _computed(image: Again, reads: LendingSource, row: int) -> Row:
    shape = reads.source.row_shape
    if row >= reads.source.shape[0] or not image.groups[row]:
        return empty_row(shape)
    counts, lent = reads.read(row), reads.lent(row)
    try:
        return image.row(row, counts, lent=lent)
    except SymDenoiseError:
        return empty_row(shape)
