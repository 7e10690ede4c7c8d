"""Recomputation of single frames, from the raw run and the provenance of the derived one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.recorded import Recorded
from bluesky_symdenoise.acquisition.runs.stored import TiledRun
from bluesky_symdenoise.catalog.find.query import raw_for
from bluesky_symdenoise.denoiser.released import checked_algorithm
from bluesky_symdenoise.derived.columns import BORROWED_FROM, rows_of_text, rows_text
from bluesky_symdenoise.derived.lending import lent_by
from bluesky_symdenoise.derived.row import Row, denoised_row
from bluesky_symdenoise.derived.stated_readout import readout_maps
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import row_shape
from bluesky_symdenoise.physics.dark import Background
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.neighbours.window import Borrow, Scan
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    import xarray as xr
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

    from bluesky_symdenoise.denoiser.infer import Denoiser

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


def recompute(
    run: BlueskyRun,
    index: int,
    *,
    key: str | None = None,
    stream: str | None = None,
    denoiser: Denoiser | None = None,
) -> xr.Dataset:
    """Compute one frame of a derived run again from the raw frame and the derived run's own provenance.

    The result is bit for bit what is stored, on the same machine, device and dtype with the recorded number of threads.

    Parameters
    ----------
    run
        A derived run.
    index
        Row of its stream.
    key, stream
        Image data key and stream; by default the first that the provenance names.
    denoiser
        By default the model that the provenance names, with its thread count.

    Returns
    -------
    xarray.Dataset
        ``intensity`` and ``sigma`` in the shape of one stored row.

    Raises
    ------
    SymDenoiseError
        If this computer has not the recipe's weights or this version not its algorithm, or the raw run or the mask is
        gone.
    """
    source = run.start["provenance"]["wasDerivedFrom"][0]
    key, stream = key or source["data_key"], stream or source["stream"]
    if stream not in run or key not in run[stream]:
        raise SymDenoiseError(
            f"{stream}/{key}",
            rule="the run has no such image",
            remedy=f"{source['stream']}/{source['data_key']} is one",
        )
    rows = run[stream][key].shape[0]
    if not 0 <= index < rows:
        raise SymDenoiseError(f"row {index}", rule=f"stream {stream!r} has {rows} rows", remedy=f"give 0 to {rows - 1}")
    again = Again(run, stream, key, denoiser or recorded_denoiser(run))
    raw_row, raw = again.recipe.rows[index], raw_for(run)
    image, stored = raw[stream][key], TiledRun(raw)
    stored.refuse_other_rows(stream, key, image)
    counts = np.asarray(image[raw_row : raw_row + 1])[0]
    row = again.row(index, counts, lent=lent_to(run, stored, stream, key, index, again.recipe))
    dims = (*(f"dim_{i}" for i in range(row.intensity.ndim - 2)), "y", "x")
    import xarray as xr

    return xr.Dataset({"intensity": (dims, row.intensity), "sigma": (dims, row.sigma)})


def lent_to(run: BlueskyRun, raw: TiledRun, stream: str, key: str, index: int, recipe: Recipe) -> list[Lent]:
    """Return the frames that other rows lent to a row of a derived run.

    Raises
    ------
    SymDenoiseError
        If one of them cannot be read now.
    """
    if recipe.borrow is None:
        return []
    number = next(each.rows for each in raw.streams.values() if each.descriptor["name"] == stream)
    lenders = Borrow.from_text(recipe.borrow).rows(recipe.rows[index], number, Scan.of(raw.start, stream))
    image, shape = raw.run[stream][key], tuple(run[stream][key].shape[1:])
    recorded = str(np.asarray(run[stream][f"{key}_{BORROWED_FROM}"].read()).astype("U")[index])

    def read(row: int) -> NDArray[Any] | None:
        try:
            held = np.asarray(image[row : row + 1])[0]
        except (httpx.HTTPStatusError, IndexError) as error:
            log.info("row %d of %s/%s cannot be read (%s)", row, stream, key, error)
            return None
        return held.astype(np.uint8 if held.dtype == bool else held.dtype, copy=False).reshape(
            row_shape(held.shape, shape)
        )

    if (then := rows_of_text(recorded)) is not None:
        # Rows that could not be read then may be there now.
        lenders = tuple(each for each in lenders if each.row in then)
    lent = lent_by(lenders, read, shape=shape)
    now = rows_text(each.row for each in lent if each.row is not None)
    if now != recorded:
        raise SymDenoiseError(
            f"row {index}",
            rule=f"it borrowed from rows {recorded or 'none'}, and of those {now or 'none'} can be read",
            remedy="recompute it where the raw frames of these rows can be read, or replay the raw run",
        )
    return lent


def recorded_denoiser(run: BlueskyRun) -> Denoiser:
    """Return the denoiser of a derived run's own algorithm and weights, with its device and thread count.

    Raises
    ------
    SymDenoiseError
        If this version has not the algorithm, or this computer not the weights.
    """
    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.denoiser.weights import load_recorded

    provenance: Document = dict(run.start["provenance"])
    recipe, model = provenance["recipe"], provenance["model"]
    algorithm = checked_algorithm(recipe["algorithm"], made_with=provenance["wasAssociatedWith"]["version"])
    return Denoiser(
        load_recorded(model["name"], model["sha256"], version=model.get("version")),
        device="cpu" if provenance["environment"]["device"] == "cpu" else "auto",
        threads=provenance["environment"]["threads"],
        dtype=provenance["environment"]["dtype"],
        defects=recipe.get("defects") or "find",
        views=recipe.get("views") or 1,
        sums=recipe.get("sums") or "free",
        algorithm=algorithm,
    )


class Again:
    """Rows of one image of a derived run, computed again from the raw run and the provenance.

    Raises
    ------
    SymDenoiseError
        If the denoiser has not the recipe's algorithm and weights, or the raw run or the mask is gone.
    """

    def __init__(self, run: BlueskyRun, stream: str, key: str, denoiser: Denoiser) -> None:
        provenance: Document = dict(run.start["provenance"])
        checked_algorithm(provenance["recipe"]["algorithm"], made_with=provenance["wasAssociatedWith"]["version"])
        self.recipe = recipe = Recipe.from_dict(provenance["recipe"])
        if (denoiser.model.sha256, denoiser.algorithm) != (recipe.model_sha256, recipe.algorithm):
            raise SymDenoiseError(
                f"a denoiser with model {denoiser.model.sha256[:12]} and algorithm {denoiser.algorithm}",
                rule=f"the run was made with {recipe.model_sha256[:12]} and algorithm {recipe.algorithm}",
                remedy="give a denoiser of these, or none",
            )
        made_with = (recipe.defects or "find", recipe.views or 1, recipe.sums or "free")
        if (denoiser.defects, denoiser.views, denoiser.sums) != made_with:
            raise SymDenoiseError(
                f"a denoiser with defects={denoiser.defects!r}, views={denoiser.views} and sums={denoiser.sums!r}",
                rule="the run was made with another choice",
                remedy="give one with defects={!r}, views={} and sums={!r}, or none".format(*made_with),
            )
        self.denoiser = denoiser
        self._recorded = Recorded(run, raw_for(run), recipe, stream=stream, key=key)
        self.mask, self.exposure, self.fold = self._recorded.mask, self._recorded.exposure, self._recorded.fold
        self.readout = self._recorded.readout
        events = run[stream]
        self._shape = tuple(events[key].shape[1:])
        named = np.asarray(events[f"{key}_symmetry"].read()).tolist()
        self.groups = [group.decode() if isinstance(group, bytes) else str(group) for group in named]
        centers = (np.asarray(events[f"{key}_center_{axis}"].read(), float) for axis in "yx")
        self.centers = [None if np.isnan(y) else (float(y), float(x)) for y, x in zip(*centers, strict=True)]

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays given with the recipe, by the names under which they are stored; without the map of mates."""
        named = {"mask": self.mask, "exposure": self.exposure, **readout_maps(self.readout)}
        return {name: array for name, array in named.items() if array is not None}

    def of_row(self, index: int, symmetry: Symmetry) -> tuple[NDArray[Any] | None, Background | None, Readout | None]:
        """Return mask, background and readout of one row."""
        return self._recorded.of_row(self.denoiser, index, symmetry)

    def row(self, index: int, image: NDArray[Any], *, lent: Sequence[Lent] = ()) -> Row:
        """Return one row as it was stored, from its raw image and those of the rows that lent photons to it.

        Raises
        ------
        SymDenoiseError
            If its frame was not denoised.
        """
        if not self.groups[index]:
            raise SymDenoiseError(
                f"row {index}",
                rule="its frame was not denoised",
                remedy="the run's stop document says why; replay the raw run",
            )
        shape = row_shape(image.shape, self._shape)
        if shape != self._shape:
            raise SymDenoiseError(
                f"a raw image of shape {image.shape}",
                rule=f"the denoised one has {self._shape}: it was made from the file itself, in the file's own shape",
                remedy="replay the run from its documents",
            )
        symmetry = Symmetry(self.groups[index], self.centers[index], self.fold)
        mask, background, readout = self.of_row(index, symmetry)
        return denoised_row(
            self.denoiser,
            self.recipe,
            image.reshape(shape),
            mask=mask,
            exposure=self.exposure,
            symmetry=symmetry,
            background=background,
            readout=readout,
            lent=lent,
        )
