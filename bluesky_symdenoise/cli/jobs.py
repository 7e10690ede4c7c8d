"""Commands that acquire, serve, denoise and train."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bluesky_symdenoise.cli.options import (
    Borrow,
    BorrowReach,
    Center,
    Defects,
    IgnoreFileMask,
    InvertMask,
    ModelName,
    Noise,
    ReadoutFile,
    Sums,
    Symmetry,
    Views,
    given_mask,
)
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bluesky_symdenoise.training.pairs import RealFrames

#: Number of frames with counts that `denoise` sums to find the symmetry.
POOLED = 8


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder that keeps the catalogue.")] = Path("symdenoise-demo"),
    images: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_GLOB", help="Play these frames: HDF5, TIFF, NPY, CBF, EDF, ..."),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="How many frames to play; by default all, at most 12.")] = None,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    model: ModelName = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to stdout, the rest to stderr.")
    ] = False,
) -> None:
    """Acquire, denoise, catalogue and query back: the main job, with nothing to set up."""
    from rich.console import Console

    from bluesky_symdenoise.demo import job
    from bluesky_symdenoise.demo.report import as_json as as_json_line

    report = job.run(
        output=output,
        images=images,
        frames=frames,
        symmetry=symmetry,
        beam_center=beam_center,
        model=model,
        console=Console(stderr=as_json),
    )
    if as_json:
        typer.echo(as_json_line(report))
    if report.failures:
        raise typer.Exit(1)


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `symdenoise demo --output` made.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
) -> None:
    """Serve the catalogue in a folder; the API key is TILED_SINGLE_USER_API_KEY, or a random one is made."""
    from bluesky_symdenoise.catalog.server.serve import serve as serve_folder

    serve_folder(directory, port=port, announce=typer.echo)


@app.command()
def denoise(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File or glob pattern of frames.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HDF5 (NeXus) file to write.")],
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    mask: Annotated[
        Path | None, typer.Option(help="File with one image, not 0 = bad; added to the mask that FILE has.")
    ] = None,
    invert_mask: InvertMask = False,
    ignore_file_mask: IgnoreFileMask = False,
    noise: Noise = None,
    readout: ReadoutFile = None,
    model: ModelName = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    defects: Defects = "find",
    views: Views = 1,
    sums: Sums = "free",
    borrow: Borrow = None,
    borrow_reach: BorrowReach = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
) -> None:
    """Denoise plain files, without a catalogue: intensity and sigma of every frame into one HDF5 file.

    With --borrow, frames are a series: files in natural order (frame_2 before frame_10), and the frames in each.
    """
    from rich.progress import track

    from bluesky_symdenoise.acquisition.request.options import asked_borrow
    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.denoiser.stack import empty_result
    from bluesky_symdenoise.derived.decision import doubts_of_counts
    from bluesky_symdenoise.derived.lending import Recent, lent_by
    from bluesky_symdenoise.files import NexusWriter, open_frames
    from bluesky_symdenoise.files.lit import first_with_counts
    from bluesky_symdenoise.files.readout_file import load_readout
    from bluesky_symdenoise.physics.counts.verdict import checked_noise
    from bluesky_symdenoise.physics.frame import as_mask
    from bluesky_symdenoise.physics.symmetry import center_without

    series = asked_borrow(borrow, borrow_reach, activity="denoise")
    denoiser = Denoiser.pretrained(model, device=device, threads=threads, defects=defects, views=views, sums=sums)
    with open_frames(file) as stack:
        bad = None if ignore_file_mask else stack.mask
        given = given_mask(mask, inverted=invert_mask)
        if given is not None:
            given = as_mask(given, (stack.shape[1], stack.shape[2]))
            bad = given if bad is None else bad | given
        first = first_with_counts(stack, POOLED, mask=bad, clock=time.monotonic)
        stated = None if readout is None else load_readout(readout)
        if stated is not None and noise is not None:
            raise SymDenoiseError(
                "--noise and --readout",
                rule="frames are photon counts, or the signal of an integrating detector",
                remedy="state one of them",
            )
        if checked_noise(noise) is None and (doubt := doubts_of_counts(first, bad, stated)):
            asked = "if they are, state --noise poisson" if stated is None else "find it with `symdenoise readout`"
            typer.echo(f"symdenoise: are these photon counts? {doubt}; {asked}", err=True)
        center = beam_center or stack.beam_center
        found = denoiser.resolve(first, mask=bad, symmetry=symmetry, beam_center=center, readout=stated)
        spare = center_without(found, center)
        failed = bad_pixels = 0
        read = Recent(lambda index: stack[index], series)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        with NexusWriter(
            output, (stack.shape[1], stack.shape[2]), date=date, sources=stack.sources, overwrite=overwrite
        ) as writer:
            for index in track(range(len(stack)), description="denoising", disable=not sys.stderr.isatty()):
                try:
                    frame = read(index)[None]
                    lent = (
                        ()
                        if series is None
                        else lent_by(series.rows(index, len(stack)), read.readable, shape=stack.shape[1:])
                    )
                    result = denoiser(frame, mask=bad, symmetry=found, beam_center=spare, readout=stated, lent=lent)
                    if series is not None:
                        # What each frame borrowed is a dataset; the parameters are the same for all.
                        result = result.assign(borrowed=result.get("borrowed", ("frame", [0.0])))
                        result.attrs["borrow"] = series.to_text()
                    bad_pixels += int((result["defect"] > 0).sum())
                except SymDenoiseError as error:
                    typer.echo(f"symdenoise: frame {index} of {file} is written as NaN: {error}", err=True)
                    failed += 1
                    result = empty_result(stack.shape[1:])
                writer.append(result)
    about = f" about (y, x) = {found.beam_center}" if found.beam_center else ""
    typer.echo(f"{output}: {len(stack) - failed} frames, symmetry {found.point_group}{about}")
    if bad_pixels:
        typer.echo(f"{bad_pixels} hot or dead pixels in all were found and masked")
    if failed:
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Recipe (TOML), such as training/recipes/fast.toml.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoint, history and weights; continued if it exists.")],
    data: Annotated[Path | None, typer.Option(help="Folder with real frames to mix in.")] = None,
    catalog: Annotated[
        str | None,
        typer.Option("--from", metavar="CATALOG_URI", help="Mix in frames of this catalogue's raw runs."),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs whose start document has it; may be repeated."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="For --from: file with one image, not 0 = bad.")] = None,
    invert_mask: InvertMask = False,
    initial: Annotated[Path | None, typer.Option(help="Weights (.safetensors) to start from.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Train a denoiser from a recipe; training can be stopped and continued at any time."""
    from bluesky_symdenoise.training.fit import TrainConfig, fit
    from bluesky_symdenoise.training.pairs import real_frames

    recipe = TrainConfig.read(config)
    real = [] if data is None else real_frames(data)
    if catalog is None and (query or mask is not None):
        raise SymDenoiseError(
            "--query, --mask", rule="these options choose among a catalogue's runs", remedy="add --from"
        )
    if catalog is not None:
        real += _frames_of_catalog(catalog, query or [], given_mask(mask, inverted=invert_mask), recipe.seed)
    typer.echo(fit(recipe, output=output, real=real, initial=initial, device=device))


def _frames_of_catalog(uri: str, query: list[str], mask: NDArray[np.bool_] | None, seed: int) -> list[RealFrames]:
    from bluesky_symdenoise.acquisition.past.stacks import catalogue_frames
    from bluesky_symdenoise.catalog.find.query import with_values
    from bluesky_symdenoise.cli.catalog import opened

    with opened(uri) as client:
        runs = with_values(client["raw"], query)
        real = list(catalogue_frames(runs.values(), mask=mask, seed=seed))
    if not real:
        raise SymDenoiseError(
            f"{uri}, {' '.join(query) or 'all runs'}",
            rule=f"none of {len(runs)} raw runs has images of photon counts",
            remedy="ask for others",
        )
    typer.echo(f"{len(real)} runs, {sum(len(each.counts) for each in real)} frames", err=True)
    return real
