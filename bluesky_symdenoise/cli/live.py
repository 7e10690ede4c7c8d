"""Commands that denoise what a Tiled server holds or receives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.catalog import opened
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
    RedoOlder,
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
    from tiled.client.container import Container

    from bluesky_symdenoise.acquisition.request.request import Work
    from bluesky_symdenoise.acquisition.service.catchup import Outcome
    from bluesky_symdenoise.denoiser.infer import Denoiser


@app.command("catch-up")
def catch_up(
    uri: Uri,
    since: Annotated[datetime | None, typer.Option(help="Only raw runs that began after this, local time.")] = None,
    older_than: OlderThan = None,
    redo_older: RedoOlder = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
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
) -> None:
    """Finish what was missed: raw runs without a complete derived run; the API key comes from TILED_API_KEY.

    Rows that a killed writer had finished are kept. Exit status 1 means that something could not be finished.
    """
    from rich.console import Console
    from rich.progress import track

    from bluesky_symdenoise.acquisition.deliver.delivery import send_spooled
    from bluesky_symdenoise.acquisition.live.backlog import left_files, left_with_other_settings
    from bluesky_symdenoise.acquisition.request.earlier import earlier_recipes
    from bluesky_symdenoise.acquisition.service.catchup import finish, finish_left, tidy, unfinished, works_left
    from bluesky_symdenoise.denoiser.infer import Denoiser

    with opened(uri, raw=raw, denoised=denoised) as client:
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
        }
        denoiser = Denoiser.pretrained(
            model,
            device=device,
            threads=threads,
            defects=defects,
            views=views,
            sums=sums,
            algorithm=algorithm,
        )
        work = planned_work(client[denoised], settings, given, activity="catch-up", denoiser=denoiser)
        seconds = None if older_than is None else older_than * 3600
        done: dict[str, Outcome] = {}
        for line in left_with_other_settings(work, but=earlier_recipes(work)):
            typer.echo(line, err=True)
        if not dry_run:
            for run in send_spooled(work):
                typer.echo(f"{run.raw_uid}  had waited on disk, sent: {run.outcome}")
            done = {each.uid: each for each in finish_left(work, older_than=seconds)}
        found = list(
            unfinished(
                client[raw],
                work,
                since=None if since is None else since.timestamp(),
                older_than=seconds,
                redo_older=redo_older,
            )
        )
        endless = sum(not item.ready for item in found)
        if endless:
            remedy = "--older-than HOURS takes those that were interrupted"
            typer.echo(f"{endless} raw runs have no stop document; {remedy}", err=True)
        if dry_run:
            for file, head in (left for each in works_left(work) for left in left_files(each)):
                file.close()
                typer.echo(f"{head.raw_uid}  left by a callback whose process ended")
            for item in found:
                typer.echo(f"{item.uid}  {item.state}")
            typer.echo(f"{len(found)} raw runs without a complete derived run")
            return
        found = [item for item in found if item.ready]
        # Catalogued runs come second: their outcome is more informative than that of left-over documents.
        for item in track(
            found, description="catching up", disable=not sys.stderr.isatty(), console=Console(stderr=True)
        ):
            done[item.uid] = finish(item, work, older_than=seconds)
        outcomes = list(done.values())
        tidy(work)
        if outcomes:
            show(outcomes)
        left = sum(not each.ok for each in outcomes)
        typer.echo(f"{len(outcomes) - left} of {len(outcomes)} runs caught up")
        if left:
            raise typer.Exit(1)


def show(outcomes: Sequence[Outcome]) -> None:
    """Print what became of runs, as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("raw run", "was", "frames", "failed", "s", "now")
    for each in outcomes:
        # Only uids are shortened: other values are names of runs that were not found, as the user typed them.
        name = each.uid[:8] if len(each.uid) == 36 else each.uid
        row = (name, each.state, str(each.frames), str(each.failed), f"{each.seconds:.1f}", each.result)
        table.add_row(*map(escape, row))
    Console().print(table)


def planned_work(
    container: Container,
    settings: Path | None,
    given: dict[str, Any],
    *,
    activity: str,
    denoiser: Denoiser,
    rows: slice | Sequence[int] | None = None,
) -> Work:
    """Return the work of a file's arguments, which those of the command line override; the server has been tested."""
    from bluesky_symdenoise.acquisition.deliver.probe import check_server
    from bluesky_symdenoise.acquisition.request.request import Work
    from bluesky_symdenoise.acquisition.request.toml import read_arguments

    said = {} if settings is None else read_arguments(settings)
    said |= {name: value for name, value in given.items() if value not in (None, "auto")}
    work = Work.planned(container, activity=activity, denoiser=denoiser, rows=rows, **said)
    check_server(work)
    return work


@app.command()
def watch(
    uri: Uri,
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
    zmq: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Documents from a 0MQ proxy instead of Tiled's streaming.")
    ] = None,
    kafka: Annotated[str | None, typer.Option(metavar="SERVERS", help="Documents from Kafka instead.")] = None,
    topic: Annotated[str, typer.Option(help="Topic of the documents, with --kafka.")] = "bluesky",
    group: Annotated[str, typer.Option(help="Consumer group, with --kafka.")] = "symdenoise",
    sweep: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Interval between searches for runs that were missed.")
    ] = 300,
    since: Annotated[
        datetime | None, typer.Option(help="Search for missed runs among those that began after this, local time.")
    ] = None,
    older_than: OlderThan = None,
    redo_older: RedoOlder = False,
    host: Annotated[str, typer.Option(help="Address on which /healthz and /metrics listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of /healthz and /metrics; 0 takes a free one.")] = 9464,
    model: ModelName = None,
    device: Device = "auto",
    threads: Threads = None,
    defects: Defects = "find",
    views: Views = 1,
    sums: Sums = "free",
    algorithm: Algorithm = None,
) -> None:
    """Follow raw runs and denoise them while they grow, until Ctrl-C or SIGTERM; the API key comes from TILED_API_KEY.

    Runs that were missed, because of a crash or before the start, are found in the catalogue and finished.
    """
    import logging

    from bluesky_symdenoise.acquisition.service.health import Health, served
    from bluesky_symdenoise.acquisition.service.sources import DocumentSource, KafkaSource, ZmqSource
    from bluesky_symdenoise.acquisition.service.tiled_source import TiledSource, endings_without_traceback
    from bluesky_symdenoise.acquisition.service.watch import Watch, only_one
    from bluesky_symdenoise.catalog.server.serve import stop_signal
    from bluesky_symdenoise.denoiser.infer import Denoiser

    if zmq and kafka:
        raise SymDenoiseError("--zmq and --kafka", rule="only one source can be used", remedy="give one of them")
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("bluesky_symdenoise").setLevel(logging.INFO)
    with opened(uri, raw=raw, denoised=denoised) as client:
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
        }
        denoiser = Denoiser.pretrained(
            model,
            device=device,
            threads=threads,
            defects=defects,
            views=views,
            sums=sums,
            algorithm=algorithm,
        )
        work = planned_work(client[denoised], settings, given, activity="watch", denoiser=denoiser)
        health = Health()
        with (
            endings_without_traceback(),
            stop_signal() as stop,
            only_one(work),
            served(health, host=host, port=port) as listening,
        ):
            source: DocumentSource
            if zmq:
                source = ZmqSource(zmq)
            elif kafka:
                source = KafkaSource(kafka, topic, group=group)
            else:
                source = TiledSource(client[raw], columns=work.beamline.columns)
            typer.echo(f"watching {uri}; http://{host}:{listening}/healthz and /metrics")
            older = None if older_than is None else older_than * 3600
            Watch(
                work,
                source,
                client[raw],
                health=health,
                stop=stop,
                sweep_every=sweep,
                older_than=older,
                since=None if since is None else since.timestamp(),
                redo_older=redo_older,
            ).run()
    typer.echo("stopped")
