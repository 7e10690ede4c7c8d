"""Runs whose frames lend photons to each other, and a denoiser that remembers what it was lent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from event_model import compose_run

from bluesky_symdenoise.denoiser.infer import Denoiser

#: For each frame, by its checksum: row, offset and checksum of what was lent, in order.
Lents = dict[str, list[tuple[int | None, tuple[float, ...], str]]]


def digest(image: Any) -> str:
    image = np.asarray(image)
    return hashlib.sha256(f"{image.dtype}{image.shape[-2:]}".encode() + image.tobytes()).hexdigest()[:16]


class Remembering(Denoiser):
    """A denoiser that remembers what it was lent for each frame."""

    lents: Lents

    def __call__(self, counts: Any, *, lent: Any = (), **options: Any) -> Any:
        self.lents = getattr(self, "lents", {})
        self.lents[digest(counts)] = [(each.row, each.offset, digest(each.counts)) for each in lent]
        return super().__call__(counts, lent=lent, **options)


def drifting(n: int, size: int = 40) -> np.ndarray:
    """Frames (n, y, x) of a ring that widens slowly; no two alike."""
    y, x = np.ogrid[:size, :size]
    radius = np.hypot(y - (size - 1) / 2, x - (size - 1) / 2)
    rng = np.random.default_rng(11)
    rates = (0.3 + 5 * np.exp(-((radius - size / 4 - 2 * row / n) ** 2) / 8) for row in range(n))
    counts = np.stack([rng.poisson(rate) for rate in rates]).astype(np.uint16)
    counts.flags.writeable = False
    return counts


def inline(
    frames: np.ndarray, *, metadata: Mapping[str, Any] | None = None, broken: int | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Documents of a run with its images (n, y, x) inside the events; in one row there may be something else."""
    run = compose_run(metadata=dict(metadata or {}))
    key = {"source": "test", "dtype": "array", "dtype_numpy": frames.dtype.str, "shape": list(frames.shape[1:])}
    descriptor = run.compose_descriptor(name="primary", data_keys={"det": key})
    events = []
    for row, frame in enumerate(frames):
        event = descriptor.compose_event(data={"det": 0}, timestamps={"det": 0.0}, seq_num=row + 1, time=float(row))
        held = frame[:-3] if row == broken else frame
        events.append(("event", {**event, "data": {"det": held}}))
    return [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc), *events, ("stop", run.compose_stop())]


def expected(frames: np.ndarray, windows: Mapping[int, list[tuple[int, tuple[float, ...]]]]) -> Lents:
    """What each row of these frames is lent from its window, rows with offsets in order."""
    return {
        digest(frames[row]): [(each, offset, digest(frames[each])) for each, offset in window]
        for row, window in windows.items()
    }
