"""The denoiser: from frames to the posterior expected counts and their standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.denoiser.released import checked_algorithm
from bluesky_symdenoise.denoiser.settings import checked_defects, checked_dtype, checked_sums, checked_views
from bluesky_symdenoise.denoiser.stack import as_dataset, plain_readout, pooled, stacked
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.check import SymmetryCheck, chosen_symmetry, stated_symmetry
from bluesky_symdenoise.physics.dark import Background, Dark, signal
from bluesky_symdenoise.physics.defects import DEAD, HOT, Defects, found_defects, no_defects, without
from bluesky_symdenoise.physics.frame import Frame, as_mask, frame_from_counts
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.afterglow import independent_share
from bluesky_symdenoise.physics.neighbours.lenders import Lenders, refuse_borrowing
from bluesky_symdenoise.physics.neighbours.lent import Lending, Lent, Used
from bluesky_symdenoise.physics.neighbours.prepared import PreparedFrames
from bluesky_symdenoise.physics.neighbours.window import REACH, Borrow
from bluesky_symdenoise.physics.symmetry import (
    Symmetry,
    checked_beam_center,
    checked_symmetry,
    finite_beam_center,
    refuse_other_center,
)
from bluesky_symdenoise.physics.tilt import split_tilt
from bluesky_symdenoise.recipe import array_sha256

if TYPE_CHECKING:
    import xarray as xr

    from bluesky_symdenoise.denoiser.weights import Model

#: Pixels of the small frames that are processed together: for a CPU's caches, and to keep a GPU busy.
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**24}


class Denoiser:
    """A pretrained symmetry denoiser for photon counts.

    The network gives each pixel's rate a Gamma prior (mean rate0, shape kappa), from its surroundings and its
    symmetry mates; the pixel's own counts y at exposure n make it the posterior Gamma(y + kappa, n + kappa/rate0).

    Parameters
    ----------
    model
        The network with its identity; `pretrained` loads one.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ... or ``auto``: a GPU if there is one.
    threads
        Threads on the CPU; None leaves torch's choice. Their number changes no bit, but with algorithm 6.
    dtype
        ``float32``, or ``bfloat16``, which is faster where processor or GPU can compute with it: at 1 count per pixel
        it changes the intensity by less than 0.02 sigma in 99 % of the pixels, at 100 by less than 0.07 sigma.
    defects
        ``find``: hot and dead pixels that a frame itself shows are masked
        (`bluesky_symdenoise.physics.defects.found_defects`). ``keep``: every count that the mask leaves is used,
        such as that of a Bragg spot of more than 1400 counts that is narrower than half a pixel.
    views
        8: the mean over quarter turns and mirror images of the frame, which is a little better and eight times as slow.
    sums
        ``free``: only the frame's total is that of its counts. ``agree``: so are, within the error of the counts, sums
        over wide boxes and over rings about the beam centre that have at least 100 counts
        (`bluesky_symdenoise.denoiser.sums.agreeing`).
    algorithm
        That of a recipe (`bluesky_symdenoise.denoiser.released`); None: the newest. 7 and 6 differ by less than 0.01
        sigma, 6 is slower with symmetry.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str = "float32",
        defects: str = "find",
        views: int = 1,
        sums: str = "free",
        algorithm: str | None = None,
    ) -> None:
        checked_dtype(dtype)
        #: Algorithm of the recipes whose pixels this denoiser computes.
        self.algorithm = checked_algorithm(algorithm)
        self.defects = checked_defects(defects)
        self.views = checked_views(views)
        self.sums = checked_sums(sums)
        if threads is not None and threads < 1:
            raise SymDenoiseError(f"threads={threads}", rule="at least one is needed", remedy="give 1 or more, or None")
        # torch takes a second to import: what imports this class may not need it yet.
        from bluesky_symdenoise.denoiser.device.engine import Engine

        self._engine = Engine(
            model, device=device, threads=threads, dtype=dtype, views=views, sums=sums, algorithm=self.algorithm
        )
        self.model, self.dtype = model, dtype
        self._prepared = PreparedFrames()
        #: Device and threads as requested, because another computer may resolve them differently.
        self.asked = (device, threads)
        self.device, self.threads = self._engine.crew.device, self._engine.crew.threads

    @classmethod
    def pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str = "float32",
        defects: str = "find",
        views: int = 1,
        sums: str = "free",
        algorithm: str | None = None,
    ) -> Denoiser:
        """Return a denoiser by model name (the package's or your own; None: the default) or ``.safetensors`` path.

        Raises
        ------
        SymDenoiseError
            If there is none of that name or its sha256 is not the recorded one.
        """
        from bluesky_symdenoise.denoiser.weights import load_model

        return cls(
            load_model(name),
            device=device,
            threads=threads,
            dtype=dtype,
            defects=defects,
            views=views,
            sums=sums,
            algorithm=algorithm,
        )

    @property
    def borrows(self) -> bool:
        """Whether photons of other rows can be used: from algorithm 7 on, by models with a conjugate head."""
        return self._engine.borrows

    def environment(self) -> dict[str, Any]:
        """Return what, besides the recipe, decides the last bits: torch, device, dtype, threads."""
        return self._engine.environment()

    def resolve(
        self,
        counts: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        symmetry: str | Symmetry | SymmetryCheck = "auto",
        beam_center: ArrayLike | None = None,
        readout: Readout | None = None,
    ) -> Symmetry:
        """Return the point group and beam centre that `__call__` would use for these frames, pooled.

        ``auto`` keeps the largest group that the data support and falls back to ``1``. A named group without a
        centre takes the one found by correlating the frame with itself.

        Raises
        ------
        SymDenoiseError
            If the group is unknown, the centre is off the detector, or none was given and none can be found.
        """
        stack = stacked(counts)
        shape = (stack.shape[1], stack.shape[2])
        symmetry = stated_symmetry(symmetry)
        if isinstance(symmetry, Symmetry):
            symmetry.may_fold(0, shape)
            if checked_symmetry(symmetry.point_group) != "1":
                given = checked_beam_center(symmetry.beam_center, shape)
                if not isinstance(symmetry.beam_center, tuple):
                    symmetry = replace(symmetry, beam_center=given)
            refuse_other_center(symmetry, beam_center)
            if symmetry.group != "auto":
                return symmetry
            beam_center, symmetry = symmetry.beam_center, symmetry.point_group
        if symmetry == "1":
            return Symmetry()
        center = None if beam_center is None else checked_beam_center(beam_center, shape)
        symmetry = checked_symmetry(symmetry)
        if split_tilt(symmetry)[0] != "auto" and center is not None:
            return Symmetry(symmetry, center)
        bad, n = as_mask(mask, shape), Symmetry(symmetry, center).exposure(exposure, shape)
        counted = stack if readout is None else (readout.equivalent(frame, bad, n)[0] for frame in stack)
        frames = (frame_from_counts(frame, mask=bad, exposure=n) for frame in counted)
        total = pooled((without(frame, self._defects(frame).mask) for frame in frames), shape)
        return chosen_symmetry(total, symmetry, center)

    def __call__(
        self,
        counts: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        symmetry: str | Symmetry | SymmetryCheck = "auto",
        beam_center: ArrayLike | None = None,
        background: Background | None = None,
        readout: Readout | None = None,
        borrow: str | None = None,
        borrow_reach: int = REACH,
        lent: Sequence[Lent] | None = None,
    ) -> xr.Dataset:
        """Denoise frames of photon counts, or of an integrating detector whose readout is given.

        Parameters
        ----------
        counts
            (..., y, x) counts of any integer or float dtype. Negative values, NaN and detector codes (2^16-1,
            2^32-2, 2^32-1) are masked, and so are, unless they are kept, the hot and dead pixels that a frame itself
            shows. Frames are denoised one by one.
        mask
            (y, x), True = bad.
        exposure
            (y, x) or a number: relative exposure of each pixel (flat field times solid angle times time), 0 = masked.
            None is 1; on a tilted detector, the solid angle.
        symmetry
            ``1``, ``2``, ``m`` (left onto right), ``my`` (top onto bottom), ``2mm``, ``4``, ``4mm``, ``inf`` (rings),
            ``m@30`` or ``2mm@30`` (turned by so many degrees from x towards y), or ``auto``, which looks for ``2mm``,
            ``2``, ``m`` and ``my`` and is decided once from all frames given; or a `Symmetry`, such as
            ``Symmetry.on(pyFAI.load("detector.poni"), "2mm")``. On a tilted flat detector a group acts on scattering
            directions: that writes ``2mm~15:90:1200``, for a tilt of 15 degrees about an axis at 90 degrees from x
            towards y, 1200 pixels away along the beam (`bluesky_symdenoise.physics.tilt.Tilt`).
        beam_center
            (y, x) in pixels, the centre of the first pixel is 0.
        background
            Expected dark counts of each frame, from `background`; the intensity is then that of the signal alone.
        readout
            Readout of an integrating detector (CCD, sCMOS, flat panel): `counts` is then its signal, in which negative
            floats are allowed, and the intensity is in photons.
        borrow
            ``past`` or ``both``: frames (n, y, x) are rows of a scan in order, and each may use the photons of those
            before it, or of those on both sides, where a test finds them alike.
        borrow_reach
            Number of rows on each side.
        lent
            Frames of other rows that may lend photons to the frames given, which are one row and lend to each other
            as well; an empty list if there is no other row, None for no borrowing.

        Returns
        -------
        xarray.Dataset
            ``intensity`` (..., y, x) float32, expected counts per pixel of that frame: rate times exposure, so that
            it can replace the raw frame in later analysis. ``sigma``, float32, its posterior standard deviation, of
            one pixel: neighbouring errors are correlated, so sums have larger errors than the quadratic sum of
            sigma. Both are NaN where neither the pixel nor a mate was measured; where only a mate was, they are the
            counts that the frame's median exposure would give. ``defect``, uint8: 1 for a hot and 2 for a dead
            pixel that was found and masked. Attributes: model, symmetry, beam centre, device, and the checksum of the
            map of a checked symmetry.

        Raises
        ------
        SymDenoiseError
            If the input cannot be used.
        """
        choice = Borrow.asked(borrow, borrow_reach)
        refuse_borrowing(choice, lent, able=self.borrows, algorithm=self.algorithm)
        if readout is not None and not isinstance(readout, Readout):
            raise SymDenoiseError(
                f"readout {str(readout)[:60]!r}",
                rule="it is a Readout",
                remedy="give load_readout(FILE), from bluesky_symdenoise",
            )
        if background is not None and not isinstance(background, Background):
            raise SymDenoiseError(
                f"background of type {type(background).__name__}",
                rule="a background needs its standard deviation",
                remedy="give what Denoiser.background or pseudo_counts made",
            )
        stack = stacked(counts)
        shape = (stack.shape[1], stack.shape[2])
        bad = as_mask(mask, shape)
        if readout is not None and background is not None:
            raise SymDenoiseError(
                "a background and a readout",
                rule="the dark of an integrating detector is the offset of its readout",
                remedy="give readout.with_dark(dark), and no background",
            )
        resolved = self.resolve(
            stack, mask=bad, exposure=exposure, symmetry=symmetry, beam_center=beam_center, readout=readout
        )
        n = resolved.exposure(exposure, shape)

        def prepared(image: NDArray[Any]) -> tuple[Frame, Defects]:
            counted = image if readout is None else readout.equivalent(image, bad, n)[0]
            frame = frame_from_counts(counted, mask=bad, exposure=n)
            found = self._defects(frame)
            return without(frame, found.mask), found

        def kept(image: NDArray[Any]) -> tuple[Frame, Defects]:
            return self._prepared.get(image, prepared, mask=bad, exposure=n)

        ring = self._rings(shape, resolved, beam_center)
        intensity = np.empty(stack.shape, np.float32)
        sigma = np.empty(stack.shape, np.float32)
        defect = np.zeros(stack.shape, np.uint8)
        frames: list[Frame] = []
        lenders = Lenders(
            stack,
            lent,
            choice,
            kept if lent is not None and readout is None else prepared,
            same_flux=background is not None or readout is not None,
            share=independent_share(readout),
        )
        lending: list[Lending | None] = []
        used: list[Used] = []
        for index, image in enumerate(stack):
            if readout is not None:
                background = readout.equivalent(image, bad, n)[1]
            frame, found = lenders.frame(index)
            defect[index] = HOT * found.hot + DEAD * found.dead
            frames.append(frame)
            lending.append(lenders.to(index))
            if frames[-1].mask.all():
                raise SymDenoiseError(
                    f"frame {index} with all pixels masked",
                    rule="at least one pixel must have been measured",
                    remedy="check the mask (True = bad) and the detector",
                )
            if (len(frames) + 1) * image.size > BATCH_PIXELS.get(self.device.type, 0) or index == len(stack) - 1:
                batch = slice(index + 1 - len(frames), index + 1)
                pixels, borrowed = self._engine.posteriors(frames, resolved, ring, lending)
                intensity[batch], sigma[batch] = np.moveaxis(pixels, 1, 0)
                used += borrowed
                frames, lending = [], []
        if background is not None:
            intensity, sigma = signal(intensity, sigma, background)
        about: dict[str, Any] = {
            "model": self.model.identity(),
            "algorithm": self.algorithm,
            "symmetry": resolved.point_group,
            "beam_center": list(resolved.beam_center) if resolved.beam_center else None,
            **({} if readout is None else {"readout": plain_readout(readout)}),
            **({} if resolved.fold is None else {"fold_sha256": array_sha256(resolved.fold)}),
            "environment": self.environment(),
        }
        if lenders.any:
            about["borrow"] = [[[row, share] for row, share in each.rows] for each in used]
        units = "counts" if readout is None else "photons"
        given = np.shape(counts)
        return as_dataset(
            intensity.reshape(given),
            sigma.reshape(given),
            defect.reshape(given),
            units=units,
            attrs=about,
            borrowed=np.array([each.exposure for each in used], np.float32) if lenders.any else None,
        )

    def background(
        self, dark: Dark, *, exposures: float, mask: ArrayLike | None = None, symmetry: Symmetry | None = None
    ) -> Background:
        """Return the expected dark counts of one frame, from a dark worth ``exposures`` times the frame's exposure.

        The dark is denoised like any frame, so that its noise is that of its posterior and not of single pixels.

        Parameters
        ----------
        mask
            (y, x), True = bad: mask of the frames, used in addition to the dark's own.
        symmetry
            Resolved group of the frames: a pixel known only from its mates in the frames is so in the dark, too.

        Raises
        ------
        SymDenoiseError
            If the dark has another shape than the mask, or all its pixels are masked.
        """
        bad = as_mask(mask, (dark.counts.shape[0], dark.counts.shape[1])) | dark.mask
        # A dark belongs to the detector, so that a tilt does not matter.
        result = self(dark.counts, mask=bad, exposure=1.0, symmetry=symmetry or Symmetry())
        scale = np.float32(1 / exposures)
        return Background(expected=result["intensity"].values * scale, sigma=result["sigma"].values * scale)

    def _defects(self, frame: Frame) -> Defects:
        """Return the defective pixels that are to be masked."""
        return found_defects(frame) if self.defects == "find" else no_defects(frame)

    def _rings(
        self, shape: tuple[int, int], symmetry: Symmetry, beam_center: ArrayLike | None
    ) -> NDArray[np.int64] | None:
        """Return each pixel's ring whose sum is to agree, about the symmetry's centre or the one given without any."""
        if self.sums == "free":
            return None
        from bluesky_symdenoise.denoiser.sums import rings_of

        if symmetry.beam_center is not None:
            return rings_of(shape, symmetry)
        return None if beam_center is None else rings_of(shape, Symmetry("1", finite_beam_center(beam_center)))
