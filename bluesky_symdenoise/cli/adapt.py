"""The command that tunes a model to past runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bluesky_symdenoise.cli.catalog import opened
from bluesky_symdenoise.cli.lazy import Catalog, Runs, run_named
from bluesky_symdenoise.cli.options import Center, InvertMask, ModelName, Symmetry, given_mask
from bluesky_symdenoise.cli.root import app

#: Fewer minutes than this may not suffice; a warning is printed.
LITTLE = 2.0


@app.command()
def finetune(
    catalog: Catalog,
    runs: Runs,
    name: Annotated[str, typer.Option(help="Name of the tuned model.")],
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Run of the same scenes with more exposure, frame by frame; one for each RUN, in order."),
    ] = None,
    model: ModelName = None,
    mask: Annotated[Path | None, typer.Option(help="File with one image, not 0 = bad.")] = None,
    invert_mask: InvertMask = False,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    stream: Annotated[
        str | None, typer.Option(help="Stream of the images; by default the first that has some.")
    ] = None,
    data_key: Annotated[str | None, typer.Option(help="Data key of the images; by default the first.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Minutes for the whole command.")] = 4.5,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed: equal frames, seed and threads give equal weights.")
    ] = 0,
    recipe: Annotated[
        Path | None, typer.Option(help="Tuning recipe (TOML, the keys of a training recipe) instead of the package's.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Tune a model to raw RUNs, and register it if frames that it was not tuned on show that it got better.

    The result is printed. Exit status: 0 whether it got better or not, 1 if there was no time for a single step.
    """
    from bluesky_symdenoise.acquisition.past.finetune import finetune as tune
    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.training.fit import TrainConfig
    from bluesky_symdenoise.training.tune import TUNING

    config = TUNING if recipe is None else TrainConfig.read(recipe)
    if minutes < LITTLE:
        typer.echo(f"--minutes {minutes:g} is little: reading and scoring frames alone may take as long", err=True)
    parent = Denoiser.pretrained(model, threads=threads, device=device)
    with opened(catalog) as client:
        done = tune(
            [run_named(client, "raw", uid) for uid in runs],
            name=name,
            reference=[run_named(client, "raw", uid) for uid in reference] if reference else None,
            parent=parent,
            mask=given_mask(mask, inverted=invert_mask),
            symmetry=symmetry,
            beam_center=beam_center,
            stream=stream,
            data_key=data_key,
            minutes=minutes,
            seed=seed,
            config=config,
            progress=sys.stderr.isatty(),
        )
    if as_json:
        typer.echo(json.dumps({"registered": done.accepted, "said": done.said, "figures": done.figures}, indent=2))
    else:
        typer.echo(done.said)
    if not done.figures["steps"]:
        raise typer.Exit(1)
