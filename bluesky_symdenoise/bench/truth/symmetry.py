"""The symmetry test by Monte Carlo: rates of false alarms and of detection; and the error of the centre."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bluesky_symdenoise.bench.options import JsonPath
from bluesky_symdenoise.bench.quality.cases import image_sets
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.physics.center import found_beam_center, refined_beam_center
from bluesky_symdenoise.physics.defects import found_defects, without, without_gaps
from bluesky_symdenoise.physics.evidence import FALSE_ALARM, Asymmetry, asymmetry, pair_sums
from bluesky_symdenoise.physics.frame import Frame, frame_from_counts
from bluesky_symdenoise.physics.mates import INVERSION, MIRROR_X, Operation
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import View

Image = NDArray[np.float64]

_SHAPE, CENTER = (256, 272), (121.5, 141.0)
#: Region (ring, sector) to which an asymmetry of the stated smallest size is added, and its mate.
_WHERE, _OPPOSITE = (2, 2), (2, 10)
_SMALL_ARC, _LARGE_ARC = "arc, 20 pixels by 60 degrees", "arc, 40 pixels by 60 degrees"
#: Counts per pixel and frame, and number of pooled frames.
SYMMETRIC = ((0.05, 1), (0.5, 1), (10.0, 1), (0.05, 5))
ASYMMETRIC = ((10.0, 1), (0.5, 20), (1.0, 1))
#: Counts per pixel, and side of the frames in which a centre is refined.
CENTERED = ((0.5, 256), (0.5, 512), (5.0, 256))


def pattern() -> tuple[Image, Image]:
    """Return a textured 2mm pattern with mean 1, and the exposure of a detector with gaps and dead pixels."""
    rate = textured_rate(View.about(CENTER, _SHAPE), orientation=0.8)
    exposure = np.ones(_SHAPE)
    exposure[150:163], exposure[:, 80:87], exposure[5::37, 3::29] = 0, 0, 0
    return rate / rate[exposure > 0].mean(), exposure


def arc(rate: Image, *, excess: float, half_width: float, half_angle: float) -> Image:
    """Return the pattern with an arc at 60 pixels, on one side only, that is brighter by a fraction."""
    y, x = np.indices(rate.shape)
    dy, dx = y - CENTER[0], x - CENTER[1]
    on = (abs(np.hypot(dy, dx) - 60) < half_width) & (abs(np.arctan2(dy, dx) - np.pi / 4) < half_angle)
    return rate * (1 + excess * on)


def tested(
    rng: np.random.Generator, rate: Image, exposure: Image, *, frames: int, operations: Sequence[Operation]
) -> list[Asymmetry]:
    """Return the test of pooled Poisson frames of one rate, for each operation."""
    drawn = [Frame(rng.poisson(rate * exposure).astype(np.float64), exposure, 1.0) for _ in range(frames)]
    return [asymmetry(reduce(add, (pair_sums(frame, op, CENTER) for frame in drawn))) for op in operations]


def smallest_visible(rng: np.random.Generator, rate: Image, exposure: Image, *, frames: int) -> tuple[float, Image]:
    """Return the difference that the test claims to see in one region under inversion, and a pattern that has it."""
    (plain,) = tested(rng, rate, exposure, frames=frames, operations=(INVERSION,))
    size = float(plain.smallest[_WHERE])
    sign = np.zeros_like(plain.smallest)
    sign[_WHERE], sign[_OPPOSITE] = 1, -1
    return size, rate * (1 + size / 2 * plain.on_pixels(sign, _SHAPE))


def center_errors(rng: np.random.Generator, *, level: float, size: int, simulations: int) -> list[float]:
    """Return distances, in pixels, of refined centres from the true ones, begun three pixels away."""
    out = []
    for _ in range(simulations):
        shape = (size, size + 16)
        center = tuple(side / 2 + rng.uniform(-10, 10) for side in shape)
        rate = textured_rate(View.about((center[0], center[1]), shape), orientation=0.8)
        counts = rng.poisson(level * rate / rate.mean())
        angle = rng.uniform(0, 2 * np.pi)
        near = (center[0] + 3 * np.sin(angle), center[1] + 3 * np.cos(angle))
        found = refined_beam_center(Frame(counts.astype(np.float64), np.ones(shape), 1.0), near)
        out.append(np.inf if found is None else float(np.hypot(*np.subtract(found, center))))
    return out


def labelled_centers(data: Path) -> list[dict[str, Any]]:
    """Return the centre found in the sum of each real set's frames, without its label, and how far the label is."""
    out: list[dict[str, Any]] = []
    for one in image_sets(data, ("train", "test")):
        if one.beam_center is None or one.symmetry == "m":
            continue
        with h5py.File(one.path) as file:
            stack, mask = file[one.group]["counts"][()], file[one.group]["mask"][()].astype(bool)
        counts, exposure = np.zeros(mask.shape), np.zeros(mask.shape)
        for image in stack:
            frame = frame_from_counts(image, mask=mask, exposure=np.ones(mask.shape))
            frame = without(frame, found_defects(frame).mask)
            counts, exposure = counts + frame.counts, exposure + frame.exposure
        pooled = without_gaps(Frame(counts, exposure, 1.0))
        found = found_beam_center(pooled)
        better = None if found is None else refined_beam_center(pooled, found) or found
        error = None if better is None else float(np.abs(np.subtract(better, one.beam_center)).max())
        out.append({"set": one.name, "label": one.beam_center, "found": found, "refined": better, "error": error})
    return out


def main(
    json_path: JsonPath = None,
    simulations: Annotated[int, typer.Option(min=10, help="Symmetric patterns at each count level.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the simulated photons.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with real frames whose centres are known.")] = None,
) -> dict[str, list[dict[str, Any]]]:
    """Measure how often the symmetry test rejects symmetric and sees asymmetric patterns, and errors of centres.

    Each symmetric pattern is tested under two operations; a tenth as many are asymmetric, and a hundredth are for the
    centre.
    """
    about = header()
    rng = np.random.default_rng(seed)
    rate, exposure = pattern()
    both = (INVERSION, MIRROR_X)
    results: list[dict[str, Any]] = []

    def note(case: str, level: float, frames: int, size: float | None, seen: Sequence[bool]) -> None:
        share = float(np.mean(seen))
        error = float(np.sqrt(max(share * (1 - share), 1 / len(seen)) / len(seen)))
        figures = {"level": level, "frames": frames, "size": size, "tests": len(seen), "share": share, "error": error}
        results.append({"case": case} | figures)

    for level, frames in SYMMETRIC:
        number = simulations // frames
        found = [
            test
            for _ in track(range(number), f"symmetric {level:g} x {frames}", transient=True)
            for test in tested(rng, level * rate, exposure, frames=frames, operations=both)
        ]
        for case, operation in (("symmetric, inversion", INVERSION), ("symmetric, mirror", MIRROR_X)):
            note(case, level, frames, 0.0, [t.p_value < FALSE_ALARM for t in found if t.operation == operation])
        note("symmetric, any region", level, frames, 0.0, [bool(t.rejected.any()) for t in found])
    for level, frames in ASYMMETRIC:
        number = max(1, simulations // 10 // frames)
        size, uneven = smallest_visible(rng, level * rate, exposure, frames=frames)
        small = arc(level * rate, excess=0.1, half_width=10, half_angle=np.pi / 6)
        large = arc(level * rate, excess=0.1, half_width=20, half_angle=np.pi / 6)
        cases = {_SMALL_ARC: (0.1, small), _LARGE_ARC: (0.1, large), "as visible in a region": (size, uneven)}
        for case, (excess, broken) in cases.items():
            found = [
                test
                for _ in track(range(number), f"{case} {level:g} x {frames}", transient=True)
                for test in tested(rng, broken, exposure, frames=frames, operations=(INVERSION,))
            ]
            seen = [t.p_value < FALSE_ALARM if "arc" in case else bool(t.rejected[_WHERE]) for t in found]
            note(case, level, frames, excess, seen)
    table = Table(
        title=f"share of patterns called asymmetric, for {100 * FALSE_ALARM:g} % false alarms", title_justify="left"
    )
    for name in ("case", "counts/pixel", "frames", "difference", "tests", "share", "+/-"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in results:
        table.add_row(
            row["case"],
            f"{row['level']:g}",
            str(row["frames"]),
            f"{row['size']:.3f}",
            str(row["tests"]),
            f"{row['share']:.4f}",
            f"{row['error']:.4f}",
        )
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    centers: list[dict[str, Any]] = []
    for level, size in CENTERED:
        errors = center_errors(rng, level=level, size=size, simulations=max(1, simulations // 100))
        median, most = (value if np.isfinite(value) else None for value in (float(np.median(errors)), max(errors)))
        centers.append({"level": level, "size": size, "tests": len(errors), "median": median, "most": most})
        text = f"centre from 3 pixels off, {level:g} counts/pixel, {size} x {size + 16} pixels, {len(errors)} patterns"
        console.print(f"{text}: median error {np.median(errors):.3f}, largest {max(errors):.3f} pixels")
    labelled = [] if data is None else labelled_centers(data)
    for row in labelled:
        console.print(f"{row['set']}: label {row['label']}, found {row['refined']}, largest difference {row['error']}")
    report = {"test": results, "center": centers, "labelled": labelled}
    write(json_path, about, report)
    return report
