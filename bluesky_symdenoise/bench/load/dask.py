"""Replay on a Dask cluster with one and two workers and with a killed one, and the cost of assembling the file."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import h5py
import numpy as np
import typer
from bluesky_tiled_plugins import TiledWriter
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.request import Request, Work
from bluesky_symdenoise.acquisition.runs.stored import stored_run
from bluesky_symdenoise.bench.load.live import Row, report
from bluesky_symdenoise.bench.load.scans import run_documents
from bluesky_symdenoise.bench.load.server import ServerProcess, served
from bluesky_symdenoise.bench.options import JsonPath, Side
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.catalog.store.parts import PartReader, PartWriter
from bluesky_symdenoise.catalog.store.writer import COMPRESSION
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.derived.row import CompressedRow, denoised_row
from bluesky_symdenoise.files.nexus import add_entry, add_images
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions of the measurement.

    Attributes
    ----------
    size
        Pixels along each side.
    frames
        Frames of the run.
    repeats
        Replays with one worker and with two, alternating, and beside each the denoiser in one and in two processes of
        its own; medians are given.
    """

    size: int
    frames: int
    repeats: int


def _alone(frames: int, size: int) -> float:
    """Return frames per second of a process that denoises and does nothing else."""
    counts = np.random.default_rng(0).poisson(1.0, (size, size)).astype(np.uint16)
    denoiser = DenoiserSettings(device="cpu", threads=1).load()
    denoiser(counts, symmetry="1")
    begun = time.perf_counter()
    for _ in range(frames):
        denoiser(counts, symmetry="1")
    return frames / (time.perf_counter() - begun)


def _bare(processes: Executor, count: int, options: Options) -> float:
    """Return frames per second of several such processes together: the limit of this computer at that moment."""
    frames = max(8, options.frames // 4)
    return sum(each.result() for each in [processes.submit(_alone, frames, options.size) for _ in range(count)])


def _compressed(run: Any) -> list[bytes]:
    """Return frames and sigmas of a derived run as they are on disk."""
    (source,) = run["primary"]["det"].data_sources()
    with h5py.File(path_from_uri(source.assets[0].data_uri), "r") as file:
        datasets = [file["entry/data"][name] for name in ("det", "det_sigma")]
        return [each.id.read_direct_chunk((row, 0, 0, 0))[1] for each in datasets for row in range(len(each))]


def scaling(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return frames per second with one and two workers, and with one of two killed."""
    # An extra, which the command's help does not need.
    from distributed import Client, LocalCluster

    counts = np.random.default_rng(0).poisson(1.0, (4, options.size, options.size)).astype(np.uint16)
    writer, documents = TiledWriter(server.client["raw"]), run_documents(folder, counts, options.frames)
    for name, doc in documents:
        writer(name, doc)
    raw = server.client["raw"][documents[0][1]["uid"]]
    denoiser = Denoiser.pretrained(device="cpu", threads=1)
    work = Work.planned(server.client["denoised"], activity="replay", denoiser=denoiser, symmetry="1")

    own: list[float] = []

    def replayed(client: Client | None, each: Callable[[str | None], None] = lambda _: None) -> tuple[float, Any]:
        begun, busy = time.perf_counter(), time.thread_time()
        made = replay_with(work, stored_run(raw), force=True, finished_frame=each, scheduler=client)
        own.append(1000 * (time.thread_time() - busy) / options.frames)
        return options.frames / (time.perf_counter() - begun), made

    alone, made = replayed(None)
    serial = _compressed(made)
    place: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "processes": True}
    rates: dict[str, list[float]] = {"1": [], "2": [], "bare 1": [], "bare 2": []}
    killed: list[int] = []
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, **place) as small,
        LocalCluster(n_workers=2, threads_per_worker=1, **place) as large,
        Client(small, set_as_default=False) as one,
        Client(large, set_as_default=False) as two,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes,
    ):
        two.wait_for_workers(2)
        for client in (one, two):
            client.run(_alone, 1, options.size)
        _bare(processes, 2, options)
        for _ in range(options.repeats):
            for name, client in (("1", one), ("2", two)):
                rates[name].append(replayed(client)[0])
                rates[f"bare {name}"].append(_bare(processes, int(name), options))
        same = _compressed(server.client["denoised"][made.start["uid"]]) == serial

        def kill(_: str | None) -> None:
            busy = [worker for worker, tasks in two.processing().items() if tasks]
            if not killed and busy:
                killed.append(two.run(os.getpid, workers=busy[:1])[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        with_kill, made = replayed(two, kill)
    rate = {name: float(np.median(each)) for name, each in rates.items()}
    ratios = [b / a for a, b in zip(rates["1"], rates["2"], strict=True)]
    ceilings = [b / a for a, b in zip(rates["bare 1"], rates["bare 2"], strict=True)]
    about = f"{options.size} x {options.size}"
    return [
        Row(f"{about}: this process, no cluster", alone, "frames/s", ""),
        Row(f"{about}: one worker", rate["1"], "frames/s", ""),
        Row(f"{about}: two workers", rate["2"], "frames/s", ""),
        Row("  two of one, median of the pairs", float(np.median(ratios)), "", ">= 1.7"),
        Row("  lowest and highest pair: lowest", min(ratios), "", ""),
        Row("  highest", max(ratios), "", ""),
        Row("  CPU time of the one thread that writes", float(np.median(own[1:])), "ms/frame", ""),
        Row("denoiser alone in one process", rate["bare 1"], "frames/s", ""),
        Row("denoiser alone in two", rate["bare 2"], "frames/s", ""),
        Row("  two of one: the computer's ceiling meanwhile", float(np.median(ceilings)), "", ""),
        Row("two workers, one of them killed", with_kill, "frames/s", ""),
        Row("  frames lost", options.frames - len(made["primary"]["seq_num"].read()), "", "0"),
        Row("  frames that failed", sum(e["frames"] for e in made.metadata["stop"]["provenance"]["failures"]), "", "0"),
        Row("  chunks that differ from one process's", _differing(_compressed(made), serial), "", "0"),
        Row("chunks with two workers that differ", 0 if same else len(serial), "", "0"),
    ]


def _differing(one: list[bytes], other: list[bytes]) -> int:
    return abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))


def assembly(folder: Path, options: Options) -> list[Row]:
    """Return the time to copy denoised frames into the run's file, and how many bytes are transferred."""
    counts = np.random.default_rng(0).poisson(1.0, (options.size, options.size)).astype(np.uint16)
    denoiser, shape = Denoiser.pretrained(device="cpu", threads=1), (1, options.size, options.size)
    recipe = Request.asked(activity="replay", denoiser=denoiser, symmetry="1").recipe
    row = denoised_row(denoiser, recipe, counts[np.newaxis], mask=None, exposure=None, symmetry=Symmetry())
    path = folder / "part.h5"
    with PartWriter(path, {"det": shape}) as writer:
        for _ in range(options.frames):
            writer.append({"det": row})
    taken = {}
    with PartReader(path) as part, h5py.File(folder / "whole.h5", "w", libver="v110") as file:
        datasets = add_images(add_entry(file), {"det": shape}, **COMPRESSION)
        for name in ("copied", "compressed again"):
            begun = time.perf_counter()
            for index, outcomes in enumerate(part.rows()):
                found = outcomes["det"]
                assert isinstance(found, CompressedRow)
                for dataset, frame, image in (
                    (datasets["det"], found.intensity, row.intensity),
                    (datasets["det_sigma"], found.sigma, row.sigma),
                ):
                    dataset.resize(index + 1, axis=0)
                    if name == "copied":
                        frame.copy_to(dataset, index)
                    else:
                        dataset[index] = image
                    dataset.flush()
            taken[name] = time.perf_counter() - begun
        stored = sum(dataset.id.get_storage_size() for dataset in datasets.values()) / options.frames
    per_frame = {name: 1000 * seconds / options.frames for name, seconds in taken.items()}
    return [
        Row("assembly: image and sigma copied compressed", per_frame["copied"], "ms/frame", ""),
        Row("  if they were compressed there", per_frame["compressed again"], "ms/frame", ""),
        Row("bytes of a raw frame, uint16", counts.nbytes / 1e6, "MB", ""),
        Row("bytes of a denoised one with sigma, float32", (row.intensity.nbytes + row.sigma.nbytes) / 1e6, "MB", ""),
        Row("  compressed: written by the worker, read and written once more", stored / 1e6, "MB", ""),
    ]


def main(
    json_path: JsonPath = None,
    size: Side = 512,
    frames: Annotated[int, typer.Option(min=16, help="Frames of the run.")] = 48,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of replays, with one worker and with two.")] = 3,
) -> dict[str, list[Row]]:
    """Measure replay on a Dask cluster of one and of two single-threaded workers, and with a killed worker."""
    about = header(model_file())
    options = Options(size=size, frames=frames, repeats=repeats)
    title = (
        f"{options.frames} frames, {options.repeats} pairs, single-threaded workers, "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before"
    )
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server:
        results = {
            "scaling": scaling(server, Path(home) / "frames", options),
            "assembly": assembly(Path(home), options),
        }
    report(results, vars(options), title=title, about=about, json_path=json_path)
    return results
