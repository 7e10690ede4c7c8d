"""Rows and random numbers of a self-check: functions of the run's uid, the recipe and the row alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import sentinel_mask

#: Share of the photons that the denoiser is given; it is judged by the others.
SHARE = 0.5
#: Most rows of an image that are checked, and rows of which one is checked: a check takes the time of about seven
#: frames, so that it is 5 % of a run of this many rows, and less of one that is longer than three times that.
MOST_ROWS, ONE_IN = 3, 160


@dataclass(frozen=True)
class Chance:
    """Source of all that is left to chance in the check of one image of a run.

    Attributes
    ----------
    raw_uid, recipe_sha256
        Raw run and recipe, so that a live run and its replay have the same numbers.
    stream, data_key
        The image.
    """

    raw_uid: str
    recipe_sha256: str
    stream: str
    data_key: str

    def generator(self, purpose: str, row: int = 0) -> np.random.Generator:
        """Return the random numbers for one purpose in one row."""
        return np.random.default_rng(np.frombuffer(self._digest(purpose, row), np.uint32))

    def place(self, row: int) -> int:
        """Return a number by which rows are put in a random order."""
        return int.from_bytes(self._digest("order", row)[:8], "big")

    def rows(self, rows: Iterable[int]) -> tuple[int, ...]:
        """Return the rows to check, in order: the first `number_checked` of these rows in the random order."""
        among = sorted(rows, key=self.place)
        return tuple(sorted(among[: number_checked(len(among))]))

    def _digest(self, purpose: str, row: int) -> bytes:
        named = "\0".join((self.raw_uid, self.recipe_sha256, self.stream, self.data_key, purpose, str(row)))
        return hashlib.sha256(named.encode()).digest()


def number_checked(rows: int) -> int:
    """Return how many of so many rows are checked."""
    return min(rows, MOST_ROWS, max(1, rows // ONE_IN))


def thinned(counts: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Return counts of which each photon is kept with probability `SHARE`; masked values stay as they are.

    If y ~ Poisson(n), then k ~ Binomial(y, s) and y - k are independent, Poisson(s n) and Poisson((1 - s) n).

    Raises
    ------
    SymDenoiseError
        If the values are no whole numbers.
    """
    good = ~sentinel_mask(counts)
    whole = counts[good]
    if whole.dtype.kind == "f" and np.any(whole != np.floor(whole)):
        raise SymDenoiseError(
            "counts with fractions",
            rule="photons can be held out of whole counts only",
            remedy="denoise the frames as the detector wrote them",
        )
    kept = counts.copy()
    kept[good] = generator.binomial(whole.astype(np.int64), SHARE).astype(counts.dtype)
    return kept


def drawn(expected: NDArray[Any], bad: NDArray[np.bool_], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a frame drawn anew as Poisson counts, -1 where `bad`."""
    return np.where(bad, -1, generator.poisson(np.where(bad, 0.0, np.maximum(expected, 0.0))))
