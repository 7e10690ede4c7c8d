"""Tables of `features` and `calibration`: what a model keeps, what it invents, and whether its sigma is right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bluesky_symdenoise.bench.options import JsonPath, ModelName
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.bench.truth import arcs, calibration, features
from bluesky_symdenoise.bench.truth.features import Row
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser


def run(denoiser: Denoiser, *, frames: int, seed: int = 0) -> list[Row]:
    """Run all parts, with this many frames of each kind; each part has its own random numbers."""
    parts = (
        (features.injected, max(1, frames // 8)),
        (features.made_up, frames),
        (features.symmetric, 2 * frames),
        (calibration.intervals, frames),
        (calibration.sums, frames),
        (calibration.peaks, frames),
        (arcs.series, frames),
    )
    steps = chain.from_iterable(
        part(denoiser, np.random.default_rng([seed, index]), frames=each) for index, (part, each) in enumerate(parts)
    )
    return list(track(steps, "features and calibration", transient=True, console=Console(stderr=True)))


def main(
    json_path: JsonPath = None,
    model: ModelName = None,
    frames: Annotated[int, typer.Option(min=8, help="Simulated frames of each kind and level.")] = 32,
) -> list[Row]:
    """Measure what a model keeps of small features, makes up, and claims to know, on frames of known rate."""
    denoiser = Denoiser.pretrained(model)
    about = header(model_file(model), device=denoiser.environment()["device"])
    results = run(denoiser, frames=frames)
    console = Console()
    if not console.is_terminal:
        console.width = 140
    for table in tables(results):
        console.print(table)
    write(json_path, about, {"environment": denoiser.environment(), "results": results})
    return results


def tables(results: Sequence[Row]) -> list[Table]:
    """Return one table for each kind of result."""
    of = {what: [row for row in results if row["what"] == what] for what in dict.fromkeys(r["what"] for r in results)}
    return [
        _spots(of["spot"]),
        _table(
            "false features: regions per megapixel that exceed a featureless truth by this many of their own sigma",
            ("counts/pixel", "frame", *(f"{limit:g} sigma" for limit in features.THRESHOLDS), "pixels beyond 99.73 %"),
            [
                (
                    _level(row),
                    str(row["kind"]),
                    *(f"{value:.0f}" for value in row["per_megapixel"].values()),
                    _percent(row["beyond"], 2),
                )
                for row in of["nothing"]
            ],
        ),
        _table(
            "a spot without a mate in a pattern of symmetry 2, denoised with it",
            ("counts/pixel", "significance", "spots", "kept", "copied to the mate's place"),
            [
                (
                    _level(row),
                    f"{row['significance']:g}",
                    str(row["number"]),
                    f"{_percent(row['kept'])} +- {_percent(row['kept_error'])}",
                    f"{_percent(row['copied'])} +- {_percent(row['copied_error'])}",
                )
                for row in of["asymmetric"]
            ],
        ),
        _table(
            f"an arc {100 * arcs.EXCESS:g} % brighter than its mate under a half turn, in all frames of a run",
            ("counts/pixel", "frames", "symmetry 2", "kept", "rms error of a frame", "mates may be used on"),
            [
                (
                    _level(row),
                    str(row["frames"]),
                    str(row["symmetry"]),
                    f"{_percent(row['kept'])} +- {_percent(row['kept_error'])}",
                    _percent(row["rms"]),
                    _percent(row["usable"], 0),
                )
                for row in of["arc"]
            ],
        ),
        _table(
            "true rate within the interval",
            ("pattern", "counts/pixel", "interval", "covered", "lowest and highest coverage of a decile of the rate"),
            [
                (
                    str(row["pattern"]),
                    _level(row),
                    _percent(row["share"], 0),
                    _percent(row["covered"]),
                    f"{_percent(row['least'])}, {_percent(row['most'])}",
                )
                for row in of["interval"]
            ],
        ),
        _table(
            "flux of the worst part relative to the truth, mean over frames",
            ("counts/pixel", "of", "error", "+-", "in sigma of one frame's photons"),
            [
                (
                    _level(row),
                    str(row["of"]),
                    _percent(row["worst"], 2),
                    _percent(row["standard_error"], 2),
                    f"{row['worst_in_sigma']:.2f}",
                )
                for row in of["flux"]
            ],
        ),
        _table(
            "rings integrated by pyFAI: bias of a fit to the denoised profile, and spread of fits to raw frames",
            ("counts/pixel", "ring, pixels", "quantity", "bias", "sigma of one raw frame", "bias in sigma"),
            [
                (
                    _level(row),
                    f"{row['radius']:g}",
                    str(row["quantity"]),
                    f"{row['bias']:+.4f}",
                    f"{row['sigma']:.4f}",
                    f"{row['bias'] / row['sigma']:+.2f}",
                )
                for row in of["peak"]
            ],
        ),
    ]


def _spots(rows: Sequence[Row]) -> Table:
    found = {(row["level"], row["width"], row["significance"]): row for row in rows}
    return _table(
        "spots on smooth frames, by significance in sigma: share of their counts that is kept / share seen at "
        f"{features.DETECTED:g} sigma",
        ("counts/pixel", "width, pixels", *(f"{each:g}" for each in features.SIGNIFICANCES)),
        [
            (
                f"{level:g}",
                f"{width:g}",
                *(
                    f"{_percent(row['kept'], 0)} / {_percent(row['seen'], 0)}"
                    for row in (found[level, width, significance] for significance in features.SIGNIFICANCES)
                ),
            )
            for level in features.LEVELS
            for width in features.WIDTHS
        ],
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _level(row: Row) -> str:
    return f"{row['level']:g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
