"""All methods on one stack: likelihood, squared error, effective exposure, and each row against itself alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_symdenoise.bench.quality.metrics import robust_peak
from bluesky_symdenoise.bench.series.borrowing import OURS, denoised
from bluesky_symdenoise.bench.series.exposures import effective_exposure
from bluesky_symdenoise.bench.series.methods import StackPeer
from bluesky_symdenoise.bench.series.scores import Scored, differences, mean_difference, scored
from bluesky_symdenoise.bench.series.stacks import Stack
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.neighbours.window import REACH

#: Figures of one stack, ready for JSON.
Row = dict[str, Any]


def compared(
    stack: Stack,
    denoiser: Denoiser,
    peers: Mapping[str, StackPeer],
    *,
    part: str,
    lone: Mapping[float, Sequence[int]] | None = None,
    reach: int = REACH,
) -> Row:
    """Return the scores of every method on a stack.

    Parameters
    ----------
    part
        Name of the part of the bench.
    lone
        For a still scene, by exposure m: the first of the m rows, in a circle, whose sums are lone frames. None takes
        the stack's own longer exposures.

    Returns
    -------
    dict
        ``methods`` by name (``loss`` in nat per pixel, ``gain`` over ours alone in millinat per pixel with its error,
        ``psnr`` in dB, ``floor``, ``seconds``), ``exposure`` of `past` and `both`, ``rows`` (by method: loss of each
        row in nat per pixel), and ``against_alone`` (by method: difference and standard error of each row).
    """
    scores: dict[str, Scored] = {}
    seconds, borrowed = {}, {}
    for name, side in OURS.items():
        found = denoised(denoiser, stack.counts, stack.mask, side, scan=stack.scan, reach=reach)
        scores[name], seconds[name] = scored(found.intensity, stack), found.seconds
        borrowed[name] = found.borrowed.tolist()
    for name, peer in peers.items():
        begun = time.perf_counter()
        estimate = peer.estimate(stack)
        if estimate is not None:
            seconds[name] = time.perf_counter() - begun
            scores[name] = scored(estimate, stack, floor=None)
    alone = scores["alone"]
    curve = _lone(stack, denoiser, alone) if lone is None else _summed(stack, denoiser, lone)
    methods = {}
    peak = float(
        np.mean([robust_peak(t, float(k), mask=stack.mask) for t, k in zip(stack.target, stack.k, strict=True)])
    )
    for name, each in scores.items():
        gain = mean_difference(alone, each)
        square = each.mean_square
        methods[name] = {
            "loss": each.mean_loss,
            "gain": 1e3 * gain.value,
            "gain_error": 1e3 * gain.error,
            "psnr": 10 * float(np.log10(peak**2 / square)) if square > 0 else None,
            "floor": each.floor,
            "seconds": seconds[name],
        }
    return {
        "part": part,
        "series": stack.name,
        "level": stack.level,
        "counts_per_pixel": float(stack.counts[:, ~stack.mask].mean()),
        "shape": list(stack.counts.shape),
        "methods": methods,
        "exposure": {name: effective_exposure(scores[name], curve) for name in ("past", "both")} if curve else {},
        "borrowed": {name: borrowed[name] for name in ("past", "both")},
        "rows": {name: each.loss_of_rows().tolist() for name, each in scores.items()},
        "against_alone": {name: differences(scores[name], alone) for name in ("past", "both")},
    }


def _lone(stack: Stack, denoiser: Denoiser, alone: Scored) -> dict[float, Scored]:
    curve = {}
    for exposure, counts in stack.longer.items():
        if exposure == 1.0 and counts is stack.counts:
            curve[exposure] = alone
        else:
            found = denoised(denoiser, counts, stack.mask, None).intensity
            curve[exposure] = scored(found / exposure, stack)
    return curve


def _summed(stack: Stack, denoiser: Denoiser, lone: Mapping[float, Sequence[int]]) -> dict[float, Scored]:
    """Return scores of sums of rows of one scene, scaled to the flux of the row that each begins with."""
    curve = {}
    number = len(stack.counts)
    # Exposures of the rows in units of their mean: the target is the same scene for all.
    flux = (1 / stack.k) / (1 / stack.k).mean()
    for exposure, firsts in lone.items():
        rows = [[(first + step) % number for step in range(round(exposure))] for first in firsts]
        sums = np.stack([stack.counts[each].sum(axis=0) for each in rows])
        scale = np.array([flux[each[0]] / flux[each].sum() for each in rows])[:, None, None]
        found = denoised(denoiser, sums, stack.mask, None).intensity * scale
        kept = list(firsts)
        part = Stack(
            stack.name, stack.level, stack.counts[kept], stack.target[kept], stack.k[kept], stack.exact, stack.mask
        )
        curve[exposure] = scored(found, part)
    return curve
