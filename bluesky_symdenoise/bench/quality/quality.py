"""Quality on real images: all methods denoise the same counts and are scored against independent ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from bluesky_symdenoise.bench.options import Data, JsonPath, ModelName, Views
from bluesky_symdenoise.bench.quality import metrics
from bluesky_symdenoise.bench.quality.cases import LEVELS, Case, Given, ImageSet, cases_of, image_sets
from bluesky_symdenoise.bench.quality.comparison import compared, figures_table, likelihood_table
from bluesky_symdenoise.bench.quality.extremes import draw
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.bench.quality.peers import PEERS, QUICK, Peer
from bluesky_symdenoise.bench.quality.report import (
    DECILE_SCORES,
    NOT_APPLICABLE,
    NOT_TESTABLE,
    OURS,
    OURS_FOLDED,
    SCORES,
    STRATA_SCORES,
    Result,
    number,
    report,
    strata_table,
    summary,
)
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.errors import SymDenoiseError

_TINY = 1e-6  # counts per pixel; keeps our own likelihood finite without helping it, unlike the peers' floors
_PAGE = 170  # width in characters if the output is not a terminal, so that tables are not cut


class Denoise(Protocol):
    """The method under test: counts in; posterior mean and standard deviation out, in counts per pixel."""

    def __call__(
        self, counts: FloatArray, *, mask: Mask, symmetry: str, beam_center: tuple[float, float] | None
    ) -> tuple[FloatArray, FloatArray]: ...


def run(
    data_dir: Path,
    denoise: Denoise | None,
    *,
    peers: Mapping[str, Peer] = QUICK,
    roles: Sequence[str] = ("test",),
    sets: Sequence[str] = (),
    levels: Sequence[float] = LEVELS,
    frames: int = 1,
    seed: int = 0,
    crop: int | None = None,
) -> list[Result]:
    """Score a denoiser, without and with symmetry, and its peers on the same counts of every case.

    Parameters
    ----------
    data_dir, roles, levels, frames, seed, crop
        See `cases`.
    denoise
        The method under test; None scores the peers alone.
    peers
        Other methods by name.
    sets
        Names of the sets to use; by default all with one of the roles.

    Returns
    -------
    list of dict
        One for each case and method, in the order of the cases. Where a method is not applicable, or a set has not
        enough counts for a level, its ``note`` says so and it has no scores.

    Raises
    ------
    SymDenoiseError
        If the folder has no such set, or a peer needs a package that is not installed.
    """
    found = image_sets(data_dir, roles)
    if unknown := sorted(set(sets) - {each.name for each in found}):
        names = ", ".join(each.name for each in found)
        raise SymDenoiseError(f"set {unknown[0]!r}", rule=f"the folder has {names}", remedy="choose among these")
    chosen = [each for each in found if not sets or each.name in sets]
    results: list[Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for image_set in chosen:
            supported = set()
            for case in cases_of(image_set, levels, frames, seed, crop):
                progress.update(task, description=f"{case.set} {case.kind} {case.level:.3g}")
                results += score(case, denoise, peers)
                supported.add(case.level)
            results += [_not_testable(image_set, level) for level in levels if level not in supported]
            progress.advance(task)
    return results


def score(case: Case, denoise: Denoise | None, peers: Mapping[str, Peer] = QUICK) -> list[Result]:
    """Score every method on one case: see `run`."""
    peak = metrics.robust_peak(case.target, case.k, mask=case.mask)
    results = []
    if denoise is not None:
        for method, symmetry in {OURS: "1", OURS_FOLDED: case.symmetry}.items():
            if method == OURS or symmetry != "1":
                start = time.perf_counter()
                estimate, sigma = denoise(case.counts, mask=case.mask, symmetry=symmetry, beam_center=case.beam_center)
                results.append(_row(case, method, estimate, sigma, _TINY, time.perf_counter() - start, peak))
    for name, peer in peers.items():
        start = time.perf_counter()
        guess = peer.estimate(case.given)
        seconds = time.perf_counter() - start
        if guess is None:
            results.append(
                _without_scores(case.set, case.role, case.kind, case.level, case.frame, name, NOT_APPLICABLE)
            )
        else:
            results.append(_row(case, name, guess, None, peer.floor, seconds, peak))
    known = [number(row["nll"]) for row in results if row["nll"] is not None]
    best = min(known, default=0.0)
    return [row | {"nll_excess": None if row["nll"] is None else number(row["nll"]) - best} for row in results]


def main(
    data: Data,
    json_path: JsonPath = None,
    model: ModelName = None,
    views: Views = 1,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to draw the cases that gain and lose most.")
    ] = None,
    training_sets: Annotated[bool, typer.Option(help="Also the sets that the model was trained on, apart.")] = False,
    sets: Annotated[list[str] | None, typer.Option(help="Name of a set; repeatable; all if not given.")] = None,
    levels: Annotated[
        list[float] | None, typer.Option(help="Counts per pixel to thin to; repeatable; 0.1, 1, 10 and 100.")
    ] = None,
    peers: Annotated[list[str] | None, typer.Option(help="Name of a peer; repeatable; all if not given.")] = None,
    rivals: Annotated[
        list[str] | None,
        typer.Option("--rival", metavar="MODEL", help="Other weights (name or .safetensors), as a peer; repeatable."),
    ] = None,
    crop: Annotated[
        int, typer.Option(min=0, help="Largest side, in pixels, of the part of each frame that is used; 0: all of it.")
    ] = 256,
) -> list[Result]:
    """Score likelihood, PSNR, flux and coverage on held-out real photons, beside other methods on the same counts.

    The tables are printed for each role apart.
    """
    if unknown := sorted({*(peers or ())} - set(PEERS)):
        raise SymDenoiseError(
            f"peer {unknown[0]!r}", rule=f"it must be one of {', '.join(PEERS)}", remedy="choose among these"
        )
    about = header(model_file(model), device=_device())
    denoise = pretrained(model, views)
    named = {name: PEERS[name] for name in peers or PEERS} | {Path(rival).stem: _rival(rival) for rival in rivals or ()}
    roles = ("test", "train") if training_sets else ("test",)
    levels, part = levels or list(LEVELS), crop or None
    results = run(data, denoise, peers=named, roles=roles, sets=sets or (), levels=levels, crop=part)
    console = Console()
    if not console.is_terminal:
        console.width = _PAGE
    comparisons = {}
    for role in dict.fromkeys(str(row["role"]) for row in results):
        rows = [row for row in results if row["role"] == role]
        title = f"role {role}, {'whole frames' if part is None else f'parts of at most {part} x {part} pixels'}"
        console.print(report(rows, title=title), summary(rows, title=title), strata_table(rows, title=title))
        comparisons[role] = compared(rows)
        console.print(likelihood_table(comparisons[role], title=title), figures_table(comparisons[role], title=title))
    write(json_path, about, {"crop": part, "levels": levels, "figures": comparisons, "results": results})
    if pictures is not None:
        for path in draw(pictures, results, data, denoise, named, frames=1, seed=0, crop=part):
            console.print(f"picture: {path}")
    return results


def pretrained(model: str | None, views: int = 1) -> Denoise:
    """Return the package's denoiser by the name of its weights, or the default one; `views` as it takes them."""
    from bluesky_symdenoise.denoiser.infer import Denoiser

    denoiser = Denoiser.pretrained(model, views=views)

    def denoise(
        counts: FloatArray, *, mask: Mask, symmetry: str, beam_center: tuple[float, float] | None
    ) -> tuple[FloatArray, FloatArray]:
        posterior = denoiser(counts, mask=mask, symmetry=symmetry, beam_center=beam_center)
        return posterior["intensity"].to_numpy(), posterior["sigma"].to_numpy()

    return denoise


def _device() -> str:
    """Return the name of the device that a denoiser takes."""
    from bluesky_symdenoise.denoiser.infer import Denoiser

    return str(Denoiser.pretrained().environment()["device"])


def _rival(model: str) -> Peer:
    """Return other weights as a peer, with the recorded symmetry if a set has one."""
    denoise = pretrained(model)

    def estimate(given: Given) -> FloatArray:
        group, center = given.symmetry.point_group, given.symmetry.beam_center
        intensity, _ = denoise(given.counts, mask=given.mask, symmetry=group, beam_center=center)
        return intensity

    return Peer(estimate, _TINY)


def _row(
    case: Case,
    method: str,
    estimate: FloatArray,
    sigma: FloatArray | None,
    floor: float,
    seconds: float,
    peak: float,
) -> Result:
    target, k, mask = case.target, case.k, case.mask
    covered: tuple[float, ...] = (float("nan"),) * 2
    deciles: tuple[float, ...] = (float("nan"),) * len(DECILE_SCORES)
    predictive = float("nan")
    if sigma is not None:
        covered = metrics.coverage(estimate, sigma, target, k, mask=mask)
        predictive = metrics.predictive_nll(estimate, sigma, target, k, mask=mask)
        deciles = metrics.decile_coverage(estimate, sigma, target, k, mask=mask)
    psnr = metrics.unbiased_psnr(estimate, target, k, mask=mask, peak=peak)
    flux = metrics.flux_error(estimate, target, k, mask=mask)
    scores = {
        "k": k,
        "fraction": case.fraction,
        "nll": metrics.poisson_nll(estimate, target, k, mask=mask, floor=floor),
        "predictive_nll": predictive,
        "floor": floor,
        "psnr": psnr.value,
        "psnr_error": psnr.standard_error,
        "peak": peak,
        "flux_error": flux.value,
        "flux_standard_error": flux.standard_error,
        "coverage_68": covered[0],
        "coverage_95": covered[1],
        **dict(zip(DECILE_SCORES, deciles, strict=True)),
        **dict(zip(STRATA_SCORES, metrics.stratified_errors(estimate, target, k, mask=mask), strict=True)),
        "seconds": seconds,
    }
    names = _without_scores(case.set, case.role, case.kind, case.level, case.frame, method, "")
    found: Result = {name: value if isfinite(value) else None for name, value in scores.items()}
    symmetry = case.symmetry if method == OURS_FOLDED else "1"
    return names | found | {"symmetry": symmetry, "invalid_pixels": int((~np.isfinite(estimate) & ~mask).sum())}


def _not_testable(image_set: ImageSet, level: float) -> Result:
    return _without_scores(image_set.name, image_set.role, "thinning", level, None, "", NOT_TESTABLE)


def _without_scores(name: str, role: str, kind: str, level: float, frame: int | None, method: str, note: str) -> Result:
    names: Result = {"set": name, "role": role, "kind": kind, "level": level, "frame": frame, "method": method}
    return names | {"note": note} | dict.fromkeys(SCORES)
