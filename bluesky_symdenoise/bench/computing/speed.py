"""Speed and memory of the denoiser by symmetry, size, dtype and threads, beside itself without symmetry and peers."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from bluesky_symdenoise.bench.computing.against import Worker, own_folder, unpacked, worker
from bluesky_symdenoise.bench.computing.device import limit_rows, replayed
from bluesky_symdenoise.bench.load.live import Row, report
from bluesky_symdenoise.bench.options import JsonPath, ModelName
from bluesky_symdenoise.bench.quality.stabilised import bm3d, nlm
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.bench.simulated.symmetric import broken, center_of, counts_of, symmetric_rate
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.errors import SymDenoiseError

#: Target in Mpixel/s by the dtype of the network: 1024 x 1024, symmetry 1, two threads of a CPU.
WANTED = {"float32": 2.5, "bfloat16": 5.0}
#: Targets in MB of memory above process and frame, by shape.
MEMORY = {(1024, 1024): 300, (4362, 4148): 2000}
#: What is measured by default at 1024 x 1024, and at the other sizes.
AUTO, BROKEN = "auto", "broken"
SYMMETRIES = ("1", "2", "2mm", "4", "inf", AUTO, "2mm~15:90:1200", BROKEN)
LARGE, FEW = (1024, 1024), ("1", "2mm")
#: Fewest pixels along a side: a part of so many is denoised before memory is measured.
SMALLEST = 128
OTHERS = ((256, 256), (512, 512), (2048, 2048))

Shape = tuple[int, int]
Reply = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions of the measurement.

    Attributes
    ----------
    model
        Name of the model; None for the default one.
    device
        Device of the denoiser.
    threads
        CPU threads of the denoiser, each in turn.
    dtypes
        Types of the network, each in turn.
    batches
        Frames that are given at a time, each in turn.
    repeats
        Pairs of frames of each; medians are given.
    part
        Pixels along each side of the part of the frame that slow peers are given; their time is scaled by area. 0: no
        peers.
    replay_frames
        Frames of each replay into Tiled; 0: none.
    against
        Another version, a wheel or the folder of a checkout.
    """

    model: str | None
    device: str
    threads: tuple[int, ...]
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    repeats: int
    part: int
    replay_frames: int
    against: str | None


@dataclass(frozen=True)
class Setting:
    """A frame's shape and number, and how the network runs; symmetries are compared within it."""

    shape: Shape
    batch: int
    dtype: str
    threads: int

    @property
    def pixels(self) -> int:
        """Pixels that one call is given."""
        return self.shape[0] * self.shape[1] * self.batch

    def __str__(self) -> str:
        """Return it in words."""
        frames = "" if self.batch == 1 else f"{self.batch} frames of "
        return f"{frames}{self.shape[0]} x {self.shape[1]}, {self.dtype}, {self.threads} thread(s)"


class Frames:
    """Simulated frames in files, each made when it is first asked for.

    Parameters
    ----------
    folder
        Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def request(self, setting: Setting, symmetry: str) -> dict[str, Any]:
        """Return frame, symmetry and beam centre of one case, as a worker takes them."""
        shape = setting.shape
        symbol = "2mm" if symmetry in (AUTO, BROKEN) else symmetry
        path = self._folder / f"{shape[0]}_{shape[1]}_{setting.batch}_{symbol}_{symmetry == BROKEN}.npy"
        if not path.exists():
            rate = symmetric_rate(shape, symbol)
            counts = counts_of(broken(rate) if symmetry == BROKEN else rate, setting.batch)
            np.save(path, counts[0] if setting.batch == 1 else counts)
        asked = AUTO if symmetry == AUTO else symbol
        return {"frame": str(path), "symmetry": asked, "beam_center": None if asked == "1" else center_of(shape)}


@dataclass(frozen=True)
class Bench:
    """What all measurements of a run share."""

    options: Options
    frames: Frames

    def request(self, setting: Setting, symmetry: str, decided: Worker) -> dict[str, Any]:
        """Return all that a worker needs for a case; ``auto`` is decided by it, before anything is measured."""
        found = {
            "model": self.options.model,
            "device": self.options.device,
            "threads": setting.threads,
            "dtype": setting.dtype,
            **self.frames.request(setting, symmetry),
        }
        if symmetry == AUTO:
            reply = decided.ask("run", **found)
            found |= {name: reply[name] for name in ("symmetry", "beam_center")}
        return found

    def pairs(self, one: Callable[[], Reply], other: Callable[[], Reply]) -> list[tuple[Reply, Reply]]:
        """Return replies of both, which are asked in turn, without the first pair."""
        one(), other()
        return [(one(), other()) for _ in range(self.options.repeats)]


def by_symmetry(
    bench: Bench, ours: Worker, setting: Setting, symmetries: Sequence[str]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return Mpixel/s of each symmetry, and its time over that without symmetry on the same frame, in pairs."""
    cases: list[dict[str, Any]] = []
    without: list[float] = []
    for symmetry in [each for each in symmetries if each != "1"] or ["1"]:
        asked = bench.request(setting, symmetry, ours)
        plain = {**asked, "symmetry": "1", "beam_center": None}
        made = bench.pairs(partial(ours.ask, "run", **plain), partial(ours.ask, "run", **asked))
        without += [one["seconds"] for one, _ in made]
        if symmetry != "1":
            ratios = [other["seconds"] / one["seconds"] for one, other in made]
            seconds = float(np.median([other["seconds"] for _, other in made]))
            cases.append(_case(setting, _named(symmetry, asked), seconds, times_symmetry_1=float(np.median(ratios))))
    if "1" in symmetries:
        cases.insert(0, _case(setting, "1", float(np.median(without))))
    rows = []
    for case in cases:
        most = setting.threads == 2 and setting.shape == LARGE and bench.options.device == "cpu"
        goal = f">= {WANTED[setting.dtype]:g}" if most and case["symmetry"] == "1" else ""
        rows.append(Row(f"{setting}: {case['symmetry']}", case["mpixel_per_s"], "Mpixel/s", goal))
        if "times_symmetry_1" in case:
            rows.append(Row("  times symmetry 1 on that frame", case["times_symmetry_1"], "", ""))
    return rows, cases


def _case(setting: Setting, symmetry: str, seconds: float, **more: float) -> dict[str, Any]:
    return {**asdict(setting), "symmetry": symmetry, "mpixel_per_s": setting.pixels / seconds / 1e6, **more}


def _named(symmetry: str, asked: dict[str, Any]) -> str:
    """Return a symmetry in words."""
    if symmetry == AUTO:
        return f"auto, decided before: {asked['symmetry']}"
    return f"{asked['symmetry']}, broken in a part" if symmetry == BROKEN else symmetry


def side_by_side(
    bench: Bench, ours: Worker, theirs: Worker, setting: Setting, symmetries: Sequence[str]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return Mpixel/s of two versions that denoise the same frames in turn, and the ratio of their times."""
    rows: list[Row] = []
    cases: list[dict[str, Any]] = []
    for symmetry in symmetries:
        asked = bench.request(setting, symmetry, ours)
        made = bench.pairs(partial(ours.ask, "run", **asked), partial(theirs.ask, "run", **asked))
        seconds, other_seconds = (float(np.median([pair[i]["seconds"] for pair in made])) for i in (0, 1))
        wall, busy = (float(np.median([own[key] / other[key] for own, other in made])) for key in ("seconds", "busy"))
        same = made[0][0]["sha256"] == made[0][1]["sha256"]
        more = {"time_of_other": wall, "processor_time_of_other": busy, "same_bits": same}
        cases.append(_case(setting, _named(symmetry, asked), seconds, **more))
        rows += [
            Row(f"{setting}: {cases[-1]['symmetry']}", setting.pixels / seconds / 1e6, "Mpixel/s", ""),
            Row("  the other version", setting.pixels / other_seconds / 1e6, "Mpixel/s", ""),
            Row("  its time over the other's", wall, "", ""),
            Row("  its processor time over the other's", busy, "", ""),
            Row("  same bits (1: yes)", int(same), "", ""),
        ]
    return rows, cases


def memory(bench: Bench, ours: Worker, measured: Worker, setting: Setting, symmetries: Sequence[str]) -> list[Row]:
    """Return a version's peak of memory of the first frame of each symmetry, above the process and the frame."""
    whose = "" if measured is ours else ", the other version"
    rows = []
    for symmetry in symmetries:
        # Use a process of its own: memory that another case left behind would hide this one's peak.
        asked = bench.request(setting, symmetry, ours)
        with worker(measured.folder) as alone:
            found = alone.ask("peak", **asked)
        words = f"{setting}: {_named(symmetry, asked)}, peak above the frame{whose}"
        goal = f"<= {MEMORY[setting.shape]}" if setting.shape in MEMORY and setting.batch == 1 else ""
        rows.append(Row(words, found["megabytes"], "MB", goal))
        if "megabytes_on_gpu" in found:
            rows.append(Row("  on the GPU", found["megabytes_on_gpu"], "MB", ""))
    return rows


def oidn(counts: NDArray[Any]) -> NDArray[Any]:
    """Return what Open Image Denoise makes of a frame (y, x), taken for an image of high dynamic range, all threads.

    Raises
    ------
    ImportError
        If `pyoidn`, which is no dependency, is not installed.
    """
    import pyoidn

    grey = np.repeat(counts.astype(np.float32)[..., np.newaxis], 3, axis=2)
    return np.asarray(pyoidn.denoise(grey, hdr=True))[..., 0]


def peers(bench: Bench, cases: Sequence[dict[str, Any]]) -> list[Row]:
    """Return seconds of other methods for a frame of 1024 x 1024, and how many times faster the denoiser is."""
    counts = counts_of(symmetric_rate(LARGE, "1"))
    own: dict[str, float] = {}
    for case in cases:
        if tuple(case["shape"]) == LARGE and case["symmetry"] == "1":
            own[case["dtype"]] = max(case["mpixel_per_s"] / counts.size * 1e6, own.get(case["dtype"], 0.0))
    part = counts[: bench.options.part, : bench.options.part].astype(np.float64)
    nothing = np.zeros(part.shape, bool)
    asked: dict[str, tuple[NDArray[Any], Callable[[], object]]] = {
        "BM3D": (part, lambda: bm3d(part, nothing)),
        "non-local means": (part, lambda: nlm(part, nothing)),
    }
    try:
        oidn(part)
        asked["Open Image Denoise"] = (counts, lambda: oidn(counts))
    except ImportError:
        typer.echo("Open Image Denoise is left out: pip install pyoidn", err=True)
    rows = []
    for name, (image, work) in asked.items():
        begun = time.perf_counter()
        work()
        seconds = (time.perf_counter() - begun) * counts.size / image.size
        scaled = "" if image.size == counts.size else f", {part.shape[0]} x {part.shape[1]} scaled by area"
        rows.append(Row(f"{name}{scaled}", seconds, "s", ""))
        for dtype, rate in own.items():
            goal = ">= 50" if name == "BM3D" else ""
            rows.append(Row(f"  denoiser at its fastest, {dtype}, symmetry 1", seconds * rate, "times faster", goal))
    return rows


def _shape(size: str) -> Shape:
    found = re.fullmatch(r"(\d{3,5})(?:\s*[xX]\s*(\d{3,5}))?", size.strip())
    shape = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if min(shape) < SMALLEST:
        raise SymDenoiseError(
            f"size {size!r}", rule=f"it is at least {SMALLEST} pixels", remedy="give 1024 or 4362x4148"
        )
    return shape


def _settings(options: Options, shapes: Sequence[Shape], threads: Sequence[int]) -> Iterator[Setting]:
    for shape in shapes:
        for batch in options.batches:
            for dtype in options.dtypes:
                yield from (Setting(shape, batch, dtype, each) for each in threads)


def main(
    json_path: JsonPath = None,
    model: ModelName = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Pixels along each side, or 4362x4148; repeatable. All at 1024, few at 256, 512 and 2048."),
    ] = None,
    symmetry: Annotated[
        list[str] | None,
        typer.Option(help="Point group, auto, or broken: 2mm that does not hold in a part; repeatable."),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeatable; both.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="CPU threads; repeatable; 1 and 2.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Frames given at a time; repeatable; 1.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of each.")] = 3,
    part: Annotated[int, typer.Option(min=0, help="Pixels along each side of what BM3D is given; 0: no peers.")] = 512,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    replay_frames: Annotated[
        int | None, typer.Option(min=0, help="Frames of replays into Tiled; 100 on a GPU, else none.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another version to compare with: a wheel, or the folder of a checkout.")
    ] = None,
) -> dict[str, list[Row]]:
    """Measure Mpixel/s and memory of the denoiser by symmetry, size and dtype, beside peers or another version."""
    cpu = device == "cpu"
    options = Options(
        model=model,
        device=device,
        threads=tuple(threads or ((1, 2) if cpu else (len(os.sched_getaffinity(0)),))),
        dtypes=tuple(dtype or WANTED),
        batches=tuple(batch or (1,)),
        repeats=repeats,
        part=part,
        replay_frames=(0 if cpu else 100) if replay_frames is None else replay_frames,
        against=None if against is None else str(against),
    )
    for each in options.dtypes:
        if each not in WANTED:
            raise SymDenoiseError(f"dtype {each!r}", rule="there is none", remedy=f"choose among {', '.join(WANTED)}")
    asked = tuple(symmetry or SYMMETRIES)
    most = (max(options.threads),)
    plan = [
        (each, asked) for each in _settings(options, [_shape(each) for each in size or ()] or [LARGE], options.threads)
    ]
    of_memory = [each for each, _ in plan if (each.dtype, each.threads) == (options.dtypes[0], *most)]
    if not size:
        few = tuple(each for each in asked if each in FEW)
        plan += [(each, few) for each in _settings(options, OTHERS, most) if few]
    results: dict[str, list[Row]] = {}
    cases: list[dict[str, Any]] = []
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench, ours = Bench(options, Frames(home)), stack.enter_context(worker(own_folder()))
        about = header(model_file(model), device=ours.ask("about", device=device)["device"])
        theirs = None
        if against is not None:
            theirs = stack.enter_context(worker(unpacked(against, home / "other")))
        title = (
            f"medians of {options.repeats} pairs in turn, {len(os.sched_getaffinity(0))} cores, "
            f"load {os.getloadavg()[0]:.1f} before"
        )
        for setting, symmetries in plan:
            if theirs is None:
                rows, found = by_symmetry(bench, ours, setting, symmetries)
            else:
                rows, found = side_by_side(bench, ours, theirs, setting, symmetries)
            results[str(setting)] = rows
            cases += found
        results["memory"] = [row for each in of_memory for row in memory(bench, ours, ours, each, asked)]
        if theirs is not None:
            results["memory of the other version"] = [
                row for each in of_memory for row in memory(bench, ours, theirs, each, asked)
            ]
        else:
            results["limits"] = limit_rows(
                ours, cases, model=model, device=device, dtypes=options.dtypes, threads=most[0]
            )
            if options.part:
                results["peers"] = peers(bench, cases)
        if options.replay_frames:
            results["replay"] = replayed(
                home,
                sizes=(256, 1024),
                frames=options.replay_frames,
                repeats=options.repeats,
                threads=most[0],
                device=device,
            )
    report(results, vars(options), title=title, about=about, json_path=json_path, cases=cases)
    return results
