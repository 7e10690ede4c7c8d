"""Gain from tuning a model to a set's own frames: tuned on half of them, scored on the photons of the other half."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.bench.options import CpuThreads, Data, JsonPath, ModelName
from bluesky_symdenoise.bench.quality.cases import ImageSet, image_sets
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.fit import TrainConfig
from bluesky_symdenoise.training.scores import Paired
from bluesky_symdenoise.training.shots import Shot
from bluesky_symdenoise.training.tune import TUNING, halves, tune

#: Number of sets that are measured by default: those with the most frames.
SETS = 3
#: Target of the network while it is tuned: another part of the frame's own photons, or a frame with a longer exposure.
MODES = ("own frames", "reference")
_PAGE = 150


def thinned(image_set: ImageSet, *, level: float, seed: int) -> list[Shot]:
    """Return frames of about ``level`` counts per pixel or half of their photons, and the other photons as target."""
    with h5py.File(image_set.path) as file:
        stack, mask = file[image_set.group]["counts"][()], file[image_set.group]["mask"][()].astype(bool)
    symmetry = Symmetry() if image_set.symmetry == "1" else Symmetry(image_set.symmetry, image_set.beam_center)
    rng = np.random.default_rng(seed)
    share = min(0.5, level / float(stack[:, ~mask].mean(dtype=np.float64)))
    shots = []
    for counts in stack:
        whole = np.where(mask, 0, counts).astype(np.int64)
        low = rng.binomial(whole, share)
        shots.append(Shot(low.astype(np.uint32), mask, symmetry, (whole - low).astype(np.uint32), (1 - share) / share))
    return shots


def run(
    data: Path,
    parent: Denoiser,
    *,
    sets: Sequence[str] = (),
    level: float = 1.0,
    minutes: float = 4.5,
    config: TrainConfig = TUNING,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Tune to each set in each mode, and give the figures.

    Frames are thinned to ``level`` counts per pixel, as a fast scan would have counted them, and the photons left over
    score them: held-out photons of frames that were not tuned on. In the mode `reference`, the model is tuned on the
    photons left over of the other frames.
    """
    found = {each.name: each for each in image_sets(data, ("train",))}
    if unknown := sorted(set(sets) - set(found)):
        raise SymDenoiseError(
            f"set {unknown[0]!r}", rule=f"the folder has {', '.join(found)} for training", remedy="choose among these"
        )
    for name in sets or _largest(found)[:SETS]:
        shots = thinned(found[name], level=level, seed=seed)
        on, held_out = halves(shots, held_out=len(shots) // 2, seed=seed)
        for mode in MODES:
            begun = time.monotonic()
            mine = on if mode == "reference" else [replace(shot, target=None, exposure=1.0) for shot in on]
            tuned = tune(
                parent,
                mine,
                held_out,
                config=replace(config, name=f"{name}-tuned", seed=seed, threads=parent.threads),
                seconds=minutes * 60,
                progress=False,
            )
            yield {
                "set": name,
                "mode": mode,
                "counts_per_pixel": float(np.mean([shot.mean for shot in shots])),
                "frames_tuned_on": len(on),
                "frames_scored": len(held_out),
                "symmetry": shots[0].symmetry.point_group,
                "parent": parent.model.identity(),
                "accepted": tuned.accepted,
                "total_seconds": time.monotonic() - begun,
                "threads": parent.threads,
                **tuned.figures(),
            }


def main(
    data: Data,
    json_path: JsonPath = None,
    model: ModelName = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Name of a set; by default the three with the most frames.")
    ] = None,
    level: Annotated[float, typer.Option(help="Counts per pixel that frames are thinned to.")] = 1.0,
    minutes: Annotated[float, typer.Option(min=0.1, help="For each tuning.")] = 4.5,
    threads: CpuThreads = 1,
) -> list[dict[str, Any]]:
    """Measure what fine-tuning gains on real sets: tuned on half of the frames, scored on the other half.

    The sets are those with role ``train``.
    """
    about = header(model_file(model))
    console = Console()
    if not console.is_terminal:
        console.width = _PAGE
    results = []
    parent = Denoiser.pretrained(model, device="cpu", threads=threads)
    for result in run(data, parent, sets=sets or (), level=level, minutes=minutes):
        results.append(result)
        write(json_path, about, {"results": results})
        Console(stderr=True).print(f"{result['set']}, {result['mode']}: {result['total_seconds']:.0f} s")
    console.print(_table(results, f"tuned from {parent.model.name}, {threads} thread(s)"))
    return results


def _largest(found: dict[str, ImageSet]) -> list[str]:
    def frames(name: str) -> int:
        with h5py.File(found[name].path) as file:
            return int(file[found[name].group]["counts"].shape[0])

    return sorted(found, key=frames, reverse=True)


def _table(results: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("set", "tuned on"):
        table.add_column(name, no_wrap=True)
    for name in (
        "counts/px",
        "frames",
        "parent's loss",
        "gain, mnat/px",
        "steps",
        "s",
        "false features/Mpx: parent",
        "change",
        "kept",
    ):
        table.add_column(name, justify="right")
    for row in results:
        loss, features = (Paired(**row[name]) for name in ("held_out_loss", "false_features_per_megapixel"))
        table.add_row(
            row["set"],
            row["mode"],
            f"{row['counts_per_pixel']:.2g}",
            f"{row['frames_tuned_on']} + {row['frames_scored']}",
            f"{loss.parent:.4f}",
            f"{-1e3 * loss.difference:+.2f} ± {1e3 * loss.error:.2f}",
            str(row["steps"]),
            f"{row['total_seconds']:.0f}",
            f"{features.parent:.1f}",
            f"{features.difference:+.1f} ± {features.error:.1f}",
            "tuned" if row["accepted"] else "parent",
        )
    return table
