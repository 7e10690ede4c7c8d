"""Cases of the benchmark: counts to denoise, independent counts of the same scene to score against."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy import ndimage

from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.defects import found_defects
from bluesky_symdenoise.physics.frame import frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry

LEVELS = (0.1, 1.0, 10.0, 100.0)

# Limit of the pair statistic: repeated frames of the development data have 0.97 to 0.99, the next scene 1.14.
_REPEATS_LIMIT = 1.1
_USABLE_SYMMETRY = {"2": "2", "m": "m", "2mm": "2mm", "inf": "2"}


@dataclass(frozen=True, eq=False)
class Given:
    """Part of a case that a method is given.

    Attributes
    ----------
    counts, mask
        Input counts (y, x), the detector's own sentinels where the mask is True.
    symmetry
        Point group that may be used, with its centre.
    rings
        Whether the set is recorded as rings about that centre.
    """

    counts: FloatArray
    mask: Mask
    symmetry: Symmetry = field(default_factory=Symmetry)
    rings: bool = False


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
    rings
        Whether the set is recorded as rings about that centre.
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
    rings: bool

    def __post_init__(self) -> None:
        for name in ("counts", "target", "mask"):
            frozen = getattr(self, name).view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)

    @property
    def given(self) -> Given:
        """Part of the case that a method is given: without the held-out counts."""
        symmetry = Symmetry() if self.symmetry == "1" else Symmetry(self.symmetry, self.beam_center)
        return Given(self.counts, self.mask, symmetry, self.rings)

    @property
    def fraction(self) -> float:
        """Share of all the exposure that the input got: 1 / (1 + k)."""
        return 1 / (1 + self.k)


@dataclass(frozen=True)
class ImageSet:
    """Location and attributes of the frames of one set."""

    name: str
    path: Path
    group: str
    role: str
    says_repeats: bool
    symmetry: str
    beam_center: tuple[float, float] | None
    rings: bool


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
    if not level > 0:
        raise SymDenoiseError(
            f"level {level}", rule="it must be above 0, in counts per pixel", remedy="give 0.1, 1, 10 or 100"
        )
    p = level / float(counts[~mask].mean())
    part = rng.binomial(counts.astype(np.int64), p).astype(np.float64)
    return part, counts - part, (1 - p) / p


def pair_statistic(a: FloatArray, b: FloatArray, mask: Mask) -> float:
    """Return mean[(a - n p)^2 / (n p (1 - p))] over pixels with n = a + b > 0, p the share of a in all counts.

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
    crop: int | None = None,
) -> Iterator[Case]:
    """Yield every case that the image sets of a folder allow.

    Thinning: the first frames of each set, at each level that their mean exceeds by half. Repeats: frame 0
    against the sum of the frames after it, as far as they repeat it by the `pair_statistic`, in sets that say
    so; `k` is the ratio of the total counts. Sets of integrating detectors are left out, their noise is not
    Poisson, and so are hot and dead pixels that the first frame shows.

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
        Seed of the thinning. A case does not depend on which other cases are asked for.
    crop
        Largest side of the part of each frame that is used, in pixels: symmetric about the recorded centre, or, where
        there is none, with the most counts. None takes whole frames.

    Raises
    ------
    SymDenoiseError
        If the folder holds no such set.
    """
    for image_set in image_sets(data_dir, roles):
        yield from cases_of(image_set, levels, frames, seed, crop)


def image_sets(data_dir: Path, roles: Sequence[str]) -> list[ImageSet]:
    """Return the image sets of a folder that have one of the roles and count photons."""
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
                    ImageSet(
                        name="/".join(filter(None, (path.stem, group))),
                        path=path,
                        group=group or "/",
                        role=str(attributes["role"]),
                        says_repeats="repeat" in says and "not repeat" not in says,
                        symmetry=symmetry,
                        beam_center=None if center is None else (float(center[0]), float(center[1])),
                        rings=center is not None and attributes["symmetry"] == "inf",
                    )
                )
    if not found:
        raise SymDenoiseError(
            f"folder {str(data_dir)!r}",
            rule=f"must hold HDF5 sets of counting detectors with role {' or '.join(roles)}",
            remedy="give the folder of the benchmark images",
        )
    return found


def cases_of(
    image_set: ImageSet, levels: Sequence[float], frames: int, seed: int, crop: int | None = None
) -> Iterator[Case]:
    """Yield the cases of one image set: see `cases`."""
    stack, mask, center = opened(image_set, None if image_set.says_repeats else frames, crop)
    case = partial(
        Case,
        set=image_set.name,
        role=image_set.role,
        mask=mask,
        symmetry=image_set.symmetry,
        beam_center=center,
        rings=image_set.rings,
    )
    for frame, counts in enumerate(stack[:frames]):
        for level in levels:
            if counts[~mask].mean() >= 1.5 * level:
                key = (seed, zlib.crc32(image_set.name.encode()), frame, round(level * 1e6))
                part, rest, k = thin(counts, mask, level=level, rng=np.random.default_rng(key))
                yield case(kind="thinning", level=level, frame=frame, counts=part, target=rest, k=k)
    if image_set.says_repeats:
        repeats = 1
        while repeats < len(stack) and pair_statistic(stack[0], stack[repeats], mask) < _REPEATS_LIMIT:
            repeats += 1
        if repeats > 1:
            target, photons = stack[1:repeats].sum(axis=0), stack[0][~mask].sum()
            level, k = float(photons / (~mask).sum()), float(target[~mask].sum() / photons)
            yield case(kind="repeats", level=level, frame=0, counts=stack[0], target=target, k=k)


def opened(
    image_set: ImageSet, frames: int | None, crop: int | None
) -> tuple[FloatArray, Mask, tuple[float, float] | None]:
    """Return counts (frame, y, x) of the first frames of a set, the mask, and the centre; of a part of them: `cases`.

    Pixels that are hot or dead in the first frame are masked: they say nothing about any method.
    """
    center = image_set.beam_center
    with h5py.File(image_set.path) as file:
        group = file[image_set.group]
        stack = group["counts"][:frames].astype(np.float64)
        mask = group["mask"][()]
    mask = mask | found_defects(frame_from_counts(stack[0], mask=mask, exposure=np.ones(mask.shape))).mask
    if crop is not None:
        window = _window(np.where(mask, 0.0, stack[0]), center, crop)
        stack, mask = stack[:, *window], mask[window]
        center = None if center is None else (center[0] - window[0].start, center[1] - window[1].start)
    return stack, mask, center


def _window(counts: FloatArray, center: tuple[float, float] | None, crop: int) -> tuple[slice, slice]:
    """Return a part of at most ``crop`` pixels a side: symmetric about the centre, or with the most counts."""
    sides = [min(crop, size) for size in counts.shape]
    if center is None:
        total = ndimage.uniform_filter(counts, sides, mode="constant", origin=[-(side // 2) for side in sides])
        inside = total[tuple(slice(size - side + 1) for size, side in zip(counts.shape, sides, strict=True))]
        first = np.unravel_index(int(np.argmax(inside)), inside.shape)
        return slice(int(first[0]), int(first[0]) + sides[0]), slice(int(first[1]), int(first[1]) + sides[1])
    parts = []
    for size, side, middle in zip(counts.shape, sides, center, strict=True):
        total = round(2 * middle)
        side -= (side + total + 1) % 2  # the first and the last pixel are mates: their sum is twice the centre
        start = min(max(0, (total - side + 1) // 2), size - side)
        parts.append(slice(start, start + side))
    return parts[0], parts[1]
