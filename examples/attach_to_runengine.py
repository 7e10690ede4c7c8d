"""Attach the denoiser to a RunEngine, scan, and query the denoised run.

    python examples/attach_to_runengine.py

At a beamline, `client` comes from `tiled.client.from_uri(...)` and `det` is your own detector.
"""

import tempfile
from pathlib import Path

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices

from bluesky_symdenoise import DenoiseCallback, aligned, denoised_for, embedded_catalog
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.training.series import textured_series

with tempfile.TemporaryDirectory() as folder, embedded_catalog(folder) as client:
    series = textured_series(np.random.default_rng(0), frames=5, shape=(256, 256))
    RE = RunEngine(call_returns_result=True)
    with init_devices():
        paths = StaticPathProvider(UUIDFilenameProvider(), Path(folder) / "frames")
        det = PlayDetector(series.counts, paths, name="det")

    RE.subscribe(TiledWriter(client["raw"], batch_size=1))
    with DenoiseCallback(client["denoised"]) as denoise:  # leaving the block waits for the last frame
        RE.subscribe(denoise)
        (uid,) = RE(bp.count([det], num=5)).run_start_uids
    print(denoise.status().runs)

    run = denoised_for(client, uid)
    data = aligned(client["raw"][uid], run)
    print(data)
    print("symmetry:", data["det_symmetry"].values, "made by:", run.start["provenance"]["model"])
