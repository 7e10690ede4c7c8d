"""Command that tests, on all frames of runs or files, which symmetry they have and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bluesky_symdenoise.cli.options import Center, IgnoreFileMask, InvertMask, ReadoutFile, Symmetry, given_mask
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError


@app.command("symmetry")
def check(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|RUN...", help="A file or glob of frames; with --from, uids of runs.")
    ],
    catalog: Annotated[str | None, typer.Option("--from", metavar="CATALOG_URI", help="Where the runs are.")] = None,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    mask: Annotated[
        Path | None, typer.Option(help="File with one image, not 0 = bad; added to that of a file.")
    ] = None,
    invert_mask: InvertMask = False,
    ignore_file_mask: IgnoreFileMask = False,
    readout: ReadoutFile = None,
    stream: Annotated[
        str | None, typer.Option(help="Stream of the images; by default the first that has some.")
    ] = None,
    data_key: Annotated[str | None, typer.Option(help="Data key of the images; by default the first.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File (.npz) for the result, to be given as --symmetry when frames are denoised."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Picture of what differs, what could be seen, and where mates may be used."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace these files if they exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Test a symmetry on all frames together: what differs, what could have been seen, where mates may be used."""
    from bluesky_symdenoise.physics.check import RULE, refuse_bad_name

    # Check the names of the output files before the slow work.
    if output is not None:
        refuse_bad_name(output)
    if picture is not None and (picture.suffix != ".png" or not picture.parent.is_dir()):
        raise SymDenoiseError(
            str(picture), rule="a picture is NAME.png in a folder that exists", remedy="give such a name"
        )
    for each in (output, picture):
        if each is not None and each.exists() and not overwrite:
            raise SymDenoiseError(str(each), rule="the file exists", remedy="give another name or --overwrite")
    from bluesky_symdenoise.acquisition.past.symmetry import check_symmetry
    from bluesky_symdenoise.catalog.report.picture import check_figure, png
    from bluesky_symdenoise.cli.catalog import opened
    from bluesky_symdenoise.cli.lazy import run_named
    from bluesky_symdenoise.files import open_frames
    from bluesky_symdenoise.files.readout_file import load_readout

    given = given_mask(mask, inverted=invert_mask)
    stated = None if readout is None else load_readout(readout)
    if catalog is not None:
        with opened(catalog) as client:
            done = check_symmetry(
                [run_named(client, "raw", uid) for uid in sources],
                symmetry=symmetry,
                beam_center=beam_center,
                mask=given,
                readout=stated,
                stream=stream,
                data_key=data_key,
            )
    elif len(sources) > 1 or stream or data_key:
        raise SymDenoiseError(
            "several names, --stream, --data-key",
            rule="they are for runs",
            remedy="add --from, or give one file or glob",
        )
    else:
        with open_frames(sources[0]) as stack:
            own = None if ignore_file_mask else stack.mask
            bad = own if given is None else given if own is None else given | own
            center = beam_center or stack.beam_center
            done = check_symmetry(stack, symmetry=symmetry, beam_center=center, mask=bad, readout=stated)
    if output is not None:
        done.save(output)
    if picture is not None:
        picture.write_bytes(png(check_figure(done)))
    if as_json:
        typer.echo(json.dumps(done.figures(), indent=2))
        return
    typer.echo(str(done))
    if done.tests:
        typer.echo(RULE)
