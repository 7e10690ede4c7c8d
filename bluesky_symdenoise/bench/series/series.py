"""What frames gain from the photons of other frames of their series, and what that costs, beside peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bluesky_symdenoise.bench.options import DenoiserThreads, JsonPath, ModelName
from bluesky_symdenoise.bench.quality.comparison import figures_table
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.bench.series import costs, lag, mapped, parts, powder
from bluesky_symdenoise.bench.series.compared import Row
from bluesky_symdenoise.bench.series.figures import figures, gains
from bluesky_symdenoise.bench.series.methods import PEERS, StackPeer
from bluesky_symdenoise.bench.series.stacks import LEVELS
from bluesky_symdenoise.bench.series.tables import tables
from bluesky_symdenoise.bench.simulated.powders import powders
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError

PARTS = ("real", "still", "simulated", "lag", "row", "map", "pdf", "cost")
_PAGE = 190


@dataclass(frozen=True)
class Options:
    """Sizes of the measurement.

    Attributes
    ----------
    levels
        Counts per pixel that rows have.
    rows
        Rows of a real series, at most.
    crop
        Pixels along each side.
    frames
        Simulated series of each kind, for lags and spots.
    maps
        Maps of each kind.
    pdf_frames
        Frames of the powder.
    speed_sides
        Pixels along each side of frames whose speed is measured.
    memory_rows
        Rows over which memory is watched.
    """

    levels: tuple[float, ...] = LEVELS
    rows: int = 12
    crop: int = 128
    frames: int = 6
    maps: int = 2
    jumps: tuple[float, ...] = mapped.JUMPS
    pdf_frames: int = powder.FRAMES
    pdf_levels: tuple[float, ...] = powder.LEVELS
    speed_sides: tuple[int, ...] = (256, 1024)
    memory_rows: int = 5000
    seed: int = 0


QUICK = Options(
    levels=(0.2, 5.0),
    rows=8,
    crop=64,
    frames=2,
    maps=1,
    jumps=(2.0, 8.0),
    pdf_frames=5,
    pdf_levels=(0.3,),
    speed_sides=(256,),
    memory_rows=300,
)


def run(
    denoiser: Denoiser,
    peers: Mapping[str, StackPeer],
    options: Options,
    *,
    which: Sequence[str] = PARTS,
    data: Path | None = None,
    sets: Sequence[str] = (),
) -> Iterator[Row]:
    """Yield the figures of the parts, in their order; real series only if there is a folder of them."""
    levels, crop, seed = options.levels, options.crop, options.seed
    few = tuple(level for level in levels if level >= 0.1)
    if "real" in which and data is not None:
        yield from parts.real(data, denoiser, peers, sets=sets, levels=levels, rows=options.rows, crop=crop, seed=seed)
    if "still" in which:
        yield from parts.still(data, denoiser, levels=levels, crop=crop, seed=seed, sets=sets)
    if "simulated" in which:
        yield from parts.simulated(denoiser, peers, levels=levels, crop=min(crop, 96), seed=seed)
    if "lag" in which:
        yield from lag.transitions(denoiser, levels=few, frames=options.frames, side=min(crop, 96), seed=seed)
    if "row" in which:
        yield from lag.in_one_row(denoiser, levels=few, frames=options.frames, side=min(crop, 96), seed=seed)
    if "map" in which:
        for row in mapped.run(denoiser, level=0.5, maps=options.maps, seed=seed, jumps=options.jumps):
            yield row | {"what": "map", "in_reach": mapped.in_reach()}
    if "pdf" in which:
        for row in powder.run(denoiser, powders()[0], levels=options.pdf_levels, frames=options.pdf_frames, seed=seed):
            yield row | {"what": "G(r)"}
    if "cost" in which:
        for side in options.speed_sides:
            yield costs.speed(denoiser, side=side)
        yield costs.memory(denoiser, rows=options.memory_rows)


def main(
    json_path: JsonPath = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role); none: simulated only.")
    ] = None,
    model: ModelName = None,
    part: Annotated[
        list[str] | None, typer.Option(help=f"Part: {', '.join(PARTS)}; repeatable; all if not given.")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="Name of a peer, or none; repeatable; all if not given.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option(help="Name of a set; repeatable; all if not given.")] = None,
    levels: Annotated[
        list[float] | None, typer.Option(help="Counts per pixel; repeatable; 0.05, 0.2, 1 and 5.")
    ] = None,
    crop: Annotated[int | None, typer.Option(min=32, help="Largest side, in pixels, of the rows; 128.")] = None,
    rows: Annotated[int | None, typer.Option(min=5, help="Rows of a real series, at most; 12.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small subset, in minutes.")] = False,
    threads: DenoiserThreads = 2,
) -> list[Row]:
    """Measure what frames gain from the photons of other frames of their series, and what it costs, beside peers.

    Rows of real series are thinned and scored on the photons left over; simulated ones against the true rate.
    """
    which = tuple(part or PARTS)
    named = [name for name in peers or PEERS if name != "none"]
    for kind, asked, known in (("part", which, PARTS), ("peer", named, tuple(PEERS))):
        if unknown := sorted(set(asked) - set(known)):
            raise SymDenoiseError(
                f"{kind} {unknown[0]!r}", rule=f"it must be one of {', '.join(known)}", remedy="choose among these"
            )
    base = asdict(QUICK if quick else Options())
    given: dict[str, Any] = {"levels": tuple(levels) if levels else None, "crop": crop, "rows": rows}
    options = Options(**base | {name: value for name, value in given.items() if value is not None})
    denoiser = Denoiser.pretrained(model, threads=threads)
    about = header(model_file(model), device=denoiser.environment()["device"])
    chosen = {name: PEERS[name] for name in named}
    found: list[Row] = []
    progress, last = Console(stderr=True), ""
    for row in run(denoiser, chosen, options, which=which, data=data, sets=sets or ()):
        found.append(row)
        write(json_path, about, content(found, options))
        said = " ".join(str(row[name]) for name in ("part", "series", "what", "pattern", "level") if name in row)
        if said != last:
            progress.print(said)
        last = said
    console = Console()
    if not console.is_terminal:
        console.width = _PAGE
    for table in tables(found):
        console.print(table)
    written = content(found, options)
    console.print(figures_table(written, title="frames that share photons"))
    write(json_path, about, written)
    return found


def content(found: Sequence[Row], options: Options) -> dict[str, Any]:
    """Return what the JSON file holds: figures, a line for each series, and all that was measured."""
    return {
        "options": asdict(options),
        "figures": [asdict(figure) for figure in figures(found)],
        "gains": [gains(row) for row in found if "methods" in row],
        "results": list(found),
    }
