"""Cost of the callback for a scan, and its throughput, each compared with the same scan without the callback."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bluesky.plans as bp
import numpy as np
import typer
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.bench.load.scans import (
    alone,
    busy,
    device,
    frames_of,
    hand,
    readable,
    resident,
    run_documents,
    until,
)
from bluesky_symdenoise.bench.load.server import ServerProcess, served
from bluesky_symdenoise.bench.options import DenoiserThreads, JsonPath, Side
from bluesky_symdenoise.bench.record import Header, header, write
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    pass

Figures = dict[str, float]


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions of the measurement.

    Attributes
    ----------
    size, events
        Pixels along each side, and events, of each scan.
    repeats
        Scans without and with the callback, alternating; medians are given.
    threads
        CPU threads of the denoiser.
    memory_events
        Events over which memory is watched.
    """

    size: int
    events: int
    repeats: int
    threads: int
    memory_events: int


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    figure: str
    value: float
    unit: str
    target: str


def _attached(server: ServerProcess, options: Options) -> DenoiseCallback:
    settings = DenoiserSettings(threads=options.threads)
    callback = DenoiseCallback(server.client["denoised"], denoiser=settings, symmetry="1")
    callback.wait_until_ready()
    return callback


def _scan(server: ServerProcess, folder: Path, options: Options, *, dwell: float, callback: Any) -> Figures:
    """Make one scan; return its seconds, and milliseconds between events and inside the callback."""
    moments: list[float] = []
    inside: list[float] = []
    RE = RunEngine(call_returns_result=True)
    with init_devices():
        paths = StaticPathProvider(UUIDFilenameProvider(), folder)
        det = PlayDetector(frames_of(options.size), paths, period=dwell, name="det")
    writer, waited = TiledWriter(server.client["raw"], batch_size=1), [0.0]
    hand_over = callback or (lambda *_: None)

    def written(name: str, doc: dict[str, Any]) -> None:
        begun = time.perf_counter()
        writer(name, doc)
        waited[0] += time.perf_counter() - begun

    def timed(name: str, doc: dict[str, Any]) -> None:
        begun = time.perf_counter()
        hand_over(name, doc)
        if name == "event":
            moments.append(begun)
            inside.append(time.perf_counter() - begun)

    RE.subscribe(written)
    RE.subscribe(timed)
    begun = time.perf_counter()
    RE(bp.count([det], num=options.events))
    seconds = time.perf_counter() - begun
    return {
        "scan_s": seconds,
        "writer_s": waited[0],
        "interval_ms": float(np.median(np.diff(moments))) * 1e3,
        "median_ms": float(np.median(inside)) * 1e3,
        "p99_ms": float(np.quantile(inside, 0.99)) * 1e3,
    }


def _pair(server: ServerProcess, folder: Path, options: Options, *, dwell: float) -> tuple[Figures, Figures]:
    """Return medians of the same scan without and with the callback, alternating."""
    measured: tuple[list[Figures], list[Figures]] = ([], [])
    for repeat in range(options.repeats):
        for attached in (0, 1) if repeat % 2 == 0 else (1, 0):
            callback = _attached(server, options) if attached else None
            measured[attached].append(_scan(server, folder, options, dwell=dwell, callback=callback))
            if callback is not None:
                callback.close()
    without, with_callback = (
        {key: float(np.median([scan[key] for scan in scans])) for key in scans[0]} for scans in measured
    )
    return without, with_callback


def _longer(without: Figures, with_callback: Figures, key: str) -> float:
    return 100 * (with_callback[key] / without[key] - 1)


def thread(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return the RunEngine thread's time in the callback, and the scan time with a denoiser that is too slow."""
    without, attached = _pair(server, folder, options, dwell=0.1)
    return [
        Row("on the RunEngine's thread, per event, median", attached["median_ms"], "ms", "<= 1"),
        Row("on the RunEngine's thread, per event, 99th percentile", attached["p99_ms"], "ms", "<= 5"),
        Row("scan, 0.1 s dwell, without", without["scan_s"], "s", ""),
        Row("scan, 0.1 s dwell, denoiser on one thread too slow for it", attached["scan_s"], "s", ""),
        Row("  longer by", _longer(without, attached, "scan_s"), "%", "<= 2"),
        Row("  of that without: dwell", 0.1 * options.events, "s", ""),
        Row("  of that without: the RunEngine waits until Tiled has the raw run", without["writer_s"], "s", ""),
        Row("interval between events, 0.1 s dwell, without", without["interval_ms"], "ms", ""),
        Row("  longer by", _longer(without, attached, "interval_ms"), "%", ""),
    ]


def load(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return the interval between events while all cores are busy with other work."""
    with busy():
        without, attached = _pair(server, folder, options, dwell=0.1)
    return [
        Row("interval under full CPU load, 0.1 s dwell, without", without["interval_ms"], "ms", ""),
        Row("  longer by", _longer(without, attached, "interval_ms"), "%", "<= 2"),
        Row("on the RunEngine's thread under full CPU load, median", attached["median_ms"], "ms", "<= 1"),
        Row("on the RunEngine's thread under full CPU load, 99th percentile", attached["p99_ms"], "ms", "<= 5"),
    ]


def zero(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return the scan time without pauses between events, when scan and denoiser compete for all cores."""
    without, attached = _pair(server, folder, options, dwell=0.0)
    return [
        Row("scan, zero dwell, without", without["scan_s"], "s", ""),
        Row("  longer by", _longer(without, attached, "scan_s"), "%", "reported"),
    ]


def throughput(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return frames per second from files to Tiled, compared with the denoiser alone in a loop."""
    frames = frames_of(options.size)
    denoiser_alone, through = [], []
    for _ in range(options.repeats):
        denoiser_alone.append(alone(options.size, options.threads))
        documents = run_documents(folder, frames, options.events)
        with _attached(server, options) as callback:
            begun = time.perf_counter()
            for name, doc in documents:
                callback(name, doc)
            callback.close()
            through.append((time.perf_counter() - begun) / options.events)
    ours, theirs = float(np.median(through)), float(np.median(denoiser_alone))
    return [
        Row("denoiser alone", 1 / theirs, "frames/s", ""),
        Row("from files to Tiled, the run's beginning and end included", 1 / ours, "frames/s", ""),
        Row("  of the denoiser alone", 100 * theirs / ours, "%", ">= 90"),
    ]


def memory(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return growth of the resident memory of both processes over a long run of small frames."""
    documents = run_documents(folder, frames_of(64, 64), options.memory_events)
    with _attached(server, options) as callback:
        first = options.memory_events // 10
        hand(callback, documents[: 2 * first])
        until(callback, lambda status: status.frames + status.failed >= first // 2)
        before = resident(os.getpid()), resident(callback.worker_pid)
        hand(callback, documents[2 * first :])
        status = until(callback, lambda status: status.frames + status.failed == options.memory_events)
        after = resident(os.getpid()), resident(callback.worker_pid)
    return [
        Row(f"frames of {options.memory_events} denoised", status.frames, "", ""),
        Row("RunEngine's process grew by", after[0] - before[0], "MB", "<= 50"),
        Row("worker grew by", after[1] - before[1], "MB", "<= 50"),
    ]


def latency(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return seconds from an event to its denoised frame in Tiled, 256 x 256."""
    documents = run_documents(folder, frames_of(256), 12)
    waited: list[float] = []
    with _attached(server, options) as callback:
        uid, key = documents[0][1]["uid"], 0
        for name, doc in documents:
            begun = time.perf_counter()
            callback(name, doc)
            if name == "event":
                key += 1
                while not readable(server, uid, key):
                    time.sleep(0.02)
                waited.append(time.perf_counter() - begun)
    return [
        Row("event to frame readable in Tiled, 256 x 256, median", float(np.median(waited)), "s", "<= 1"),
        Row("event to frame readable in Tiled, 256 x 256, slowest (the run's first)", max(waited), "s", ""),
    ]


def outage(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return figures of a scan during which Tiled is killed, and restarted after it; the raw run goes to files only."""
    seconds: list[float] = []
    uid = ""
    for callback in (None, _attached(server, options)):
        RE = RunEngine(call_returns_result=True)
        with init_devices():
            paths = StaticPathProvider(UUIDFilenameProvider(), folder)
            det = PlayDetector(frames_of(256), paths, period=0.1, name="det")
        if callback is not None:
            RE.subscribe(callback)
        killer = threading.Timer(1.0, server.kill)
        if callback is not None:
            killer.start()
        begun = time.perf_counter()
        (uid,) = RE(bp.count([det], num=options.events)).run_start_uids
        seconds.append(time.perf_counter() - begun)
        if callback is not None:
            killer.join()
            until(callback, lambda status: status.frames == options.events)
            server.start()
            status = until(callback, lambda status: bool(status.runs))
            callback.close()
    run = denoised_for(server.client, uid)
    rows = 0 if run is None else run["primary"]["det"].shape[0]
    return [
        Row("scan without, Tiled alive", seconds[0], "s", ""),
        Row("scan with, Tiled killed", seconds[1], "s", ""),
        Row("  longer by", 100 * (seconds[1] / seconds[0] - 1), "%", "unaffected"),
        Row(f"rows of {options.events} in Tiled in the end", rows, "", f"{options.events}"),
        Row("frames that failed", status.failed, "", "0"),
    ]


def inline(server: ServerProcess, folder: Path, options: Options) -> list[Row]:
    """Return the RunEngine thread's time in the callback, for events that hold their frames in one reused buffer."""
    events = max(100, options.events)
    run = compose_run()
    key = {"source": "bench", "dtype": "array", "dtype_numpy": "<u2", "shape": [options.size, options.size]}
    stream = run.compose_descriptor(name="primary", data_keys={"cam": key})
    frames = frames_of(options.size)
    buffer = np.empty_like(frames[0])
    inside: list[float] = []
    with _attached(server, options) as callback:
        callback("start", run.start_doc)
        callback("descriptor", stream.descriptor_doc)
        before = resident(os.getpid())
        for number in range(events):
            time.sleep(0.1)
            buffer[:] = frames[number % len(frames)]
            doc = stream.compose_event(data={"cam": buffer}, timestamps={"cam": 0.0}, validate=False)
            begun = time.perf_counter()
            callback("event", doc)
            inside.append(time.perf_counter() - begun)
        after = resident(os.getpid())
        callback("stop", run.compose_stop())
    found = denoised_for(server.client, run.start_doc["uid"])
    meant = [float(frames[number % len(frames)].sum()) for number in range(events)]
    counts = [] if found is None else np.asarray(found["primary"]["cam_counts_in"].read()).tolist()
    right = sum(a == b for a, b in zip(meant, counts, strict=False))
    return [
        Row("frames inside events: on the RunEngine's thread, per event, median", _ms(inside, 0.5), "ms", "<= 1"),
        Row("frames inside events: 99th percentile", _ms(inside, 0.99), "ms", "<= 5"),
        Row("frames inside events: RunEngine's process grew by", after - before, "MB", "<= 100"),
        Row(f"rows of {events} with the counts of their frame", right, "", f"{events}"),
    ]


def _ms(seconds: Sequence[float], quantile: float) -> float:
    return float(np.quantile(seconds, quantile)) * 1e3


#: All measurements by name.
FIGURES: dict[str, Callable[[ServerProcess, Path, Options], list[Row]]] = {
    each.__name__: each for each in (thread, inline, load, zero, throughput, memory, latency, outage)
}


def main(
    json_path: JsonPath = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="thread, inline, load, zero, throughput, memory, latency or outage; repeatable."),
    ] = None,
    size: Side = 1024,
    events: Annotated[int, typer.Option(min=3, help="Events of each scan.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="Scans without and with the callback.")] = 3,
    threads: DenoiserThreads = 1,
    memory_events: Annotated[int, typer.Option(min=100, help="Events over which memory is watched.")] = 5000,
) -> dict[str, list[Row]]:
    """Measure what the callback costs a scan and what it delivers, beside the same scan without it."""
    for name in only or ():
        if name not in FIGURES:
            raise SymDenoiseError(f"figure {name!r}", rule="there is none", remedy=f"choose among {', '.join(FIGURES)}")
    options = Options(size=size, events=events, repeats=repeats, threads=threads, memory_events=memory_events)
    about = header(model_file(), device=device())
    results: dict[str, list[Row]] = {}
    title = (
        f"{options.events} events of {options.size} x {options.size}, medians of {options.repeats}, denoiser on "
        f"{options.threads} thread(s), {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before"
    )
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server:
        for name in only or tuple(FIGURES):
            results[name] = FIGURES[name](server, Path(home) / "frames", options)
    report(results, vars(options), title=title, about=about, json_path=json_path)
    return results


def report(
    results: Mapping[str, Sequence[Row]],
    options: Mapping[str, object],
    *,
    title: str,
    about: Header,
    json_path: Path | None,
    cases: Sequence[Mapping[str, object]] = (),
) -> None:
    """Print figures as a table and write them as JSON, with the single cases that they are of, if any."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "unit", "target"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for rows in results.values():
        for row in rows:
            table.add_row(row.figure, f"{row.value:.3g}", row.unit, row.target)
        table.add_section()
    Console().print(table)
    plain = {name: [vars(row) for row in rows] for name, rows in results.items()}
    content = {"options": dict(options), "figures": plain}
    write(json_path, about, content | ({"cases": [dict(case) for case in cases]} if cases else {}))
