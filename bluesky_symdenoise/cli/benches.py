"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluesky_symdenoise.cli.root import ModelName, bench


@bench.command()
def quality(
    data: Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")],
    json_path: Annotated[Path, typer.Option("--json", help="Where to write the figures.")] = Path("quality.json"),
    model: ModelName = None,
    training_sets: Annotated[bool, typer.Option(help="Also the sets that the model was trained on, apart.")] = False,
) -> None:
    """Held-out likelihood, PSNR, flux and coverage on real frames, beside raw, Gaussian and non-local means."""
    from bluesky_symdenoise.bench.quality import main as measure

    measure(data, json_path=json_path, model=model, roles=("test", "train") if training_sets else ("test",))


@bench.command()
def live(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="thread, load, zero, throughput, memory, latency or outage; repeatable.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels along each side.")] = 1024,
    events: Annotated[int, typer.Option(min=3, help="Events of each scan.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="Scans without and with the callback.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the denoiser.")] = 1,
    memory_events: Annotated[int, typer.Option(min=100, help="Events over which memory is watched.")] = 5000,
) -> None:
    """What the callback costs a scan and what it delivers, beside the same scan without it."""
    from bluesky_symdenoise.bench.live import Options, main

    options = Options(size=size, events=events, repeats=repeats, threads=threads, memory_events=memory_events)
    main(options, only=tuple(only or ()), json_path=json_path)
