"""One picture of one frame: raw, denoised, sigma, and where its symmetry mates disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.fold import mated, symmetry_score
from bluesky_symdenoise.physics.frame import as_exposure, frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry


def agreement(counts: NDArray[Any], measured: NDArray[np.bool_], symmetry: Symmetry) -> NDArray[np.float64]:
    """The strongest disagreement of each pixel's surroundings with any mate, in standard deviations; NaN unmeasured."""
    frame = frame_from_counts(counts, mask=~measured, exposure=as_exposure(None, measured.shape))
    worst = np.zeros(measured.shape)
    seen = np.zeros(measured.shape, bool)
    for operation in symmetry.operations:
        assert symmetry.beam_center is not None
        other = mated(frame, operation, symmetry.beam_center)
        np.maximum(worst, symmetry_score(frame, other), out=worst)
        seen |= other.exposure > 0
    return np.where(measured & seen, worst, np.nan)


def draw(
    path: Path,
    counts: NDArray[Any],
    intensity: NDArray[np.float32],
    sigma: NDArray[np.float32],
    measured: NDArray[np.bool_],
    symmetry: Symmetry,
    *,
    title: str,
) -> None:
    """Raw, denoised, sigma and the mates' agreement side by side."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm, Normalize

    shown = np.where(measured, counts, np.nan)
    top = float(np.nanpercentile(intensity, 99.8))
    low = max(float(np.nanpercentile(intensity, 1)) / 2, top * 1e-4, 1e-3)
    top = max(top, 10 * low)
    norm = LogNorm(low, top)
    wide = counts.shape[1] > 2 * counts.shape[0]
    figure, axes = plt.subplots(
        4 if wide else 1, 1 if wide else 4, figsize=(9, 11) if wide else (17, 4.6), layout="constrained"
    )
    if symmetry.point_group == "1":
        score, label = np.full(measured.shape, np.nan), "no symmetry used"
    else:
        score = agreement(counts, measured, symmetry)
        label = f"mates' disagreement under {symmetry.point_group} (standard deviations)"
    panels = (
        ("raw frame (counts)", np.maximum(shown, low), norm, "viridis"),
        ("denoised (expected counts)", intensity, norm, "viridis"),
        ("sigma of one pixel (counts)", sigma, LogNorm(*np.nanpercentile(sigma, [0.5, 99.8])), "magma"),
        (label, score, Normalize(0, 6), "coolwarm"),
    )
    for axis, (name, image, scale, colours) in zip(np.ravel(axes), panels, strict=True):
        drawn = axis.imshow(image, norm=scale, cmap=colours, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_facecolor("0.75")
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=90)
    plt.close(figure)
