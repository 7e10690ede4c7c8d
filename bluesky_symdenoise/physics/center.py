"""Search for the beam centre: the point about which a frame is most like its own image under an operation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import INVERSION, Operation

#: Largest distance of a refined centre from the known one, in pixels.
REACH = 6.0
#: Widths of the smoothing, in pixels, and most steps with each.
SMOOTHINGS, STEPS = (4.0, 2.0), 8


def found_beam_center(frame: Frame, operation: Operation = INVERSION) -> tuple[float, float] | None:
    """Return the centre of an operation on the half-pixel grid, by correlating the frame with its image under it.

    The masked normalised correlation of the logarithm of the smoothed counts is maximal at twice the centre. Along
    an axis that the operation keeps, the centre is the detector's. None if the correlation stays under 0.5 or is
    largest where less than a quarter of the detector overlaps.
    """
    axes = [axis for axis, sign in enumerate((operation.yy, operation.xx)) if sign < 0]
    correlation = _correlation(frame, axes)
    best = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    if correlation[best] < 0.5:
        return None
    center = [(size - 1) / 2 for size in frame.counts.shape]
    for axis in axes:
        center[axis] = float(best[axis]) / 2
    return center[0], center[1]


def refined_beam_center(frame: Frame, near: tuple[float, float]) -> tuple[float, float] | None:
    """Return the centre of inversion to a fraction of a pixel, from one that is known within about three pixels.

    Gauss-Newton steps on the sum of (r(u) - r(2c - u))^2 / (r(u) + r(2c - u)) with r the smoothed rate, first coarsely,
    then finely. Only r is interpolated. None if the steps leave the neighbourhood or the pattern fixes no centre.
    """
    center = np.array(near, np.float64)
    y, x = np.indices(frame.counts.shape, dtype=np.float64)
    for sigma in SMOOTHINGS:
        exposure = ndimage.gaussian_filter(frame.exposure, sigma, mode="constant")
        measured = frame.exposure > 0
        # At gaps and edges, the smoothed rate comes from one side only.
        good = exposure > 0.85 * (np.median(exposure[measured]) if measured.any() else np.inf)
        smooth = ndimage.gaussian_filter(frame.counts, sigma, mode="constant")
        rate = np.divide(smooth, exposure, out=np.zeros(good.shape), where=good)
        if not rate.any() or min(rate.shape) < 2:
            return None
        slopes = [np.where(good, slope, 0.0) for slope in np.gradient(rate)]
        inner = ndimage.binary_erosion(good)
        floor = 0.1 * rate[good].mean()
        for _ in range(STEPS):
            there = np.array([2 * center[0] - y, 2 * center[1] - x])
            pair = inner & (ndimage.map_coordinates(inner.astype(np.float32), there, order=1) > 0.999)
            other = ndimage.map_coordinates(rate, there, order=1)
            turned = [ndimage.map_coordinates(slope, there, order=1) for slope in slopes]
            # At the centre, both slopes are estimates of one value; their mean is less noisy.
            slope = np.stack([(a - b)[pair] for a, b in zip(turned, slopes, strict=True)])
            weighted = slope / (rate + other + floor)[pair]
            information = weighted @ slope.T
            if np.linalg.eigvalsh(information).min() < 1:
                # The inverse is approximately the variance of the centre, in pixels^2.
                return None
            step = np.linalg.solve(information, weighted @ (rate - other)[pair])
            size = float(np.hypot(*step))
            center += step * min(1.0, 2 / max(size, 1e-12))
            if np.hypot(*(center - near)) > REACH:
                return None
            if size < 1e-3:
                break
    return float(center[0]), float(center[1])


def _correlation(frame: Frame, axes: list[int]) -> NDArray[np.float32]:
    """Return the masked normalised correlation with the frame turned along some axes, by twice the centre; or -1."""
    weight = (frame.exposure > 0).astype(np.float32)
    smooth = ndimage.gaussian_filter(frame.counts.astype(np.float32), 2.0, mode="constant")
    norm = ndimage.gaussian_filter(frame.exposure.astype(np.float32), 2.0, mode="constant")
    image = np.log1p(8 * np.divide(smooth, norm, out=np.zeros_like(smooth), where=norm > 0.05)) * weight
    # Subtract the mean: it does not change the correlation, but saves float32 precision.
    image = (image - image.sum() / max(weight.sum(), 1)) * weight
    padded = [fft.next_fast_len(2 * image.shape[axis], real=True) for axis in axes]
    of_image, of_square, of_weight = (fft.rfftn(array, padded, axes) for array in (image, image**2, weight))

    def correlated(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
        """Return the sum over pixels of a(u) b(s - u) for each coordinate sum s along the turned axes, from the
        spectra.
        """
        product = a * b
        for axis in {0, 1} - set(axes):
            product = product.sum(axis=axis, keepdims=True)
        return np.asarray(fft.irfftn(product, padded, axes))

    overlap = correlated(of_weight, of_weight)
    enough = overlap > 0.25 * max(weight.sum(), 1)
    overlap = np.where(enough, overlap, 1)
    mean = correlated(of_image, of_weight) / overlap
    covariance = correlated(of_image, of_image) / overlap - mean**2
    variance = correlated(of_square, of_weight) / overlap - mean**2
    return np.where(enough & (variance > 1e-6), covariance / np.maximum(variance, 1e-6), np.float32(-1))
