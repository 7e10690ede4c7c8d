"""Counts as a stack of frames for the denoiser, and the result for a frame that it cannot denoise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.defects import DEAD, HOT
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.recipe import array_sha256

if TYPE_CHECKING:
    import xarray as xr


def stacked(counts: ArrayLike) -> NDArray[Any]:
    """Return counts as (frame, y, x).

    Raises
    ------
    SymDenoiseError
        If they are not a numeric array of at least two dimensions, none of them empty.
    """
    if isinstance(counts, np.ma.MaskedArray):
        raise SymDenoiseError(
            "counts as a numpy masked array",
            rule="its mask would be lost",
            remedy="give counts.data and mask=counts.mask",
        )
    given = np.asarray(counts)
    if given.ndim < 2 or 0 in given.shape:
        raise SymDenoiseError(
            f"counts of shape {given.shape}",
            rule="at least one frame of at least one pixel, (..., y, x), is needed",
            remedy="give detector images, not profiles",
        )
    if given.dtype.kind not in "iuf":
        raise SymDenoiseError(
            f"counts of dtype {given.dtype}",
            rule="counts are integers or floats",
            remedy="give the counts as measured; colour, complex and boolean images are not counts",
        )
    return given.reshape(-1, *given.shape[-2:])


def pooled(frames: Iterable[Frame], shape: tuple[int, int]) -> Frame:
    """Return all frames' counts and exposures added up."""
    counts, exposure = np.zeros(shape), np.zeros(shape)
    for frame in frames:
        counts += frame.counts
        exposure += frame.exposure
    return Frame(counts=counts, exposure=exposure, reference=1.0)


def as_dataset(
    intensity: NDArray[np.float32],
    sigma: NDArray[np.float32],
    defect: NDArray[np.uint8],
    *,
    units: str,
    attrs: dict[str, Any],
    borrowed: NDArray[np.float32] | None = None,
) -> xr.Dataset:
    """Return what was found for frames (..., y, x), in these units, as `bluesky_symdenoise.Denoiser` returns it."""
    import xarray as xr

    leading = intensity.ndim - 2
    dims = (*(("frame",) if leading == 1 else (f"dim_{i}" for i in range(leading))), "y", "x")
    described: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "intensity": (intensity, {"units": units, "long_name": f"expected {units} per pixel"}),
        "sigma": (
            sigma,
            {
                "units": units,
                "long_name": "posterior standard deviation",
                "note": "errors of neighbouring pixels are correlated",
            },
        ),
        "defect": (
            defect,
            {"long_name": "pixels found to be bad", "flag_values": [HOT, DEAD], "flag_meanings": "hot dead"},
        ),
    }
    dataset = xr.Dataset({name: (dims, *held) for name, held in described.items()}, attrs=attrs)
    if borrowed is not None:
        about = {"long_name": "effective exposures that other rows lend, in units of the frame's own"}
        dataset["borrowed"] = (dims[:-2], borrowed.reshape(intensity.shape[:-2]), about)
    return dataset


def empty_result(shape: tuple[int, ...]) -> xr.Dataset:
    """Return the result of a frame (y, x) that could not be denoised: NaN."""
    import xarray as xr

    nothing = (("frame", "y", "x"), np.full((1, *shape), np.nan, np.float32))
    return xr.Dataset({"intensity": nothing, "sigma": nothing})


def plain_readout(readout: Readout) -> dict[str, Any]:
    """Return a readout as JSON values, maps by their checksums."""
    values = {each.name: getattr(readout, each.name) for each in fields(readout)}
    return {
        name: f"sha256:{array_sha256(value)}" if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
