"""Which symmetry many frames support, and where on the detector: decided from all of their counts together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.center import found_beam_center, refined_beam_center
from bluesky_symdenoise.physics.defects import without_gaps
from bluesky_symdenoise.physics.evidence import FALSE_ALARM, Asymmetry, asymmetry, differing_blocks, pair_sums
from bluesky_symdenoise.physics.fold import supported_symmetry
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import named
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_beam_center, checked_point_group, checked_symmetry
from bluesky_symdenoise.physics.tilt import split_tilt

#: Smallest p-value that the combined test can tell from 0.
LEAST_P = 1e-290


@dataclass(frozen=True, eq=False)
class SymmetryCheck:
    """Result of testing a symmetry on pooled frames.

    Attributes
    ----------
    symmetry
        Group, centre, and the map of where mates may be used: where no difference of a region (32 pixels by 22.5
        degrees) or of a block (4 to 16 pixels) was seen, and one of a region that could not have been seen with 95 %
        probability is below the statistical error of 4 x 4 pixels of one folded frame. To be given as ``symmetry=`` to
        a denoiser, a callback or a replay.
    frames
        Number of frames that were pooled.
    counts_per_pixel
        Mean counts per pixel of one frame.
    tests
        One test for each operation of the group.
    usable
        Share of the measured pixels where the mates under each operation may be used.
    spotted
        Share of the measured pixels that are in, or beside, blocks of 4 to 16 pixels that differ from their mates.
    """

    symmetry: Symmetry
    frames: int
    counts_per_pixel: float
    tests: tuple[Asymmetry, ...]
    usable: tuple[float, ...]
    spotted: tuple[float, ...]

    def figures(self) -> dict[str, Any]:
        """Return plain JSON values; differences are relative to the mean of a region and its mate."""
        operations = []
        for test, usable, spotted in zip(self.tests, self.usable, self.spotted, strict=True):
            # Non-negative rates differ by at most twice their mean.
            seen = test.smallest <= 2
            operations.append(
                {
                    "operation": named(test.operation),
                    "p_value": test.p_value,
                    "regions": int(np.isfinite(test.score).sum()),
                    "regions_that_differ": int(test.rejected.sum()),
                    "largest_difference": float(np.abs(test.difference[test.rejected]).max(initial=0.0)),
                    "smallest_visible_difference": float(np.median(test.smallest[seen])) if seen.any() else None,
                    "in_differing_blocks": spotted,
                    "usable": usable,
                }
            )
        center = self.symmetry.beam_center
        return {
            "symmetry": self.symmetry.point_group,
            "beam_center": None if center is None else list(center),
            "frames": self.frames,
            "counts_per_pixel": self.counts_per_pixel,
            "operations": operations,
        }

    def __str__(self) -> str:
        """Return a summary, with a line for each operation."""
        center, paired = self.symmetry.beam_center, self.symmetry.grid_center
        about = "" if center is None else f" about (y, x) = ({center[0]:.2f}, {center[1]:.2f})"
        if center is not None and paired is not None and paired != center:
            about += f", pixels paired about ({paired[0]:.2f}, {paired[1]:.2f})"
        number = f"{self.frames} frame{'s' * (self.frames != 1)}"
        lines = [f"{self.symmetry.point_group}{about}: {number} of {self.counts_per_pixel:.3g} counts/pixel"]
        if not self.tests:
            lines.append("no mates: the frames support none of the groups that were tried; name a group to test it")
        for one in self.figures()["operations"]:
            visible = one["smallest_visible_difference"]
            least = "none could be seen" if visible is None else f"{100 * visible:.2g} % could be seen (median)"
            most = f" by up to {100 * one['largest_difference']:.2g} %" if one["regions_that_differ"] else ""
            p_value = f"= {one['p_value']:.2g}" if one["p_value"] > LEAST_P else f"< {LEAST_P:g}"
            lines.append(
                f"{one['operation']}: p {p_value}; {one['regions_that_differ']} of {one['regions']} regions "
                f"differ{most}, {least}; spots or gaps that differ on {100 * one['in_differing_blocks']:.1f} % of the "
                f"pixels; mates may be used on {100 * one['usable']:.0f} % of them"
            )
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the symmetry with its map as ``.npz``; `load_symmetry` reads it.

        Raises
        ------
        SymDenoiseError
            If the name has another ending, or its folder does not exist.
        """
        refuse_bad_name(Path(path))
        center = self.symmetry.beam_center
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                point_group=np.array(self.symmetry.point_group),
                beam_center=np.array([] if center is None else center),
                fold=np.zeros((0, 0), np.uint8) if self.symmetry.fold is None else self.symmetry.fold,
            )


def refuse_bad_name(path: Path) -> None:
    """Raise SymDenoiseError if a checked symmetry cannot be written under a name."""
    if path.suffix != ".npz" or not path.parent.is_dir():
        raise SymDenoiseError(
            str(path), rule="a checked symmetry is kept as NAME.npz in a folder that exists", remedy="give such a name"
        )


def load_symmetry(path: str | Path) -> Symmetry:
    """Return the symmetry in a file that `SymmetryCheck.save` wrote.

    Raises
    ------
    SymDenoiseError
        If the file does not hold a checked symmetry.
    """
    remedy = "write it with `symdenoise symmetry ... -o`"
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            group, center, fold = str(stored["point_group"]), stored["beam_center"], stored["fold"]
            if fold.ndim != 2 or fold.dtype != np.uint8 or center.size not in (0, 2):
                raise ValueError("its arrays have other shapes")
    except FileNotFoundError as error:
        raise SymDenoiseError(f"{path}", rule="there is no such file", remedy=remedy) from error
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise SymDenoiseError(f"{path}", rule="it is not a checked symmetry", remedy=remedy) from error
    checked_point_group(group)
    return Symmetry(group, (float(center[0]), float(center[1])) if center.size else None, fold if fold.size else None)


def stated_symmetry(symmetry: str | Symmetry | SymmetryCheck) -> str | Symmetry:
    """Return the symmetry as given, or the checked symmetry in a check or in a ``.npz`` file."""
    if isinstance(symmetry, SymmetryCheck):
        return symmetry.symmetry
    return load_symmetry(symmetry) if isinstance(symmetry, str) and symmetry.endswith(".npz") else symmetry


def chosen_symmetry(total: Frame, symmetry: str, beam_center: tuple[float, float] | None) -> Symmetry:
    """Return the point group and centre for frames that were added up.

    ``auto`` keeps the largest group that the data support and falls back to ``1``. A named group without a centre takes
    the one found by correlating the frames with themselves.

    Raises
    ------
    SymDenoiseError
        If the group is unknown, or no centre was given and none can be found.
    """
    symmetry = checked_symmetry(symmetry)
    group, tilt = split_tilt(symmetry)
    if group == "1":
        return Symmetry()
    if group != "auto" and beam_center is not None:
        return Symmetry(symmetry, beam_center)
    if tilt is not None and beam_center is None:
        raise SymDenoiseError(
            f"symmetry {symmetry!r} without a beam centre",
            rule="on a tilted detector the centre cannot be found from the image",
            remedy="give beam_center=(y, x) in pixels, or Symmetry.on(geometry)",
        )
    summed = without_gaps(total)
    if group == "auto":
        return supported_symmetry(summed, beam_center, tilt)
    first = Symmetry(symmetry).operations[0]
    found = found_beam_center(summed, first) if first.exact else None
    if found is None:
        raise SymDenoiseError(
            f"symmetry {symmetry!r} without a beam centre",
            rule="none could be found in the image",
            remedy="give beam_center=(y, x) in pixels, or use symmetry 1",
        )
    if symmetry == "inf":
        # Half a pixel matters where rings are narrow.
        found = refined_beam_center(summed, found) or found
    return Symmetry(symmetry, checked_beam_center(found, total.counts.shape))


def tested_symmetry(total: Frame, symmetry: Symmetry, *, frames: int) -> SymmetryCheck:
    """Test each operation of a symmetry on the sum of a number of frames, and map where its mates may be used.

    Counts of one scene add up to Poisson counts of it, so the sum holds all evidence of the frames: an asymmetry that
    no single frame shows is seen, and where none could be seen yet the mates are not used.
    """
    measured = total.exposure > 0
    shape = (measured.shape[0], measured.shape[1])
    center = symmetry.grid_center
    tests, spots, maps = [], [], []
    for operation in symmetry.operations:
        assert center is not None
        test = asymmetry(replace(pair_sums(total, operation, center), frames=frames))
        spot = differing_blocks(total, operation, center) & measured
        tests.append(test)
        spots.append(spot)
        maps.append(test.on_pixels(test.foldable, shape) & ~spot)
    fold = _bits(maps if symmetry.group != "inf" else [np.logical_and.reduce(maps)], shape) if maps else None
    return SymmetryCheck(
        symmetry=replace(symmetry, fold=fold),
        frames=frames,
        counts_per_pixel=float(total.counts.sum() / max(1, measured.sum()) / max(1, frames)),
        tests=tuple(tests),
        usable=tuple(float((where & measured).sum() / max(1, measured.sum())) for where in maps),
        spotted=tuple(float(where.sum() / max(1, measured.sum())) for where in spots),
    )


def _bits(maps: Iterable[NDArray[np.bool_]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    out = np.zeros(shape, np.uint8)
    for index, where in enumerate(maps):
        out |= where.astype(np.uint8) << np.uint8(index)
    return out


#: Explanation of "differ", printed with the figures.
RULE = (
    f"regions are 32 pixels by 22.5 degrees; they differ, and so do blocks of 4 to 16 pixels, by false alarm once in "
    f"{1 / FALSE_ALARM:.0f} checks of a symmetric pattern"
)
