"""What the callback costs a scan: the same scan without and with it, in one run, alternating."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.acquisition.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.catalog.serve import embedded_catalog
from bluesky_symdenoise.denoiser.infer import Denoiser

Figures = dict[str, float]


def _scan(client: Any, folder: Path, *, size: int, events: int, dwell: float, callback: Any) -> Figures:
    """One scan: seconds it took, milliseconds between events and inside the callback."""
    moments: list[float] = []
    inside: list[float] = []
    frames = np.random.default_rng(0).poisson(1.0, (4, size, size)).astype(np.uint16)
    RE = RunEngine(call_returns_result=True)
    with init_devices():
        det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder), period=dwell, name="det")
    RE.subscribe(TiledWriter(client["raw"], batch_size=1))

    def timed(name: str, doc: dict[str, Any], hand_over: Callable[[str, dict[str, Any]], None]) -> None:
        begun = time.perf_counter()
        hand_over(name, doc)
        if name == "event":
            moments.append(begun)
            inside.append(time.perf_counter() - begun)

    RE.subscribe(lambda name, doc: timed(name, doc, callback or (lambda *_: None)))
    begun = time.perf_counter()
    RE(bp.count([det], num=events))
    seconds = time.perf_counter() - begun
    intervals = np.diff(moments) * 1e3
    return {
        "scan_s": seconds,
        "interval_median_ms": float(np.median(intervals)),
        "interval_p99_ms": float(np.quantile(intervals, 0.99)),
        "in_callback_median_ms": float(np.median(inside)) * 1e3,
        "in_callback_p99_ms": float(np.quantile(inside, 0.99)) * 1e3,
    }


def main(
    *,
    json_path: Path | None,
    size: int = 1024,
    events: int = 30,
    dwell: float = 0.1,
    repeats: int = 3,
    threads: int = 1,
    model: str | None = None,
) -> list[dict[str, Any]]:
    """Print a table of the same scan without and with the callback, and write JSON; medians over the repeats."""
    denoiser = Denoiser.pretrained(model, device="cpu", threads=threads)
    measured: dict[str, list[Figures]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder, embedded_catalog(folder) as client:
        frames = Path(folder) / "frames"
        for _ in range(repeats):
            for name, scans in measured.items():
                callback = DenoiseCallback(client["denoised"], denoiser=denoiser) if name == "with" else None
                scans.append(_scan(client, frames, size=size, events=events, dwell=dwell, callback=callback))
                if callback is not None:
                    callback.close()
    results: list[dict[str, Any]] = [
        {"callback": name} | {key: float(np.median([scan[key] for scan in scans])) for key in scans[0]}
        for name, scans in measured.items()
    ]
    title = f"{events} events of {size} x {size}, {dwell:g} s dwell, denoiser on {threads} thread(s)"
    table = Table(title=title, title_justify="left")
    for column in results[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "callback" else "right")
    for row in results:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()))
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=2) + "\n")
    return results
