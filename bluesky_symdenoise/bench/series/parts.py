"""Stacks of the bench: real series, repeats of one scene, and simulated series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bluesky_symdenoise.bench.quality.cases import image_sets
from bluesky_symdenoise.bench.series.compared import Row, compared
from bluesky_symdenoise.bench.series.methods import StackPeer
from bluesky_symdenoise.bench.series.stacks import generator, known, repeats, thinned
from bluesky_symdenoise.bench.simulated.series import SERIES
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError

#: Rows of a simulated series: all of them are in reach of each other.
ROWS = 9
#: Exposures of a lone frame beside simulated rows.
EXPOSURES = (0.5, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0)


def real(
    data: Path,
    denoiser: Denoiser,
    peers: Mapping[str, StackPeer],
    *,
    sets: Sequence[str],
    levels: Sequence[float],
    rows: int,
    crop: int,
    seed: int,
) -> Iterator[Row]:
    """Yield the scores on rows of each set with enough of them, thinned to each level.

    Raises
    ------
    SymDenoiseError
        If the folder has no such set.
    """
    found = image_sets(data, ("test", "train"))
    if unknown := sorted(set(sets) - {each.name for each in found}):
        names = ", ".join(each.name for each in found)
        raise SymDenoiseError(f"set {unknown[0]!r}", rule=f"the folder has {names}", remedy="choose among these")
    for image_set in found:
        if not sets or image_set.name in sets:
            for stack in thinned(image_set, levels, rows=rows, crop=crop, seed=seed):
                yield compared(stack, denoiser, peers, part="real") | {"role": image_set.role}


def still(
    data: Path | None, denoiser: Denoiser, *, levels: Sequence[float], crop: int, seed: int, sets: Sequence[str]
) -> Iterator[Row]:
    """Yield effective exposures on series whose scene stands still, with the exposures in reach: real and simulated."""
    for image_set in image_sets(data, ("test", "train")) if data is not None else ():
        if image_set.says_repeats and (not sets or image_set.name in sets):
            for stack in repeats(image_set, levels, rows=ROWS, crop=crop, seed=seed):
                number = len(stack.counts)
                lone = {float(m): range(number) if m < number else range(1) for m in range(1, number + 1)}
                yield compared(stack, denoiser, {}, part="still", lone=lone) | {"in_reach": number}
    for level in levels:
        rates = SERIES["still"](generator(seed, "still", 0.0), ROWS, (crop, crop))
        stack = known("simulated, still", rates, level=level, seed=seed, exposures=EXPOSURES)
        yield compared(stack, denoiser, {}, part="still") | {"in_reach": ROWS}


def simulated(
    denoiser: Denoiser,
    peers: Mapping[str, StackPeer],
    *,
    levels: Sequence[float],
    crop: int,
    seed: int,
    names: Sequence[str] = tuple(SERIES),
) -> Iterator[Row]:
    """Yield the scores on simulated series, against the true rate."""
    for name in names:
        rates = SERIES[name](generator(seed, name, 0.0), ROWS + 3, (crop, crop))
        for level in levels:
            stack = known(name, np.asarray(rates), level=level, seed=seed, exposures=(0.5, 1.0, 2.0, 4.0, 8.0))
            yield compared(stack, denoiser, peers, part="simulated")
