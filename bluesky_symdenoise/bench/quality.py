"""Quality on real images: every method denoises the same counts and is scored against independent ones."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bluesky_symdenoise.bench import metrics
from bluesky_symdenoise.bench.metrics import FloatArray, Mask
from bluesky_symdenoise.bench.peers import PEERS, Peer
from bluesky_symdenoise.errors import SymDenoiseError

OURS = "symdenoise"
OURS_FOLDED = "symdenoise+symmetry"
LEVELS = (0.1, 1.0, 10.0)

_REPEATS_LIMIT = (
    1.1  # pair statistic of repeated frames: 0.97 to 0.99 on the development data, next scene 1.14
)
_TINY = 1e-6  # counts per pixel: keeps our own likelihood finite without helping it, unlike the peers' oracle
_PAGE = 170  # characters: where there is no terminal to ask, the tables are not cut
_USABLE_SYMMETRY = {"2": "2", "m": "m", "2mm": "2mm", "inf": "2"}

Result = dict[str, str | int | float | None]
"""Scores of one method on one case, flat and ready for JSON: None where a score is undefined."""


class Denoise(Protocol):
    """What is under test: counts in; posterior mean and standard deviation out, in counts per pixel."""

    def __call__(
        self, counts: FloatArray, *, mask: Mask, symmetry: str, beam_center: tuple[float, float] | None
    ) -> tuple[FloatArray, FloatArray]: ...


@dataclass(frozen=True, eq=False)
class Case:
    """Counts to denoise and independent counts of the same scene to score against; the arrays are read-only.

    Attributes
    ----------
    set, role, kind, level, frame
        Name of the image set, "test" or "train", "thinning" or "repeats", (expected) mean counts per valid
        pixel of the input, and its index in the set.
    counts, target, k
        Input and held-out counts (y, x), and the exposure of the target in units of the input's.
    mask
        True for bad pixels; the counts there are the detector's own sentinels.
    symmetry, beam_center
        Point group that may be used with the centre (y, x) in pixels; "1" where there is none.
    """

    set: str
    role: str
    kind: str
    level: float
    frame: int
    counts: FloatArray
    target: FloatArray
    k: float
    mask: Mask
    symmetry: str
    beam_center: tuple[float, float] | None

    def __post_init__(self) -> None:
        for name in ("counts", "target", "mask"):
            frozen = getattr(self, name).view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)

    @property
    def fraction(self) -> float:
        """Share of all the exposure that the input got: 1 / (1 + k)."""
        return 1 / (1 + self.k)


@dataclass(frozen=True)
class _ImageSet:
    name: str
    path: Path
    group: str
    role: str
    says_repeats: bool
    symmetry: str
    beam_center: tuple[float, float] | None


def thin(
    counts: FloatArray, mask: Mask, *, level: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, float]:
    """Split counts binomially into an input of a wanted mean and the complement.

    Each photon goes to the input with probability p = level / mean(counts). The halves of Poisson counts are
    independent, of rates p and 1 - p.

    Returns
    -------
    tuple
        Input, target, and the target's exposure in units of the input's, k = (1 - p) / p.
    """
    p = level / float(counts[~mask].mean())
    part = rng.binomial(counts.astype(np.int64), p).astype(np.float64)
    return part, counts - part, (1 - p) / p


def pair_statistic(a: FloatArray, b: FloatArray, mask: Mask) -> float:
    """Give mean[(a - n p)^2 / (n p (1 - p))] over pixels with n = a + b > 0, p the share of a in all counts.

    It is 1 for Poisson counts of the same scene at any two exposures, larger where the scenes differ.
    """
    first, total = a[~mask], (a + b)[~mask]
    first, total = first[total > 0], total[total > 0]
    p = first.sum() / total.sum()
    return float(np.mean((first - total * p) ** 2 / (total * p * (1 - p))))


def cases(
    data_dir: Path,
    *,
    roles: Sequence[str] = ("test",),
    levels: Sequence[float] = LEVELS,
    frames: int = 1,
    seed: int = 0,
) -> Iterator[Case]:
    """Give every case that the image sets of a folder allow.

    Thinning: the first frames of each set, at each level that their mean exceeds by half. Repeats: frame 0
    against the sum of the frames after it, as far as they repeat it by the `pair_statistic`, in sets that say
    so; `k` is the ratio of the total counts. Sets of integrating detectors are left out, their noise is not
    Poisson.

    Parameters
    ----------
    data_dir
        Folder of HDF5 files: ``counts`` (frame, y, x), ``mask`` (y, x; True = bad) and attributes, at the
        root or in groups.
    roles
        Which sets, "test" or "train".
    levels
        Mean counts per valid pixel of the thinned input.
    frames
        How many frames of each set to thin.
    seed
        Of the thinning. A case does not depend on which other cases are asked for.

    Raises
    ------
    SymDenoiseError
        If the folder holds no such set.
    """
    for image_set in _image_sets(data_dir, roles):
        yield from _cases_of(image_set, levels, frames, seed)


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
    image_sets = _image_sets(data_dir, roles)
    results: list[Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(image_sets))
        for image_set in image_sets:
            for case in _cases_of(image_set, levels, frames, seed):
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
    known = [_number(row["nll"]) for row in results if row["nll"] is not None]
    best = min(known, default=0.0)
    return [
        row | {"nll_excess": None if row["nll"] is None else _number(row["nll"]) - best} for row in results
    ]


def write_json(results: list[Result], path: Path) -> None:
    """Write the results as a JSON list of flat objects."""
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def report(results: Iterable[Result], *, title: str | None = None) -> Table:
    """Give the table of all scores, a section for each case."""
    table = Table(title=title)
    for name in ("set", "kind", "level", "k", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("NLL", "excess", "PSNR/dB", "flux/%", "68 %", "95 %", "s", "bad px"):
        table.add_column(name, justify="right", no_wrap=True)
    last: object = None
    for row in results:
        case = _case_key(row)
        if case != last:
            table.add_section()
        head = (str(row["set"]), str(row["kind"]), _text(row["level"], ".3g"), _text(row["k"], ".3g"))
        table.add_row(
            *(head if case != last else ("",) * len(head)),
            str(row["method"]),
            _text(row["nll"], ".4f"),
            _text(row["nll_excess"], ".4f"),
            _with_error(row["psnr"], row["psnr_error"]),
            _with_error(row["flux_error"], row["flux_standard_error"], 100),
            _text(row["coverage_68"], ".3f"),
            _text(row["coverage_95"], ".3f"),
            _text(row["seconds"], ".2f"),
            str(row["invalid_pixels"]) if row["invalid_pixels"] else "",
            style="bold red" if row["invalid_pixels"] else None,
        )
        last = case
    return table


def summary(results: Iterable[Result], *, title: str | None = None) -> Table:
    """Give a line for each method: cases won, worst flux error, and what the symmetry did."""
    by_case: dict[tuple[object, ...], dict[str, Result]] = {}
    for row in results:
        by_case.setdefault(_case_key(row), {})[str(row["method"])] = row
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    for name in ("cases", "beats all peers", "mean excess", "worst flux/%", "seconds", "bad px"):
        table.add_column(name, justify="right")
    table.add_column("against no symmetry: better, worse, worst loss", justify="right")
    for method in dict.fromkeys(name for rows in by_case.values() for name in rows):
        rows = [case[method] for case in by_case.values() if method in case]
        ours = method in (OURS, OURS_FOLDED)
        won = sum(_beats_all_peers(case, method) for case in by_case.values() if method in case)
        flux = max(
            rows, key=lambda row: inf if row["flux_error"] is None else abs(_number(row["flux_error"]))
        )
        table.add_row(
            method,
            str(len(rows)),
            f"{won} of {len(rows)}" if ours else "",
            _text(float(np.mean([_number(row["nll_excess"]) for row in rows])), ".4f"),
            f"{_text(flux['flux_error'], '.2f', 100)} ({flux['set']} {_text(flux['level'], '.3g')})",
            _text(float(np.median([_number(row["seconds"]) for row in rows])), ".2f"),
            str(sum(int(_number(row["invalid_pixels"])) for row in rows)),
            _symmetry_verdict(by_case.values()) if method == OURS_FOLDED else "",
        )
    return table


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


def _image_sets(data_dir: Path, roles: Sequence[str]) -> list[_ImageSet]:
    found = []
    for path in sorted(data_dir.glob("*.h5")):
        with h5py.File(path) as file:
            for group in [""] if "counts" in file else sorted(file):
                attributes = dict(file[group or "/"].attrs)
                if attributes["role"] not in roles or attributes["noise"] != "counting":
                    continue
                says = f"{attributes.get('technique', '')} {attributes.get('notes', '')}"
                center = attributes.get("beam_center")
                symmetry = "1" if center is None else _USABLE_SYMMETRY.get(attributes["symmetry"], "1")
                found.append(
                    _ImageSet(
                        name="/".join(filter(None, (path.stem, group))),
                        path=path,
                        group=group or "/",
                        role=str(attributes["role"]),
                        says_repeats="repeat" in says and "not repeat" not in says,
                        symmetry=symmetry,
                        beam_center=None if center is None else (float(center[0]), float(center[1])),
                    )
                )
    if not found:
        raise SymDenoiseError(
            f"folder {str(data_dir)!r}",
            rule=f"must hold HDF5 sets of counting detectors with role {' or '.join(roles)}",
            remedy="give the folder of the benchmark images",
        )
    return found


def _cases_of(image_set: _ImageSet, levels: Sequence[float], frames: int, seed: int) -> Iterator[Case]:
    with h5py.File(image_set.path) as file:
        group = file[image_set.group]
        stack = group["counts"][: None if image_set.says_repeats else frames].astype(np.float64)
        mask = group["mask"][()]

    def case(kind: str, level: float, frame: int, counts: FloatArray, target: FloatArray, k: float) -> Case:
        return Case(
            set=image_set.name,
            role=image_set.role,
            kind=kind,
            level=level,
            frame=frame,
            counts=counts,
            target=target,
            k=k,
            mask=mask,
            symmetry=image_set.symmetry,
            beam_center=image_set.beam_center,
        )

    for frame, counts in enumerate(stack[:frames]):
        for level in levels:
            if counts[~mask].mean() >= 1.5 * level:
                key = (seed, zlib.crc32(image_set.name.encode()), frame, round(level * 1e6))
                halves = thin(counts, mask, level=level, rng=np.random.default_rng(key))
                yield case("thinning", level, frame, *halves)
    if image_set.says_repeats:
        repeats = 1
        while repeats < len(stack) and pair_statistic(stack[0], stack[repeats], mask) < _REPEATS_LIMIT:
            repeats += 1
        if repeats > 1:
            target, photons = stack[1:repeats].sum(axis=0), stack[0][~mask].sum()
            level = float(photons / (~mask).sum())
            yield case("repeats", level, 0, stack[0], target, float(target[~mask].sum() / photons))


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


def _case_key(row: Result) -> tuple[object, ...]:
    return tuple(row[name] for name in ("set", "kind", "level", "frame"))


def _number(value: str | int | float | None) -> float:
    """Give a score as a number, NaN where it is undefined."""
    return float("nan") if value is None else float(value)


def _beats_all_peers(rows: Mapping[str, Result], method: str) -> bool:
    peers = [_number(row["nll"]) for name, row in rows.items() if name not in (OURS, OURS_FOLDED)]
    return all(_number(rows[method]["nll"]) < peer for peer in peers)  # NaN never wins


def _symmetry_verdict(by_case: Iterable[Mapping[str, Result]]) -> str:
    change = np.array(
        [
            _number(rows[OURS_FOLDED]["nll"]) - _number(rows[OURS]["nll"])
            for rows in by_case
            if OURS_FOLDED in rows
        ]
    )
    return f"{(change < 0).sum()}, {(change > 0).sum()}, {np.nanmax(change, initial=-np.inf):+.2g}"


def _text(value: str | int | float | None, form: str, scale: float = 1.0) -> str:
    number = _number(value)
    return format(scale * number, form) if isfinite(number) else ""


def _with_error(value: str | int | float | None, error: str | int | float | None, scale: float = 1.0) -> str:
    return (
        f"{_text(value, '.2f', scale)} \N{PLUS-MINUS SIGN} {_text(error, '.2f', scale)}"
        if value is not None
        else ""
    )
