"""The denoising process is killed at random and at chosen points: no frame is lost, doubled or wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import killed
import numpy as np
import pytest
from tiled.client.container import Container
from tiled.structures.core import Spec

from bluesky_symdenoise.catalog.client import SymDenoisedRun

pytestmark = [pytest.mark.server, pytest.mark.process]

KILLS = 54
RUNS, FRAMES, SIZE = 4, 5, 64


def series(seed: int) -> np.ndarray:
    """Frames of Poisson counts, symmetric enough to be found so; the first is dark in every other run."""
    y, x = np.ogrid[:SIZE, :SIZE]
    rate = 0.4 + 6 * np.exp(-((np.hypot(y - 31.5, x - 31.5) - 14) ** 2) / 9) * (
        1 + np.cos(2 * np.arctan2(y - 31.5, x - 31.5))
    )
    counts = np.random.default_rng(seed).poisson(rate, (FRAMES, SIZE, SIZE)).astype(np.uint16)
    counts[0] *= seed % 2
    return counts


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.h5")}


class Victim:
    """The process of `killed.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def lives(self, plan: dict[str, Any]) -> int:
        """Exit status of one child."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(plan) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def victim(client: Container) -> Iterator[Victim]:
    command = [sys.executable, killed.__file__, client.uri]
    process = subprocess.Popen(
        [*command, str(client.context.api_key)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Victim(process)
    finally:
        process.communicate(timeout=60)


def plans(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Every step before and after its first calls, then again and again, with kills at random times between."""
    targeted = itertools.cycle(itertools.product(killed.STEPS, ("before", "after")))
    for step, when in targeted:
        # A step that comes once a run is met at its first call; one that comes once a row at any of the first few.
        often = step in ("denoise", "hdf5", "journal", "stream_datum", "event")
        yield {"step": step, "when": when, "nth": int(rng.integers(1, 5)) if often else 1}
        yield {"seconds": float(rng.uniform(0.1, 1.5))}


@pytest.mark.filterwarnings("default")
def test_killed_at_any_point_nothing_is_lost_doubled_or_wrong(
    catalog: Container, tmp_path: Path, frames_folder: Path, write_run: Callable[..., str]
) -> None:
    raw_folder = frames_folder / "raw"
    raw_folder.mkdir()
    catalog.create_container("reference", specs=[Spec("CatalogOfBlueskyRuns", "3.0")])
    uids: list[str] = []

    def acquire() -> None:
        images = series(len(uids))
        uids.append(write_run(catalog["raw"], raw_folder, {"det": images}, scalars={"x": list(range(FRAMES))}))

    for _ in range(RUNS):
        acquire()
    ends: Counter[str] = Counter()
    before: dict[str, str] = {}
    target = {"into": "denoised", "directory": str(frames_folder)}
    with victim(catalog) as process:
        for plan in plans(np.random.default_rng(5)):
            if sum(ends.values()) >= KILLS:
                break
            before |= checksums(raw_folder)
            status = process.lives(plan | target)
            assert status in (0, -9), f"{plan} ended with {status}"
            if status == -9:
                ends[f"{plan['when']} {plan['step']}" if "step" in plan else "at a random time"] += 1
            else:
                acquire()
        before |= checksums(raw_folder)
        assert process.lives(target) == 0
        assert (
            process.lives({"into": "reference", "directory": str(tmp_path / "catalog" / "frames" / "reference")}) == 0
        )
    print(f"{sum(ends.values())} kills over {len(uids)} runs of {FRAMES} frames: {dict(ends)}")

    assert checksums(raw_folder) == before
    assert len(before) == len(uids)
    derived, reference = (
        {run.start["raw_uid"]: run for run in catalog[name].values()} for name in ("denoised", "reference")
    )
    assert sorted(derived) == sorted(reference) == sorted(uids)
    assert len(catalog["denoised"]) == len(uids)
    for uid, seed in zip(uids, range(len(uids)), strict=True):
        compare(derived[uid], reference[uid], catalog["raw"][uid], series(seed))
    # One file a run, each whole, and nothing left of those who died.
    files = sorted(frames_folder.glob("*.h5"))
    assert len(files) == len(uids)
    assert not list(frames_folder.glob("*.journal"))
    for path in files:
        with h5py.File(path, "r") as file:
            assert file["entry/data/det"].shape == (FRAMES, 1, SIZE, SIZE)
            assert np.isfinite(file["entry/data/det"][:]).all()


def compare(one: SymDenoisedRun, other: SymDenoisedRun, raw: Any, counts: np.ndarray) -> None:
    """Two derived runs are the same bit for bit, but for times, and belong to this raw run's frames."""
    assert one.metadata["stop"]["exit_status"] == other.metadata["stop"]["exit_status"] == "success"
    for run in (one, other):
        assert (run.metadata["stop"]["provenance"]["complete"], run.metadata["stop"]["provenance"]["frames"]) == (
            True,
            FRAMES,
        )
    stream = one["primary"]
    columns = [name for name in stream if name != "det_ms" and not name.startswith("ts_")]
    assert {"det", "det_sigma", "det_counts_in", "det_symmetry", "seq_num", "time"} <= set(columns)
    left, right = stream.read(columns), other["primary"].read(columns)
    for name in columns:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    np.testing.assert_array_equal(left["seq_num"], np.arange(1, FRAMES + 1))
    np.testing.assert_array_equal(left["time"], raw["primary"].read(["time"])["time"])
    np.testing.assert_array_equal(left["det_counts_in"], counts.sum(axis=(1, 2)))
    # Negative control: frames of different events differ.
    assert not np.array_equal(left["det"][1], left["det"][2])
