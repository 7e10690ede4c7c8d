"""Command that denoises past runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.catalog import opened
from bluesky_symdenoise.cli.live import (
    Denoised,
    Device,
    Directory,
    Frames,
    OlderThan,
    Raw,
    SettingsFile,
    Threads,
    Uri,
    planned_work,
    show,
)
from bluesky_symdenoise.cli.root import Center, Defects, ModelName, Symmetry, Views, app
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

    from bluesky_symdenoise.acquisition.service.catchup import Outcome

#: What a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130


@app.command()
def replay(
    uri: Uri,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Uid or its first 8 characters, scan id, or path of a .jsonl backup."),
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Runs that began after this, local time.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Runs whose start document has this value; repeatable."),
    ] = None,
    plan: Annotated[str | None, typer.Option(help="Runs of this plan.")] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Rows of each run: 0:50, 0:50:10, or 0,5,7. Makes a separate run beside the whole one."),
    ] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Stream to denoise; repeatable.")] = None,
    data_key: Annotated[list[str] | None, typer.Option(help="Image to denoise; repeatable.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make complete derived runs again.")] = False,
    older_than: OlderThan = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, how long it takes and how many bytes.")
    ] = False,
    settings: SettingsFile = None,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    directory: Directory = None,
    frames: Frames = None,
    raw: Raw = "raw",
    denoised: Denoised = "denoised",
    model: ModelName = None,
    device: Device = "auto",
    threads: Threads = None,
    defects: Defects = "find",
    views: Views = 1,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address of the scheduler of a Dask cluster whose workers denoise."),
    ] = None,
) -> None:
    """Denoise past runs, named or searched for; the API key comes from TILED_API_KEY.

    Complete runs are left unchanged, and interrupted ones continue. Exit status 1: something failed; 2: none of the
    runs could be found, or an argument is invalid; 130: Ctrl-C.
    """
    from bluesky_symdenoise.acquisition.cluster.client import connected
    from bluesky_symdenoise.acquisition.past.replay import planned, progress_bar, state
    from bluesky_symdenoise.acquisition.runs.stored import StoredRun, stored_run
    from bluesky_symdenoise.acquisition.service.catchup import attempt
    from bluesky_symdenoise.denoiser.infer import Denoiser

    if bool(runs) == bool(since or query or plan):
        raise SymDenoiseError(
            "the runs to denoise",
            rule="runs are either named or searched for",
            remedy="give RUN..., or --since, --query and --plan",
        )
    given = {
        "symmetry": symmetry,
        "beam_center": beam_center,
        "directory": directory,
        "frames": frames,
        "streams": stream,
        "data_keys": data_key,
    }
    with (
        opened(uri, raw=raw, denoised=denoised) as client,
        nullcontext() if dask is None else connected(dask) as scheduler,
    ):
        denoiser = Denoiser.pretrained(model, device=device, threads=threads, defects=defects, views=views)
        work = planned_work(client[denoised], settings, given, activity="replay", denoiser=denoiser, rows=_rows(rows))
        found: list[Any] = []
        unknown: dict[str, SymDenoiseError] = {}
        for name in runs or ():
            try:
                found.append(_named(client[raw], name))
            except SymDenoiseError as error:
                unknown[name] = error
        if unknown and not found:
            raise next(iter(unknown.values()))
        if not runs:
            after = None if since is None else since.timestamp()
            found = list(_searched(client[raw], query or [], plan, after, unfinished=older_than is not None))
            if not found:
                asked = {"--since": since, "--plan": plan, "--query": " ".join(query or ())}
                raise SymDenoiseError(
                    ", ".join(f"{option} {value}" for option, value in asked.items() if value),
                    rule=f"no finished run of {len(client[raw])} in {raw!r} fits",
                    remedy="check the names; --older-than HOURS takes runs without a stop document too",
                )
        outcomes = [_failed(name, error) for name, error in unknown.items()]
        seconds = None if older_than is None else older_than * 3600
        for each in found:
            try:
                stored: StoredRun = stored_run(each, columns=work.beamline.columns)
                forecast = planned(stored, work, older_than=seconds, force=force) if dry_run else None
            except SymDenoiseError as error:
                outcomes.append(_failed(each if isinstance(each, str) else each.start["uid"], error))
                continue
            if forecast is not None:
                typer.echo(str(forecast))
                continue
            try:
                with progress_bar(stored, work, None) as advance:
                    was = state(stored, work)
                    outcome = attempt(
                        stored,
                        work,
                        was=was,
                        older_than=seconds,
                        force=force,
                        finished_frame=advance,
                        scheduler=scheduler,
                    )
            except KeyboardInterrupt:
                if outcomes:
                    show(outcomes)
                typer.echo(f"interrupted in run {stored.start['uid']}: the same command continues it")
                raise typer.Exit(INTERRUPTED) from None
            outcomes.append(outcome)
        if dry_run:
            for failure in outcomes:
                typer.echo(failure.result)
        elif outcomes:
            show(outcomes)
        failed = sum(not each.ok for each in outcomes)
        total = len(found) + len(unknown)
        typer.echo(f"{total - failed} of {total} runs {'can be ' if dry_run else ''}replayed")
        if failed:
            raise typer.Exit(1)


def _failed(name: str, error: SymDenoiseError) -> Outcome:
    """Return the error for a run of this name that cannot be replayed."""
    from bluesky_symdenoise.acquisition.service.catchup import Outcome

    return Outcome(uid=name, state="", result=str(error), ok=False)


def _named(raw: Container, name: str) -> Any:
    """Return a run by the name that a user gave."""
    if name.endswith(".jsonl"):
        return name
    try:
        return raw[int(name) if name.isdigit() and len(name) < 8 else name]
    except (KeyError, ValueError) as error:
        raise SymDenoiseError(
            f"run {name!r}", rule=f"no run or more than one in {raw.uri} matches", remedy="give its whole uid"
        ) from error


def _searched(
    raw: Container, query: list[str], plan: str | None, since: float | None, *, unfinished: bool
) -> Iterator[Any]:
    """Return the raw runs that match, oldest first."""
    from bluesky_symdenoise.catalog.find.query import with_values

    fitting = with_values(raw, [*query, *([] if plan is None else [f"plan_name={json.dumps(plan)}"])])
    for run in fitting.sort(("start.time", 1)).values():
        # Not by a query: Tiled's comparison of times in SQLite is one of text.
        if "raw_uid" in run.start or (since is not None and run.start["time"] < since):
            continue
        if run.metadata.get("stop") or unfinished:
            yield run


def _rows(said: str | None) -> slice | list[int] | None:
    if said is None:
        return None
    try:
        if ":" in said:
            return slice(*(int(part) if part else None for part in said.split(":")))
        return [int(part) for part in said.split(",")]
    except (ValueError, TypeError) as error:
        raise SymDenoiseError(
            f"--rows {said}", rule="it is FIRST:STOP, FIRST:STOP:STEP or a list", remedy="give 0:100 or 0,5,7"
        ) from error
