"""How often the test of photon counts is right: on real counting frames, simulated counts, and frames that are none."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from bluesky_symdenoise.bench.simulated.detectors import COUNTING, OTHERS, Made, averaged, rate_corrected, shared_out
from bluesky_symdenoise.bench.simulated.scenes import SCENES, at_level
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.clipped import refuse_clipped
from bluesky_symdenoise.physics.counts.verdict import verdict
from bluesky_symdenoise.physics.frame import refuse_negative, sentinel_mask

SHAPE = (256, 272)
#: Mean counts per pixel of simulated counts, and of what is made of others.
LEVELS, OTHER_LEVELS = (0.01, 1e5), (0.3, 1e3)
#: Levels that real frames are thinned to, and most exposures that are averaged.
THINNED, EXPOSURES = (10.0, 1.0, 0.1), 100
#: Wanted: share of false alarms, share of others that is refused or warned of, error of sigma where nothing is said,
#: share of averaged frames whose number is found, and its error.
FALSE, SEEN, SIGMA, RECOGNISED, NUMBER = 1e-3, 0.98, 0.2, 0.95, 0.1


@dataclass
class Tally:
    """What was said of the frames of one case.

    Attributes
    ----------
    errors
        Error of sigma of each frame of which nothing was said.
    recognised
        Averaged frames whose number of exposures was found.
    """

    part: str
    case: str
    frames: int = 0
    refused: int = 0
    warned: int = 0
    errors: list[float] = field(default_factory=list)
    recognised: int | None = None

    def note(self, said: str, error: float = 0.0) -> None:
        """Count one frame."""
        self.frames += 1
        self.refused += said == "refused"
        self.warned += said == "warned"
        if said == "silent":
            self.errors.append(error)

    def row(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "part": self.part,
            "case": self.case,
            "frames": self.frames,
            "refused": self.refused,
            "warned": self.warned,
            "silent": len(self.errors),
            "silent_and_wrong": sum(error > SIGMA for error in self.errors),
            "largest_error": round(max(self.errors, default=0.0), 3),
            "recognised": self.recognised,
        }


def judged(frame: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> str:
    """Return what a user is told of a frame: ``refused``, ``warned`` or ``silent``.

    Negative values and frames cut at zero are refused by tests of their own, before the verdict.
    """
    bad = sentinel_mask(frame) if mask is None else sentinel_mask(frame) | mask
    try:
        refuse_negative(frame, np.zeros(frame.shape, bool) if mask is None else mask)
        refuse_clipped(frame, bad)
    except SymDenoiseError:
        return "refused"
    return {"not counts": "refused", "doubtful": "warned"}.get(verdict(frame, mask).kind, "silent")


def sigma_error(made: Made) -> float:
    """Return the error of sigma if values are taken for counts: sqrt(variance / mean) less 1, over half of the pixels.

    They are those of medium level among those with a signal: neither a few spots nor an empty part decide.
    """
    mean, variance = (each[made.mean > 0] for each in (made.mean, made.variance))
    if not mean.size:
        return 0.0
    low, high = np.quantile(mean, (0.25, 0.75))
    middle = (mean >= low) & (mean <= high)
    return float(abs(np.sqrt(variance[middle].sum() / mean[middle].sum()) - 1))


def real_variants(
    counts: NDArray[Any], mask: NDArray[np.bool_], rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a real frame as it was measured, and as other detectors of photons would have given it."""
    yield "as measured", counts
    bad = mask | sentinel_mask(counts)
    whole = np.where(bad, 0, counts).astype(np.int64)
    mean = whole[~bad].mean()
    for level in THINNED:
        if level < mean:
            yield f"thinned to {level:g} counts/pixel", rng.binomial(whole, level / mean)
    flat = np.clip(rng.normal(1, 0.1, whole.shape), 0.8, 1.3)
    corrected = rng.binomial(whole, 0.8 / flat) * flat
    yield "flat field of 10 %", corrected.astype(np.float32)
    yield "flat field of 10 %", np.round(corrected).astype(np.int64)
    yield "virtual pixels", shared_out(whole, every=200)
    yield "rates corrected by up to 30 %", rate_corrected(whole, bad)


def on_real(data: Path, frames: int, seed: int) -> list[Tally]:
    """Return what is said of frames of the real sets of counting detectors, evenly spread over each set."""
    tallies: dict[str, Tally] = {}
    for one in track(image_sets(data, ("train", "test")), "real sets", transient=True):
        with h5py.File(one.path) as file:
            group = file[one.group]
            mask, number = group["mask"][()].astype(bool), len(group["counts"])
            chosen = np.unique(np.linspace(0, number - 1, frames).round().astype(int))
            stack = [group["counts"][int(index)] for index in chosen]
        rng = np.random.default_rng((seed, zlib.crc32(one.name.encode())))
        for counts in stack:
            for case, frame in real_variants(counts, mask, rng):
                tallies.setdefault(case, Tally("real counts", case)).note(judged(frame, mask))
    return list(tallies.values())


def on_counts(frames: int, rng: np.random.Generator) -> list[Tally]:
    """Return what is said of simulated counts: by what the detector does to them, and by scene."""
    by_detector = {name: Tally("simulated counts", name) for name in COUNTING}
    by_scene = {name: Tally("simulated counts by scene", name) for name in SCENES}
    for index in track(range(frames), "simulated counts", transient=True):
        scene = list(SCENES)[index % len(SCENES)]
        detector = list(COUNTING)[index // len(SCENES) % len(COUNTING)]
        rate = at_level(SCENES[scene](rng, SHAPE), 10 ** rng.uniform(*np.log10(LEVELS)))
        said = judged(COUNTING[detector](rng, rate))
        by_detector[detector].note(said)
        by_scene[scene].note(said)
    return [*by_detector.values(), *by_scene.values()]


def on_others(frames: int, rng: np.random.Generator) -> list[Tally]:
    """Return what is said of frames that hold no counts."""
    tallies = {name: Tally("no counts", name) for name in OTHERS}
    for index in track(range(frames), "no counts", transient=True):
        name = list(OTHERS)[index % len(OTHERS)]
        made = OTHERS[name](rng, _other_rate(rng, index // len(OTHERS)))
        tallies[name].note(judged(made.frame), sigma_error(made))
    return list(tallies.values())


def on_averaged(frames: int, rng: np.random.Generator) -> list[Tally]:
    """Return how many averaged frames are recognised, with the number of their exposures."""
    tallies = [
        Tally("averaged", "mean of 2 to 100 exposures", recognised=0),
        Tally("averaged", "... rounded", recognised=0),
    ]
    for index in track(range(frames), "averaged", transient=True):
        number = round(2 * (EXPOSURES / 2) ** rng.random())
        made = averaged(rng, _other_rate(rng, index), number)
        rounded = made._replace(frame=np.round(made.frame).astype(np.uint16), variance=made.variance + 1 / 12)
        for tally, each in zip(tallies, (made, rounded), strict=True):
            tally.note(judged(each.frame), sigma_error(each))
            found = verdict(each.frame).exposures
            tally.recognised = (tally.recognised or 0) + (found is not None and abs(found / number - 1) <= NUMBER)
    return tallies


def _other_rate(rng: np.random.Generator, index: int) -> NDArray[np.float64]:
    scene = list(SCENES.values())[index % len(SCENES)]
    return at_level(scene(rng, SHAPE), 10 ** rng.uniform(*np.log10(OTHER_LEVELS)))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures that are wanted, with what was found."""
    of = {part: [row for row in rows if row["part"] == part] for part in {row["part"] for row in rows}}

    def total(part: str, what: str) -> int:
        return sum(row[what] or 0 for row in of[part])

    out: list[dict[str, Any]] = []

    def add(figure: str, count: int, frames: int, target: str, met: bool) -> None:
        out.append({"figure": figure, "count": count, "frames": frames, "target": target, "met": met})

    if "real counts" in of:
        refused = total("real counts", "refused")
        add("real counts that are refused", refused, total("real counts", "frames"), "0", refused == 0)
        add("real counts that are doubted", total("real counts", "warned"), total("real counts", "frames"), "", True)
    refused, frames = total("simulated counts", "refused"), total("simulated counts", "frames")
    add("simulated counts that are refused", refused, frames, f"<= {FALSE:.1%}", refused <= FALSE * frames)
    add("simulated counts that are doubted", total("simulated counts", "warned"), frames, "", True)
    frames, silent = total("no counts", "frames"), total("no counts", "silent")
    add("no counts, refused or warned of", frames - silent, frames, f">= {SEEN:.0%}", frames - silent >= SEEN * frames)
    wrong = total("no counts", "silent_and_wrong")
    add(f"no counts, nothing said and sigma off by more than {SIGMA:.0%}", wrong, frames, "0", wrong == 0)
    exact, rounded = of["averaged"]
    met = exact["recognised"] >= RECOGNISED * exact["frames"]
    add(
        f"{exact['case']}: number within {NUMBER:.0%}",
        exact["recognised"],
        exact["frames"],
        f">= {RECOGNISED:.0%}",
        met,
    )
    wrong = rounded["silent_and_wrong"]
    add("the same, rounded: nothing said and sigma wrong", wrong, rounded["frames"], "0", wrong == 0)
    return out


def main(
    json_path: JsonPath = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="SYMDENOISE_REAL_DATA", help="Folder with real frames (HDF5 with counts, mask, noise)."),
    ] = None,
    frames: Annotated[int, typer.Option(min=10, help="Simulated frames of counts; half as many are no counts.")] = 3600,
    real_frames: Annotated[int, typer.Option(min=1, help="Frames of each real set.")] = 3,
    seed: Annotated[int, typer.Option(help="Of all that is simulated.")] = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Measure how often frames are taken for photon counts that are none, and the other way round.

    A quarter as many frames are averages of exposures.
    """
    about = header()
    streams = [np.random.default_rng((seed, part)) for part in range(3)]
    tallies = [] if data is None else on_real(data, real_frames, seed)
    tallies += on_counts(frames, streams[0])
    tallies += on_others(frames // 2, streams[1])
    tallies += on_averaged(frames // 4, streams[2])
    rows = [tally.row() for tally in tallies]
    console = Console()
    console.width = max(console.width, 120)
    if data is None:
        console.print("no real frames: give --data, or SYMDENOISE_REAL_DATA")
    table = Table(title="what is said of frames", title_justify="left")
    columns = ("frames", "refused", "warned", "silent", "silent_and_wrong", "largest_error", "recognised")
    for name in ("part", "case", *(column.replace("_", " ") for column in columns)):
        table.add_column(name, justify="left" if name in ("part", "case") else "right")
    for row in rows:
        table.add_row(row["part"], row["case"], *("" if row[name] is None else str(row[name]) for name in columns))
    console.print(table)
    wanted = summary(rows)
    for each in wanted:
        share = f"{each['count']} of {each['frames']} ({each['count'] / each['frames']:.2%})"
        target = "" if not each["target"] else f", wanted {each['target']}: {'met' if each['met'] else 'missed'}"
        console.print(f"{each['figure']}: {share}{target}")
    report = {"summary": wanted, "cases": rows}
    write(json_path, about, report)
    return report
