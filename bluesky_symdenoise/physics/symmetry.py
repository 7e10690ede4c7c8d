"""Point groups of a diffraction pattern about the beam's position on a detector, tilted or not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_exposure
from bluesky_symdenoise.physics.mates import (
    ANTIDIAGONAL,
    DIAGONAL,
    INVERSION,
    MIRROR_X,
    MIRROR_Y,
    QUARTER,
    QUARTER_BACK,
    Operation,
    twice,
)
from bluesky_symdenoise.physics.tilt import Tilt, met_at, on_tilt, split_tilt, tilt_of, unusable

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator


#: Operations except the identity, by Hermann-Mauguin symbol. ``m`` maps left onto right, ``my`` top onto bottom.
#: ``inf`` (rings) has infinitely many; these are the ones with which it is tested.
POINT_GROUPS: dict[str, tuple[Operation, ...]] = {
    "1": (),
    "2": (INVERSION,),
    "m": (MIRROR_X,),
    "my": (MIRROR_Y,),
    "2mm": (INVERSION, MIRROR_X, MIRROR_Y),
    "4": (INVERSION, QUARTER, QUARTER_BACK),
    "4mm": (INVERSION, QUARTER, QUARTER_BACK, MIRROR_X, MIRROR_Y, DIAGONAL, ANTIDIAGONAL),
    "inf": (INVERSION, QUARTER, QUARTER_BACK, MIRROR_X, MIRROR_Y, DIAGONAL, ANTIDIAGONAL),
}
#: Groups with a mirror that need not lie along the detector's columns: ``m@30`` is ``m`` turned by 30 degrees.
_TURNED = re.compile(r"(m|2mm)@(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)")
#: Reasons why other plane groups are refused.
_REFUSED = dict.fromkeys(
    ("3", "3m", "6", "6mm"), "its turns do not map pixels onto pixels, and counts are not interpolated"
)


#: A tilt that moves no mate by more than this many pixels is ignored.
NEGLIGIBLE = 0.25
#: Pixels count as square if height and width differ by at most this fraction.
SQUARE = 1e-4


@dataclass(frozen=True)
class Symmetry:
    """A point group about a centre.

    Attributes
    ----------
    point_group
        A key of `POINT_GROUPS`, or ``m@ANGLE`` or ``2mm@ANGLE``: with the mirror line turned by that many degrees from
        the detector's columns, from x towards y. Each but ``1`` may be followed by ``~TILT:AXIS:DISTANCE``, the tilt
        of the detector as `bluesky_symdenoise.physics.tilt.Tilt` has it; the columns are then those of the detector
        turned back by the tilt.
    beam_center
        (y, x) in pixels, the centre of the first pixel is 0; None for ``1``.
    fold
        (y, x) uint8: where bit i is set, the mate under operation i may be used; None where all may, as far as a
        frame's own counts agree. `bluesky_symdenoise.check_symmetry` makes it of many frames.
    """

    point_group: str = "1"
    beam_center: tuple[float, float] | None = None
    fold: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def on(
        cls, geometry: AzimuthalIntegrator, point_group: str = "auto", *, shape: tuple[int, int] | None = None
    ) -> Symmetry:
        """Return a group about the beam on a detector as pyFAI describes it, tilted or not.

        Parameters
        ----------
        geometry
            pyFAI's, such as ``pyFAI.load("detector.poni")``; the detector's orientation is used.
        point_group
            A symbol without a tilt, or ``auto`` for `bluesky_symdenoise.Denoiser` to choose one.
        shape
            (y, x) of the frames; by default the detector's. A tilt that moves no mate by more than a quarter of a
            pixel is left out.

        Raises
        ------
        SymDenoiseError
            If group or detector shape are unknown, the beam misses the detector, or its tilt cannot be used.
        """
        if not hasattr(geometry, "detector"):
            raise SymDenoiseError(
                f"geometry of type {type(geometry).__name__}",
                rule="it must be one of pyFAI",
                remedy='give pyFAI.load("file.poni")',
            )
        if checked_symmetry(point_group) == "1":
            return cls()
        frames = geometry.detector.shape if shape is None else shape
        if frames is None:
            raise SymDenoiseError("a detector of unknown shape", rule="mates need it", remedy="give shape=(y, x)")
        height, width = frames
        center = checked_beam_center(met_at(geometry), (height, width))
        return cls(on_tilt(point_group, noticeable_tilt(geometry, (height, width), center)), center)

    @property
    def group(self) -> str:
        """Point group without the tilt."""
        return split_tilt(self.point_group)[0]

    @property
    def tilt(self) -> Tilt | None:
        """Tilt of the detector; None if it does not matter."""
        return split_tilt(self.point_group)[1]

    def exposure(self, given: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Return the given relative exposure (y, x); by default 1, or the solid angles of a tilted detector.

        Mates have one scattering angle, and thus equal solid angles unless the detector is tilted.

        Raises
        ------
        SymDenoiseError
            If what was given is of another shape, or holds NaN, infinite or negative values.
        """
        if given is None and self.tilt is not None and self.beam_center is not None:
            return self.tilt.solid_angle(shape, self.beam_center)
        return as_exposure(given, shape)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Operations other than the identity."""
        return _operations(self.point_group)

    def may_fold(self, index: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return where (y, x) the mates under one of the operations may be used.

        Raises
        ------
        SymDenoiseError
            If `fold` is of frames of another shape.
        """
        if self.fold is None:
            return np.ones(shape, bool)
        if self.fold.shape != shape:
            raise SymDenoiseError(
                f"a symmetry that was checked on frames of shape {self.fold.shape}",
                rule=f"this one has {shape}",
                remedy="run the check on frames of this detector",
            )
        return (self.fold >> np.uint8(index) & 1).astype(bool)

    @property
    def grid_center(self) -> tuple[float, float] | None:
        """Centre on the half-pixel grid that all operations share, so that they are a group of permutations.

        It is at most a quarter of a pixel from the given one, along each axis. Quarter turns need twice the centre to
        be even along both axes or odd along both: they use the nearest, at most half a pixel away. Groups with an
        oblique mirror or on a tilted detector, which move to the nearest pixels, keep the centre unchanged.
        """
        if self.beam_center is None or not all(operation.exact for operation in self.operations):
            return self.beam_center
        quarter = any(operation.yx for operation in self.operations)
        y, x = twice(self.beam_center, QUARTER if quarter else INVERSION)
        return y / 2, x / 2


@lru_cache(64)
def _operations(symbol: str) -> tuple[Operation, ...]:
    group, tilt = split_tilt(symbol)
    if tilt is not None:
        return tuple(operation._replace(tilt=tilt) for operation in _operations(group))
    turned = _TURNED.fullmatch(symbol)
    if turned is None:
        return POINT_GROUPS[symbol]
    angle = np.radians(2 * float(turned[2]))
    # The mirror line at an angle a from the columns has the direction (y, x) = (cos a, -sin a); the mirror is 2 d d^T
    # - 1.
    cos, sin = (float(value) for value in (np.cos(angle), np.sin(angle)))
    cos, sin = (round(value) if abs(value - round(value)) < 1e-12 else value for value in (cos, sin))
    mirror = Operation(cos, -sin, -sin, -cos)
    return (mirror,) if turned[1] == "m" else (INVERSION, mirror, INVERSION @ mirror)


def checked_point_group(symbol: str) -> str:
    """Return the symbol if it is a valid one; a tilt gets all its digits.

    Raises
    ------
    SymDenoiseError
        If the symbol is not valid.
    """
    group, tilt = split_tilt(str(symbol))
    if group not in POINT_GROUPS and _TURNED.fullmatch(group) is None:
        known = f"must be one of {', '.join(POINT_GROUPS)}, m@ANGLE, 2mm@ANGLE or auto"
        raise SymDenoiseError(
            f"symmetry {symbol!r}",
            rule=_REFUSED.get(group, f"it {known}"),
            remedy=f"choose {', '.join(POINT_GROUPS)}, m@30 or 2mm@30 whichever the pattern has; 1 means no symmetry",
        )
    if group == "1" and tilt is not None:
        raise SymDenoiseError(
            f"symmetry {symbol!r}", rule="symmetry 1 has no mates, so a tilt has no effect", remedy="give 1"
        )
    return on_tilt(group, tilt)


def checked_symmetry(symbol: str) -> str:
    """Return the symbol if it is valid or ``auto``, with or without a tilt.

    Raises
    ------
    SymDenoiseError
        If the symbol is not valid.
    """
    group, tilt = split_tilt(str(symbol))
    return on_tilt(group, tilt) if group == "auto" else checked_point_group(symbol)


def noticeable_tilt(
    geometry: AzimuthalIntegrator, shape: tuple[int, int], beam_center: tuple[float, float]
) -> Tilt | None:
    """Return the tilt of a pyFAI detector if it moves any mate on it by more than a quarter of a pixel.

    Raises
    ------
    SymDenoiseError
        If such a tilt cannot be used: pixels are not square, the detector is not flat, or it is tilted by more than 60
        degrees.
    """
    tilt = tilt_of(geometry)
    if tilt is None:
        return None
    dy, dx = (np.linspace(0, size - 1, 33) - center for size, center in zip(shape, beam_center, strict=True))
    dy, dx = dy[:, None], dx[None, :]
    for operation in POINT_GROUPS["4mm"]:
        there, flat = operation._replace(tilt=tilt).moved(dy, dx), operation.moved(dy, dx)
        # NaN, for a mate that the tilt moved out of the plane, also fails this comparison.
        if not (np.hypot(there[0] - flat[0], there[1] - flat[1]) <= NEGLIGIBLE).all():
            if abs(geometry.detector.pixel1 / geometry.detector.pixel2 - 1) > SQUARE:
                raise unusable(tilt.degrees, "its pixels are not square")
            return tilt
    return None


def refuse_other_center(symmetry: Symmetry, beam_center: Any) -> None:
    """Raise SymDenoiseError if another centre is given beside a resolved symmetry."""
    if beam_center is None or symmetry.point_group == "1":
        return
    if symmetry.beam_center != tuple(np.asarray(beam_center, np.float64).ravel().tolist()):
        raise SymDenoiseError(
            f"beam centre {beam_center!r} beside a symmetry about {symmetry.beam_center}",
            rule="it has its own centre",
            remedy="leave beam_center out, or check the symmetry about that centre",
        )


def center_without(symmetry: Symmetry, beam_center: ArrayLike | None) -> ArrayLike | None:
    """Return the given beam centre if the symmetry has none of its own, else None: sums over rings need one."""
    return beam_center if symmetry.beam_center is None else None


def finite_beam_center(center: Any) -> tuple[float, float]:
    """Return the beam centre (y, x) in pixels, on the detector or off it.

    Raises
    ------
    SymDenoiseError
        If it is not two finite numbers.
    """
    values = np.asarray(center, dtype=np.float64)
    if values.shape != (2,) or not np.isfinite(values).all():
        raise SymDenoiseError(
            f"beam centre {center!r}", rule="it must be two finite numbers", remedy="give (y, x) in pixels"
        )
    return float(values[0]), float(values[1])


def checked_beam_center(center: Any, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the beam centre (y, x) in pixels, if it lies on the detector.

    Raises
    ------
    SymDenoiseError
        If it is not two finite numbers on the detector.
    """
    y, x = finite_beam_center(center)
    if not (-0.5 <= y <= shape[0] - 0.5 and -0.5 <= x <= shape[1] - 0.5):
        raise SymDenoiseError(
            f"beam centre (y, x) = ({y:g}, {x:g})",
            rule=f"it must be on the detector of {shape[0]} x {shape[1]} pixels",
            remedy="check the order (y, x), or use symmetry 1 when the beam is off the detector",
        )
    return y, x
