"""Quality on real images: every method denoises the same counts and is scored against independent ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bluesky_symdenoise.bench import metrics
from bluesky_symdenoise.bench.cases import LEVELS, Case, cases_of, image_sets
from bluesky_symdenoise.bench.metrics import FloatArray, Mask
from bluesky_symdenoise.bench.peers import PEERS, Peer
from bluesky_symdenoise.bench.report import OURS, OURS_FOLDED, Result, number, report, summary

_TINY = 1e-6  # counts per pixel: keeps our own likelihood finite without helping it, unlike the peers' oracle
_PAGE = 170  # characters: where there is no terminal to ask, the tables are not cut


class Denoise(Protocol):
    """What is under test: counts in; posterior mean and standard deviation out, in counts per pixel."""

    def __call__(
        self, counts: FloatArray, *, mask: Mask, symmetry: str, beam_center: tuple[float, float] | None
    ) -> tuple[FloatArray, FloatArray]: ...


def run(
    data_dir: Path,
    denoise: Denoise | None,
    *,
    peers: Mapping[str, Peer] = PEERS,
    roles: Sequence[str] = ("test",),
    levels: Sequence[float] = LEVELS,
    frames: int = 1,
    seed: int = 0,
) -> list[Result]:
    """Score a denoiser, without and with symmetry, and its peers on the same counts of every case.

    Parameters
    ----------
    data_dir, roles, levels, frames, seed
        As in `cases`.
    denoise
        The method under test; None scores the peers alone.
    peers
        Name -> (counts, mask) -> estimate. They get the floor that suits them best on each case.

    Returns
    -------
    list of dict
        One for each case and method, in the order of the cases.
    """
    found = image_sets(data_dir, roles)
    results: list[Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(found))
        for image_set in found:
            for case in cases_of(image_set, levels, frames, seed):
                progress.update(task, description=f"{case.set} {case.kind} {case.level:.3g}")
                results += score(case, denoise, peers)
            progress.advance(task)
    return results


def score(case: Case, denoise: Denoise | None, peers: Mapping[str, Peer] = PEERS) -> list[Result]:
    """Score every method on one case: see `run`."""
    peak = metrics.robust_peak(case.target, case.k, mask=case.mask)
    results = []
    for method, estimator in _methods(case, denoise, peers).items():
        start = time.perf_counter()
        estimate, sigma = estimator()
        seconds = time.perf_counter() - start
        results.append(_row(case, method, estimate, sigma, seconds, peak))
    known = [number(row["nll"]) for row in results if row["nll"] is not None]
    best = min(known, default=0.0)
    return [row | {"nll_excess": None if row["nll"] is None else number(row["nll"]) - best} for row in results]


def write_json(results: list[Result], path: Path) -> None:
    """Write the results as a JSON list of flat objects."""
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def main(
    data: Path,
    *,
    json_path: Path | None = None,
    model: str | None = None,
    roles: Sequence[str] = ("test",),
    levels: Sequence[float] = LEVELS,
    frames: int = 1,
    seed: int = 0,
) -> list[Result]:
    """Run, print the tables of each role apart, and write the results as JSON if a path is given."""
    results = run(data, pretrained(model), roles=roles, levels=levels, frames=frames, seed=seed)
    console = Console()
    if not console.is_terminal:
        console.width = _PAGE
    for role in roles:
        rows = [row for row in results if row["role"] == role]
        console.print(report(rows, title=f"role {role}"), summary(rows, title=f"role {role}"))
    if json_path is not None:
        write_json(results, json_path)
    return results


def pretrained(model: str | None) -> Denoise:
    """Give the package's own denoiser by the name of its weights, or with the default ones."""
    from bluesky_symdenoise.denoiser.infer import Denoiser

    denoiser = Denoiser.pretrained() if model is None else Denoiser.pretrained(model)

    def denoise(
        counts: FloatArray, *, mask: Mask, symmetry: str, beam_center: tuple[float, float] | None
    ) -> tuple[FloatArray, FloatArray]:
        posterior = denoiser(counts, mask=mask, symmetry=symmetry, beam_center=beam_center)
        return posterior["intensity"].to_numpy(), posterior["sigma"].to_numpy()

    return denoise


def _methods(
    case: Case, denoise: Denoise | None, peers: Mapping[str, Peer]
) -> dict[str, Callable[[], tuple[FloatArray, FloatArray | None]]]:
    """Give each method as a call without arguments; peers have no sigma."""

    def without_sigma(peer: Peer) -> tuple[FloatArray, None]:
        return peer(case.counts, case.mask), None

    methods: dict[str, Callable[[], tuple[FloatArray, FloatArray | None]]] = {}
    if denoise is not None:
        ours = partial(denoise, case.counts, mask=case.mask, beam_center=case.beam_center)
        methods[OURS] = partial(ours, symmetry="1")
        if case.symmetry != "1":
            methods[OURS_FOLDED] = partial(ours, symmetry=case.symmetry)
    return methods | {name: partial(without_sigma, peer) for name, peer in peers.items()}


def _row(
    case: Case, method: str, estimate: FloatArray, sigma: FloatArray | None, seconds: float, peak: float
) -> Result:
    target, k, mask = case.target, case.k, case.mask
    if sigma is None:
        nll, floor = metrics.best_floor_nll(estimate, target, k, mask=mask)
        covered: tuple[float, ...] = (float("nan"), float("nan"))
    else:
        nll, floor = metrics.poisson_nll(estimate, target, k, mask=mask, floor=_TINY), _TINY
        covered = metrics.coverage(estimate, sigma, target, k, mask=mask)
    psnr = metrics.unbiased_psnr(estimate, target, k, mask=mask, peak=peak)
    flux = metrics.flux_error(estimate, target, k, mask=mask)
    scores = {
        "k": k,
        "fraction": case.fraction,
        "nll": nll,
        "floor": floor,
        "psnr": psnr.value,
        "psnr_error": psnr.standard_error,
        "peak": peak,
        "flux_error": flux.value,
        "flux_standard_error": flux.standard_error,
        "coverage_68": covered[0],
        "coverage_95": covered[1],
        "seconds": seconds,
    }
    names: Result = {
        "set": case.set,
        "role": case.role,
        "kind": case.kind,
        "level": case.level,
        "frame": case.frame,
        "method": method,
        "symmetry": case.symmetry if method == OURS_FOLDED else "1",
        "invalid_pixels": int((~np.isfinite(estimate) & ~mask).sum()),
    }
    return names | {name: value if isfinite(value) else None for name, value in scores.items()}
