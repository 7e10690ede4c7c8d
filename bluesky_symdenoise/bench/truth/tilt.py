"""Effect of a known detector tilt: rings and arcs in pyFAI's own angles, denoised with it and without."""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
from rich.console import Console
from rich.table import Table
from scipy import stats

from bluesky_symdenoise.bench.options import CpuThreads, JsonPath, ModelName
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.mates import mate
from bluesky_symdenoise.physics.symmetry import Symmetry

Image = NDArray[np.float64]

PIXEL = 1e-4
_SHAPE = (192, 208)
#: Tilts in degrees, and levels in counts per pixel.
TILTS, LEVELS = (1.0, 10.0, 25.0), (0.1, 1.0, 10.0)
#: Scattering angles in radians and heights of the rings, and their width in radians.
_RINGS, _WIDTH = ((0.12, 1.0), (0.22, 0.8), (0.33, 0.6), (0.45, 0.4)), 0.013
#: Side of the frames whose mates are timed.
_TIMED = 1024


def tilted_detector(
    degrees: float,
    *,
    azimuth: float = 35.0,
    rot3: float = 0.4,
    orientation: int = 3,
    dist: float = 0.025,
    shape: tuple[int, int] = _SHAPE,
    pixel: tuple[float, float] = (PIXEL, PIXEL),
) -> AzimuthalIntegrator:
    """Return a detector of that tilt, whose beam falls near its middle."""
    rot1 = np.radians(degrees) * np.cos(np.radians(azimuth))
    rot2 = np.arccos(np.cos(np.radians(degrees)) / np.cos(rot1))
    return AzimuthalIntegrator(
        dist=dist,
        poni1=(shape[0] / 2 + 0.3) * pixel[0] - dist * np.tan(rot2) / np.cos(rot1),
        poni2=(shape[1] / 2 - 0.4) * pixel[1] + dist * np.tan(rot1),
        rot1=rot1,
        rot2=rot2,
        rot3=rot3,
        detector=Detector(*pixel, max_shape=shape, orientation=orientation),
        wavelength=1e-10,
    )


def expected_counts(geometry: AzimuthalIntegrator, group: str, *, level: float) -> Image:
    """Return rings (``inf``) or mirrorless arcs (``2``) in pyFAI's angles, times solid angles; with mean `level`."""
    shape = geometry.detector.shape
    angle = np.asarray(geometry.center_array(shape, unit="2th_rad"), np.float64)
    rate = 0.15 + sum(height * np.exp(-0.5 * ((angle - at) / _WIDTH) ** 2) for at, height in _RINGS)
    if group == "2":
        # The arcs turn from ring to ring.
        rate = rate * (1 + 0.8 * np.cos(2 * geometry.center_array(shape, unit="chi_rad") + 6 * angle))
    rate = np.asarray(rate * geometry.solidAngleArray(shape), np.float64)
    return level * rate / rate.mean()


def scored(denoiser: Denoiser, truth: Image, symmetry: Symmetry, rng: np.random.Generator) -> tuple[float, float]:
    """Return the rms error over the mean, and the negative-binomial log-likelihood per pixel of a second frame."""
    counts, held_out = rng.poisson(truth), rng.poisson(truth)
    result = denoiser(counts, symmetry=symmetry)
    mean, sigma = (result[name].values.astype(np.float64) for name in ("intensity", "sigma"))
    precision = mean / sigma**2
    likelihood = stats.nbinom.logpmf(held_out, mean * precision, precision / (1 + precision)).mean()
    return float(np.sqrt(np.mean((mean - truth) ** 2)) / truth.mean()), float(likelihood)


def timed_mates(degrees: float) -> tuple[float, float, float]:
    """Return milliseconds to find mates of a 1024 x 1024 frame and to move its counts, and the share with a mate."""
    symmetry = Symmetry.on(tilted_detector(degrees, shape=(_TIMED, _TIMED), dist=0.12), "2")
    assert symmetry.grid_center is not None
    image, (operation,) = np.ones((_TIMED, _TIMED)), symmetry.operations
    took = []
    for _ in range(6):
        begun = time.perf_counter()
        moved = mate(image, operation, symmetry.grid_center)
        took.append(1e3 * (time.perf_counter() - begun))
    return took[0], float(np.median(took[1:])), float(moved.mean())


def main(
    json_path: JsonPath = None,
    model: ModelName = None,
    threads: CpuThreads = 1,
    frames: Annotated[int, typer.Option(min=1, help="Simulated frames of each pattern.")] = 4,
) -> dict[str, list[dict[str, Any]]]:
    """Measure what it is worth to know the tilt of a detector, on simulated rings and arcs, and what mates cost.

    The same photons are denoised with the tilt, without it, and without symmetry.
    """
    about = header(model_file(model))
    denoiser = Denoiser.pretrained(model, device="cpu", threads=threads)
    rows: list[dict[str, Any]] = []
    table = Table(title="rms error over the mean; likelihood relative to no symmetry, 1e-3 nat/pixel")
    for name in ("tilt", "group", "counts/pixel", "tilt known", "not known", "no symmetry", "tilt known", "not known"):
        table.add_column(name, justify="right")
    for degrees in TILTS:
        geometry = tilted_detector(degrees)
        for group in ("2", "inf"):
            known = Symmetry.on(geometry, group)
            cases = {"known": known, "flat": Symmetry(group, known.beam_center), "none": Symmetry()}
            for level in LEVELS:
                truth = expected_counts(geometry, group, level=level)
                found = {
                    name: np.mean(
                        [scored(denoiser, truth, symmetry, np.random.default_rng(seed)) for seed in range(frames)],
                        axis=0,
                    )
                    for name, symmetry in cases.items()
                }
                error = {name: float(value[0]) for name, value in found.items()}
                gain = {name: float(found[name][1] - found["none"][1]) for name in ("known", "flat")}
                rows.append({"degrees": degrees, "group": group, "level": level, "error": error, "gain": gain})
                shown = [*(f"{error[name]:.3f}" for name in cases), *(f"{1e3 * value:+.2f}" for value in gain.values())]
                table.add_row(f"{degrees:g}", group, f"{level:g}", *shown)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    timings: list[dict[str, Any]] = []
    for degrees in TILTS:
        first, again, share = timed_mates(degrees)
        timings.append({"degrees": degrees, "first_ms": first, "again_ms": again, "share": share})
        text = f"mates under inversion, {_TIMED} x {_TIMED}, {degrees:g} degrees: {first:.0f} ms, then {again:.1f} ms"
        console.print(f"{text}; {share:.1%} of the pixels have a mate", soft_wrap=True)
    report = {"denoised": rows, "mates": timings}
    write(json_path, about, report)
    return report
