"""Speed and memory of the denoiser on one large frame, compared with BM3D and non-local means."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from bluesky_symdenoise.bench.load.live import Row, report
from bluesky_symdenoise.bench.options import JsonPath, ModelName
from bluesky_symdenoise.bench.quality.stabilised import bm3d, nlm
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.denoiser.identity import model_file

#: Target in Mpixel/s by the dtype of the network, with two threads.
WANTED = {"float32": 2.5, "bfloat16": 5.0}


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions of the measurement.

    Attributes
    ----------
    model
        Name of the model; None for the default one.
    size
        Pixels along each side of the frame.
    threads
        CPU threads of the denoiser, each in turn.
    repeats
        Frames of each; medians are given.
    part
        Pixels along each side of the part of the frame that peers are given; their time is scaled by area.
    """

    model: str | None
    size: int
    threads: tuple[int, ...]
    repeats: int
    part: int


def frame(size: int) -> NDArray[np.float64]:
    """Return a simulated frame of rings at about one count per pixel."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    rate = 0.3 + 0.7 * (1 + np.cos(np.hypot(y, x) / 8))
    return np.random.default_rng(0).poisson(rate).astype(np.float64)


def _status(key: str) -> float:
    """Return a figure in kB of this process's /proc/self/status, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024 / 1e6


def timed(options: Options, *, threads: int, dtype: str) -> tuple[float, float]:
    """Return median seconds per frame, and the first frame's peak memory above the process with weights, in MB."""
    from bluesky_symdenoise.denoiser.infer import Denoiser

    denoiser = Denoiser.pretrained(options.model, device="cpu", threads=threads, dtype=dtype)
    counts = frame(options.size)
    denoiser(counts[:128, :128], symmetry="1")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = _status("VmRSS")
    seconds = []
    for _ in range(1 + options.repeats):
        begun = time.perf_counter()
        denoiser(counts, symmetry="1")
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[1:])), _status("VmHWM") - before


def main(
    json_path: JsonPath = None,
    model: ModelName = None,
    size: Annotated[int, typer.Option(min=128, help="Pixels along each side.")] = 1024,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="CPU threads; repeatable; 1 and 2.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Frames of each.")] = 5,
    part: Annotated[int, typer.Option(min=32, help="Pixels along each side of what BM3D is given.")] = 512,
) -> dict[str, list[Row]]:
    """Measure Mpixel/s and memory of the denoiser in float32 and bfloat16, beside BM3D and non-local means."""
    about = header(model_file(model))
    options = Options(model=model, size=size, threads=tuple(threads or (1, 2)), repeats=repeats, part=part)
    title = (
        f"{options.size} x {options.size}, symmetry 1, medians of {options.repeats}, "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before"
    )
    pixels = options.size**2
    ours: list[Row] = []
    fastest: dict[str, float] = {}
    spawn = multiprocessing.get_context("spawn")
    for dtype, wanted in WANTED.items():
        for cores in options.threads:
            # Use a process of its own: memory that another case left behind would hide this one's peak.
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                seconds, peak = pool.submit(timed, options, threads=cores, dtype=dtype).result()
            goal = f">= {wanted:g}" if cores == 2 else ""
            ours.append(Row(f"{dtype}, {cores} thread(s)", pixels / seconds / 1e6, "Mpixel/s", goal))
            ours.append(Row("  peak memory above the process", peak, "MB", "<= 1000"))
            fastest[dtype] = min(seconds, fastest.get(dtype, np.inf))
    cut = frame(options.size)[: options.part, : options.part]
    nothing = np.zeros(cut.shape, bool)
    theirs: list[Row] = []
    for name, peer in {"BM3D": bm3d, "non-local means": nlm}.items():
        begun = time.perf_counter()
        peer(cut, nothing)
        seconds = (time.perf_counter() - begun) * pixels / cut.size
        theirs.append(Row(f"{name}, {cut.shape[0]} x {cut.shape[1]} scaled by area", seconds, "s", ""))
        for dtype, own in fastest.items():
            goal = ">= 50" if name == "BM3D" else ""
            theirs.append(Row(f"  denoiser at its fastest, {dtype}", seconds / own, "times faster", goal))
    results: dict[str, list[Row]] = {"denoiser": ours, "peers": theirs}
    report(results, vars(options), title=title, about=about, json_path=json_path)
    return results
