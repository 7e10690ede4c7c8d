"""The JSON file of a bench: how its figures were made, and the figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise import __version__

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.identity import ModelFile

#: The command that runs, as it was typed; None where a bench is called from Python.
TYPED: ContextVar[str | None] = ContextVar("TYPED", default=None)
#: Load average from which figures of time are marked.
BUSY = 1.0

Header = dict[str, Any]


def header(model: ModelFile | None = None, *, device: str = "cpu") -> Header:
    """Return how figures are made; to be called before anything is measured, as it notes the load.

    Parameters
    ----------
    model
        The model that is measured; None where there is none.
    device
        Name of the GPU that is used, or ``cpu``.

    Returns
    -------
    dict
        ``command``, ``date`` (UTC), ``machine`` in words, ``load`` (average of the last minute), ``note``, ``versions``
        of package, Python and torch, and ``model`` (name, version and sha256).
    """
    load = round(os.getloadavg()[0], 2)
    return {
        "command": TYPED.get(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() + ("" if device == "cpu" else f", {device}"),
        "load": load,
        "note": "busy machine" if load > BUSY else "",
        "versions": {
            "bluesky-symdenoise": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "model": None if model is None else {"name": model.name, "version": model.version, "sha256": model.sha256},
    }


def machine() -> str:
    """Return model and number of CPU cores, and memory."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"


def write(json_path: Path | None, about: Header, content: Mapping[str, Any]) -> None:
    """Write the header and what was measured, if a path is given."""
    if json_path is not None:
        json_path.write_text(json.dumps({"header": about, **content}, indent=1, allow_nan=False) + "\n")
