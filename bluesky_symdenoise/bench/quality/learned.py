"""Peers that learn from the frame itself while it is denoised."""

from __future__ import annotations

from bluesky_symdenoise.bench.quality.cases import Given
from bluesky_symdenoise.bench.quality.filters import filled
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.bench.quality.stabilised import anscombe, unbiased_inverse_anscombe

#: Point groups with inversion, the only ones that SMAE can use.
_INVERTED = ("2", "2mm")


def smae(given: Given) -> FloatArray | None:
    """Return the symmetric masked autoencoder as published; None if the frame is not symmetric under inversion."""
    from bluesky_symdenoise.training import smae as training

    center = given.symmetry.beam_center
    if given.symmetry.point_group not in _INVERTED or center is None:
        return None
    return training.smae(given.counts, given.mask, center, common_mask=training.both_counted)


def smae_mended(given: Given) -> FloatArray | None:
    """Return `smae` with only the detector's mask, so that pixels with zero counts are used."""
    from bluesky_symdenoise.training import smae as training

    center = given.symmetry.beam_center
    if given.symmetry.point_group not in _INVERTED or center is None:
        return None
    return training.smae(given.counts, given.mask, center, common_mask=training.both_measured)


def n2v(counts: FloatArray, mask: Mask) -> FloatArray:
    """Return our own Noise2Void of the Anscombe-transformed frame, followed by the exact unbiased inverse."""
    from bluesky_symdenoise.training.n2v import n2v as trained

    return unbiased_inverse_anscombe(trained(anscombe(filled(counts, mask)), mask))
