"""A raw run and its denoised one in one Dataset."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import rows_of

if TYPE_CHECKING:
    import xarray as xr
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

log = logging.getLogger("bluesky_symdenoise")


def aligned(raw: BlueskyRun, denoised: BlueskyRun, *, stream: str = "primary") -> xr.Dataset:
    """Return one Dataset of a raw run and its denoised run, so that ``ds.det - ds.det_denoised`` is pixel by pixel.

    Raw names are kept. A denoised image ``det`` becomes ``det_denoised``; what is new in the denoised run
    (``det_sigma``, ``det_counts_in``) keeps its name; of a scalar that both hold, the raw one is used. Images over
    the same pixels share dimensions. Rows are matched by event time, or by position in a fly scan, which has no times;
    a row that one run lacks is NaN. Columns of a scan that ended before its first frame have no rows. Scan axes that
    the start document's hints name are coordinates. Images stay lazy if the runs came from a Dask client.

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
        If `denoised` belongs to another raw run, if a run lacks the stream or only one of them has rows in it, or if
        rows cannot be matched because events share their time.
    """
    uids = {"raw_uid": raw.start["uid"], "denoised_uid": denoised.start["uid"]}
    if denoised.start.get("raw_uid") != uids["raw_uid"]:
        raise SymDenoiseError(
            f"run {uids['denoised_uid']}",
            rule=f"it is not made from raw run {uids['raw_uid']}",
            remedy="find its raw run with `raw_for`",
        )
    frames = denoised.start.get("provenance", {}).get("recipe", {}).get("frames")
    left, right = _read(raw, stream), _read(denoised, stream)
    for run, columns, others in ((raw, left, right), (denoised, right, left)):
        if others.sizes["time"] and not columns.sizes["time"]:
            raise SymDenoiseError(
                f"stream {stream!r} of run {run.start['uid']}",
                rule=f"it has no rows, and the other run has {others.sizes['time']}",
                remedy="wait for its writer, which may hold rows back until the run ends (batch_size=1 does not), or "
                "replay the raw run",
            )
    return merged(left, right, stream=stream, start=raw.start, uids=uids, rows=rows_of(frames))


def merged(
    left: xr.Dataset,
    right: xr.Dataset,
    *,
    stream: str,
    start: Mapping[str, Any],
    uids: Mapping[str, str],
    rows: Sequence[int] = range(sys.maxsize),
) -> xr.Dataset:
    """Return raw and denoised columns of one stream in one Dataset; see `aligned`.

    Parameters
    ----------
    start
        The raw run's start document: its hints name the scan axes.
    rows
        Rows of the raw stream that those of the denoised one belong to, if there are no times.
    """
    import xarray as xr

    left = _with_distinct_dims(left)
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
        f"{name}_denoised" if name in left or _is_denoised(name, right) else name: column
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
            remedy=f"choose among {', '.join(run)}" if len(run) else "it has no stream at all: choose another run",
        ) from error
    try:
        with warnings.catch_warnings():
            # Dimensions that share a name are renamed below.
            warnings.filterwarnings("ignore", "Duplicate dimension names")
            dataset: xr.Dataset = events.read()
    except ValueError as error:
        # A killed writer may have written frames without their events.
        dataset = _first_rows(events)
        log.warning(
            "stream %r of run %s: its columns have different numbers of rows (%s), as if its writer was "
            "interrupted; the first %d are given",
            stream,
            run.start["uid"][:8],
            error,
            dataset.sizes["time"],
        )
    return dataset if dataset.sizes.get("time") else _without_rows(events.descriptors[0]["data_keys"])


def _first_rows(events: Any) -> xr.Dataset:
    """Return the rows that all columns of a stream have."""
    import xarray as xr

    columns = {name: events[name].read() for name in events}
    rows = min(len(column) for column in columns.values())
    held = {
        name: (("time", *(f"{name}_dim{i + 1}" for i in range(column.ndim - 1))), column[:rows])
        for name, column in columns.items()
        if name != "time" and not str(name).startswith("ts_")
    }
    return xr.Dataset(held, coords={"time": np.asarray(columns["time"])[:rows]} if "time" in columns else None)


def _with_distinct_dims(columns: xr.Dataset) -> xr.Dataset:
    """Return the same columns; where dimensions of an image share a name, as Tiled allows, they are renamed."""
    import xarray as xr

    distinct: dict[Hashable, Any] = {}
    for name, column in columns.data_vars.items():
        dims = column.dims
        if len(set(dims)) < len(dims):
            dims = (dims[0], *(f"{name}_dim{i + 1}" for i in range(column.ndim - 1)))
        distinct[name] = (dims, column.data, column.attrs)
    return xr.Dataset(distinct, coords=columns.coords, attrs=columns.attrs)


def _without_rows(data_keys: Mapping[str, Any]) -> xr.Dataset:
    """Return the columns of a stream that was never written to, without rows, as its descriptor describes them."""
    import xarray as xr

    columns: dict[Hashable, Any] = {}
    for key, said in data_keys.items():
        shape = tuple(size or 0 for size in said["shape"])
        dims = said.get("dims") or ()
        dims = dims if len(dims) == len(shape) else [f"{key}_dim{i + 1}" for i in range(len(shape))]
        numbers = said.get("dtype_numpy", "<f8") if said["dtype"] in ("array", "integer", "number") else "O"
        columns[key] = (("time", *dims), np.empty((0, *shape), numbers if isinstance(numbers, str) else "O"))
    return xr.Dataset(columns, coords=None if columns else {"time": []})


def _is_denoised(name: Hashable, denoised: xr.Dataset) -> bool:
    """Return whether this is an image with a sigma; its raw image is missing if no frame of it was announced."""
    return denoised[name].ndim > 1 and f"{name}_sigma" in denoised


def _numbered(columns: xr.Dataset, rows: Sequence[int]) -> xr.Dataset:
    numbers = np.array(rows[: columns.sizes["time"]], np.int64)
    return columns.drop_vars("time", errors="ignore").assign_coords(time=numbers)


def _pixel_dims(name: Hashable, image: xr.DataArray, raw: xr.Dataset) -> tuple[Hashable, ...]:
    """Return the dimensions of the raw image that this one was made from, if its size is the same, else its own."""
    # A denoised image and its sigma have the same dimensions.
    stem = str(name).removesuffix("_sigma").removesuffix("_denoised")
    own = tuple(f"{stem}_denoised_dim{i}" for i in range(image.ndim - 1))
    owners = [key for key in raw.data_vars if str(name).startswith(f"{key}_") and raw[key].ndim > 1]
    if not owners:
        return own
    owner = raw[max(owners, key=lambda key: len(str(key)))]
    shared = min(image.ndim, owner.ndim) - 1
    if shared == 0 or image.shape[-shared:] != owner.shape[-shared:]:
        return own
    return own[:-shared] + owner.dims[-shared:]
