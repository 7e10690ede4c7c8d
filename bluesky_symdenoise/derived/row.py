"""Stored result for one image of one event: the same for live, replayed, recomputed and lazily read frames."""

from __future__ import annotations

import time as clock
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.derived.columns import BORROWED, BORROWED_FROM, SATURATED, SCALARS, Made, rows_text, scalars_of
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Background
from bluesky_symdenoise.physics.frame import as_exposure, as_mask, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.noise import rounded_mantissa, rounded_to_sigma
from bluesky_symdenoise.physics.symmetry import Symmetry, center_without
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser


@dataclass(frozen=True)
class Row:
    """Stored result for one image of one event.

    Attributes
    ----------
    intensity, sigma
        float32, in the shape of the raw data key.
    scalars
        Values of the columns ``<key>_<name>``.
    """

    intensity: NDArray[np.float32]
    sigma: NDArray[np.float32]
    scalars: Mapping[str, Any]

    @property
    def crc32(self) -> int:
        """Checksum of the frames."""
        return zlib.crc32(np.ascontiguousarray(self.sigma).data, zlib.crc32(np.ascontiguousarray(self.intensity).data))


@dataclass(frozen=True)
class CompressedFrame:
    """One row of an HDF5 dataset, as it is on disk."""

    dataset: Any
    index: int

    def copy_to(self, dataset: Any, index: int) -> None:
        """Write this as a row of another dataset with the same chunks and filters, one compressed chunk at a time."""
        first = self.dataset.chunks
        for offset in product(*(range(0, size, step) for size, step in zip(dataset.shape[1:], first[1:], strict=True))):
            skipped, content = self.dataset.id.read_direct_chunk((self.index, *offset))
            dataset.id.write_direct_chunk((index, *offset), content, skipped)


@dataclass(frozen=True)
class CompressedRow:
    """A `Row` whose frames another process has compressed into a file."""

    intensity: CompressedFrame
    sigma: CompressedFrame
    scalars: Mapping[str, Any]
    crc32: int


def empty_row(shape: Sequence[int], columns: Mapping[str, str] = SCALARS) -> Row:
    """Return the row of a frame that could not be denoised: NaN."""
    nothing = np.full(tuple(shape), np.nan, np.float32)
    scalars = {name: "" if dtype == "string" else float("nan") for name, dtype in columns.items()}
    return Row(intensity=nothing, sigma=nothing, scalars=scalars)


def fitting(row: Row, shape: tuple[int, ...]) -> Row | SymDenoiseError:
    """Return the row, or the reason why it does not fit a stream whose images have this shape."""
    if row.intensity.shape == shape:
        return row
    return SymDenoiseError(
        f"an image of shape {row.intensity.shape}",
        rule=f"the derived run has shape {shape}, which is stated: its first images could not be read",
        remedy="fix the device's description, then replay the run from its documents",
    )


def denoised_row(
    denoiser: Denoiser,
    recipe: Recipe,
    image: NDArray[Any],
    *,
    mask: NDArray[np.bool_] | None,
    exposure: NDArray[np.float64] | None,
    symmetry: Symmetry,
    background: Background | None = None,
    readout: Readout | None = None,
    lent: Sequence[Lent] = (),
) -> Row:
    """Return one image as stored: denoised, rounded as the recipe says, with its scalars.

    Parameters
    ----------
    readout
        Readout of an integrating detector, whose signal `image` then is; scalars are in photons.
    lent
        Raw frames of other rows, which may lend photons if the recipe says so.
    """
    begun = clock.perf_counter()
    result = denoiser(
        image,
        mask=mask,
        exposure=exposure,
        symmetry=symmetry,
        beam_center=center_without(symmetry, recipe.beam_center),
        background=background,
        readout=readout,
        lent=() if recipe.borrow is None else lent,
    )
    intensity, sigma = result["intensity"].values, result["sigma"].values
    shape = (image.shape[-2], image.shape[-1])
    scalars: dict[str, Any] = {}
    if recipe.borrow is not None:
        scalars[BORROWED] = float(result["borrowed"].mean()) if "borrowed" in result else 0.0
        scalars[BORROWED_FROM] = rows_text(each.row for each in lent if each.row is not None)
    if readout is None:
        unusable = sentinel_mask(image)
    else:
        if readout.saturation is not None:
            scalars[SATURATED] = float(np.count_nonzero(readout.saturated(image) & ~as_mask(mask, shape)))
        image, unusable = readout.measured(image)
    measured = ~(as_mask(mask, shape) | unusable) & (as_exposure(exposure, shape) > 0)
    defect = result["defect"].values
    measured &= defect == 0
    made = Made(image, intensity, defect, measured, clock.perf_counter() - begun)
    return Row(
        intensity=rounded_to_sigma(intensity, sigma, fraction=recipe.rounding),
        sigma=rounded_mantissa(sigma, bits=recipe.sigma_bits),
        scalars=scalars_of(symmetry, made) | scalars,
    )
