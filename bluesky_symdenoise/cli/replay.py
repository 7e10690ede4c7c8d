"""Command that denoises past runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.catalog import opened
from bluesky_symdenoise.cli.live import planned_work, show
from bluesky_symdenoise.cli.options import (
    Algorithm,
    Borrow,
    BorrowReach,
    Center,
    Defects,
    Denoised,
    Device,
    Directory,
    Frames,
    ModelName,
    Noise,
    OlderThan,
    Raw,
    ReadoutFile,
    SelfCheck,
    SettingsFile,
    Sums,
    Symmetry,
    Threads,
    Uri,
    Views,
)
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from distributed import Client
    from tiled.client.container import Container

    from bluesky_symdenoise.acquisition.request.request import Work
    from bluesky_symdenoise.acquisition.service.catchup import Outcome

#: Exit status of a command that was ended by Ctrl-C.
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
    force: Annotated[bool, typer.Option("--force", help="Replace complete derived runs, too.")] = False,
    older_than: OlderThan = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, how long it would take and how many bytes.")
    ] = False,
    settings: SettingsFile = None,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    noise: Noise = None,
    readout: ReadoutFile = None,
    borrow: Borrow = None,
    borrow_reach: BorrowReach = None,
    self_check: SelfCheck = None,
    directory: Directory = None,
    frames: Frames = None,
    raw: Raw = "raw",
    denoised: Denoised = "denoised",
    model: ModelName = None,
    device: Device = "auto",
    threads: Threads = None,
    defects: Defects = "find",
    views: Views = 1,
    sums: Sums = "free",
    algorithm: Algorithm = None,
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
        "noise": noise,
        "readout": readout,
        "borrow": borrow,
        "borrow_reach": borrow_reach,
        "self_check": self_check,
        "directory": directory,
        "frames": frames,
        "streams": stream,
        "data_keys": data_key,
    }
    with (
        opened(uri, raw=raw, denoised=denoised) as client,
        nullcontext() if dask is None else connected(dask) as scheduler,
    ):
        denoiser = Denoiser.pretrained(
            model,
            device=device,
            threads=threads,
            defects=defects,
            views=views,
            sums=sums,
            algorithm=algorithm,
        )
        work = planned_work(client[denoised], settings, given, activity="replay", denoiser=denoiser, rows=_rows(rows))
        after = None if since is None else since.timestamp()
        if runs:
            found, outcomes = all_named(client[raw], runs)
        else:
            unfinished = older_than is not None
            found, outcomes = list(searched(client[raw], query or [], plan, after, unfinished=unfinished)), []
        if not found and not outcomes:
            asked = {"--since": since, "--plan": plan, "--query": " ".join(query or ())}
            raise SymDenoiseError(
                ", ".join(f"{option} {value}" for option, value in asked.items() if value),
                rule=f"no finished run of {len(client[raw])} in {raw!r} fits",
                remedy="check the names; --older-than HOURS takes runs without a stop document too",
            )
        total = len(found) + len(outcomes)
        seconds = None if older_than is None else older_than * 3600
        if dry_run:
            outcomes += _forecast(found, work, older_than=seconds, force=force)
            for failure in outcomes:
                typer.echo(failure.result)
        else:
            _denoise(found, work, outcomes, older_than=seconds, force=force, scheduler=scheduler)
            if outcomes:
                show(outcomes)
        failed = sum(not each.ok for each in outcomes)
        typer.echo(f"{total - failed} of {total} runs {'can be ' if dry_run else ''}replayed")
        if failed:
            raise typer.Exit(1)


def all_named(raw: Container, names: list[str]) -> tuple[list[Any], list[Outcome]]:
    """Return the runs that are there, and the failures of those that are not.

    Raises
    ------
    SymDenoiseError
        If none is there.
    """
    found: list[Any] = []
    unknown: dict[str, SymDenoiseError] = {}
    for name in names:
        try:
            found.append(_named(raw, name))
        except SymDenoiseError as error:
            unknown[name] = error
    if unknown and not found:
        raise next(iter(unknown.values()))
    return found, [_failed(name, error) for name, error in unknown.items()]


def _forecast(found: list[Any], work: Work, *, older_than: float | None, force: bool) -> list[Outcome]:
    """Print what a replay of each run would do, and return the failures."""
    from bluesky_symdenoise.acquisition.past.replay import planned
    from bluesky_symdenoise.acquisition.runs.stored import stored_run

    failures = []
    for each in found:
        try:
            stored = stored_run(each, columns=work.beamline.columns)
            typer.echo(str(planned(stored, work, older_than=older_than, force=force)))
        except SymDenoiseError as error:
            failures.append(_failed(_name_of(each), error))
    return failures


def _denoise(
    found: list[Any],
    work: Work,
    outcomes: list[Outcome],
    *,
    older_than: float | None,
    force: bool,
    scheduler: Client | None,
) -> None:
    """Replay one run after another, and add what became of each; Ctrl-C shows what was done until then."""
    from bluesky_symdenoise.acquisition.past.replay import progress_bar, state
    from bluesky_symdenoise.acquisition.runs.stored import stored_run
    from bluesky_symdenoise.acquisition.service.catchup import attempt

    for each in found:
        try:
            stored = stored_run(each, columns=work.beamline.columns)
        except SymDenoiseError as error:
            outcomes.append(_failed(_name_of(each), error))
            continue
        try:
            with progress_bar(stored, work, None) as advance:
                outcome = attempt(
                    stored,
                    work,
                    was=state(stored, work),
                    older_than=older_than,
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


def _name_of(run: Any) -> str:
    return run if isinstance(run, str) else str(run.start["uid"])


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


def searched(
    raw: Container, query: list[str], plan: str | None, since: float | None, *, unfinished: bool
) -> Iterator[Any]:
    """Return the raw runs that match, oldest first."""
    from bluesky_symdenoise.catalog.find.query import with_values

    fitting = with_values(raw, [*query, *([] if plan is None else [f"plan_name={json.dumps(plan)}"])])
    for run in fitting.sort(("start.time", 1)).values():
        # Filter here and not by a query: Tiled compares times in SQLite as text.
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
            f"--rows {said}", rule="it must be FIRST:STOP, FIRST:STOP:STEP or a list", remedy="give 0:100 or 0,5,7"
        ) from error
