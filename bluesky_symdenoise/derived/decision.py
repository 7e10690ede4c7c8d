"""Decision made with the first frame with counts of an image: whether its frames are counts, and their symmetry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.clipped import refuse_clipped_image
from bluesky_symdenoise.physics.counts.doubts import doubts, later_doubts, says_nothing
from bluesky_symdenoise.physics.frame import frames_of, refuse_negative, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser

#: Standard deviations of its noise by which the photons of a frame are seen.
SEEN_Z = 5.0
#: Mask, exposure or map (y, x) of the frames; None if there is none.
Given = NDArray[Any] | None


class Decision:
    """Decide the symmetry of an image with its first frame that has counts, for that frame and all that follow.

    A frame without a count says nothing: its own symmetry holds for itself alone. Live, replayed, distributed and lazy
    rows all decide here, in the order of the run, so that they get the same.

    Attributes
    ----------
    symmetry
        What was decided; None before the first frame with counts.
    holds_counts
        Whether a frame with counts has passed as counts, which depends on the detector and not on the frame.
    doubt
        What is doubtful about the counts of that frame, or of a later one; None if nothing is.

    Parameters
    ----------
    fold
        (y, x) map of a checked symmetry.
    noise
        ``poisson`` if the user states that frames are counts; else that is tested.
    refusal
        What was said of an earlier frame of the run that plainly holds no counts.
    """

    def __init__(self, *, fold: Given = None, noise: str | None = None, refusal: SymDenoiseError | None = None) -> None:
        self._fold, self._noise = fold, noise
        self.doubt: str | None = None
        self.refusal = refusal
        self.symmetry: Symmetry | None = None
        self.holds_counts = False
        self._tested = False

    @property
    def settled(self) -> bool:
        """Whether no further frame can change what is decided for the frames after it."""
        return self.symmetry is not None and self.holds_counts

    def of(
        self,
        denoiser: Denoiser,
        image: NDArray[Any],
        *,
        mask: Given,
        exposure: Given,
        symmetry: str | Symmetry,
        center: tuple[float, float] | None,
        readout: Readout | None = None,
    ) -> Symmetry:
        """Return the symmetry of the next image (..., y, x) in the order of the run.

        Parameters
        ----------
        mask, exposure
            (y, x); mask True = bad.
        symmetry
            What was asked for this image.
        center
            Beam centre (y, x) of this image, if it is known.
        readout
            Readout of an integrating detector; None for counts.

        Raises
        ------
        SymDenoiseError
            If the image does not hold counts, or does not have the requested symmetry.
        """
        if not self.holds_counts:
            if self._noise is None:
                try:
                    self.doubt = doubts_of_counts(image, mask, readout)
                except SymDenoiseError as error:
                    # One reason for all frames of a run, whose numbers differ a little.
                    said = self.refusal = self.refusal or error
                    raise SymDenoiseError(said.value, rule=said.rule, remedy=said.remedy) from error
            # After a refusal, a frame of which too little can be said lifts nothing.
            lifted = self.refusal is None or not says_nothing(image, mask)
            self.holds_counts = self._tested = lifted and has_counts(image, readout)
        found = self.symmetry
        if found is None:
            found = denoiser.resolve(
                image, mask=mask, exposure=exposure, symmetry=symmetry, beam_center=center, readout=readout
            )
            if self.holds_counts and has_counts(image, readout):
                self.symmetry = found
        return self.about(found, center)

    def may_doubt(self, number: int) -> bool:
        """Return whether the frame with this number, of those with counts, is to be given to `doubt_later`.

        They are the 2nd, 4th, 8th and so on, until one is doubtful, and the first if it was not tested: its row is that
        of an earlier writer.
        """
        if self._noise is not None or self.doubt is not None or (number == 1 and self._tested):
            return False
        return number.bit_count() == 1

    def doubt_later(self, image: NDArray[Any], mask: Given, *, number: int, readout: Readout | None = None) -> None:
        """Test a frame whose row is made, which stays as it is: only `doubt` may change."""
        if number == 1:
            try:
                self.doubt = doubts_of_counts(image, mask, readout)
            except SymDenoiseError as error:
                self.doubt = error.rule
        elif found := later_doubts(image, mask, readout):
            self.doubt = f"frame {number} of those with counts: {found}"

    def about(self, found: Symmetry, center: tuple[float, float] | None) -> Symmetry:
        """Return a symmetry about the centre of one image, if that is known, with the map of a checked symmetry."""
        if found.point_group == "1":
            return found
        return replace(found, beam_center=found.beam_center if center is None else center, fold=self._fold)

    def taken_over(
        self, point_group: str, made_about: tuple[float, float] | None, *, with_counts: bool, center: Any
    ) -> bool:
        """Return whether a row of an earlier writer has the symmetry that its image would be given now.

        As in `of`, a row with counts decides for the rows after it.
        """
        made = Symmetry(point_group, made_about, self._fold)
        if with_counts:
            self.symmetry, self.holds_counts = self.symmetry or made, True
        return self.symmetry is not None and made == self.about(self.symmetry, center)


def doubts_of_counts(image: NDArray[Any], mask: Given, readout: Readout | None = None) -> str | None:
    """Return what is doubtful about the counts of an image (..., y, x); None if nothing is, or it has none.

    Raises
    ------
    SymDenoiseError
        If it plainly holds something else than photon counts.
    """
    if readout is None:
        for frame, bad in frames_of(image, mask):
            refuse_negative(frame, bad)
        refuse_clipped_image(image, mask)
    return doubts(image, mask, readout)


def has_counts(image: NDArray[Any], readout: Readout | None = None) -> bool:
    """Return whether an image (..., y, x) has counts, or more photons than the noise of its detector makes."""
    if readout is None:
        return bool(np.any(image[~sentinel_mask(image)]))
    photons, bad = readout.measured(image)
    variance = float(np.sum(np.broadcast_to(np.square(readout.noise), image.shape)[~bad]))
    total = float(photons[~bad].sum())
    return total > SEEN_Z * np.sqrt(variance + max(total, 0.0))
