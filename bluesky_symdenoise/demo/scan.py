"""The demo's scan: a RunEngine, a detector, and the writers of the raw and the derived run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bluesky.plans as bp
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.process import StartedDenoiser
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.demo.played import Input
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

#: Name of the simulated detector and of its data key.
DATA_KEY = "det"


def scan(
    client: Container,
    folder: Path,
    played: Input,
    *,
    number: int,
    denoiser: StartedDenoiser,
    symmetry: str,
    beam_center: Sequence[float] | None,
    meanwhile: Callable[[], object],
    console: Console,
) -> tuple[str, float, list[float]]:
    """Acquire with a RunEngine, writing raw and derived runs as at a beamline; return the raw uid and two timings.

    `meanwhile` is called while the frames after the first still wait, when the scan is over: nothing is timed in this
    process any more.
    """
    per_event: list[float] = []
    RE = RunEngine(call_returns_result=True)
    with init_devices():
        det = PlayDetector(played.frames, StaticPathProvider(UUIDFilenameProvider(), folder), name=DATA_KEY)
    RE.subscribe(TiledWriter(client["raw"], batch_size=1))
    callback = DenoiseCallback(
        client["denoised"],
        denoiser=denoiser,
        mask=played.mask,
        symmetry=symmetry,
        beam_center=beam_center,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, callback:
        acquired = progress.add_task("acquired", total=number)
        denoised = progress.add_task("denoised", total=number)

        def attach(name: str, doc: dict[str, Any]) -> None:
            begun = time.perf_counter()
            callback(name, doc)
            if name == "event":
                per_event.append(time.perf_counter() - begun)
                progress.advance(acquired)

        def look() -> bool:
            status = callback.status()
            progress.update(denoised, completed=status.frames + status.failed)
            return bool(status.runs)

        RE.subscribe(attach)
        begun = time.perf_counter()
        (raw_uid,) = RE(bp.count([det], num=number)).run_start_uids
        seconds = time.perf_counter() - begun
        idle = True
        while not look():
            if idle and callback.status().frames:
                idle = False
                meanwhile()
            time.sleep(0.05)
        status = callback.close()
        look()
    if status.errors and not status.frames:
        raise SymDenoiseError(f"run {raw_uid}", rule="it was not denoised", remedy=status.errors[0])
    return raw_uid, seconds, per_event
