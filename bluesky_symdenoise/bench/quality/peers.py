"""Peers: other methods that users may choose, applied to the same counts and mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bluesky_symdenoise.bench.quality import filters, folded, learned, poisson, stabilised
from bluesky_symdenoise.bench.quality.cases import Given
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask


@dataclass(frozen=True)
class Peer:
    """A method without a predictive distribution.

    Attributes
    ----------
    estimate
        Its estimate of the expected counts per pixel (y, x); None where it is not applicable.
    floor
        Smallest estimate, counts per pixel of the input, that its likelihood is computed with.
    slow
        Whether it takes more than a second for 256 x 256 pixels.
    """

    estimate: Callable[[Given], FloatArray | None]
    floor: float
    slow: bool = False


def _of_frame(method: Callable[[FloatArray, Mask], FloatArray]) -> Callable[[Given], FloatArray | None]:
    return lambda given: method(given.counts, given.mask)


PEERS: dict[str, Peer] = {
    "raw": Peer(_of_frame(filters.raw), 0.1),
    "rebin_2": Peer(_of_frame(partial(filters.rebinned, side=2)), 0.056),
    "rebin_4": Peer(_of_frame(partial(filters.rebinned, side=4)), 0.032),
    "gaussian_1": Peer(_of_frame(partial(filters.gaussian, sigma=1.0)), 0.032),
    "gaussian_2": Peer(_of_frame(partial(filters.gaussian, sigma=2.0)), 0.013),
    "nlm": Peer(_of_frame(stabilised.nlm), 0.0018),
    "bm3d": Peer(_of_frame(stabilised.bm3d), 0.0056, slow=True),
    "bmnd": Peer(_of_frame(poisson.bmnd), 0.0056, slow=True),
    "plain_fold": Peer(folded.plain_fold, 0.075),
    "gated_fold": Peer(folded.gated_fold, 0.075),
    "bm3d_on_fold": Peer(folded.bm3d_on_fold, 0.0056, slow=True),
    "azimuthal": Peer(folded.azimuthal, 0.0075),
    "smae": Peer(learned.smae, 0.032, slow=True),
    "smae_mended": Peer(learned.smae_mended, 0.032, slow=True),
    "n2v": Peer(_of_frame(learned.n2v), 0.0056, slow=True),
}
"""All peers by name, with the floors that `symdenoise bench floors` found. Those of the last three and of BMND are
provisional: SMAE's is from two of the training sets, on which any floor does for the published mask, and Noise2Void and
BMND have that of BM3D."""

QUICK = {name: peer for name, peer in PEERS.items() if not peer.slow}
