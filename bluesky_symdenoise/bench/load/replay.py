"""Replay compared with the denoiser alone: throughput for several frame sizes, and memory over a long run."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bluesky_tiled_plugins import TiledWriter

from bluesky_symdenoise.acquisition.past.in_memory import denoised_when_read
from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.request import Request, Work
from bluesky_symdenoise.acquisition.runs.stored import stored_run
from bluesky_symdenoise.bench.load.live import Row, report
from bluesky_symdenoise.bench.load.scans import resident, run_documents
from bluesky_symdenoise.bench.load.server import ServerProcess, served
from bluesky_symdenoise.bench.options import DenoiserThreads, DeviceName, JsonPath
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser

#: Number of frames that are computed at a time in memory.
BLOCK = 20


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions of the measurement.

    Attributes
    ----------
    sizes
        Pixels along each side.
    frames
        Frames of each run.
    repeats
        Replays of each, alternating with the denoiser alone; medians are given.
    threads
        CPU threads of the denoiser.
    memory_frames
        Frames of 64 x 64 over which memory is watched.
    device
        Device of the denoiser.
    """

    sizes: tuple[int, ...]
    frames: int
    repeats: int
    threads: int
    memory_frames: int
    device: str = "auto"


def _written(server: ServerProcess, folder: Path, counts: np.ndarray[Any, Any], frames: int) -> Any:
    """Return a raw run in the catalogue."""
    writer, documents = TiledWriter(server.client["raw"]), run_documents(folder, counts, frames)
    for name, doc in documents:
        writer(name, doc)
    return server.client["raw"][documents[0][1]["uid"]]


def throughput(server: ServerProcess, folder: Path, options: Options, size: int) -> list[Row]:
    """Return frames per second of the denoiser in a loop, of a replay into the catalogue, and of one in memory."""
    counts = np.random.default_rng(0).poisson(1.0, (4, size, size)).astype(np.uint16)
    run = _written(server, folder, counts, options.frames)
    denoiser = Denoiser.pretrained(device=options.device, threads=options.threads)
    denoiser(counts[0], symmetry="1")
    taken: dict[str, list[float]] = {"alone": [], "replay": [], "sustained": [], "memory": []}
    moments: list[float] = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        for row in range(options.frames):
            denoiser(counts[row % len(counts)], symmetry="1")
        taken["alone"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        work = Work.planned(server.client["denoised"], activity="replay", denoiser=denoiser, symmetry="1")
        moments.clear()
        replay_with(
            work,
            stored_run(run, columns=work.beamline.columns),
            force=True,
            finished_frame=lambda _: moments.append(time.perf_counter()),
        )
        taken["replay"].append(time.perf_counter() - begun)
        # Leave out the first half, with the rows that waited for the beginning of the run.
        later = moments[options.frames // 2 :]
        taken["sustained"].append((later[-1] - later[0]) * options.frames / (len(later) - 1))
        begun = time.perf_counter()
        asked = Request.asked(activity="replay", denoiser=denoiser, symmetry="1")
        lazy = denoised_when_read(stored_run(run), asked)
        for row in range(0, options.frames, BLOCK):
            lazy["det_denoised"][row : row + BLOCK].compute()
        taken["memory"].append(time.perf_counter() - begun)
    rate = {name: options.frames / float(np.median(seconds)) for name, seconds in taken.items()}
    about = f"{size} x {size}"
    return [
        Row(f"{about}: denoiser alone", rate["alone"], "frames/s", ""),
        Row(f"{about}: replay into Tiled, beginning and end included", rate["replay"], "frames/s", ""),
        Row("  of the denoiser alone", 100 * rate["replay"] / rate["alone"], "%", ">= 90"),
        Row("  over the second half of its rows", 100 * rate["sustained"] / rate["alone"], "%", ">= 90"),
        Row(f"{about}: replay in memory, {BLOCK} frames at a time", rate["memory"], "frames/s", ""),
        Row("  of the denoiser alone", 100 * rate["memory"] / rate["alone"], "%", ""),
    ]


def memory(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return growth of this process's resident memory over a long run of small frames, after its first tenth."""
    counts = np.random.default_rng(0).poisson(1.0, (64, 64, 64)).astype(np.uint16)
    run = _written(server, folder, counts, options.memory_frames)
    denoiser = Denoiser.pretrained(device=options.device, threads=options.threads)
    work = Work.planned(server.client["denoised"], activity="replay", denoiser=denoiser, symmetry="1")
    measured: list[float] = []
    replay_with(
        work,
        stored_run(run, columns=work.beamline.columns),
        finished_frame=lambda _: measured.append(resident(os.getpid())),
    )
    n = options.memory_frames
    at = {part: measured[min(n - 1, int(part * n))] for part in (0.1, 0.5, 1.0)}
    return [
        Row(f"memory after {n // 10} frames of 64 x 64", at[0.1], "MB", ""),
        Row(f"  grew by, after {n // 2}", at[0.5] - at[0.1], "MB", ""),
        Row(f"  grew by, after {n}", at[1.0] - at[0.1], "MB", "<= 50"),
        Row(f"  {n} raw frames are", n * counts[0].nbytes / 1e6, "MB", ""),
    ]


def main(
    json_path: JsonPath = None,
    size: Annotated[list[int] | None, typer.Option(min=8, help="Pixels along each side; 256 and 1024.")] = None,
    frames: Annotated[int, typer.Option(min=3, help="Frames of each run.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Replays of each.")] = 3,
    threads: DenoiserThreads = 1,
    memory_frames: Annotated[int, typer.Option(min=100, help="Frames over which memory is watched.")] = 2000,
    device: DeviceName = "auto",
) -> dict[str, list[Row]]:
    """Measure how fast stored runs are denoised, beside the denoiser alone, and the memory that a long run takes."""
    sizes = tuple(size or (256, 1024))
    options = Options(
        sizes=sizes, frames=frames, repeats=repeats, threads=threads, memory_frames=memory_frames, device=device
    )
    about = header(model_file(), device=Denoiser.pretrained(device=device).environment()["device"])
    title = (
        f"{options.frames} frames a run, medians of {options.repeats}, denoiser on {options.threads} thread(s), "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before"
    )
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server:
        folder = Path(home) / "frames"
        for side in options.sizes:
            results[f"throughput {side}"] = throughput(server, folder, options, side)
        results["memory"] = memory(server, folder, options)
    report(results, vars(options), title=title, about=about, json_path=json_path)
    return results
