"""Commands that measure: each is the `main` of its bench, which is imported when it is called."""

from __future__ import annotations

import shlex
from functools import cached_property
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from bluesky_symdenoise.bench.record import TYPED
from bluesky_symdenoise.cli.root import app

#: By name: the module below `bluesky_symdenoise.bench`, and the first line of its docstring.
BENCHES = {
    "quality": (
        "quality.quality",
        "Score likelihood, PSNR, flux and coverage on held-out real photons, beside other methods on the same counts.",
    ),
    "origins": (
        "quality.origins",
        "Cross-validate: train without the frames of each origin in turn, and score on these.",
    ),
    "floors": (
        "quality.floors",
        "Tune the least rate that each peer of `quality` may predict, on training sets, beside what is in use.",
    ),
    "features": (
        "truth.honesty",
        "Measure what a model keeps of small features, makes up, and claims to know, on frames of known rate.",
    ),
    "sums": (
        "truth.sums",
        "Measure how far sums of rings, sectors and boxes are from those of the counts, left free and made to agree.",
    ),
    "speed": (
        "computing.speed",
        "Measure Mpixel/s and memory of the denoiser by symmetry, size and dtype, beside peers or another version.",
    ),
    "live": (
        "load.live",
        "Measure what the callback costs a scan and what it delivers, beside the same scan without it.",
    ),
    "start": (
        "load.start",
        "Measure how long it takes until a new process is of use: imports, commands, the callback, the demo; and "
        "closing.",
    ),
    "replay": (
        "load.replay",
        "Measure how fast stored runs are denoised, beside the denoiser alone, and the memory that a long run takes.",
    ),
    "search": ("load.search", "Measure how long it takes to find denoised runs in a large catalogue."),
    "serve": (
        "load.serve",
        "Measure what a lazy run costs its readers: one frame, the same again, and many clients at a time.",
    ),
    "page": (
        "load.page",
        "Measure how long report pages take: drawn, from memory, several users at once, and a read of an array beside.",
    ),
    "science": (
        "truth.science",
        "Measure rings and G(r) of powders: exposure saved against raw counts and a likelihood fit; error bars.",
    ),
    "series": (
        "series.series",
        "Measure what frames gain from the photons of other frames of their series, and what it costs, beside peers.",
    ),
    "adapt": (
        "quality.adapt",
        "Measure what fine-tuning gains on real sets: tuned on half of the frames, scored on the other half.",
    ),
    "integrating": (
        "truth.integrating",
        "Measure flux, coverage, spots and likelihood on simulated CCD frames, beside BM3D of the stabilised frame.",
    ),
    "symmetry": (
        "truth.symmetry",
        "Measure how often the symmetry test rejects symmetric and sees asymmetric patterns, and errors of centres.",
    ),
    "counts": (
        "truth.counts",
        "Measure how often frames are taken for photon counts that are none, and the other way round.",
    ),
    "readout": (
        "truth.readout",
        "Measure how well gain, read noise and averaged exposures of simulated detectors are found, or refused.",
    ),
    "tilt": (
        "truth.tilt",
        "Measure what it is worth to know the tilt of a detector, on simulated rings and arcs, and what mates cost.",
    ),
    "dask": (
        "load.dask",
        "Measure replay on a Dask cluster of one and of two single-threaded workers, and with a killed worker.",
    ),
    "report": ("measured.page", "Write the page of measured figures from the JSON files that benches wrote."),
}


class Deferred(TyperCommand):
    """Stand for a command until it is used, so that listing it imports nothing."""

    def __init__(self, name: str, module: str, *, help: str) -> None:
        super().__init__(name, help=help)
        self._module = f"bluesky_symdenoise.bench.{module}"

    @cached_property
    def loaded(self) -> Any:
        """The command itself."""
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(import_module(self._module).main)
        return typer.main.get_command(alone)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse with the command itself, which is then invoked."""
        return self.loaded.make_context(info_name, args, parent=parent, **extra)


class Benches(TyperGroup):
    """Hold the commands of the table, and note what was typed."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands.update((name, Deferred(name, module, help=said)) for name, (module, said) in BENCHES.items())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and remember the command line while the command runs."""
        token = TYPED.set(shlex.join(["symdenoise", "bench", *args]))
        ctx.call_on_close(lambda: TYPED.reset(token))
        return super().parse_args(ctx, args)


app.add_typer(
    typer.Typer(cls=Benches, no_args_is_help=True, help="Measure; prints a table and writes JSON."), name="bench"
)
