"""Frames that were dark-subtracted and cut at zero are told from counts."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.clipped import refuse_clipped, zero_excess

SIZE = 256
NOTHING = np.zeros((SIZE, SIZE), bool)


def rate(mean: float, radius: float = 60, width: float = 300) -> np.ndarray:
    """A ring, expected counts per pixel."""
    y, x = np.ogrid[:SIZE, :SIZE]
    return mean * (0.3 + np.exp(-((np.hypot(y - 127.5, x - 127.5) - radius) ** 2) / width))


@pytest.mark.parametrize("mean", [0.01, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("width", [10.0, 300.0])
def test_counts_are_let_through(mean: float, width: float) -> None:
    rng = np.random.default_rng(3)
    for radius in (20, 60, 110):
        counts = rng.poisson(rate(mean, radius, width))
        refuse_clipped(counts, NOTHING)
        refuse_clipped(counts.astype(np.float32), NOTHING)
        # A flat field is no dark: its values are not whole either.
        refuse_clipped(counts / rng.uniform(0.7, 1.4, counts.shape), NOTHING)


@pytest.mark.parametrize("dark", [5.0, 20.0])
@pytest.mark.parametrize("mean", [0.3, 3.0])
def test_whole_dark_that_was_subtracted_is_seen(mean: float, dark: float) -> None:
    rng = np.random.default_rng(4)
    left = np.clip(rng.poisson(rate(mean) + dark).astype(int) - int(dark), 0, None)
    with pytest.raises(SymDenoiseError, match=r"zeros.*as the detector wrote them"):
        refuse_clipped(left.astype(np.uint16), NOTHING)


@pytest.mark.parametrize("dark", [0.3, 2.0])
def test_averaged_dark_that_was_subtracted_is_seen(dark: float) -> None:
    rng = np.random.default_rng(5)
    averaged = rng.poisson(dark, (10, SIZE, SIZE)).mean(axis=0)
    left = np.clip(rng.poisson(rate(1.0) + dark) - averaged, 0, None)
    with pytest.raises(SymDenoiseError, match="whole numbers"):
        refuse_clipped(left, NOTHING)


def test_what_is_masked_does_not_count() -> None:
    """A panel of zeros is no evidence where the mask says so."""
    counts = np.random.default_rng(6).poisson(1.5, (SIZE, SIZE))
    counts[::2] = 0
    refuse_clipped(counts, np.broadcast_to(np.arange(SIZE)[:, None] % 2 == 0, counts.shape))


def test_ratio_is_one_for_poisson_counts() -> None:
    counts = np.random.default_rng(7).poisson(1.2, (1024, 1024))
    assert zero_excess(counts, np.zeros(counts.shape, bool))[0] == pytest.approx(1, abs=0.05)


def test_frame_too_small_to_tell() -> None:
    refuse_clipped(np.zeros((4, 4), int), np.zeros((4, 4), bool))


DATA = Path(os.environ.get("SYMDENOISE_REAL_DATA", "/nonexistent"))


@pytest.mark.skipif(not DATA.is_dir(), reason="SYMDENOISE_REAL_DATA names no folder of real frames")
def test_real_frames() -> None:
    """Every frame of a counting detector passes; those of the flat panel, subtracted by its software, do not."""
    for path in sorted(DATA.glob("*.h5")):
        with h5py.File(path) as file:
            if "counts" not in file:
                continue
            frame, mask = file["counts"][0], file["mask"][()]
            bad = mask | (frame >= 65535) if frame.dtype.kind != "i" else mask | (frame < 0)
            if file.attrs["noise"] == "counting":
                refuse_clipped(frame, bad)
            else:
                with pytest.raises(SymDenoiseError, match="cut at zero"):
                    refuse_clipped(frame, bad)
