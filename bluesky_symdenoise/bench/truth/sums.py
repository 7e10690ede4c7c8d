"""Sums of the denoised frame beside those of its counts, with sums free and made to agree."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bluesky_symdenoise.bench.options import JsonPath, ModelName
from bluesky_symdenoise.bench.quality.cases import cases
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.bench.truth.calibration import peaks
from bluesky_symdenoise.bench.truth.features import CENTER, SIDE, Row, outside
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import View, peakless_rate

LEVELS = (0.1, 1.0, 10.0)
CHOICES = ("free", "agree")
#: Fewest counts of a part, and from how many on it is one of many counts.
FEWEST, ENOUGH = 30.0, 100.0
#: Width of rings and side of boxes in pixels, and number of sectors.
RING, BOX, SECTORS = 4, 64, 12
LEGEND = (
    "ring, sector, box: rms of (sum of the intensity - sum of the counts) / sqrt(sum of the counts), over parts of at "
    "least 100 counts (rings of 4 pixels, 12 sectors, boxes of 64 pixels); few: over those of 30 to 100. gain: in "
    "likelihood of independent counts, in 1e-4 per pixel, of sums that agree over free ones. within: true rate within "
    "the 68 % interval. chi2: mean of (intensity - rate)^2 / sigma^2."
)


@dataclass(frozen=True)
class Scene:
    """Counts to denoise, and what independent counts of the scene would be.

    Attributes
    ----------
    expected
        (y, x) counts of one exposure: the true rate, or held-out counts over their exposure.
    known
        Whether that is the true rate.
    """

    name: str
    level: float
    counts: FloatArray
    mask: Mask
    symmetry: Symmetry
    beam_center: tuple[float, float]
    expected: FloatArray
    known: bool

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Number of the ring, sector and box of each pixel."""
        y, x = np.indices(self.counts.shape)
        dy, dx = y - self.beam_center[0], x - self.beam_center[1]
        azimuth = np.arctan2(dy, dx) / (2 * np.pi) + 0.5
        return {
            "ring": (np.hypot(dy, dx) / RING).astype(np.int64),
            "sector": (azimuth * SECTORS).astype(np.int64) % SECTORS,
            "box": y // BOX * (x.max() // BOX + 1) + x // BOX,
        }


def simulated(frames: int, seed: int = 0) -> Iterator[Scene]:
    """Yield rings with their symmetry and with their centre only, and frames without rings."""
    rng = np.random.default_rng(seed)
    grid = View.about(CENTER, (SIDE, SIDE))
    unmasked = np.zeros((SIDE, SIDE), bool)
    for level in LEVELS:
        for _ in range(frames):
            ringed = textured_rate(grid, orientation=float(rng.uniform()))
            for name, rate, symmetry in (
                ("rings, 2mm", ringed, Symmetry("2mm", CENTER)),
                ("rings, centre only", ringed, Symmetry()),
                ("no rings", peakless_rate(rng, (SIDE, SIDE)), Symmetry()),
            ):
                rate = rate * (level / rate.mean())
                yield Scene(name, level, rng.poisson(rate).astype(float), unmasked, symmetry, CENTER, rate, True)


def measured(data: Path) -> Iterator[Scene]:
    """Yield whole frames of sets with a beam centre, thinned; sets of role ``train`` are named so."""
    for case in cases(data, roles=("test", "train"), levels=LEVELS):
        if case.kind == "thinning" and case.beam_center is not None:
            name = case.set + (" (train)" if case.role == "train" else "")
            expected = case.target / case.k
            center = case.beam_center
            yield Scene(name, case.level, case.counts, case.mask, case.given.symmetry, center, expected, False)


def scored(scene: Scene, denoisers: dict[str, Denoiser]) -> Row:
    """Return for each choice the parts' deviations in raw sigma, and the scores of the pixels."""
    row: Row = {"name": scene.name, "level": scene.level}
    good = ~scene.mask
    for choice, denoiser in denoisers.items():
        found = denoiser(scene.counts, mask=scene.mask, symmetry=scene.symmetry, beam_center=scene.beam_center)
        mean, sigma = (found[each].values.astype(np.float64) for each in ("intensity", "sigma"))
        used = good & (found["defect"].values == 0)
        away: dict[str, Any] = {"few": []}
        for name, part in scene.parts.items():
            x, y = (np.bincount(part[used], image[used]) for image in (mean, scene.counts))
            deviation = (x - y) / np.sqrt(np.maximum(y, 1))
            away[name] = deviation[y >= ENOUGH].tolist()
            away["few"] += deviation[(y >= FEWEST) & (y < ENOUGH)].tolist()
        at, rate = mean[used], scene.expected[used]
        row[choice] = {"away": away, "loss": float(np.mean(at - rate * np.log(np.maximum(at, 1e-9))))}
        if scene.known:
            row[choice]["within"] = 1 - outside(at, sigma[used], rate, 0.68)
            row[choice]["chi2"] = float(np.mean((at - rate) ** 2 / sigma[used] ** 2))
    return row


def summed(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each scene's name and level."""
    results = []
    for name, level in dict.fromkeys((row["name"], row["level"]) for row in rows):
        some = [row for row in rows if (row["name"], row["level"]) == (name, level)]
        result: Row = {"name": name, "level": level, "frames": len(some)}
        for choice in CHOICES:
            scores = [row[choice] for row in some]
            for part in ("ring", "sector", "box", "few"):
                away = np.concatenate([each["away"][part] for each in scores])
                result[f"{part}_{choice}"] = float(np.sqrt(np.mean(away**2))) if len(away) else None
            for score in ("within", "chi2"):
                known = [each[score] for each in scores if score in each]
                result[f"{score}_{choice}"] = float(np.mean(known)) if known else None
        gains = [row["free"]["loss"] - row["agree"]["loss"] for row in some]
        result["gain"] = float(np.mean(gains))
        results.append(result)
    return results


def areas(denoisers: dict[str, Denoiser], frames: int, seed: int = 0) -> list[Row]:
    """Return bias and raw sigma of the areas of fitted rings, for each choice; see `calibration.peaks`."""
    found = {
        choice: [
            row for row in peaks(denoiser, np.random.default_rng(seed), frames=frames) if row["quantity"] == "area"
        ]
        for choice, denoiser in denoisers.items()
    }
    return [
        {"radius": free["radius"], "level": free["level"], "sigma": free["sigma"], "frames": frames}
        | {"free": free["bias"], "agree": agree["bias"]}
        for free, agree in zip(found["free"], found["agree"], strict=True)
    ]


def seconds(denoisers: dict[str, Denoiser], sides: Sequence[int] = (256, 1024), repeats: int = 9) -> list[Row]:
    """Return the least CPU time of one frame for each choice, in turns, without a symmetry."""
    results = []
    for side in sides:
        center = ((side - 1) / 2, (side - 1) / 2)
        counts = np.random.default_rng(0).poisson(textured_rate(View.about(center, (side, side)), orientation=0.5))
        taken: dict[str, list[float]] = {choice: [] for choice in denoisers}
        for _ in range(repeats):
            for choice, denoiser in denoisers.items():
                begun = time.process_time()
                denoiser(counts, symmetry=Symmetry(), beam_center=center)
                taken[choice].append(time.process_time() - begun)
        results.append({"side": side} | {choice: min(each) for choice, each in taken.items()})
    return results


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role), to be thinned, too.")
    ] = None,
    json_path: JsonPath = None,
    model: ModelName = None,
    frames: Annotated[int, typer.Option(min=4, help="Simulated frames of each kind and level.")] = 32,
) -> None:
    """Measure how far sums of rings, sectors and boxes are from those of the counts, left free and made to agree."""
    free = Denoiser.pretrained(model)
    denoisers = {"free": free, "agree": Denoiser(free.model, sums="agree")}
    about = header(model_file(model), device=free.environment()["device"])
    console = Console()
    if not console.is_terminal:
        console.width = 150
    scenes = [] if data is None else measured(data)
    steps = (scored(scene, denoisers) for each in (simulated(frames), scenes) for scene in each)
    rows = summed(list(track(steps, "frames", transient=True, console=Console(stderr=True))))
    fitted = areas(denoisers, frames)
    taken = seconds(denoisers)
    console.print(parts_table(rows), LEGEND, areas_table(fitted))
    for row in taken:
        more = row["agree"] / row["free"] - 1
        size = f"{row['side']} x {row['side']}"
        console.print(f"a frame of {size} takes {1e3 * row['free']:.0f} ms of CPU time, {more:+.0%} to agree")
    write(json_path, about, {"environment": free.environment(), "results": rows, "areas": fitted, "seconds": taken})


def parts_table(rows: Sequence[Row]) -> Table:
    """Return the table of sums, free | agree."""
    table = Table(title="sums of the intensity less those of the counts, in sigma of the counts: free | agree")
    for name in ("frames", "counts/px", "ring", "sector", "box", "few", "gain", "within", "chi2"):
        table.add_column(name, justify="left" if name == "frames" else "right")
    for row in rows:
        pairs = [
            " | ".join(
                "-" if row[f"{name}_{choice}"] is None else f"{row[f'{name}_{choice}']:.2f}" for choice in CHOICES
            )
            for name in ("ring", "sector", "box", "few", "within", "chi2")
        ]
        table.add_row(row["name"], f"{row['level']:g}", *pairs[:4], f"{1e4 * row['gain']:+.2f}", *pairs[4:])
    return table


def areas_table(rows: Sequence[Row]) -> Table:
    """Return the table of the areas of rings, free | agree."""
    table = Table(title="area of a textured ring after pyFAI, symmetry 2mm: bias in the mean of frames")
    for name in ("counts/px", "radius", "sigma of one raw frame", "free", "agree", "free, in sigma", "agree, in sigma"):
        table.add_column(name, justify="right")
    for row in rows:
        biases = [row[choice] for choice in CHOICES]
        table.add_row(
            f"{row['level']:g}",
            f"{row['radius']:g}",
            f"{100 * row['sigma']:.1f} %",
            *(f"{100 * bias:+.1f} %" for bias in biases),
            *(f"{bias / row['sigma']:+.2f}" for bias in biases),
        )
    return table
