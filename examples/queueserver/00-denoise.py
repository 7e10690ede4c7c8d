"""A startup profile for bluesky-queueserver: a RunEngine, the raw writer, the denoiser, and a plan to try them with.

    TILED_URI=http://127.0.0.1:8000 TILED_API_KEY=... start-re-manager --startup-dir examples/queueserver --keep-re

Raw frames go to the folder DETECTOR_FOLDER, ./frames by default: name it in readable_storage of the Tiled server.
At a beamline, take the lines from TiledWriter on into your own profile, and leave out the detector that plays frames.
Closing the environment, or destroying it, does not wait for the denoiser: its worker process finishes what was taken.
"""

import logging
import os
from pathlib import Path

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from tiled.client import from_uri

from bluesky_symdenoise import DenoiseCallback, DenoiserSettings
from bluesky_symdenoise.acquisition.play import PlayDetector

logging.getLogger("bluesky_symdenoise").setLevel(logging.INFO)

RE = RunEngine({})
with init_devices():
    size = int(os.environ.get("DETECTOR_SIZE", "256"))
    frames = np.random.default_rng(0).poisson(2.0, (8, size, size)).astype(np.uint16)
    folder = Path(os.environ.get("DETECTOR_FOLDER", "frames")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder), name="det", period=0.05)

tiled = from_uri(os.environ["TILED_URI"], api_key=os.environ["TILED_API_KEY"], trust_env=False)
RE.subscribe(TiledWriter(tiled["raw"], batch_size=1))
denoise = DenoiseCallback(tiled["denoised"], denoiser=DenoiserSettings(threads=1), symmetry="1")
RE.subscribe(denoise)


def take(num: int = 4):
    """Take frames."""
    yield from bp.count([det], num=num)
