"""Rings to analyse in every frame, as values that a recipe can hold."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from bluesky_symdenoise.analysis.annulus import Annulus
from bluesky_symdenoise.analysis.estimate import Denoise, Image, Observed, from_counts, from_denoised, from_likelihood
from bluesky_symdenoise.analysis.lent import Neighbour, from_lent
from bluesky_symdenoise.analysis.peak import PEAK
from bluesky_symdenoise.errors import SymDenoiseError

Estimator = Literal["counts", "likelihood", "denoised"]

#: Names of the quantities of a ring; each has a ``_sigma``.
QUANTITIES = ("orientation", "anisotropy", *PEAK)
#: Version of the computation, stored in recipes.
VERSION = 1


@dataclass(frozen=True)
class Ring:
    """Orientation, anisotropy and the peak of a ring, for every frame.

    Attributes
    ----------
    inner, outer
        Radii in pixels; the peak lies between them, on a background that is about a power law.
    estimator
        ``counts``: second moment of the raw counts, whatever the texture, and a Poisson fit to their radial profile;
        mates under inversion fill gaps. Where rows borrow, the counts of those whose ring is alike are added.
        ``likelihood``: one Poisson fit of a textured ring to the raw counts; the smallest errors if the ring is of that
        form, and nothing where they refute it. ``denoised``: as ``counts``, of the denoised frame, corrected and with
        errors by replicates. Both are of the frame alone.
    name
        Prefix of the columns' names, for several rings: ``<key>_<name>_orientation``.
    beam_center
        (y, x) in pixels; None takes the one that the frame was denoised about.
    replicates
        For ``denoised``: number of frames that are denoised for the errors of one.

    Raises
    ------
    SymDenoiseError
        If the values do not describe a ring.
    """

    inner: float
    outer: float
    estimator: Estimator = "counts"
    name: str = ""
    beam_center: tuple[float, float] | None = None
    replicates: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.inner < self.outer < np.inf:
            raise SymDenoiseError(
                f"ring of {self.inner} to {self.outer} pixels",
                rule="radii must satisfy 0 <= inner < outer",
                remedy="give inner < outer",
            )
        if self.estimator not in get_args(Estimator):
            raise SymDenoiseError(
                f"estimator {self.estimator!r}",
                rule="it is not one of the estimators",
                remedy=f"give {', '.join(get_args(Estimator))}",
            )
        if not re.fullmatch(r"\w*", self.name):
            raise SymDenoiseError(
                f"ring {self.name!r}",
                rule="its name is part of column names",
                remedy="use letters, digits and underscores",
            )
        if self.replicates < 2:
            raise SymDenoiseError(
                f"replicates={self.replicates}", rule="a scatter needs at least two replicates", remedy="give 16"
            )
        object.__setattr__(self, "inner", float(self.inner))
        object.__setattr__(self, "outer", float(self.outer))
        if self.beam_center is not None:
            y, x = self.beam_center
            object.__setattr__(self, "beam_center", (float(y), float(x)))

    def to_text(self) -> str:
        """Return the text stored in recipes: canonical JSON with the version of the computation."""
        return json.dumps({"ring": asdict(self), "version": VERSION}, sort_keys=True, separators=(",", ":"))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the ring's scalars, without the data key."""
        before = f"{self.name}_" if self.name else ""
        return tuple(f"{before}{name}{end}" for name in QUANTITIES for end in ("", "_sigma"))

    def scalars(
        self,
        observed: Observed,
        intensity: Image,
        *,
        beam_center: tuple[float, float] | None,
        denoise: Denoise,
        lent: Sequence[Neighbour] = (),
    ) -> dict[str, float]:
        """Return the values of the columns for one frame; NaN if not determined.

        The same frame gives the same values at any time: the replicates' random numbers are seeded by its counts.

        Parameters
        ----------
        observed
            The frame.
        intensity
            (y, x) expected counts of its denoised image, less the background.
        beam_center
            (y, x) that the frame was denoised about; None for none.
        denoise
            Function that denoised it.
        lent
            Frames of other rows, whose counts the estimator ``counts`` shares where their ring is alike.

        Raises
        ------
        SymDenoiseError
            If there is no beam centre, or no pixel in the ring.
        """
        center = self.beam_center or beam_center
        if center is None:
            raise SymDenoiseError(
                "ring without a beam centre",
                rule="the frame was denoised without one",
                remedy="give Ring(beam_center=(y, x)) in pixels",
            )
        shape = (observed.counts.shape[0], observed.counts.shape[1])
        annulus = Annulus.about(center, shape, inner=self.inner, outer=self.outer)
        if self.estimator == "denoised":
            seed = zlib.crc32(np.ascontiguousarray(observed.counts).data)
            estimate = from_denoised(
                annulus, intensity, observed, denoise, replicates=self.replicates, rng=np.random.default_rng(seed)
            )
        elif self.estimator == "likelihood":
            estimate = from_likelihood(annulus, observed)
        else:
            estimate = from_lent(annulus, observed, lent).estimate if lent else from_counts(annulus, observed)
        found = estimate.quantities(inner=self.inner, outer=self.outer)
        return dict(zip(self.columns, (part for name in QUANTITIES for part in found[name]), strict=True))


def rings_from_texts(texts: tuple[str, ...]) -> tuple[Ring, ...]:
    """Return the rings that `Ring.to_text` wrote.

    Raises
    ------
    SymDenoiseError
        If one has another version of the computation than this package.
    """
    return tuple(_ring(json.loads(text)) for text in texts)


def _ring(stored: dict[str, Any]) -> Ring:
    if stored.get("version") != VERSION:
        raise SymDenoiseError(
            f"analysis of version {stored.get('version')}",
            rule=f"this package computes version {VERSION}",
            remedy="install the version that the provenance names",
        )
    center = stored["ring"]["beam_center"]
    return Ring(**(stored["ring"] | {"beam_center": None if center is None else tuple(center)}))


def checked_rings(analysis: Any) -> tuple[Ring, ...]:
    """Return one ring or several as a tuple.

    Raises
    ------
    SymDenoiseError
        If something else was given, or two rings would have the same columns: databases do not tell capitals apart.
    """
    rings = () if analysis is None else (analysis,) if isinstance(analysis, Ring) else tuple(analysis)
    for ring in rings:
        if not isinstance(ring, Ring):
            raise SymDenoiseError(
                f"analysis with {type(ring).__name__}",
                rule="it must hold rings",
                remedy="give Ring(inner=..., outer=...)",
            )
    names = [ring.name for ring in rings]
    if len({name.lower() for name in names}) < len(names):
        raise SymDenoiseError(
            f"rings named {names}", rule="names must differ by more than capitals", remedy="give each Ring a name="
        )
    return rings
