"""Records of a derived run about its images, from which one of them is computed again."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.derive.background import Backgrounds
from bluesky_symdenoise.acquisition.derive.darks import dark_of
from bluesky_symdenoise.acquisition.request.beamline import Beamline, Settings
from bluesky_symdenoise.acquisition.runs.stored import TiledRun
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.derived.stated_readout import from_recipe
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opened import open_for_reading
from bluesky_symdenoise.physics.dark import Background, Dark, dark_from_stored
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.recipe import Recipe, array_sha256

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

Document = dict[str, Any]


class Recorded:
    """Records of one image data key of a derived run.

    Parameters
    ----------
    run, raw
        The derived run and its raw run.
    recipe
        Recipe of the derived run.
    """

    def __init__(self, run: BlueskyRun, raw: BlueskyRun, recipe: Recipe, *, stream: str, key: str) -> None:
        self._run, self._raw, self._recipe, self._stream, self._key = run, raw, recipe, stream, key
        configuration = run[stream].metadata.get("configuration", {})
        self._said: Document = dict(configuration.get("symdenoise", {}).get("data", {}))
        self._names = Beamline.from_recipe(recipe.beamline)
        #: Latest dark that was read, with its row.
        self._last_dark: tuple[int, Dark] | None = None
        self._backgrounds = Backgrounds()

    @cached_property
    def exposure(self) -> NDArray[Any] | None:
        """Relative exposure (y, x) that was given with the recipe, or None."""
        sha256 = self._recipe.exposure_sha256
        return None if sha256 is None else self._array("exposure", sha256)

    @cached_property
    def fold(self) -> NDArray[Any] | None:
        """Map (y, x) uint8 of where mates may be used, as given with the recipe, or None."""
        sha256 = self._recipe.fold_sha256
        return None if sha256 is None else self._array("fold", sha256)

    @cached_property
    def mask(self) -> NDArray[Any] | None:
        """Mask (y, x) that was given or found, or None."""
        if self._recipe.mask_sha256 is not None:
            return self._array("mask", self._recipe.mask_sha256)
        found = self._said.get(f"{self._key}_mask_sha256")
        return None if found is None else self._array(f"{self._key}_mask", found)

    @cached_property
    def readout(self) -> Readout | None:
        """Readout that was stated with the recipe, or None."""
        return from_recipe(self._recipe.readout, self._array)

    def of_row(
        self, denoiser: Denoiser, index: int, symmetry: Symmetry
    ) -> tuple[NDArray[Any] | None, Background | None, Readout | None]:
        """Return mask, background and readout of one row: a dark is a background of counts, or a readout's offset."""
        names = self._names
        if not (names.has_dark or names.names_readout):
            return self.mask, None, self.readout
        settings, data = self._settings(self._stream, self._recipe.rows[index])
        readout = settings.readout(data)
        if not names.has_dark:
            return self.mask, None, readout
        dark, seconds = self._dark(index), settings.exposure_time(data)
        if readout is not None:
            offset = self._backgrounds.offset(readout, dark, seconds=seconds, shape=dark.mask.shape)
            return self.mask, None, offset
        return *self._backgrounds.of(denoiser, dark, seconds=seconds, mask=self.mask, symmetry=symmetry), None

    def _dark(self, index: int) -> Dark:
        fixed = f"{self._key}_dark_sha256" in self._said
        row = 0 if fixed else self._dark_row(index)
        if self._last_dark is None or self._last_dark[0] != row:
            self._last_dark = row, self._fixed_dark() if fixed else self._dark_of_stream(row)
        return self._last_dark[1]

    def _fixed_dark(self) -> Dark:
        return dark_from_stored(
            self._array(f"{self._key}_dark", self._said[f"{self._key}_dark_sha256"]),
            frames=self._said[f"{self._key}_dark_frames"],
            seconds=self._said.get(f"{self._key}_dark_seconds"),
            averaged=self._said.get(f"{self._key}_dark_averaged", 1),
        )

    def _dark_row(self, index: int) -> int:
        """Return the row number of the last dark before a row."""
        events = self._run[self._stream]
        if "time" not in events:
            return 0
        taken = np.asarray(self._raw[str(self._names.dark_stream)]["time"].read())
        return int(np.flatnonzero(taken <= np.asarray(events["time"].read())[index])[-1])

    def _dark_of_stream(self, row: int) -> Dark:
        name = str(self._names.dark_stream)
        TiledRun(self._raw).refuse_other_rows(name, self._key, self._raw[name][self._key])
        images = np.asarray(self._raw[name][self._key][row : row + 1])
        settings, data = self._settings(name, row)
        return dark_of(
            images.reshape(-1, *images.shape[-2:]),
            seconds=settings.exposure_time(data),
            readout=settings.readout(data),
        )

    def _settings(self, stream: str, row: int) -> tuple[Settings, Document]:
        """Return what the recipe's names lead to in a raw stream, and the columns of one row."""
        events = self._raw[stream]
        descriptor = next(each for each in self._raw.descriptors if each["name"] == stream)
        stated = {"readout": self.readout, "noise": self._recipe.noise}
        given = {name: value for name, value in stated.items() if value is not None}
        settings = Settings(self._names, key=self._key, start=dict(self._raw.start), descriptor=descriptor, given=given)
        data = {name: np.asarray(events[name].read())[row] for name in self._names.columns(self._key) if name in events}
        return settings, data

    def _array(self, name: str, sha256: str) -> NDArray[Any]:
        """Return an array from the derived run's own file, verified by its sha256."""
        assets = {asset.parameter: asset for asset in self._run[self._stream][self._key].data_sources()[0].assets}
        path = path_from_uri(assets[name if name in assets else "data_uris"].data_uri)
        try:
            if name in assets:  # A lazy run stores each array in a file of its own.
                array: NDArray[Any] = np.load(path, allow_pickle=False)
            else:
                with open_for_reading(path) as file:
                    array = file[f"entry/process/{name}"][()]
        except (OSError, KeyError, ValueError) as error:
            raise SymDenoiseError(
                f"{name} of run {self._run.start['uid']}",
                rule=f"it cannot be read from {path} ({error})",
                remedy="run this where the derived run's files can be seen",
            ) from error
        if array_sha256(array) != sha256:
            raise SymDenoiseError(
                f"{name} in {path}", rule="its sha256 is not the recorded one", remedy="restore the file"
            )
        return array
