"""Options of a request, declared once for callbacks, replays, registered runs and settings files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from numpy.typing import ArrayLike

from bluesky_symdenoise.acquisition.request.beamline import Beamline
from bluesky_symdenoise.analysis.ring import Ring
from bluesky_symdenoise.denoiser.released import older_than
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.lenders import refuse_borrowing
from bluesky_symdenoise.physics.neighbours.window import REACH, Borrow
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser

#: First algorithm that uses photons of other rows.
BORROWS_FROM = "7"


class ImageOptions(TypedDict, total=False):
    """Options that describe the images and choose among them. All are optional.

    Attributes
    ----------
    mask
        (y, x), True = bad, for all images.
    exposure
        (y, x) relative exposure for all images, 0 = masked.
    symmetry
        See `bluesky_symdenoise.Denoiser`; ``auto``, the default, is decided with the first frame of each run. May also
        be the result of `bluesky_symdenoise.check_symmetry`, or the name of the ``.npz`` file that it was saved to.
    beam_center
        (y, x) in pixels.
    noise
        ``poisson`` states that frames are photon counts. By default the first frame with counts is tested, and an image
        that plainly holds something else is not denoised.
    readout
        Readout of an integrating detector (CCD, sCMOS, flat panel), or the name of the TOML file that
        `symdenoise readout` wrote. Intensities are then in photons.
    streams, data_keys
        Names of those to denoise; by default every 2D image of every stream.
    borrow
        ``past`` or ``both``: each frame also uses the photons of the rows before it, or of those on both sides, where
        a test finds them alike. Only a run that has ended has both. By default each frame is denoised alone.
    borrow_reach
        Number of rows on each side, 8 by default.
    """

    mask: ArrayLike | None
    exposure: ArrayLike | None
    symmetry: str | Symmetry
    beam_center: Sequence[float] | None
    noise: str | None
    readout: Readout | str | Path | None
    streams: Sequence[str] | None
    data_keys: Sequence[str] | None
    borrow: str | None
    borrow_reach: int


class Options(ImageOptions, total=False):
    """Image options, and options for metadata from the run's own documents and for analysis.

    Attributes
    ----------
    beamline
        Names under which the run's own documents give geometry, masks, doses and darks.
    analysis
        Rings whose orientation, anisotropy and peak become columns of the derived run.
    self_check
        ``end``, the default: when the run has ended, a few of its frames are denoised again from half of their
        photons, and the stop document says what the denoiser was worth. ``off``: it is not done. No pixel, recipe or
        uid depends on it.
    """

    beamline: Beamline | None
    analysis: Ring | Sequence[Ring] | None
    self_check: str


def refuse_unknown(given: Mapping[str, Any], known: type[ImageOptions] = Options) -> None:
    """Raise TypeError, as Python does, for an option that does not exist."""
    for name in given:
        if name not in known.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}; the options are {', '.join(known.__annotations__)}")


def asked_self_check(self_check: str) -> bool:
    """Return whether a run is checked when it has ended.

    Raises
    ------
    SymDenoiseError
        If it is neither ``end`` nor ``off``.
    """
    if self_check not in ("end", "off"):
        raise SymDenoiseError(
            f"self_check={str(self_check)[:60]!r}",
            rule="it must be end (check a few frames when the run has ended) or off",
            remedy="give end or off, or leave it out",
        )
    return self_check == "end"


def asked_borrow(borrow: str | None, reach: int | None, *, activity: str) -> Borrow | None:
    """Return which rows may lend photons to each other, or None.

    Raises
    ------
    SymDenoiseError
        If a reach is given alone, or rows are asked for that a live run has not got yet.
    """
    if borrow is None and reach is not None:
        raise SymDenoiseError(
            f"borrow_reach={reach!r} without borrow",
            rule="it says how many rows on each side may lend photons",
            remedy="give borrow='past' or 'both' too, or leave it out",
        )
    chosen = Borrow.asked(borrow, REACH if reach is None else reach)
    if chosen is not None and chosen.side == "both" and activity == "callback":
        raise SymDenoiseError(
            "borrow='both' while a run is acquired",
            rule="a live frame can only borrow from the rows before it",
            remedy="give borrow='past' here, or replay the run with borrow='both' when it has ended",
        )
    return chosen


def refuse_unable(borrow: Borrow | None, model: Denoiser | DenoiserSettings) -> None:
    """Raise SymDenoiseError if rows are to borrow with an algorithm or a loaded model that does not know how."""
    if borrow is not None and older_than(model.algorithm, BORROWS_FROM):
        raise SymDenoiseError(
            f"borrow={borrow.side!r} with algorithm {model.algorithm}",
            rule=f"photons of other rows are used from algorithm {BORROWS_FROM} on",
            remedy="leave one of them out",
        )
    if not isinstance(model, DenoiserSettings):
        refuse_borrowing(borrow, None, able=model.borrows, algorithm=model.algorithm)
