"""Script that times a denoiser on request: JSON lines in, JSON lines out.

It runs under the version of the package that comes first on PYTHONPATH, so that of the package it uses only
``Denoiser.pretrained`` and ``__call__``, which older versions have too, and imports nothing else from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Seconds over which a limit of the device is measured, and bytes that are copied.
MEASURED_S, COPIED_BYTES = 1.0, 2**28
#: Side of the matrices that are multiplied.
MATRIX = {"cpu": 2048, "cuda": 8192}
#: Pixels along each side of the part of a frame that is denoised first.
CROP = 128

Request = dict[str, Any]
Reply = dict[str, Any]
_DENOISERS: dict[tuple[Any, ...], Any] = {}
_FRAMES: dict[str, Any] = {}


def _denoiser(request: Request) -> Any:
    """Return the denoiser of a request; the same object each time."""
    from bluesky_symdenoise import Denoiser

    key = tuple(request[name] for name in ("model", "device", "threads", "dtype"))
    if key not in _DENOISERS:
        model, device, threads, dtype = key
        _DENOISERS[key] = Denoiser.pretrained(model, device=device, threads=threads, dtype=dtype)
    return _DENOISERS[key]


def _frame(request: Request) -> Any:
    """Return the last frame that was asked for."""
    path = request["frame"]
    if path not in _FRAMES:
        _FRAMES.clear()
        _FRAMES[path] = np.load(path)
    return _FRAMES[path]


def _settled(device: str) -> None:
    """Wait until a GPU has nothing to do."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def _status(key: str) -> float:
    """Return a figure in kB of this process's /proc/self/status, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024 / 1e6


def about(request: Request) -> Reply:
    """Return which package this is, and the device's name."""
    import bluesky_symdenoise

    device = request["device"]
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)

    folder = Path(bluesky_symdenoise.__file__).resolve().parents[1]
    return {"version": bluesky_symdenoise.__version__, "folder": str(folder), "device": device}


def run(request: Request) -> Reply:
    """Denoise a frame once; return seconds, those of processors, the symmetry used, and the sha256 of the result."""
    denoiser, frame = _denoiser(request), _frame(request)
    _settled(request["device"])
    begun, busy = time.perf_counter(), time.process_time()
    result = denoiser(frame, symmetry=request["symmetry"], beam_center=request["beam_center"])
    _settled(request["device"])
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    chosen = {name: result.attrs[name] for name in ("symmetry", "beam_center")}
    made = hashlib.sha256(result["intensity"].values.tobytes() + result["sigma"].values.tobytes()).hexdigest()
    return {"seconds": seconds, "busy": busy, "sha256": made, **chosen}


def peak(request: Request) -> Reply:
    """Return the first frame's peak memory above the process with weights and the frame, in MB, and that on a GPU."""
    denoiser, frame = _denoiser(request), _frame(request)
    at_crop = None if request["beam_center"] is None else [(CROP - 1) / 2] * 2
    denoiser(frame[..., :CROP, :CROP], symmetry=request["symmetry"], beam_center=at_crop)
    cuda = request["device"].startswith("cuda")
    if cuda:
        import torch

        _settled(request["device"])
        torch.cuda.reset_peak_memory_stats(request["device"])
        before_on_gpu = torch.cuda.memory_allocated(request["device"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = _status("VmRSS")
    denoiser(frame, symmetry=request["symmetry"], beam_center=request["beam_center"])
    found = {"megabytes": _status("VmHWM") - before}
    if cuda:
        found["megabytes_on_gpu"] = (torch.cuda.max_memory_allocated(request["device"]) - before_on_gpu) / 1e6
    return found


def limits(request: Request) -> Reply:
    """Return what the device does at best: bytes read and written per second, and products summed per second."""
    import torch

    device, dtype = request["device"], getattr(torch, request["dtype"])
    torch.set_num_threads(request["threads"])
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = MATRIX[torch.device(device).type]
    one = torch.rand(side, side, device=device).to(dtype)
    product = torch.empty_like(one)
    with torch.inference_mode():
        copies = _rate(lambda: target.copy_(source), device)
        products = _rate(lambda: torch.mm(one, one, out=product), device)
    return {"bytes_per_s": 2 * COPIED_BYTES * copies, "products_per_s": side**3 * products}


def _rate(work: Callable[[], object], device: str) -> float:
    """Return how many times per second work is done, without its first time."""
    for _ in range(2):
        work()
    _settled(device)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < MEASURED_S:
        for _ in range(4):
            work()
        _settled(device)
        done += 4
    return done / (time.perf_counter() - begun)


def answer() -> None:
    """Answer requests until there are no more."""
    # What a library prints must not end up among the replies.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    known = {each.__name__: each for each in (about, run, peak, limits)}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = known[request["do"]](request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    answer()
