"""A RunEngine as a process of its own: URI FOLDER FRAMES ALLOWED; prints its run's uid. The key is in TILED_API_KEY.

ALLOWED is a file with the number of frames that may be taken so far; others wait.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from tiled.client import from_uri

from bluesky_symdenoise.acquisition.play import PlayDetector


def counts(n: int, size: int = 64) -> np.ndarray:
    """The frames of this scan: no two alike."""
    return np.random.default_rng(11).poisson(2.0, (n, size, size)).astype(np.uint16)


if __name__ == "__main__":
    uri, folder, frames, allowed = sys.argv[1:]
    client = from_uri(uri, trust_env=False)
    engine = RunEngine()
    engine.subscribe(TiledWriter(client["raw"], batch_size=1))
    with init_devices():
        det = PlayDetector(counts(int(frames)), StaticPathProvider(UUIDFilenameProvider(), folder), name="det")
    taken = itertools.count()

    def paced(detectors: Any) -> Any:
        number = next(taken)
        while int(Path(allowed).read_text()) <= number:
            yield from bps.sleep(0.05)
        yield from bps.one_shot(detectors)

    (uid,) = engine(bp.count([det], num=int(frames), per_shot=paced))
    print(uid, flush=True)
