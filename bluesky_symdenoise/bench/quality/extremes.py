"""Pictures of the cases in which a denoiser gains and loses most against its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bluesky_symdenoise.bench.quality.cases import Case, cases_of, image_sets
from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.quality.peers import Peer
from bluesky_symdenoise.bench.quality.report import OURS, OURS_FOLDED, Result, number, scored

if TYPE_CHECKING:
    from bluesky_symdenoise.bench.quality.quality import Denoise


def gains(results: Sequence[Result], peers: Sequence[str]) -> list[tuple[float, Result, str]]:
    """Return our PSNR minus the best peer's in dB, our row and the peer's name; smallest first, without undefined."""
    found = []
    for case in scored(list(results)).values():
        ours = case[OURS_FOLDED] if OURS_FOLDED in case else case.get(OURS)
        theirs = {name: number(case[name]["psnr"]) for name in peers if name in case}
        theirs = {name: value for name, value in theirs.items() if np.isfinite(value)}
        if ours is not None and theirs and np.isfinite(number(ours["psnr"])):
            best = max(theirs, key=lambda name: theirs[name])
            found.append((number(ours["psnr"]) - theirs[best], ours, best))
    return sorted(found, key=lambda each: each[0])


def draw(
    folder: Path,
    results: Sequence[Result],
    data: Path,
    denoise: Denoise,
    peers: Mapping[str, Peer],
    *,
    frames: int,
    seed: int,
    crop: int | None,
) -> list[Path]:
    """Write ``worst.png`` and ``best.png`` into a folder: counts, ours, the best peer, and the held-out counts."""
    ordered = gains(results, list(peers))
    if not ordered:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (gain, row, peer) in (("worst", ordered[0]), ("best", ordered[-1])):
        (image_set,) = (each for each in image_sets(data, (str(row["role"]),)) if each.name == row["set"])
        case = next(
            each
            for each in cases_of(image_set, (number(row["level"]),), frames, seed, crop)
            if (each.kind, each.frame) == (row["kind"], row["frame"])
        )
        ours, _ = denoise(case.counts, mask=case.mask, symmetry=str(row["symmetry"]), beam_center=case.beam_center)
        theirs = peers[peer].estimate(case.given)
        assert theirs is not None
        paths.append(folder / f"{name}.png")
        _panels(paths[-1], case, {"symdenoise": ours, peer: theirs}, f"{gain:+.2f} dB over {peer}")
    return paths


def _panels(path: Path, case: Case, estimates: Mapping[str, FloatArray], gain: str) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    images = {"counts": case.counts, **estimates, f"held-out counts / {case.k:.3g}": case.target / case.k}
    shown = {name: np.where(case.mask, np.nan, image) for name, image in images.items()}
    bright = float(np.nanmax(shown["symdenoise"]))
    norm = LogNorm(vmin=max(float(np.nanpercentile(shown["symdenoise"], 1)), bright * 1e-5) / 2, vmax=bright)
    figure = Figure(figsize=(16, 4.4), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(np.clip(image, norm.vmin, norm.vmax), norm=norm, interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[])
    figure.suptitle(f"{case.set}, {case.kind}, {case.level:.3g} counts/pixel: {gain}")
    figure.savefig(path, dpi=100)
