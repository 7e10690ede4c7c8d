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
    size: Annotated[int, typer.Option(min=8, help="Pixels along each side.")] = 1024,
    events: Annotated[int, typer.Option(min=3, help="Events of each scan.")] = 30,
    dwell: Annotated[float, typer.Option(min=0, help="Seconds from frame to frame.")] = 0.1,
    repeats: Annotated[int, typer.Option(min=1, help="Scans without and with the callback.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the denoiser.")] = 1,
) -> None:
    """What the callback costs a scan: the same scan without and with it."""
    from bluesky_symdenoise.bench.live import main as measure

    measure(json_path=json_path, size=size, events=events, dwell=dwell, repeats=repeats, threads=threads)


@bench.command()
def symmetry(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    simulations: Annotated[int, typer.Option(min=10, help="Symmetric patterns at each count level.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the simulated photons.")] = 0,
) -> None:
    """How often the symmetry test rejects symmetric patterns, and how often it sees asymmetric ones."""
    from bluesky_symdenoise.bench.symmetry import main as measure

    measure(json_path=json_path, simulations=simulations, seed=seed)
