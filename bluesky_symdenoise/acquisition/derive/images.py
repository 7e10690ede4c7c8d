"""Denoising of one image at a time: its settings, its dark and its symmetry, and the row made from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.background import Backgrounds, checked_dark
from bluesky_symdenoise.acquisition.derive.darks import Darks
from bluesky_symdenoise.acquisition.derive.rings import ring_scalars
from bluesky_symdenoise.acquisition.request.beamline import Settings
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.derived.decision import Decision, has_counts
from bluesky_symdenoise.derived.row import CompressedRow, Row, denoised_row
from bluesky_symdenoise.derived.stated_readout import to_recipe
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import stated_shape
from bluesky_symdenoise.physics.dark import Background, Dark, stored_dark
from bluesky_symdenoise.physics.frame import as_exposure, as_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_beam_center
from bluesky_symdenoise.recipe import array_sha256

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a run and the request say of one image: mask (y, x), beam centre, symmetry, and readout without its dark."""

    mask: NDArray[np.bool_] | None
    center: tuple[float, float] | None
    symmetry: str | Symmetry
    readout: Readout | None


class ImageDenoiser:
    """Denoise the images of one data key of one stream, one after another.

    Settings that cannot be used raise an error with each image, so that the rows say why they are NaN.
    """

    def __init__(self, work: Request, darks: Darks, *, key: str, start: Document, descriptor: Document) -> None:
        self._work, self._darks, self._key, self._run = work, darks, key, str(start.get("uid"))
        self._decision = Decision(fold=work.fold, noise=work.recipe.noise)
        self._backgrounds = Backgrounds()
        self._settings: Settings | None = None
        self._fixed_dark: Dark | None = None
        self._unusable: SymDenoiseError | None = None
        self._complained: set[str] = set()
        self._with_counts = 0
        #: The latest row and its image, if `note` may test it: files are not read twice.
        self._made: tuple[Row, NDArray[Any]] | None = None
        try:
            settings = Settings(work.beamline, key=key, start=start, descriptor=descriptor, given=work.given())
            self._fixed_dark = darks.fixed(key)
            self._settings = settings
        except SymDenoiseError as error:
            self._unusable = error

    @property
    def columns(self) -> set[str]:
        """Names of the columns beside the image that are needed."""
        return self._work.beamline.columns(self._key)

    def stated_readout(self, data: Mapping[str, Any]) -> Readout | None:
        """Return the readout of the detector for an event with these columns, without its dark; None for counts."""
        return self._usable().readout(data)

    def exposure_time(self, data: Mapping[str, Any]) -> float | None:
        """Return the exposure time in seconds for an event with these columns; None if it is not known."""
        return self._usable().exposure_time(data)

    def found(self, data: Mapping[str, Any]) -> Found:
        """Return what is said of the image of an event with these columns."""
        settings = self._usable()
        return Found(settings.mask, settings.beam_center(data), settings.symmetry(data), settings.readout(data))

    @property
    def point_group(self) -> str | None:
        """Point group that was decided; None before the first image with counts."""
        decided = self._decision.symmetry
        return None if decided is None else decided.point_group

    @property
    def doubt(self) -> str | None:
        """What is doubtful about their being photon counts; None if nothing is."""
        return self._decision.doubt

    def record(self) -> tuple[Document, dict[str, NDArray[Any]]]:
        """Return the settings that were found before the first event, for the descriptor, and arrays among them."""
        if self._settings is None:
            return {f"{self._key}_unusable": str(self._unusable)}, {}
        said = self._settings.record()
        if self._settings.may_integrate:
            said[f"{self._key}_units"] = "photons"
            if not self._settings.readout_in_columns and (readout := self._settings.readout({})) is not None:
                said[f"{self._key}_readout"] = list(to_recipe(readout) or ())
        arrays: dict[str, NDArray[Any]] = {}
        if self._settings.mask is not None and self._work.mask is None:
            arrays[f"{self._key}_mask"] = self._settings.mask
        if self._fixed_dark is not None:
            dark = stored_dark(self._fixed_dark)
            arrays[f"{self._key}_dark"] = dark
            said[f"{self._key}_dark_sha256"] = array_sha256(dark)
            said[f"{self._key}_dark_frames"] = self._fixed_dark.frames
            said[f"{self._key}_dark_seconds"] = self._fixed_dark.seconds
            if self._fixed_dark.averaged != 1:
                said[f"{self._key}_dark_averaged"] = self._fixed_dark.averaged
        return said, arrays

    def missing_names(self) -> list[tuple[str, str]]:
        """Return the beamline's names that were not found in the run, by quantity."""
        return [] if self._settings is None else self._settings.missing()

    @property
    def unused_tilt(self) -> str | None:
        """Reason why a known tilt is not used; None if it is used, or there is none."""
        return None if self._settings is None else self._settings.unused_tilt

    def refuse_misfit(self, shape: tuple[int, int]) -> None:
        """Raise SymDenoiseError if a setting known before the first event does not fit frames of this shape (y, x).

        The setting may be a mask, an exposure, a checked symmetry or a dark of another shape, or a beam centre off the
        detector.
        """
        if self._settings is None:
            return
        as_mask(self._settings.mask, shape)
        as_exposure(self._work.exposure, shape)
        Symmetry(fold=self._work.fold).may_fold(0, shape)
        if self._fixed_dark is not None:
            checked_dark(self._fixed_dark, shape)
        said = self._settings.record()
        center = said.get(f"{self._key}_beam_center")
        # If an event column gives the symmetry, it may differ from frame to frame.
        unknown = str(said.get(f"{self._key}_symmetry_source")).startswith("event column")
        if center and not unknown and said.get(f"{self._key}_symmetry") != "1":
            checked_beam_center(center, shape)

    def row(
        self, image: NDArray[Any], data: Mapping[str, Any], time: float | None, *, lent: Sequence[Lent] = ()
    ) -> Row:
        """Denoise one image of an event with these columns, at this time (None for a stream without events).

        Parameters
        ----------
        lent
            Raw frames of other rows, which may lend photons if the recipe says so.
        """
        work = self._work
        readout = self._readout(image, data, time)
        symmetry = self.symmetry(image, data, readout)
        if readout is None:
            mask, background = self.background(data, time, symmetry)
        else:
            mask, background = self._usable().mask, None
        row = denoised_row(
            work.denoiser,
            work.recipe,
            image,
            mask=mask,
            exposure=work.exposure,
            symmetry=symmetry,
            background=background,
            readout=readout,
            lent=lent,
        )
        if work.analysis:
            row = self._with_rings(
                row,
                image,
                data,
                mask=mask,
                symmetry=symmetry,
                background=background,
                readout=readout,
                lent=lent,
            )
        self._made = (row, image) if self._decision.may_doubt(self._with_counts + 1) else None
        return row

    def background(
        self, data: Mapping[str, Any], time: float | None, symmetry: Symmetry
    ) -> tuple[NDArray[np.bool_] | None, Background | None]:
        """Return the mask and the dark of an image of counts with this symmetry, of an event as `row` takes it."""
        settings, work = self._usable(), self._work
        if not work.beamline.has_dark:
            return settings.mask, None
        dark = self._fixed_dark or self._darks.before(self._key, time)
        return self._backgrounds.of(
            work.denoiser, dark, seconds=settings.exposure_time(data), mask=settings.mask, symmetry=symmetry
        )

    def _with_rings(
        self,
        row: Row,
        image: NDArray[Any],
        data: Mapping[str, Any],
        *,
        mask: NDArray[np.bool_] | None,
        symmetry: Symmetry,
        background: Background | None,
        readout: Readout | None,
        lent: Sequence[Lent],
    ) -> Row:
        settings, work = self._usable(), self._work
        center = settings.beam_center(data)
        found = ring_scalars(
            work,
            image,
            row,
            mask=mask,
            symmetry=symmetry,
            beam_center=center,
            background=background,
            readout=readout,
            complained=self._complained,
            lent=() if work.recipe.borrow is None else lent,
        )
        return replace(row, scalars={**row.scalars, **found})

    @property
    def settled(self) -> bool:
        """Whether no further image can change what is decided for the images after it."""
        return self._unusable is not None or self._decision.settled

    def look(self, image: NDArray[Any], data: Mapping[str, Any], time: float | None) -> None:
        """Update the decisions for later images with an image that is not denoised, of an event as `row` takes it."""
        try:
            self.symmetry(image, data, self._readout(image, data, time))
        except SymDenoiseError as error:
            # The row of this image would be NaN, so that it decides nothing for later rows.
            log.debug("an image of %s is not used to decide its symmetry: %s", self._key, error)

    @property
    def decided(self) -> Document:
        """Decisions made from earlier images, for those that follow."""
        return {
            "point_group": self.point_group,
            "holds_counts": self._decision.holds_counts,
            "darks": self._darks.count,
        }

    def as_now(self) -> ImageDenoiser:
        """Return a copy in the present state, which later images do not change."""
        there = copy(self)
        there._decision, there._made = copy(self._decision), None
        return there

    def elsewhere(self, asked: Request) -> ImageDenoiser:
        """Return a copy in the present state for another process, which need not look anything up again."""
        there = self.as_now()
        there._work, there._darks, there._backgrounds = asked, self._darks.elsewhere(asked), Backgrounds()
        return there

    def decide(self, symmetry: Symmetry, *, doubt: str | None = None) -> None:
        """Use this group for all images, and say what is doubtful about their counts."""
        self._decision.symmetry, self._decision.doubt = symmetry, doubt
        self._say_doubt()

    def takes_over(
        self, row: Row, image: Callable[[], NDArray[Any]], data: Mapping[str, Any], time: float | None
    ) -> bool:
        """Return whether a row of an earlier writer has the symmetry that this image would be given now.

        Parameters
        ----------
        image
            Reads the image, which is done for integrating detectors, until their symmetry is decided.
        """
        y, x = row.scalars["center_y"], row.scalars["center_x"]
        return self._decision.taken_over(
            row.scalars["symmetry"],
            None if np.isnan(y) else (y, x),
            with_counts=self._had_counts(row, image, data, time),
            center=self._usable().beam_center(data),
        )

    def _had_counts(
        self, row: Row, image: Callable[[], NDArray[Any]], data: Mapping[str, Any], time: float | None
    ) -> bool:
        if self._decision.settled or self.stated_readout(data) is None:
            return bool(row.scalars["counts_in"] > 0)
        frame = image()
        return has_counts(frame, self._readout(frame, data, time))

    def note(
        self,
        row: Row | CompressedRow,
        image: Callable[[], NDArray[Any]],
        data: Mapping[str, Any],
        time: float | None,
    ) -> None:
        """Count a row that will be written, and test a few images for photon counts, which changes no row.

        Parameters
        ----------
        image
            Reads the image of the row, if it was not the latest here.
        data, time
            Columns and time of its event, as in `row`.
        """
        made, self._made = self._made, None
        if self._settings is None or not row.scalars.get("counts_in", np.nan) > 0:
            return
        self._with_counts += 1
        if not self._decision.may_doubt(self._with_counts):
            return
        try:
            frame = made[1] if made is not None and made[0] is row else image()
            readout = self._readout(frame, data, time)
        except Exception as error:
            log.debug("frame %d of %s is not tested for counts: %s", self._with_counts, self._key, error)
            return
        self._decision.doubt_later(frame, self._settings.mask, number=self._with_counts, readout=readout)
        self._say_doubt()

    def _usable(self) -> Settings:
        if self._settings is None:
            assert self._unusable is not None
            raise self._unusable
        return self._settings

    def _readout(self, image: NDArray[Any], data: Mapping[str, Any], time: float | None) -> Readout | None:
        """Return the readout of the detector, with the dark as its offset; None for counts."""
        readout = self.stated_readout(data)
        if readout is None or not self._work.beamline.has_dark:
            return readout
        dark = self._fixed_dark or self._darks.before(self._key, time)
        seconds = self._usable().exposure_time(data)
        return self._backgrounds.offset(readout, dark, seconds=seconds, shape=image.shape[-2:])

    def symmetry(self, image: NDArray[Any], data: Mapping[str, Any], readout: Readout | None = None) -> Symmetry:
        """Return the group decided with the first image that has counts, about the centre of this event."""
        settings, work = self._usable(), self._work
        tested = self._decision.holds_counts
        found = self._decision.of(
            work.denoiser,
            image,
            mask=settings.mask,
            exposure=work.exposure,
            symmetry=settings.symmetry(data),
            center=settings.beam_center(data),
            readout=readout,
        )
        if not tested:
            self._say_doubt()
        return found

    def _say_doubt(self) -> None:
        if self._decision.doubt is not None:
            integrating = self._settings is not None and self._settings.may_integrate
            asked = "does the readout fit" if integrating else "are these photon counts"
            remedy = "find it with `symdenoise readout`" if integrating else "if they are, state noise='poisson'"
            log.warning("run %s, image %r: %s? %s; %s", self._run[:8], self._key, asked, self._decision.doubt, remedy)


def misfit(images: Mapping[str, ImageDenoiser], descriptor: Document) -> SymDenoiseError | None:
    """Return an error that names which of mask, exposure, dark and centre misfits the stated shape; None if all fit."""
    refused: list[SymDenoiseError] = []
    for key, each in images.items():
        height, width = stated_shape(descriptor["data_keys"][key]["shape"])[-2:]
        if height is None or width is None:
            continue
        try:
            each.refuse_misfit((height, width))
        except SymDenoiseError as error:
            refused.append(error)
    return refused[0] if len(refused) == len(images) else None


def fits(images: ImageDenoiser, shape: tuple[int, int]) -> bool:
    """Return whether mask, exposure, dark and centre fit images of this shape (y, x)."""
    try:
        images.refuse_misfit(shape)
    except SymDenoiseError:
        return False
    return True
