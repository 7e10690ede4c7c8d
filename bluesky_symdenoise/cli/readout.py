"""Command that finds the readout of a detector from frames of runs or files."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.options import Center, IgnoreFileMask, InvertMask, given_mask
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bluesky_symdenoise.physics.integrating.found import FoundReadout
    from bluesky_symdenoise.physics.symmetry import Symmetry


@app.command("readout")
def find(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|RUN...", help="Files or globs of frames; with --from, uids of runs.")
    ],
    catalog: Annotated[str | None, typer.Option("--from", metavar="CATALOG_URI", help="Where the runs are.")] = None,
    dark: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="File or glob of frames without photons; may be given several times."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="File with one image, not 0 = bad; added to that of a file.")
    ] = None,
    invert_mask: InvertMask = False,
    ignore_file_mask: IgnoreFileMask = False,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of exposures of which each frame is the mean; by default what values say."
        ),
    ] = None,
    symmetry: Annotated[
        str,
        typer.Option(
            help="2, m, my, 2mm, 4, 4mm: the pattern's, about --beam-center; mates are compared where one frame, or "
            "frames that differ, say too little."
        ),
    ] = "1",
    beam_center: Center = None,
    stream: Annotated[
        str | None, typer.Option(help="Stream of the images; by default the first that has some.")
    ] = None,
    data_key: Annotated[str | None, typer.Option(help="Data key of the images; by default the first.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="TOML", help="File for what was found.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Picture of the photon transfer curves.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace these files if they exist.")] = False,
) -> None:
    """Find gain, read noise and spread of light of an integrating detector from its frames, and write them as TOML."""
    from bluesky_symdenoise.catalog.report.picture import png
    from bluesky_symdenoise.catalog.report.readout import readout_figure
    from bluesky_symdenoise.files.readout_file import map_file, readout_toml, refuse_readout_name, save_readout

    # Check the names of the output files before the slow work.
    if output is not None:
        refuse_readout_name(output, *([map_file(output, "offset")] if dark else []), overwrite=overwrite)
    if plot is not None:
        if plot.suffix != ".png" or not plot.parent.is_dir():
            raise SymDenoiseError(
                str(plot), rule="a picture is NAME.png in a folder that exists", remedy="give such a name"
            )
        if plot.exists() and not overwrite:
            raise SymDenoiseError(str(plot), rule="the file exists", remedy="give another name or --overwrite")
    if catalog is None and (stream or data_key):
        raise SymDenoiseError("--stream, --data-key", rule="they are for runs", remedy="add --from")
    given = given_mask(mask, inverted=invert_mask)
    group = _group(symmetry, beam_center)
    if catalog is None:
        found = _of_files(sources, dark or [], given, group, frames, ignore_file_mask=ignore_file_mask)
    else:
        found = _of_runs(catalog, sources, dark or [], given, group, frames, stream=stream, data_key=data_key)
    for line in said(found):
        typer.echo(line)
    if output is not None:
        save_readout(found, output, overwrite=overwrite)
    if plot is not None:
        plot.write_bytes(png(readout_figure(found)))
    typer.echo("")
    typer.echo(readout_toml(found, output or "readout.toml"), nl=False)
    if output is None and ".npy" in readout_toml(found):
        typer.echo("# a map is written with --output")


def said(found: FoundReadout) -> list[str]:
    """Return the photon transfer curves of a readout as lines of a table."""
    lines = []
    for curve in found.curves[:1]:
        lines.append(f"{'signal':>12} {'variance':>12} {'+/-':>9}")
        rows = zip(curve.mean, curve.variance, curve.error, strict=True)
        lines += [f"{mean:>#12.5g} {variance:>#12.5g} {error:>#9.2g}" for mean, variance, error in rows]
        lines.append("")
    lines.append(f"{'pixels':>8} {'slope':>10} {'+/-':>8} {'without photons':>16} {'+/-':>8}")
    for curve in found.curves:
        size = f"{curve.binning} x {curve.binning}"
        lines.append(
            f"{size:>8} {curve.gain:>#10.4g} {curve.gain_error:>#8.2g} {curve.constant:>#16.4g} "
            f"{curve.constant_error:>#8.2g}"
        )
    return lines


def _group(symbol: str, center: tuple[float, float] | None) -> Symmetry | None:
    """Return the symmetry of which mates may be taken; None for none."""
    from bluesky_symdenoise.physics.check import stated_symmetry
    from bluesky_symdenoise.physics.symmetry import Symmetry, checked_symmetry

    if symbol == "1":
        return None
    stated = stated_symmetry(symbol)
    if isinstance(stated, Symmetry):
        return stated
    checked_symmetry(stated)
    if stated.startswith("auto") or center is None:
        raise SymDenoiseError(
            f"symmetry {symbol}" + ("" if center else " without a centre"),
            rule="noise is read from pairs of mates, whose places must be known",
            remedy="name a group and its --beam-center, or give several frames",
        )
    return Symmetry(stated, center)


def _darks(names: list[str]) -> list[NDArray[Any]]:
    from bluesky_symdenoise.files import open_frames
    from bluesky_symdenoise.physics.integrating.finding import MOST_FRAMES

    if not names:
        return []
    with open_frames(names) as stack:
        return list(stack[:MOST_FRAMES])


def _of_files(
    names: list[str],
    dark: list[str],
    mask: NDArray[Any] | None,
    group: Symmetry | None,
    averaged: int | None,
    *,
    ignore_file_mask: bool,
) -> FoundReadout:
    from bluesky_symdenoise.files import open_frames
    from bluesky_symdenoise.physics.frame import as_mask
    from bluesky_symdenoise.physics.integrating.finding import readout_from_frames

    with open_frames(names) as stack:
        bad = as_mask(mask, (stack.shape[1], stack.shape[2]))
        if stack.mask is not None and not ignore_file_mask:
            bad = bad | stack.mask
        return readout_from_frames(stack, darks=_darks(dark), mask=bad, averaged=averaged, symmetry=group)


def _of_runs(
    catalog: str,
    names: list[str],
    dark: list[str],
    mask: NDArray[Any] | None,
    group: Symmetry | None,
    averaged: int | None,
    *,
    stream: str | None,
    data_key: str | None,
) -> FoundReadout:
    from bluesky_symdenoise.acquisition.past.stacks import stacks_of
    from bluesky_symdenoise.cli.catalog import opened
    from bluesky_symdenoise.cli.lazy import run_named
    from bluesky_symdenoise.physics.integrating.finding import readout_from_frames

    with opened(catalog) as client:
        runs = [run_named(client, "raw", uid) for uid in names]
        stacks = stacks_of(runs, stream=stream, data_key=data_key)
        frames: Iterable[NDArray[Any]] = chain.from_iterable(map(one.read, range(one.shape[0])) for one in stacks)
        return readout_from_frames(frames, darks=_darks(dark), mask=mask, averaged=averaged, symmetry=group)
