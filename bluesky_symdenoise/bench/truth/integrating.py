"""Frames of a simulated integrating detector of known readout, denoised with it and, beside that, by BM3D."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.bench.options import CpuThreads, JsonPath, ModelName, Views
from bluesky_symdenoise.bench.quality.stabilised import bm3d
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.bench.truth.features import spot
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.training.simulate import random_rate

Image = NDArray[np.float64]
Row = dict[str, Any]

SIDE = 128
#: Read noise in photons, and photons per pixel.
NOISES, LEVELS = (0.2, 1.0, 5.0), (0.1, 1.0, 10.0, 100.0)
#: Units per photon, and offset.
GAIN, OFFSET = 4.0, 100.0
#: Least rate that BM3D may predict, as in `bench.quality.peers`.
FLOOR = 0.0056
#: Height of a spot in standard deviations of one pixel's noise, and its full width at half maximum in pixels.
SPOT_SIGMAS, SPOT_WIDTH = 10.0, 2.0
#: Spots of each frame, on a grid.
SPOTS = 4


def signal(rng: np.random.Generator, rate: Image, readout: Readout) -> Image:
    """Return a frame of the detector: offset + gain * photons + read noise."""
    noise = rng.normal(0, readout.read_noise, rate.shape)
    return np.asarray(readout.offset + readout.gain * rng.poisson(rate) + noise)


def scenes(rng: np.random.Generator, *, frames: int, bm3d_too: bool, denoiser: Denoiser) -> Iterator[Row]:
    """Yield flux, coverage and the likelihood of a second frame, for random scenes of each level and read noise."""
    for level in LEVELS:
        for noise in NOISES:
            readout = Readout(GAIN, noise * GAIN, offset=OFFSET)
            for _ in range(frames):
                rate = random_rate(rng, (SIDE, SIDE))
                rate = np.asarray(level * rate / rate.mean())
                first, second = signal(rng, rate, readout), signal(rng, rate, readout)
                result = denoiser(first, symmetry="1", readout=readout)
                mean, sigma = (result[name].values.astype(np.float64) for name in ("intensity", "sigma"))
                photons = readout.photons(first).sum()
                row = {
                    "level": level,
                    "noise": noise,
                    "flux": float(mean.sum() / photons - 1),
                    "flux_sigma": float(np.sqrt((rate + noise**2).sum()) / rate.sum()),
                    "covered": float(np.mean(np.abs(mean - rate) < sigma)),
                    "likelihood": likelihood(mean, second, readout),
                }
                if bm3d_too:
                    lifted, background = readout.equivalent(first)
                    peer = bm3d(lifted.astype(np.float64), np.zeros(rate.shape, bool)) - background.expected
                    row["bm3d"] = likelihood(np.maximum(peer, FLOOR), second, readout)
                # The same photons, counted: what the network does without read noise.
                counts, later = (rng.poisson(rate).astype(np.float64) for _ in range(2))
                counted = denoiser(counts, symmetry="1")
                error = np.abs(counted["intensity"].values - rate)
                row["covered_counts"] = float(np.mean(error < counted["sigma"].values))
                if bm3d_too and noise == NOISES[0]:
                    plain = Readout(1.0)
                    peer = np.maximum(bm3d(counts, np.zeros(rate.shape, bool)), FLOOR)
                    expected: Image = counted["intensity"].values.astype(np.float64)
                    ours = likelihood(expected, later, plain)
                    row["over_bm3d_counts"] = ours - likelihood(peer.astype(np.float64), later, plain)
                yield row


def likelihood(mean: Image, second: Image, readout: Readout) -> float:
    """Return the log-likelihood per pixel of a second frame's equivalent counts, less what does not depend on `mean`.

    y log(m + b) - m, with b the variance of the read noise in photons, is linear in y, so that y may be negative.
    """
    lift = float(np.square(readout.noise))
    y = readout.photons(second) + lift
    expected = np.maximum(mean + lift, FLOOR)
    return float(np.mean(y * np.log(expected) - expected))


def spots(rng: np.random.Generator, denoiser: Denoiser, *, frames: int) -> Iterator[Row]:
    """Yield the share of its height that a spot of 10 sigma and 2 pixels keeps, on a smooth frame."""
    y, x = np.mgrid[:SIDE, :SIDE]
    for level in LEVELS[1:]:
        for noise in NOISES:
            readout = Readout(GAIN, noise * GAIN, offset=OFFSET)
            smooth = level * (1 + 0.5 * np.sin((x + 0.5 * y) / 40))
            height = SPOT_SIGMAS * np.sqrt(level + noise**2)
            for _ in range(frames):
                rate, places = smooth.copy(), rng.uniform(20, SIDE - 20, (SPOTS, 2))
                for place in places:
                    profile = spot((place[0], place[1]), SPOT_WIDTH, (SIDE, SIDE))
                    rate += height * profile / profile.max()
                mean = denoiser(signal(rng, rate, readout), symmetry="1", readout=readout)["intensity"].values
                for place in places:
                    at = tuple(round(value) for value in place)
                    kept = (mean[at] - smooth[at]) / (rate[at] - smooth[at])
                    yield {"level": level, "noise": noise, "kept": float(kept)}


def main(
    json_path: JsonPath = None,
    model: ModelName = None,
    threads: CpuThreads = 1,
    views: Views = 1,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each level and read noise.")] = 8,
    peer: Annotated[bool, typer.Option("--bm3d/--no-bm3d", help="Compare with BM3D, which takes seconds.")] = True,
) -> dict[str, list[Row]]:
    """Measure flux, coverage, spots and likelihood on simulated CCD frames, beside BM3D of the stabilised frame.

    BM3D has the generalised Anscombe transform and its exact unbiased inverse, with the true gain and read noise.
    """
    about = header(model_file(model))
    denoiser = Denoiser.pretrained(model, device="cpu", threads=threads, views=views)
    rng = np.random.default_rng(20)
    scored = list(scenes(rng, frames=frames, bm3d_too=peer, denoiser=denoiser))
    found = list(spots(rng, denoiser, frames=frames))
    summary = summed_up(scored, found)
    Console().print(_table(summary))
    content = {"summary": summary, "frames": scored, "spots": found}
    write(json_path, about, content)
    return content


def summed_up(scored: list[Row], found: list[Row]) -> list[Row]:
    """Return one row for each level and read noise."""
    rows: list[Row] = []
    for level in LEVELS:
        for noise in NOISES:
            here = [row for row in scored if (row["level"], row["noise"]) == (level, noise)]
            kept = [row["kept"] for row in found if (row["level"], row["noise"]) == (level, noise)]
            rows.append(
                {
                    "level": level,
                    "noise": noise,
                    "frames": len(here),
                    "flux": float(np.mean([row["flux"] for row in here])),
                    "worst_flux": max((abs(row["flux"]) for row in here), default=0.0),
                    "covered": float(np.mean([row["covered"] for row in here])),
                    "covered_counts": float(np.mean([row["covered_counts"] for row in here])),
                    "spots": float(np.mean(kept)) if kept else None,
                    "better": sum(row["likelihood"] > row["bm3d"] for row in here if "bm3d" in row),
                    "compared": sum("bm3d" in row for row in here),
                }
            )
    return rows


def _table(summary: list[Row]) -> Table:
    table = Table(title=f"simulated CCD, frames of {SIDE} x {SIDE}; shares of 68 % intervals; better than BM3D in ...")
    for name in ("photons/pixel", "read noise", "flux error", "at most", "covered", "counting", "spots", "> BM3D"):
        table.add_column(name, justify="right")
    for row in summary:
        table.add_row(
            f"{row['level']:g}",
            f"{row['noise']:g}",
            f"{row['flux']:+.2%}",
            f"{row['worst_flux']:.2%}",
            f"{row['covered']:.0%}",
            f"{row['covered_counts']:.0%}",
            "" if row["spots"] is None else f"{row['spots']:.0%}",
            f"{row['better']} of {row['compared']}" if row["compared"] else "",
        )
    return table
