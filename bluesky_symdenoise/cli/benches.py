"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluesky_symdenoise.cli.options import ModelName, Views
from bluesky_symdenoise.cli.root import bench


@bench.command()
def quality(
    data: Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    model: ModelName = None,
    views: Views = 1,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to draw the cases that gain and lose most.")
    ] = None,
    training_sets: Annotated[bool, typer.Option(help="Also the sets that the model was trained on, apart.")] = False,
    sets: Annotated[list[str] | None, typer.Option(help="Name of a set; repeatable; all if not given.")] = None,
    levels: Annotated[
        list[float] | None, typer.Option(help="Counts per pixel to thin to; repeatable; 0.1, 1, 10 and 100.")
    ] = None,
    peers: Annotated[list[str] | None, typer.Option(help="Name of a peer; repeatable; all if not given.")] = None,
    rivals: Annotated[
        list[str] | None,
        typer.Option("--rival", metavar="MODEL", help="Other weights (name or .safetensors), as a peer; repeatable."),
    ] = None,
    crop: Annotated[
        int, typer.Option(min=0, help="Largest side, in pixels, of the part of each frame that is used; 0: all of it.")
    ] = 256,
) -> None:
    """Held-out likelihood, PSNR, flux and coverage on real frames, beside other methods on the same counts."""
    from bluesky_symdenoise.bench.quality.cases import LEVELS
    from bluesky_symdenoise.bench.quality.peers import PEERS
    from bluesky_symdenoise.bench.quality.quality import main as measure

    measure(
        data,
        json_path=json_path,
        model=model,
        views=views,
        pictures=pictures,
        peers=peers or tuple(PEERS),
        rivals=rivals or (),
        roles=("test", "train") if training_sets else ("test",),
        sets=sets or (),
        levels=levels or LEVELS,
        crop=crop or None,
    )


@bench.command()
def origins(
    data: Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role, origin).")],
    initial: Annotated[
        Path,
        typer.Option(
            help="Weights (.safetensors) of simulations only, such as small-photons.toml gives without --data."
        ),
    ],
    recipe: Annotated[Path, typer.Option(help="Training recipe to go on with: small-origin.toml in training/recipes.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained weights; those that are there are kept.")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
) -> None:
    """Cross-validation: train without the frames of each origin in turn, and score on these."""
    from bluesky_symdenoise.bench.quality.origins import main

    main(data, initial=initial, recipe=recipe, output=output, json_path=json_path)


@bench.command()
def floors(
    data: Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")],
) -> None:
    """The least loss that each peer of `quality` could reach, tuned on training sets, beside what is in use."""
    from bluesky_symdenoise.bench.quality.floors import main as measure

    measure(data)


@bench.command()
def features(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    model: ModelName = None,
    frames: Annotated[int, typer.Option(min=8, help="Simulated frames of each kind and level.")] = 32,
) -> None:
    """What a model keeps of small features, makes up, and claims to know, on simulated frames of known rate."""
    from bluesky_symdenoise.bench.truth.honesty import main

    main(json_path=json_path, model=model, frames=frames)


@bench.command()
def speed(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    model: ModelName = None,
    size: Annotated[int, typer.Option(min=128, help="Pixels along each side.")] = 1024,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="CPU threads; repeatable; 1 and 2.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Frames of each.")] = 5,
    part: Annotated[int, typer.Option(min=32, help="Pixels along each side of what BM3D is given.")] = 512,
) -> None:
    """Mpixel/s and memory of the denoiser in float32 and bfloat16, beside BM3D and non-local means."""
    from bluesky_symdenoise.bench.load.speed import Options, main

    options = Options(model=model, size=size, threads=tuple(threads or (1, 2)), repeats=repeats, part=part)
    main(options, json_path=json_path)


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
    from bluesky_symdenoise.bench.load.live import Options, main

    options = Options(size=size, events=events, repeats=repeats, threads=threads, memory_events=memory_events)
    main(options, only=tuple(only or ()), json_path=json_path)


@bench.command()
def replay(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    size: Annotated[list[int] | None, typer.Option(min=8, help="Pixels along each side; 256 and 1024.")] = None,
    frames: Annotated[int, typer.Option(min=3, help="Frames of each run.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Replays of each.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the denoiser.")] = 1,
    memory_frames: Annotated[int, typer.Option(min=100, help="Frames over which memory is watched.")] = 2000,
) -> None:
    """How fast stored runs are denoised beside the denoiser alone, and how much memory that takes over a long run."""
    from bluesky_symdenoise.bench.load.replay import Options, main

    sizes = tuple(size or (256, 1024))
    main(
        Options(sizes=sizes, frames=frames, repeats=repeats, threads=threads, memory_frames=memory_frames),
        json_path=json_path,
    )


@bench.command()
def search(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where to make the databases, 4 GB in all; else where the system has its own.")
    ] = None,
    database: Annotated[
        list[str] | None, typer.Option(help="sqlite or postgresql; both if not given. PostgreSQL must be installed.")
    ] = None,
    scale: Annotated[float, typer.Option(min=0, help="Factor on 10,000 (SQLite) and 100,000 (PostgreSQL) runs.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Searches of each kind.")] = 20,
) -> None:
    """How long it takes to find denoised runs in a large catalogue."""
    from bluesky_symdenoise.bench.load.search import SIZES
    from bluesky_symdenoise.bench.load.search import main as measure

    measure(json_path=json_path, directory=directory, databases=database or tuple(SIZES), scale=scale, repeats=repeats)


@bench.command()
def serve(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels along each side, for one reader.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Frames that one reader reads.")] = 9,
    clients: Annotated[int, typer.Option(min=1, help="Readers at a time.")] = 16,
    frames: Annotated[int, typer.Option(min=2, help="Frames that each of them reads, in random order.")] = 200,
    client_size: Annotated[int, typer.Option(min=8, help="Pixels along each side of these.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the denoiser.")] = 1,
) -> None:
    """What a lazy run costs its readers: one frame, the same again, and many clients with a large and a small cache."""
    from bluesky_symdenoise.bench.load.serve import main as measure

    measure(
        json_path=json_path,
        size=size,
        repeats=repeats,
        clients=clients,
        frames=frames,
        client_size=client_size,
        threads=threads,
    )


@bench.command()
def science(
    data: Annotated[Path | None, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames for each ring and exposure.")] = 60,
    replicates: Annotated[int, typer.Option(min=2, help="Denoised frames behind the error bars of one.")] = 8,
    smae_frames: Annotated[
        int, typer.Option(min=0, help="Frames of a simulated ring on which SMAE is trained too; half a minute each.")
    ] = 0,
    model: ModelName = None,
) -> None:
    """Rings and G(r) of powders: exposure saved by denoising against raw counts and a likelihood fit; error bars."""
    from bluesky_symdenoise.bench.truth.science import main as measure

    measure(data, json_path=json_path, frames=frames, replicates=replicates, smae_frames=smae_frames, model=model)


@bench.command()
def adapt(
    data: Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    model: ModelName = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Name of a set; by default the three with the most frames.")
    ] = None,
    level: Annotated[float, typer.Option(help="Counts per pixel that frames are thinned to.")] = 1.0,
    minutes: Annotated[float, typer.Option(min=0.1, help="For each tuning.")] = 4.5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """What fine-tuning gains on real sets with role `train`: tuned on half of the frames, scored on the other half."""
    from bluesky_symdenoise.bench.quality.adapt import main as measure

    measure(data, json_path=json_path, model=model, sets=sets or (), level=level, minutes=minutes, threads=threads)


@bench.command()
def symmetry(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    simulations: Annotated[int, typer.Option(min=10, help="Symmetric patterns at each count level.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the simulated photons.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with real frames whose centres are known.")] = None,
) -> None:
    """How often the symmetry test rejects symmetric and sees asymmetric patterns, and how well centres are found."""
    from bluesky_symdenoise.bench.truth.symmetry import main as measure

    measure(json_path=json_path, simulations=simulations, seed=seed, data=data)


@bench.command()
def tilt(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    model: ModelName = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="Simulated frames of each pattern.")] = 4,
) -> None:
    """What it is worth to know the tilt of a detector, on simulated rings and arcs, and what finding mates costs."""
    from bluesky_symdenoise.bench.truth.tilt import main as measure

    measure(json_path=json_path, model=model, threads=threads, frames=frames)


@bench.command()
def dask(
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels along each side.")] = 512,
    frames: Annotated[int, typer.Option(min=16, help="Frames of the run.")] = 48,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of replays, with one worker and with two.")] = 3,
) -> None:
    """How fast a Dask cluster of one and of two single-threaded workers replays, and what a killed worker costs."""
    from bluesky_symdenoise.bench.load.dask import Options, main

    main(Options(size=size, frames=frames, repeats=repeats), json_path=json_path)
