"""The readout of simulated detectors, as found from their frames: how far off, and how often refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bluesky_symdenoise.bench.options import JsonPath
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.bench.simulated.integrating import Detector
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating import FoundReadout, readout_from_frames

Image = NDArray[np.float64]

SIDE = 256
#: Ranges of gain and read noise, drawn with equal probability per decade.
GAIN, READ_NOISE = (0.2, 20.0), (0.5, 30.0)
#: Read noise is seen where its standard error is below this share of it.
SEEN = 0.025


@dataclass(frozen=True)
class Case:
    """Detectors that have one thing in common, and how well their gain should be found.

    Attributes
    ----------
    name
        In words.
    limit
        Error of the gain that is asked for.
    frames, darks
        Numbers of frames with and without light.
    drawn
        Attributes of `Detector`, each with the range that it is drawn from; ``row_noise`` and ``dark_drift`` in units
        of the read noise.
    counting
        Whether these are averages of counts, whose number of exposures is to be found.
    """

    name: str
    limit: float
    frames: int
    darks: int = 0
    drawn: tuple[tuple[str, float, float], ...] = ()
    counting: bool = False


CASES = (
    Case("CCD, 20 frames", 0.05, 20),
    Case("CCD, 20 frames and 8 darks", 0.05, 20, 8),
    Case("CCD, 2 frames", 0.1, 2),
    Case("CCD, 1 frame", 0.1, 1),
    Case("flat panel, spread 0.4 to 1 px, 12 frames, 4 darks", 0.1, 12, 4, (("blur", 0.4, 1.0),)),
    Case("lag 1 to 5 %, 20 frames", 0.1, 20, 0, (("lag", 0.01, 0.05),)),
    Case("spread and lag, 12 frames, 4 darks", 0.1, 12, 4, (("blur", 0.4, 1.0), ("lag", 0.01, 0.05))),
    Case("row noise 0.1 to 1 read noise, 20 frames, 8 darks", 0.1, 20, 8, (("row_noise", 0.1, 1.0),)),
    Case("dark drift 0.1 to 1 read noise, 20 frames, 8 darks", 0.1, 20, 8, (("dark_drift", 0.1, 1.0),)),
    Case("dead lines and 1 % dead pixels, 20 frames, 8 darks", 0.1, 20, 8, (("dead", 0.01, 0.01),)),
    Case("dead lines and 1 % dead pixels, 1 frame", 0.1, 1, 0, (("dead", 0.01, 0.01),)),
    Case("means of 1 to 100 exposures, 6 frames", 0.1, 6, 0, (("averaged", 1, 100),)),
    Case("counts, means of 2 to 100 exposures, 1 frame", 0.1, 1, 0, (("averaged", 2, 100),), counting=True),
)


def scene(rng: np.random.Generator, photons: float) -> Image:
    """Return rings about a place of their own on a slope, with spots, of this mean rate."""
    y, x = np.indices((SIDE, SIDE)).astype(float)
    center = rng.uniform(0.2, 0.8, 2) * SIDE
    period = rng.uniform(6, 20)
    rate = 1.05 + np.cos(np.hypot(y - center[0], x - center[1]) / period)
    rate *= 1 + rng.uniform(0, 2) * (x * rng.normal() + y * rng.normal() > 0) * x / SIDE
    for _ in range(20):
        at = rng.uniform(0, SIDE, 2)
        rate += rng.uniform(1, 5) * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * rng.uniform(1, 3) ** 2))
    return np.asarray(photons * rate / rate.mean())


def drawn(rng: np.random.Generator, case: Case) -> tuple[Detector, float]:
    """Return a detector of the case, and the mean photons of a pixel: their noise is not below the read noise."""
    gain, noise = (float(np.exp(rng.uniform(*np.log(ends)))) for ends in (GAIN, READ_NOISE))
    photons = float(max(20.0, (noise / gain) ** 2) * np.exp(rng.uniform(0, np.log(10))))
    detector = Detector(gain, noise, 100.0 if case.darks else 0.0)
    if case.counting:
        detector, photons = Detector(1.0, rounded=True), float(np.exp(rng.uniform(np.log(0.1), np.log(30))))
    for name, low, high in case.drawn:
        value = float(rng.uniform(low, high)) * (noise if name in ("row_noise", "dark_drift") else 1)
        detector = replace(detector, **{name: round(value) if name == "averaged" else value})  # type: ignore[arg-type]
    return detector, photons


def found(rng: np.random.Generator, case: Case) -> tuple[Detector, FoundReadout | None]:
    """Return a detector of the case, and what its frames say; None if they were refused."""
    detector, photons = drawn(rng, case)
    rate = scene(rng, photons)
    frames, darks = detector.frames(rng, rate, case.frames), detector.frames(rng, 0 * rate, case.darks)
    try:
        return detector, readout_from_frames(frames, darks=darks, averaged=None if case.counting else detector.averaged)
    except SymDenoiseError:
        return detector, None


def figures(case: Case, results: Sequence[tuple[Detector, FoundReadout | None]]) -> dict[str, Any]:
    """Return errors of what was found, as shares of the truth, and how often it was refused.

    Returns
    -------
    dict
        ``refused`` is a share of all, ``within`` and ``wrong`` those whose gain is within the limit and is not, of all;
        ``median`` and ``p95`` of the gain's error; ``pull`` is the standard deviation of the gain's error in units of
        the stated one; ``read_noise_within`` is the share of read noises within 5 %, of those that are seen.
    """
    kept = [(detector, told) for detector, told in results if told is not None]
    if case.counting:
        errors = np.array([told.readout.frames / detector.averaged - 1 for detector, told in kept])
        pull = None
    else:
        errors = np.array([float(np.asarray(told.readout.gain)) / detector.gain - 1 for detector, told in kept])
        stated = np.array([told.gain_error / detector.gain for detector, told in kept])
        pull = float(np.std(errors / stated)) if len(kept) > 1 else None
    # What a row shares is part of a pixel's noise.
    noises = [
        float(np.asarray(told.readout.read_noise)) / float(np.hypot(detector.read_noise, detector.row_noise)) - 1
        for detector, told in kept
        if detector.read_noise and told.read_noise_error < SEEN * detector.read_noise
    ]
    right = int(np.count_nonzero(np.abs(errors) <= case.limit))
    return {
        "case": case.name,
        "limit": case.limit,
        "tests": len(results),
        "refused": 1 - len(kept) / len(results),
        "within": right / len(results),
        "wrong": (len(kept) - right) / len(results),
        "median": float(np.median(np.abs(errors))) if len(kept) else None,
        "p95": float(np.quantile(np.abs(errors), 0.95)) if len(kept) else None,
        "pull": pull,
        "read_noise_seen": len(noises),
        "read_noise_within": float(np.mean(np.abs(noises) <= 0.05)) if noises else None,
    }


def main(
    json_path: JsonPath = None,
    simulations: Annotated[int, typer.Option(min=2, help="Detectors of each kind.")] = 40,
    seed: Annotated[int, typer.Option(help="Of detectors, scenes and noise.")] = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Measure how well gain, read noise and averaged exposures of simulated detectors are found, or refused.

    Gains from 0.2 to 20, read noise from 0.5 to 30, 256 x 256 pixels, rings and spots; of counts the error is that of
    the number of exposures.
    """
    about = header()
    results = []
    for number, case in enumerate(CASES):
        # Each case has its own numbers, whatever the others are.
        rng = np.random.default_rng([seed, number])
        told = [found(rng, case) for _ in track(range(simulations), case.name, transient=True)]
        results.append(figures(case, told))
    table = Table(title="gain found from frames of simulated detectors", title_justify="left")
    for name in ("case", "asked", "within", "wrong", "refused", "median", "95 %", "pull", "read noise within 5 %"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in results:
        table.add_row(
            row["case"],
            f"{row['limit']:.0%}",
            *(f"{row[name]:.1%}" for name in ("within", "wrong", "refused")),
            *("" if row[name] is None else f"{row[name]:.2%}" for name in ("median", "p95")),
            "" if row["pull"] is None else f"{row['pull']:.2f}",
            "" if row["read_noise_within"] is None else f"{row['read_noise_within']:.1%} of {row['read_noise_seen']}",
        )
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
    report = {"readout": results}
    write(json_path, about, report)
    return report
