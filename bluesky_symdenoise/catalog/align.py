"""A raw run and its denoised one in one Dataset."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import rows_of

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun


def aligned(raw: BlueskyRun, denoised: BlueskyRun, *, stream: str = "primary") -> xr.Dataset:
    """One Dataset of a raw run and its denoised run, so that ``ds.det - ds.det_denoised`` is pixel by pixel.

    Raw names stay. A denoised image ``det`` becomes ``det_denoised``; what is new in the denoised run
    (``det_sigma``, ``det_counts_in``) keeps its name; a scalar that both hold is the raw one. Images over the
    same pixels share dimensions. Rows meet by event time, or by position in a fly scan, which has no times;
    a row that one run lacks is NaN. Scan axes that the start document's hints name are coordinates. Images
    stay lazy if the runs came from a Dask client.

    Parameters
    ----------
    raw, denoised
        The two runs.
    stream
        Event stream to read from both.

    Returns
    -------
    xarray.Dataset
        Its attributes ``raw_uid`` and ``denoised_uid`` name the runs.

    Raises
    ------
    SymDenoiseError
        If `denoised` belongs to another raw run, if a run lacks the stream, or if rows cannot be matched
        because events share their time.
    """
    uids = {"raw_uid": raw.start["uid"], "denoised_uid": denoised.start["uid"]}
    if denoised.start.get("raw_uid") != uids["raw_uid"]:
        raise SymDenoiseError(
            f"run {uids['denoised_uid']}",
            rule=f"it is not made from raw run {uids['raw_uid']}",
            remedy="find its raw run with `raw_for`",
        )
    frames = denoised.start.get("provenance", {}).get("recipe", {}).get("frames")
    return merged(
        _read(raw, stream), _read(denoised, stream), stream=stream, start=raw.start, uids=uids, rows=rows_of(frames)
    )


def merged(
    left: xr.Dataset,
    right: xr.Dataset,
    *,
    stream: str,
    start: Mapping[str, Any],
    uids: Mapping[str, str],
    rows: Sequence[int] = range(sys.maxsize),
) -> xr.Dataset:
    """Raw and denoised columns of one stream in one Dataset; see `aligned`.

    Parameters
    ----------
    start
        The raw run's start document: its hints name the scan axes.
    rows
        Of the raw stream, that those of the denoised one belong to where there are no times.
    """
    by_time = "time" in left.coords and "time" in right.coords
    if not by_time:
        left = _numbered(left, range(sys.maxsize))
        right = _numbered(right, rows)
    times = left.indexes["time"], right.indexes["time"]
    if not times[0].equals(times[1]) and not all(index.is_unique for index in times):
        raise SymDenoiseError(
            f"stream {stream!r} of run {uids['raw_uid']}",
            rule="events share their time and the denoised run lacks some of them, so rows cannot be matched",
            remedy="read the two runs one by one",
        )
    columns = {
        f"{name}_denoised" if name in left else name: column
        for name, column in right.data_vars.items()
        if column.ndim > 1 or name not in left
    }
    named = {
        name: ((column.dims[:1] + _pixel_dims(name, column, left)), column.data) for name, column in columns.items()
    }
    both = xr.merge(
        [left, xr.Dataset(named, coords=right.coords)],
        join="outer",
        compat="no_conflicts",
        combine_attrs="drop",
    )
    axes = {field for fields, of in start.get("hints", {}).get("dimensions", []) if of == stream for field in fields}
    return (both if by_time else both.drop_vars("time")).set_coords(axes & set(both.data_vars)).assign_attrs(uids)


def _read(run: BlueskyRun, stream: str) -> xr.Dataset:
    try:
        events = run[stream]
    except KeyError as error:
        raise SymDenoiseError(
            f"stream {stream!r}",
            rule=f"run {run.start['uid']} has none of that name",
            remedy=f"choose among {', '.join(run) or 'none'}",
        ) from error
    dataset: xr.Dataset = events.read()
    return dataset


def _numbered(columns: xr.Dataset, rows: Sequence[int]) -> xr.Dataset:
    return columns.drop_vars("time", errors="ignore").assign_coords(time=list(rows[: columns.sizes["time"]]))


def _pixel_dims(name: Hashable, image: xr.DataArray, raw: xr.Dataset) -> tuple[Hashable, ...]:
    """Dimensions of the raw image that this one belongs to, if it has the same pixels, else its own."""
    own = tuple(f"{name}_dim{i}" for i in range(image.ndim - 1))
    owners = [key for key in raw.data_vars if str(name).startswith(f"{key}_") and raw[key].ndim > 1]
    if not owners:
        return own
    owner = raw[max(owners, key=lambda key: len(str(key)))]
    shared = min(image.ndim, owner.ndim) - 1
    if shared == 0 or image.shape[-shared:] != owner.shape[-shared:]:
        return own
    return own[:-shared] + owner.dims[-shared:]
