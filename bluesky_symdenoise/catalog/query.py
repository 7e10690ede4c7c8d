"""From a raw run to its denoised one, back, and to both in one Dataset."""

from __future__ import annotations

import re
from collections.abc import Hashable
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
from bluesky_tiled_plugins.queries import PartialUID
from tiled.client.constructors import from_context
from tiled.client.utils import ClientError
from tiled.queries import Key, SpecsQuery

from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

SPEC = "SymDenoised"
_FULL_UID = 36
_PARTIAL_UID = re.compile(r"[0-9a-fA-F-]{8,35}")


def denoised_for(client: Container, raw: str | BlueskyRun) -> BlueskyRun | None:
    """The newest denoised run of a raw run, or None.

    Parameters
    ----------
    client
        Client of the root that holds ``raw`` and ``denoised``, or of the container of denoised runs itself.
    raw
        The raw run or its uid; with the root client, the first eight or more characters of the uid.

    Raises
    ------
    SymDenoiseError
        If the root has no ``denoised``, or if a partial uid is too short or fits several raw runs.
    """
    uid = raw if isinstance(raw, str) else raw.start["uid"]
    is_root = not isinstance(client, CatalogOfBlueskyRuns)
    if is_root and "denoised" not in client:
        raise SymDenoiseError(
            client.uri,
            rule="there is no container `denoised` and it is no catalogue of Bluesky runs",
            remedy="pass the container of the denoised runs",
        )
    denoised = client["denoised"] if is_root else client
    found = _newest(denoised, uid)
    if found is not None or not isinstance(raw, str) or len(uid) >= _FULL_UID:
        return found
    if not (is_root and "raw" in client and _PARTIAL_UID.fullmatch(uid)):
        raise SymDenoiseError(
            uid,
            rule="it is no full uid of a run, and no part that can be looked up",
            remedy="give all of the uid, or eight characters or more with a root client that holds `raw`",
        )
    matches = client["raw"].search(PartialUID(uid)).keys()[:2]
    if len(matches) > 1:
        raise SymDenoiseError(uid, rule="several raw runs begin so", remedy="give more of the uid")
    return _newest(denoised, matches[0]) if matches else None


def raw_for(run: BlueskyRun, *, catalog: Container | None = None) -> BlueskyRun:
    """The raw run that a denoised run was made from.

    Parameters
    ----------
    run
        A denoised run.
    catalog
        Container of the raw runs, where it is not ``raw`` beside the container of `run`.

    Raises
    ------
    SymDenoiseError
        If `run` is no denoised run, or if its raw run is not there.
    """
    raw_uid = run.start.get("raw_uid")
    if raw_uid is None:
        raise SymDenoiseError(
            f"run {run.start['uid']}",
            rule="it is no denoised run: its start document has no raw_uid",
            remedy="pass what `denoised_for` returns",
        )
    folder = catalog.path_parts if catalog is not None else [*run.path_parts[:-2], "raw"]
    try:
        if catalog is not None:
            return catalog[raw_uid]
        return from_context(run.context, run.structure_clients, node_path_parts=[*folder, raw_uid])
    except (KeyError, ClientError) as error:
        if isinstance(error, ClientError) and error.response.status_code != HTTPStatus.NOT_FOUND:
            raise
        raise SymDenoiseError(
            f"raw run {raw_uid}",
            rule=f"it is not in {'/'.join(folder) or 'the root'}, or you may not read it",
            remedy="pass the container that holds it as `catalog`",
        ) from error


def aligned(raw: BlueskyRun, denoised: BlueskyRun, *, stream: str = "primary") -> xr.Dataset:
    """One Dataset of a raw run and its denoised run, so that ``ds.det - ds.det_denoised`` is pixel by pixel.

    Raw names stay. A denoised image ``det`` becomes ``det_denoised``; what is new in the denoised run
    (``det_sigma``, ``det_counts_in``) keeps its name; a scalar that both hold is the raw one. Images over the
    same pixels share dimensions. Rows meet by event time, or by position in a fly scan, which has no times;
    a row that one run lacks is NaN. Images stay lazy if the runs came from a Dask client.

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
    left, right = _read(raw, stream), _read(denoised, stream)
    by_time = "time" in left.coords and "time" in right.coords
    if not by_time:
        left, right = _numbered(left), _numbered(right)
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
    return (both if by_time else both.drop_vars("time")).assign_attrs(uids)


def _newest(denoised: Container, raw_uid: str) -> BlueskyRun | None:
    # SQLite compares JSON numbers as text: right for times in seconds from 2001 to 2286, all of ten digits.
    made = denoised.search(SpecsQuery([SPEC])).search(Key("start.raw_uid") == raw_uid)
    return next(iter(made.sort(("start.time", -1)).values().head(1)), None)


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


def _numbered(rows: xr.Dataset) -> xr.Dataset:
    return rows.drop_vars("time", errors="ignore").assign_coords(time=np.arange(rows.sizes["time"]))


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
