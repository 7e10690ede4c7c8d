"""Settings for denoising a run and for the place of its results, checked before the run starts."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise import __version__
from bluesky_symdenoise.acquisition.request.beamline import Beamline, dark_from
from bluesky_symdenoise.acquisition.request.options import (
    Options,
    asked_borrow,
    asked_self_check,
    refuse_unable,
    refuse_unknown,
)
from bluesky_symdenoise.acquisition.request.place import UNSORTED, Place
from bluesky_symdenoise.acquisition.request.poni import check_poni
from bluesky_symdenoise.analysis.ring import Ring, checked_rings
from bluesky_symdenoise.catalog.store.containers import FRAMES_FOLDER
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.derived.columns import BORROWING, SATURATED, with_numbers
from bluesky_symdenoise.derived.stated_readout import readout_maps, to_recipe
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.readout_file import load_readout
from bluesky_symdenoise.physics.check import stated_symmetry
from bluesky_symdenoise.physics.counts.verdict import checked_noise
from bluesky_symdenoise.physics.dark import Dark
from bluesky_symdenoise.physics.frame import as_exposure, mostly_masked
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.window import Borrow
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_symmetry, refuse_other_center
from bluesky_symdenoise.recipe import Recipe, array_sha256, chosen_frames

if TYPE_CHECKING:
    from tiled.client.container import Container

    from bluesky_symdenoise.denoiser.infer import Denoiser

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]
Transport = Literal["files", "http"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Settings for denoising every frame.

    Attributes
    ----------
    model
        The denoiser, or the settings that load it when it is first used: what is planned here may be done elsewhere.
    activity
        ``callback`` or ``replay``: how the derived run came to be.
    beamline
        Names under which the run's own documents give geometry, masks, doses and darks.
    dark
        Dark of all images, from a file.
    raw
        Catalogue in which a run with darks is looked up; None where there is no such catalogue.
    fold
        Where mates may be used, as in `Symmetry`, if a checked symmetry was given.
    analysis
        Rings whose quantities become columns.
    readout
        Readout of an integrating detector, if it was stated.
    named
        Rows that were requested one by one: a run without one of them is refused. A slice or a range may go beyond its
        end.
    self_check
        Whether a few frames are checked when the run has ended.
    """

    model: Denoiser | DenoiserSettings
    recipe: Recipe
    mask: NDArray[np.bool_] | None
    exposure: NDArray[np.float64] | None
    fold: NDArray[np.uint8] | None
    activity: str
    beamline: Beamline = field(default_factory=Beamline)
    dark: Dark | None = None
    raw: Container | None = None
    analysis: tuple[Ring, ...] = ()
    readout: Readout | None = None
    named: tuple[int, ...] = ()
    self_check: bool = True

    @classmethod
    def asked(
        cls,
        *,
        activity: str,
        denoiser: Denoiser | DenoiserSettings | None = None,
        rows: slice | range | Sequence[int] | None = None,
        raw: Container | None = None,
        **options: Unpack[Options],
    ) -> Request:
        """Check what can be checked before a run starts, and return the request.

        Raises
        ------
        SymDenoiseError
            If the request could not work, whatever the frames are.
        """
        refuse_unknown(options)
        mask, exposure = options.get("mask"), options.get("exposure")
        symmetry, beam_center = options.get("symmetry", "auto"), options.get("beam_center")
        streams, data_keys = options.get("streams"), options.get("data_keys")
        fold, stated = None, stated_symmetry(symmetry)
        if isinstance(stated, Symmetry):
            refuse_other_center(stated, beam_center)
            beam_center, fold = stated.beam_center, stated.fold
        symmetry = checked_symmetry(stated.point_group if isinstance(stated, Symmetry) else stated)
        if beam_center is not None and (len(beam_center) != 2 or not np.isfinite(np.asarray(beam_center, float)).all()):
            raise SymDenoiseError(
                f"beam centre {beam_center!r}",
                rule="it must be two finite numbers",
                remedy="give (y, x) in pixels",
            )
        for names, what in ((streams, "streams"), (data_keys, "data_keys")):
            if isinstance(names, str):
                raise SymDenoiseError(
                    f"{what}={names!r}", rule="it must be a list of names", remedy=f"give [{names!r}]"
                )
        bad = None if mask is None else np.asarray(mask).astype(bool)
        if bad is not None and (said := mostly_masked(bad)):
            log.warning("%s", said)
        n = None if exposure is None else np.asarray(exposure, np.float64)
        for array, what in ((bad, "mask"), (n, "exposure")):
            if array is not None and array.ndim != 2:
                raise SymDenoiseError(
                    f"{what} of shape {array.shape}",
                    rule="it must be (y, x)",
                    remedy="give one for all frames",
                )
        if n is not None:
            as_exposure(n, n.shape)
        model = denoiser or DenoiserSettings()
        borrow = asked_borrow(options.get("borrow"), options.get("borrow_reach"), activity=activity)
        refuse_unable(borrow, model)
        kept = options.get("beamline") or Beamline()
        rings = checked_rings(options.get("analysis"))
        readout = stated_readout(options.get("readout"))
        noise = checked_noise(options.get("noise"))
        if noise is not None and readout is not None:
            raise SymDenoiseError(
                "noise='poisson' and a readout",
                rule="frames are photon counts, or the signal of an integrating detector",
                remedy="state one of them",
            )
        if readout is not None and kept.has_dark and np.any(readout.offset):
            raise SymDenoiseError(
                "a readout with an offset, and a dark",
                rule="the dark is the offset of the readout",
                remedy="leave one of them out: offset = 0 in the readout, or no dark in the beamline",
            )
        integrating = readout is not None or (kept.gain is not None and noise is None)
        dark = (
            None
            if kept.dark_file is None
            else dark_from(kept.dark_file, seconds=kept.dark_seconds, integrating=integrating)
        )
        if kept.poni_file is not None:
            check_poni(kept.poni_file)
        recipe = Recipe(
            model_sha256=model.sha256() if isinstance(model, DenoiserSettings) else model.model.sha256,
            algorithm=model.algorithm,
            symmetry=symmetry,
            beam_center=None if beam_center is None else (float(beam_center[0]), float(beam_center[1])),
            mask_sha256=None if bad is None else array_sha256(bad),
            exposure_sha256=None if n is None else array_sha256(n),
            streams=None if streams is None else tuple(streams),
            data_keys=None if data_keys is None else tuple(data_keys),
            beamline=kept.to_recipe(),
            analysis=tuple(ring.to_text() for ring in rings) or None,
            frames=chosen_frames(rows),
            defects=None if model.defects == "find" else model.defects,
            views=None if model.views == 1 else model.views,
            sums=None if model.sums == "free" else model.sums,
            fold_sha256=None if fold is None else array_sha256(fold),
            noise=noise,
            readout=to_recipe(readout),
            borrow=None if borrow is None else borrow.to_text(),
        )
        return Request(
            model=model,
            recipe=recipe,
            mask=bad,
            exposure=n,
            fold=fold,
            activity=activity,
            beamline=kept,
            dark=dark,
            raw=raw,
            analysis=rings,
            readout=readout,
            named=() if rows is None or isinstance(rows, slice | range) else tuple(int(row) for row in rows),
            self_check=asked_self_check(options.get("self_check", "end")),
        )

    def refuse_missing(self, held: Mapping[str, int]) -> None:
        """Raise SymDenoiseError if no stream has a row that was named, or any row that was requested.

        Parameters
        ----------
        held
            Number of rows of each stream of images.
        """
        if self.recipe.frames is None:
            return
        most = max(held.values(), default=0)
        missing = ", ".join(str(row) for row in sorted(set(self.named)) if row >= most)
        if missing or not self.recipe.rows_among(most):
            raise SymDenoiseError(
                f"rows={missing or self.recipe.frames}",
                rule="the run has no such rows; "
                + ", ".join(f"stream {name!r} has {rows}, counted from 0" for name, rows in held.items()),
                remedy="name rows that it has; a slice or a range may go beyond the end, and must hold one of them",
            )

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays given for all images, stored with them under the recipe's checksums."""
        named = {"mask": self.mask, "exposure": self.exposure, "fold": self.fold, **readout_maps(self.readout)}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def denoiser(self) -> Denoiser:
        """Denoiser, loaded when it is first used."""
        return self.model.load() if isinstance(self.model, DenoiserSettings) else self.model

    @property
    def columns(self) -> dict[str, str]:
        """Names, without the data key, and types of the scalars of each row."""
        saturated = () if self.readout is None or self.readout.saturation is None else (SATURATED,)
        columns = with_numbers((*saturated, *(name for ring in self.analysis for name in ring.columns)))
        return columns if self.borrow is None else columns | BORROWING

    @property
    def borrow(self) -> Borrow | None:
        """Rows that may lend photons to each other; None if none may."""
        return None if self.recipe.borrow is None else Borrow.from_text(self.recipe.borrow)

    def given(self) -> dict[str, Any]:
        """Return the arguments that were given, in the form that `Settings` takes."""
        symmetry, center = self.recipe.symmetry, self.recipe.beam_center
        given = {
            "symmetry": None if symmetry == "auto" else symmetry,
            "beam_center": center,
            "mask": self.mask,
            "readout": self.readout,
            "noise": self.recipe.noise,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Work(Request):
    """Settings for denoising every frame, and for the place of the results.

    Attributes
    ----------
    container
        Client of the catalogue of derived runs.
    place, folder
        Where the HDF5 files go: the rule for each run, and the folder above them all, which the server reads.
    frames
        How frames get to the server: ``files`` that it reads, or over ``http``.
    """

    container: Container
    place: Place
    folder: Path
    frames: Transport = "files"

    @classmethod
    def planned(
        cls,
        container: Container,
        *,
        activity: str,
        denoiser: Denoiser | DenoiserSettings | None = None,
        directory: str | Path | Place | None = None,
        frames: Transport = "files",
        rows: slice | range | Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> Work:
        """Check what can be checked before a run starts, and return the work.

        Raises
        ------
        SymDenoiseError
            If the request could not work, whatever the frames are.
        """
        from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns

        if not isinstance(container, CatalogOfBlueskyRuns):
            raise SymDenoiseError(
                f"{getattr(container, 'uri', container)!s}",
                rule="it is not a catalogue of Bluesky runs",
                remedy='pass the container of the derived runs, client["denoised"]',
            )
        check_choice("frames", frames, get_args(Transport))
        asked = Request.asked(activity=activity, denoiser=denoiser, rows=rows, **options)
        place = directory if isinstance(directory, Place) else Place(directory)
        return Work(
            **{each.name: getattr(asked, each.name) for each in fields(asked)},
            container=container,
            place=place,
            folder=frames_folder(container, place),
            frames=frames,
        )

    def folder_for(self, start: Document) -> tuple[Path, str | None]:
        """Return the folder for a run's files, made if needed, and what is wrong with it in one line."""
        folder, complaint = self.folder_named(start)
        self.place.make(self.folder, folder)
        return folder, complaint

    def folder_named(self, start: Document) -> tuple[Path, str | None]:
        """Return the folder for a run's files without making it, and what is wrong with it in one line."""
        try:
            return self.place.folder(self.folder, start), None
        except SymDenoiseError as error:
            return self.folder / UNSORTED, str(error)

    @property
    def environment(self) -> Document:
        """Properties of this computer that decide the bits of a row."""
        return {"python": platform.python_version(), **self.denoiser.environment()}

    def provenance(self, raw_uid: str, stream: str, keys: Sequence[str]) -> Document:
        """Return the provenance block of the start document, in the terms of W3C PROV."""
        return {
            "wasDerivedFrom": [{"run": raw_uid, "stream": stream, "data_key": key} for key in keys],
            "wasGeneratedBy": {"activity": self.activity, "startedAtTime": now()},
            "wasAssociatedWith": {"name": "bluesky-symdenoise", "version": __version__},
            "model": self.denoiser.model.identity(),
            "recipe": self.recipe.to_dict(),
            "recipe_sha256": self.recipe.sha256,
            "environment": self.environment,
        }


def stated_readout(given: Readout | str | Path | None) -> Readout | None:
    """Return the readout that was given, or that a TOML file holds."""
    return load_readout(given) if isinstance(given, str | Path) else given


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise SymDenoiseError if a word is not one of the choices."""
    if value not in choices:
        raise SymDenoiseError(
            f"{what}={value!r}", rule="it is not one of the choices", remedy=f"give {', '.join(choices)}"
        )


def now() -> str:
    """Return the time in ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def frames_folder(container: Container, place: Place) -> Path:
    """Return the folder above all derived files: the given one, or the one that the container itself names."""
    folder = place.root(container.metadata.get(FRAMES_FOLDER))
    if folder is None:
        if len(container) and "raw_uid" not in container.values().first().metadata.get("start", {}):
            raise SymDenoiseError(
                f"container {container.uri}",
                rule="it holds raw runs, beside which this package never writes",
                remedy='pass the container of the derived runs, client["denoised"]; `symdenoise prepare` makes one',
            )
        raise SymDenoiseError(
            f"container {container.uri}",
            rule="it does not say where files of denoised frames go",
            remedy="pass directory=..., a folder that this computer writes and the server reads (readable_storage)",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".symdenoise-writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SymDenoiseError(
            f"folder {folder}",
            rule=f"denoised frames cannot be written there ({error.strerror})",
            remedy="pass directory=..., a folder that this computer writes and the server reads",
        ) from error
    return folder
