"""Cross-validation: how well a model does on frames of an instrument that it has not seen any frame of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.bench.options import JsonPath
from bluesky_symdenoise.bench.quality.quality import pretrained, run
from bluesky_symdenoise.bench.quality.report import OURS, OURS_FOLDED, Result, number
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.training.fit import TrainConfig, fit
from bluesky_symdenoise.training.pairs import real_frames

#: Levels of the cases, in counts per pixel.
LEVELS = (0.1, 1.0, 10.0)
#: Largest side of the part of each frame that is used.
CROP = 256


def main(
    data: Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role, origin).")],
    initial: Annotated[
        Path,
        typer.Option(
            help="Weights (.safetensors) of simulations only, such as small-photons.toml gives without --data."
        ),
    ],
    recipe: Annotated[Path, typer.Option(help="Training recipe to go on with: small-origin.toml in training/recipes.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained weights; those that are there are kept.")],
    json_path: JsonPath = None,
) -> list[dict[str, Any]]:
    """Cross-validate: train without the frames of each origin in turn, and score on these.

    For each case the held-out negative log-likelihood in nat per pixel, and the PSNR in dB, are those of the weights
    that have seen no real frame (``simulated``), all but those of its origin (``left_out``) and all (``all``).
    """
    about = header(model_file(initial))
    config = TrainConfig.read(recipe)
    sets = real_frames(data)
    origins = sorted({frames.origin for frames in sets})
    if len(origins) < 2:
        raise SymDenoiseError(
            f"{data}", rule="its sets are of one origin", remedy="give sets whose attribute origin differs"
        )

    def trained(name: str, left_out: str | None) -> Path:
        real = [frames for frames in sets if frames.origin != left_out]
        weights = output / name / f"{config.name}.safetensors"
        return weights if weights.exists() else fit(config, output=output / name, real=real, initial=initial)

    output.mkdir(parents=True, exist_ok=True)
    everything = trained("all", None)
    rows: list[dict[str, Any]] = []
    for index, origin in enumerate(origins):
        names = [frames.name for frames in sets if frames.origin == origin]
        models = {"simulated": initial, "left_out": trained(f"without-{index}", origin), "all": everything}
        scored = {
            kind: run(data, pretrained(str(path)), peers={}, roles=("train",), sets=names, levels=LEVELS, crop=CROP)
            for kind, path in models.items()
        }
        rows += _rows(origin, scored)
    _show(rows)
    write(json_path, about, {"recipe": config.to_dict(), "initial": initial.name, "levels": LEVELS, "results": rows})
    return rows


def _rows(origin: str, scored: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Return one row for each case, scored with the symmetry if the set has one."""
    out: dict[tuple[str, str, float], dict[str, Any]] = {}
    for kind, results in scored.items():
        for row in results:
            # The folded result of a case follows the plain one, and replaces it.
            if row["method"] in (OURS, OURS_FOLDED) and row["nll"] is not None:
                case = str(row["set"]), str(row["kind"]), number(row["level"])
                named = dict(zip(("set", "kind", "level"), case, strict=True))
                mine = out.setdefault(case, {"origin": origin, **named})
                mine |= {f"{kind}_nll": row["nll"], f"{kind}_psnr": row["psnr"]}
    return list(out.values())


def _show(rows: Sequence[dict[str, Any]]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 150
    table = Table(
        title="held-out likelihood in millinat per pixel, relative to the model trained on simulations only",
        title_justify="left",
    )
    for index, name in enumerate(
        ("origin", "set", "counts/pixel", "its origin left out", "all", "dB left out", "dB all")
    ):
        table.add_column(name, justify="left" if index < 2 else "right")
    gains: dict[str, list[float]] = {"left_out": [], "all": []}
    for row in rows:
        cells = []
        for score, scale, sign in (("nll", 1000, -1), ("psnr", 1, 1)):
            for kind in gains:
                one, base = row[f"{kind}_{score}"], row[f"simulated_{score}"]
                cells.append("-" if one is None or base is None else f"{sign * scale * (one - base):+.2f}")
        for kind, found in gains.items():
            found.append(row["simulated_nll"] - row[f"{kind}_nll"])
        level = f"{row['level']:.3g}{' (repeats)' if row['kind'] == 'repeats' else ''}"
        table.add_row(row["origin"], row["set"], level, *cells)
    console.print(table)
    for kind, found in gains.items():
        better = int(np.sum(np.array(found) > 0))
        console.print(f"{kind.replace('_', ' ')}: better than simulations alone in {better} of {len(found)} cases")
