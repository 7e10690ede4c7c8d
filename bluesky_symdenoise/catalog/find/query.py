"""Search for denoised runs by their raw run or by how they were made, and for the raw run of a denoised one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, overload

import httpx

from bluesky_symdenoise._renamed import rows_from
from bluesky_symdenoise.catalog.store.containers import run_at, run_in
from bluesky_symdenoise.denoiser.registry import SHA256_LIKE
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import checked_point_group
from bluesky_symdenoise.recipe import chosen_frames
from bluesky_symdenoise.selfcheck.values import VERDICTS

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

    from bluesky_symdenoise.recipe import Recipe

SPEC = "SymDenoised"
ANY: Literal["any"] = "any"
Rows = slice | range | Sequence[int] | Literal["any"] | None
_FULL_UID = 36
_PARTIAL_UID = re.compile(r"[0-9a-fA-F-]{8,35}")


@overload
def denoised_for(
    client: Container,
    raw: str | BlueskyRun,
    *,
    model: str | None = None,
    rows: Rows = None,
    latest: Literal[True] = True,
    frames: Rows = None,
) -> BlueskyRun | None: ...


@overload
def denoised_for(
    client: Container,
    raw: str | BlueskyRun,
    *,
    model: str | None = None,
    rows: Rows = None,
    latest: Literal[False],
    frames: Rows = None,
) -> list[BlueskyRun]: ...


def denoised_for(
    client: Container,
    raw: str | BlueskyRun,
    *,
    model: str | None = None,
    rows: Rows = None,
    latest: bool = True,
    frames: Rows = None,
) -> BlueskyRun | list[BlueskyRun] | None:
    """Return the newest denoised run of a raw run, or None; with ``latest=False`` a list of all, newest first.

    Runs of chosen rows, as `replay(..., rows=...)` makes them, are found only with `rows`.

    Parameters
    ----------
    client
        Client of the root that holds ``raw`` and ``denoised``, or of the container of denoised runs itself.
    raw
        The raw run or its uid; with the root client, the first eight or more characters of the uid.
    model
        Only runs of this model: its name, or eight or more characters of the sha256 of its weights.
    rows
        None: runs of all rows. Rows as given to `replay`: runs of these rows. ``any``: runs of any rows.
    latest
        Whether to return the newest run only, or all.
    frames
        Former name of `rows`, accepted for one release.

    Raises
    ------
    SymDenoiseError
        If the root has no ``denoised``, if a partial uid is too short or fits several raw runs, or if the server
        cannot be reached.
    """
    uid = raw if isinstance(raw, str) else raw.start["uid"]
    rows = rows_from(rows, frames)
    part = ANY if isinstance(rows, str) and rows == ANY else chosen_frames(rows)
    with _reachable(client):
        denoised = _denoised(client)
        found = _made_from(denoised, uid, model, part)
        if not found and isinstance(raw, str) and len(uid) < _FULL_UID:
            full = _full_uid(client, uid)
            found = [] if full is None else _made_from(denoised, full, model, part)
    return (found[0] if found else None) if latest else found


def find(
    client: Container,
    *,
    model: str | None = None,
    symmetry: str | None = None,
    since: datetime | date | str | float | None = None,
    recipe: Recipe | str | None = None,
    self_check: str | None = None,
) -> Container:
    """Return the denoised runs that match, newest first, as a catalogue that can be searched and sorted further.

    Parameters
    ----------
    client
        Client of the root that holds ``denoised``, or of a container of denoised runs or a search in it.
    model
        Name of the model, or eight or more characters of the sha256 of its weights.
    symmetry
        The point group that was used in any of the run's images, named or found by ``auto``: it is known when a run
        has ended. The requested one is ``Key("provenance.recipe.symmetry")``.
    since
        Denoised at this time or later: a datetime, a date, one of the two in ISO 8601, or seconds since 1970. Without
        a time zone it is this computer's time.
    recipe
        The recipe, or eight or more characters of its sha256.
    self_check
        Verdict of the run's self-check: ``agrees``, ``doubtful``, ``not testable`` or ``not computed``.

    Raises
    ------
    SymDenoiseError
        If a value cannot be searched for, if the root has no ``denoised``, or if the server cannot be reached.
    """
    from tiled.queries import Key, KeyPresent, SpecsQuery

    with _reachable(client):
        found = _denoised(client).search(SpecsQuery([SPEC]))
    if model is not None:
        found = _of_model(found, model)
    if symmetry == "auto":
        raise SymDenoiseError(
            "symmetry 'auto'",
            rule="runs are found by the point group that was used",
            remedy='for what was asked for, search the result for Key("provenance.recipe.symmetry") == "auto"',
        )
    if symmetry is not None:
        found = found.search(KeyPresent(f"stop.provenance.symmetry.{checked_point_group(symmetry).replace('.', '_')}"))
    if since is not None:
        found = found.search(Key("start.time") >= _seconds(since))
    if recipe is not None:
        found = _with_sha256(found, "provenance.recipe_sha256", recipe if isinstance(recipe, str) else recipe.sha256)
    if self_check is not None:
        if self_check not in VERDICTS:
            raise SymDenoiseError(
                f"self_check={self_check!r}", rule="there is no such verdict", remedy=f"give {', '.join(VERDICTS)}"
            )
        found = found.search(Key("stop.provenance.self_check.verdict") == self_check)
    # Sort by row id, the order of writing: this needs no sort of the whole catalogue. SQLite sorts numbers in metadata
    # as text.
    return found.sort(("", -1))


def with_values(runs: Container, pairs: Sequence[str]) -> Container:
    """Return the runs whose start document (or, for keys after ``stop.``, stop document) has these values.

    Parameters
    ----------
    runs
        A catalogue of Bluesky runs.
    pairs
        ``key=value`` each, the key perhaps nested (``sample.name=silver``); the value is JSON, else plain text.
    """
    from tiled.queries import Key

    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise SymDenoiseError(f"query {pair!r}", rule="it must be KEY=VALUE", remedy="write sample=silver")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        runs = runs.search(Key(key) == value)
    return runs


def raw_for(run: BlueskyRun, *, catalog: Container | None = None) -> BlueskyRun:
    """Return the raw run that a denoised run was made from.

    Parameters
    ----------
    run
        A denoised run.
    catalog
        Container of the raw runs, if it is not ``raw`` beside the container of `run`.

    Raises
    ------
    SymDenoiseError
        If `run` is not a denoised run, if its raw run is not there, or if the server cannot be reached.
    """
    raw_uid = run.start.get("raw_uid")
    if raw_uid is None:
        raise SymDenoiseError(
            f"run {run.start['uid']}",
            rule="it is not a denoised run: its start document has no raw_uid",
            remedy="pass what `denoised_for` returns",
        )
    from tiled.client.utils import ClientError

    folder = catalog.path_parts if catalog is not None else [*run.path_parts[:-2], "raw"]
    try:
        with _reachable(run):
            return run_at(run if catalog is None else catalog, folder, raw_uid)
    except (KeyError, ClientError) as error:
        if isinstance(error, ClientError) and error.response.status_code != HTTPStatus.NOT_FOUND:
            raise
        raise SymDenoiseError(
            f"raw run {raw_uid}",
            rule=f"it is not in {'/'.join(folder) or 'the root'}, or you may not read it",
            remedy="pass the container that holds it as `catalog`",
        ) from error


@contextmanager
def _reachable(client: Container) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise SymDenoiseError(
            f"server {client.uri}",
            rule=f"it cannot be reached ({str(error) or type(error).__name__})",
            remedy="check that it runs and that this computer may connect to it, then connect again",
        ) from error


def _denoised(client: Container) -> Container:
    from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns

    if isinstance(client, CatalogOfBlueskyRuns):
        return client
    try:
        return client["denoised"]
    except KeyError as error:
        raise SymDenoiseError(
            client.uri,
            rule="there is no container `denoised` and it is not a catalogue of Bluesky runs",
            remedy="pass the container of the denoised runs",
        ) from error


def _full_uid(client: Container, uid: str) -> str | None:
    from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
    from bluesky_tiled_plugins.queries import PartialUID

    if isinstance(client, CatalogOfBlueskyRuns) or "raw" not in client or not _PARTIAL_UID.fullmatch(uid):
        raise SymDenoiseError(
            uid,
            rule="it is neither a full uid of a run nor a part that can be looked up",
            remedy="give all of the uid, or eight characters or more with a root client that holds `raw`",
        )
    matches = client["raw"].search(PartialUID(uid)).keys()[:2]
    if len(matches) > 1:
        raise SymDenoiseError(uid, rule="several raw runs begin with it", remedy="give more of the uid")
    return matches[0] if matches else None


def _made_from(denoised: Container, raw_uid: str, model: str | None, part: str | None) -> list[BlueskyRun]:
    """Return the denoised runs of a raw run, or of this part of it, newest first."""
    from tiled.queries import Key, SpecsQuery

    # The raw uid first: SQLite has no index for metadata, and tests the conditions on each run in this order.
    made = denoised.search(Key("start.raw_uid") == raw_uid).search(SpecsQuery([SPEC]))
    if model is not None:
        made = _of_model(made, model)
    # One request for the uids: a page of results would need a second one for its length.
    uids = [one["value"] for one in made.distinct("start.uid")["metadata"]["start.uid"]]
    # `run_in` returns None if another writer has just replaced an unfinished run.
    runs = [run for uid in uids if (run := run_in(denoised, uid)) is not None]
    made_of = ((run, run.start.get("provenance", {}).get("recipe", {}).get("frames")) for run in runs)
    fitting = [run for run, frames in made_of if part in (ANY, frames)]
    return sorted(fitting, key=lambda run: run.start["time"], reverse=True)


def _of_model(runs: Container, model: str) -> Container:
    from tiled.queries import Key

    if SHA256_LIKE.fullmatch(model):
        return _with_sha256(runs, "provenance.model.sha256", model)
    # Do not use `==`: most runs have the same model, and PostgreSQL would read all of them through its index for rare
    # values.
    return runs.search(Key("provenance.model.name") >= model).search(Key("provenance.model.name") <= model)


def _with_sha256(runs: Container, key: str, sha256: str) -> Container:
    from tiled.queries import Like

    if not SHA256_LIKE.fullmatch(sha256):
        raise SymDenoiseError(
            f"sha256 {sha256!r}",
            rule="it must be eight to 64 hexadecimal digits",
            remedy="copy it from a run's provenance",
        )
    return runs.search(Like(f"start.{key}", f"{sha256.lower()}%"))


def _seconds(since: datetime | date | str | float) -> float:
    try:
        moment = datetime.fromisoformat(since) if isinstance(since, str) else since
        if isinstance(moment, date):
            whole = moment if isinstance(moment, datetime) else datetime(moment.year, moment.month, moment.day)
            return whole.timestamp()
        return float(moment)
    except (TypeError, ValueError) as error:
        raise SymDenoiseError(
            f"since={since!r}",
            rule="it is neither a time nor a date",
            remedy='write "2026-11-21", "2026-11-21T14:30" or give a datetime',
        ) from error
