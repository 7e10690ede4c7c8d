"""Seconds from the start of a process until it is of use, and until it has ended, each in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import typer

from bluesky_symdenoise import __all__ as PUBLIC  # noqa: N812
from bluesky_symdenoise.bench.load.live import Row, report
from bluesky_symdenoise.bench.load.server import served
from bluesky_symdenoise.bench.options import JsonPath
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.errors import SymDenoiseError

#: What the README's example imports from other packages, and what it imports from this one.
OTHERS = "from bluesky_tiled_plugins import TiledWriter\nfrom tiled.client import from_uri\n"
EXAMPLE = f"{OTHERS}from bluesky_symdenoise import DenoiseCallback\n"
_CLI = "import sys; from bluesky_symdenoise.cli import main; sys.argv[0] = 'symdenoise'; main()"
#: Seconds from the start of a process, printed at points of its work; the clock is that of the whole system.
_CALLBACK = f"""
import json, os, sys, time
{EXAMPLE}
denoised = from_uri(sys.argv[2], api_key=os.environ["BENCH_KEY"], trust_env=False)["denoised"]
connected = time.monotonic()
callback = DenoiseCallback(denoised, symmetry="1")
ready = time.monotonic()
callback.wait_until_ready()
loaded = time.monotonic()
callback.close()
closed = time.monotonic()
begun = float(sys.argv[1])
print(json.dumps([ready - begun, ready - connected, loaded - begun, closed - loaded]))
"""
#: Longest that a process may take, in seconds.
LONGEST_S = 600.0

Seconds = dict[str, float]


def _seconds(code: str, *arguments: str) -> float:
    """Return the seconds that a new process takes for some code, its start and its end included."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=LONGEST_S)
    return time.monotonic() - begun


def imports() -> Seconds:
    """Return the seconds of processes that import something and end."""
    return {
        "nothing": _seconds(""),
        "the README's example": _seconds(EXAMPLE),
        "  of that: the other packages in it": _seconds(OTHERS),
        "DenoiseCallback alone": _seconds("from bluesky_symdenoise import DenoiseCallback"),
        "all public names": _seconds(f"from bluesky_symdenoise import {', '.join(PUBLIC)}"),
    }


def commands() -> Seconds:
    """Return the seconds of commands that only tell something."""
    told = (("--help",), ("demo", "--help"), ("bench", "--help"), ("models", "list"))
    return {f"symdenoise {' '.join(arguments)}": _seconds(_CLI, *arguments) for arguments in told}


def callback() -> Seconds:
    """Return the seconds of a process with a callback, against a server in a process of its own."""
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server:
        done = subprocess.run(
            [sys.executable, "-c", _CALLBACK, str(time.monotonic()), server.url],
            env={**os.environ, "BENCH_KEY": server.key},
            check=True,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )
    ready, constructor, loaded, closing = json.loads(done.stdout)
    return {
        "process starts to callback ready for documents": ready,
        "  of that: the constructor": constructor,
        "process starts to denoiser loaded": loaded,
        "closing": closing,
    }


def demo() -> Seconds:
    """Return the seconds from the start of the demo to its first denoised frame on disk, and to its end."""
    with tempfile.TemporaryDirectory() as home:
        output, first = Path(home) / "demo", 0.0
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _CLI, "demo", "--output", str(output)], stdout=subprocess.DEVNULL
        )
        while process.poll() is None and time.monotonic() - begun < LONGEST_S:
            if not first and _has_frame(output / "denoised"):
                first = time.monotonic() - begun
            time.sleep(0.02)
        whole = time.monotonic() - begun
        process.kill()
        if process.wait() or not first:
            raise SymDenoiseError("symdenoise demo", rule="it failed", remedy="see its output above")
    return {"demo starts to first denoised frame": first, "demo starts to its end": whole}


def _has_frame(folder: Path) -> bool:
    for path in folder.glob("*.h5"):
        try:
            with h5py.File(path, swmr=True) as file:
                return bool(file["entry/data/det"].shape[0])
        except (OSError, KeyError):
            # It is just being made.
            return False
    return False


#: All measurements by name.
FIGURES: dict[str, Callable[[], Seconds]] = {each.__name__: each for each in (imports, commands, callback, demo)}
#: Seconds that are wanted on a machine that does nothing else.
TARGETS = {
    "the README's example": "<= 1",
    "all public names": "<= 1",
    "process starts to callback ready for documents": "<= 2.5",
    "demo starts to first denoised frame": "<= 6",
}


def rows(measured: Sequence[Seconds]) -> list[Row]:
    """Return the medians of repeated measurements."""
    return [
        Row(name, float(np.median([each[name] for each in measured])), "s", TARGETS.get(name, ""))
        for name in measured[0]
    ]


def main(
    json_path: JsonPath = None,
    only: Annotated[
        list[str] | None, typer.Option(help="imports, commands, callback or demo; may be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each kind; medians are given.")] = 5,
) -> dict[str, list[Row]]:
    """Measure how long it takes until a new process is of use: imports, commands, the callback, the demo; and closing.

    Every figure is that of processes of its own, which run one after another.
    """
    for name in only or ():
        if name not in FIGURES:
            raise SymDenoiseError(f"figure {name!r}", rule="there is none", remedy=f"choose among {', '.join(FIGURES)}")
    about = header(model_file())
    title = (
        f"medians of {repeats} processes, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before"
    )
    measured: dict[str, list[Seconds]] = {name: [] for name in only or FIGURES}
    for _ in range(repeats):
        for name, figures in measured.items():
            figures.append(FIGURES[name]())
    results = {name: rows(figures) for name, figures in measured.items()}
    report(results, {"repeats": repeats}, title=title, about=about, json_path=json_path)
    return results
