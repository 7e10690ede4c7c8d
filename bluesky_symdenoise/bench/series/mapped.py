"""Maps of a textured ring: what is read off the points, raw, frame by frame, borrowed and averaged over 3 x 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bluesky_symdenoise.analysis.annulus import Annulus
from bluesky_symdenoise.analysis.estimate import Estimate, Observed, from_counts
from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.quality.report import Result
from bluesky_symdenoise.bench.series.borrowing import OURS, denoised
from bluesky_symdenoise.bench.series.compared import Row
from bluesky_symdenoise.bench.series.methods import mean_of_points, points_of
from bluesky_symdenoise.bench.series.stacks import Stack
from bluesky_symdenoise.bench.simulated.patterns import CENTER, INNER, OUTER, QUANTITIES, SIZE, gaps
from bluesky_symdenoise.bench.simulated.series import Mapped, ring_map
from bluesky_symdenoise.bench.truth.savings import RAW, with_savings
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.neighbours.window import REACH, Borrow, Scan

#: Points of a map, slowest axis first.
SHAPE = (5, 8)
#: Jumps at the boundary, in standard deviations of what one raw frame says of the quantity that jumps.
JUMPS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0)
#: Exposures of raw frames with which errors are compared.
RAW_EXPOSURES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
MEAN = "mean 3 x 3"
_MEASURED = ("orientation", "anisotropy", "peak_position", "peak_area")

Errors = dict[str, FloatArray]


def run(denoiser: Denoiser, *, level: float, maps: int, seed: int, jumps: tuple[float, ...] = JUMPS) -> Iterator[Row]:
    """Yield, by map, quantity and method, rms error, exposure saved over the raw point, and chi-squared.

    Maps: one scene at all points, smooth fields, and smooth fields with a boundary where the orientation or the
    position of the ring jumps. Points beside the boundary are scored apart. Errors of denoised frames are those of
    Poisson counts of the exposure that they have with what they borrowed.
    """
    sigma = _sigma(level, seed)
    yield from _rows("one scene", denoiser, [{}] * maps, level, seed, smooth=0.0)
    yield from _rows("smooth", denoiser, [{}] * maps, level, seed)
    for jump in jumps:
        for quantity, unit in (("orientation", np.deg2rad(1)), ("peak_position", 1.0)):
            name = {"orientation": "orientation", "peak_position": "position"}[quantity]
            step = {name: jump * sigma[quantity] * unit}
            yield from _rows(f"jump of {quantity}", denoiser, [step] * maps, level, seed, jump=jump, of=quantity)


def _rows(
    name: str,
    denoiser: Denoiser,
    steps: list[dict[str, float]],
    level: float,
    seed: int,
    *,
    smooth: float = 1.0,
    jump: float | None = None,
    of: str | None = None,
) -> Iterator[Row]:
    errors: dict[tuple[str, float], list[Errors]] = {}
    sigmas: dict[str, list[Errors]] = {}
    beside, borrowed = [], []
    for number, step in enumerate(steps):
        rng = np.random.default_rng((seed, number))
        mapped = ring_map(rng, SHAPE, smooth=smooth, jump=step)
        beside.append(mapped.beside if jump is not None else np.zeros_like(mapped.beside))
        for exposure in RAW_EXPOSURES:
            counts = rng.poisson(mapped.rates * level * exposure).astype(np.float64)
            read = _read(counts / exposure, np.full(len(counts), exposure))
            errors.setdefault((RAW, exposure), []).append(_away(read, mapped, level))
            if exposure == 1:
                given, sigmas_raw = counts, {each: value[:, 1] for each, value in read.items()}
                sigmas.setdefault(RAW, []).append(sigmas_raw)
        for method, (images, exposures) in _methods(denoiser, given, SHAPE).items():
            read = _read(images, exposures)
            errors.setdefault((method, 1.0), []).append(_away(read, mapped, level))
            sigmas.setdefault(method, []).append({each: value[:, 1] for each, value in read.items()})
            if method == "both":
                borrowed += (exposures - 1).tolist()
    near = np.concatenate(beside)
    for where, kept in (("all", np.ones_like(near)), ("inside", ~near), ("beside", near)):
        if kept.sum() < 4 or (where == "inside" and not near.any()):
            continue
        found: list[Result] = []
        for quantity in _MEASURED:
            for (method, exposure), each in errors.items():
                away = np.concatenate([one[quantity] for one in each])[kept]
                known = np.isfinite(away)
                row: Result = {"pattern": name, "quantity": quantity, "level": level * exposure, "method": method}
                row |= {"points": int(known.sum()), "rms": float(np.sqrt(np.mean(away[known] ** 2)))}
                row["bias"] = float(np.mean(away[known]))
                if exposure == 1:
                    pull = (away / np.concatenate([one[quantity] for one in sigmas[method]])[kept])[known] ** 2
                    row |= {"chi2": float(pull.mean()), "chi2_error": float(pull.std() / np.sqrt(len(pull)))}
                found.append(row)
        of_raw = {row["quantity"]: row["rms"] for row in found if row["method"] == RAW and row["level"] == level}
        for row in with_savings(found):
            if row["level"] == level:
                rest = {"where": where, "jump": jump, "of": of, "borrowed": float(np.mean(borrowed))}
                kept_of = {each: value for each, value in row.items() if each != "saved_against_fit"}
                yield kept_of | rest | {"ratio": float(row["rms"]) / float(of_raw[row["quantity"]])}  # type: ignore[arg-type]


def _methods(
    denoiser: Denoiser, counts: FloatArray, shape: tuple[int, int]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return, by method, rates (row, y, x) and the exposure (row,) that their errors are those of."""
    mask, scan = gaps() == 0, Scan(shape, (False, True))
    found = {}
    for name, side in OURS.items():
        ours = denoised(denoiser, counts, mask, side, scan=scan)
        found[name] = (ours.intensity, 1 + ours.borrowed)
    ones = np.ones(len(counts))
    averaged = mean_of_points(Stack("", 1.0, counts, counts, ones, True, mask, scan))
    assert averaged is not None
    points = points_of(scan)
    near = (np.abs(points[:, None] - points[None]).max(axis=-1) <= 1).sum(axis=1).astype(np.float64)
    found[MEAN] = (averaged, near)
    return found


def _read(rates: FloatArray, exposures: FloatArray) -> dict[str, FloatArray]:
    """Return each quantity and its sigma, (row, 2), from rates of the exposures of Poisson counts."""
    annulus, measured = Annulus.about(CENTER, (SIZE, SIZE), inner=INNER, outer=OUTER), gaps()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in QUANTITIES}
    for rate, exposure in zip(rates, exposures, strict=True):
        observed = Observed(rate * measured * exposure, measured * exposure, np.zeros_like(measured))
        estimate: Estimate = from_counts(annulus, observed)
        for name, value in estimate.quantities(inner=INNER, outer=OUTER).items():
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def _away(read: Mapping[str, FloatArray], mapped: Mapped, level: float) -> Errors:
    away: Errors = {}
    for name in _MEASURED:
        truth = mapped.truth[name] * (level if name == "peak_area" else 1.0)
        error = read[name][:, 0] - truth
        away[name] = (error + 90) % 180 - 90 if name == "orientation" else error
    return away


def _sigma(level: float, seed: int) -> dict[str, float]:
    """Return the rms error of quantities from one raw frame."""
    rng = np.random.default_rng((seed, 99))
    mapped = ring_map(rng, (6, 10), smooth=0.0)
    read = _read(rng.poisson(mapped.rates * level).astype(np.float64), np.ones(60))
    return {name: float(np.sqrt(np.nanmean(each**2))) for name, each in _away(read, mapped, level).items()}


def in_reach(shape: tuple[int, int] = SHAPE, reach: int = REACH) -> float:
    """Return the exposures in reach of a point of a map with itself, mean over the points."""
    number = shape[0] * shape[1]
    scan = Scan(shape, (False, True))
    return 1 + float(np.mean([len(Borrow("both", reach).rows(row, number, scan)) for row in range(number)]))
