"""Panels of one frame, drawn on axes without pyplot, so that they can be drawn in the threads of a server."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.agreement import disagreement
from bluesky_symdenoise.physics.check import SymmetryCheck
from bluesky_symdenoise.physics.frame import frame_from_counts
from bluesky_symdenoise.physics.mates import named
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

#: Colour of pixels without a measurement: a grey that is in none of the colour maps.
NO_DATA = "0.75"
#: Compression of PNG files: of a page's pictures, 6 makes files of the same size and takes twice as long.
PNG_LEVEL = 3
#: Colour bars of `draw_in_boxes`, in inches: distance from the image, width, height at least, and as a share of its.
BAR_GAP, BAR_WIDTH, BAR_LEAST, BAR_SHARE = 0.12, 0.13, 1.3, 0.8

#: Left, bottom, width and height in inches.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Panel:
    """One image with its name and scale.

    Attributes
    ----------
    image
        (y, x); NaN is drawn as no data.
    limits
        Values of the first and last colour.
    logarithmic
        Whether the colour scale is logarithmic; values below the first limit then have the first colour.
    """

    title: str
    image: NDArray[Any]
    limits: tuple[float, float]
    colours: str
    logarithmic: bool = False


def log_limits(image: NDArray[Any]) -> tuple[float, float]:
    """Return limits of a logarithmic scale, 0 < low < high, for any image: sparse, empty, constant or all NaN."""
    finite = image[np.isfinite(image)]
    positive = finite[finite > 0]
    if not positive.size:
        return 0.1, 1.0
    # In a frame of sparse counts nearly all pixels are 0, and the brightest are single counts.
    top = float(np.percentile(finite, 99.8)) or float(positive.max())
    top = max(top, float(positive.min()))
    low = max(float(np.percentile(positive, 1)) / 2, top * 1e-4, 1e-30)
    return low, max(top, 10 * low)


def residual(
    counts: NDArray[Any], intensity: NDArray[Any], *, block: int = 1, lift: NDArray[Any] | float = 0.0
) -> NDArray[np.float64]:
    """Return counts minus expected counts over the square root of the expected ones, in blocks of pixels.

    ``z = sum(y - m) / sqrt(sum(m))`` over the pixels of a block that have both; NaN where none has.
    A pixel's own count is part of its estimate, so z spreads less than a standard normal.

    Parameters
    ----------
    counts, intensity
        (y, x); NaN where not measured.
    block
        Side of the blocks in pixels.
    lift
        (y, x) or a number, variance of the read noise, which `counts` holds too and `intensity` does not.
    """
    both = np.isfinite(counts) & np.isfinite(intensity)
    expected = intensity + lift
    sums = [_blocks(np.where(both, image, 0.0), block) for image in (counts - expected, expected)]
    return np.divide(sums[0], np.sqrt(np.maximum(sums[1], 0)), out=np.full(sums[0].shape, np.nan), where=sums[1] > 0)


def shrunk(image: NDArray[Any], block: int) -> NDArray[np.float64]:
    """Return means over blocks of pixels that are finite; NaN if none is."""
    finite = np.isfinite(image)
    count = _blocks(finite, block)
    total = _blocks(np.where(finite, image, 0.0), block)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _blocks(image: NDArray[Any], block: int) -> NDArray[np.float64]:
    """Return sums over blocks of pixels, zeros beyond the edge; whole rows are added up first."""
    height, width = (-(-size // block) for size in image.shape)
    rows, sums = np.zeros((height, image.shape[1])), np.zeros((height, width))
    for first in range(block):
        part = image[first::block]
        rows[: len(part)] += part
    for first in range(block):
        part = rows[:, first::block]
        sums[:, : part.shape[1]] += part
    return sums


def panels(
    counts: NDArray[Any] | None,
    intensity: NDArray[Any],
    sigma: NDArray[Any],
    measured: NDArray[np.bool_],
    symmetry: Symmetry,
    *,
    exposure: NDArray[np.float64] | None = None,
    most: int = 1024,
    lift: NDArray[Any] | None = None,
) -> list[Panel]:
    """Return raw, denoised, sigma, residual and mate disagreement of one frame; two of them if `counts` is None.

    Parameters
    ----------
    counts, intensity, sigma
        (y, x) of one frame, not normalised.
    measured
        (y, x), True where `counts` holds a count.
    symmetry
        Symmetry that was used; without operations there is no map of it.
    exposure
        (y, x) relative exposure.
    most
        Pixels along the longer side; larger frames are averaged over blocks.
    lift
        Of an integrating detector, whose equivalent counts `counts` then is: (y, x) variance of its read noise.
    """
    what = "counts" if lift is None else "photons"
    lifted = 0.0 if lift is None else lift
    block = -(-max(intensity.shape) // most)
    small = shrunk(intensity, block)
    limits = log_limits(small)
    spread = shrunk(sigma, block)
    drawn = [
        Panel(f"denoised (expected {what})", small, limits, "viridis", logarithmic=True),
        Panel(f"sigma of one pixel ({what})", spread, log_limits(spread), "magma", logarithmic=True),
    ]
    if counts is None:
        return drawn
    shown = np.where(measured, counts, np.nan)
    drawn.insert(0, Panel(f"raw frame ({what})", shrunk(shown - lifted, block), limits, "viridis", logarithmic=True))
    z = residual(shown, intensity, block=block, lift=lifted)
    noise = "sqrt(denoised)" if lift is None else "noise"
    drawn.append(Panel(f"residual z\n(raw - denoised) / {noise}", z, (-4, 4), "RdBu_r"))
    if symmetry.operations:
        n = symmetry.exposure(exposure, (measured.shape[0], measured.shape[1]))
        score = disagreement(frame_from_counts(counts, mask=~measured, exposure=n), symmetry)
        label = f"mates' disagreement under {symmetry.point_group}\n(standard deviations)"
        drawn.append(Panel(label, shrunk(score, block), (0, 6), "coolwarm"))
    return drawn


def draw_panels(axes: Sequence[Axes], drawn: Sequence[Panel]) -> None:
    """Draw each panel on its own axes, with its colour bar."""
    from matplotlib.ticker import NullLocator

    for axis, panel in zip(axes, drawn, strict=True):
        image, norm, ticks = _scaled(panel)
        shown = axis.imshow(image, norm=norm, cmap=panel.colours, interpolation="nearest")
        axis.set_title(panel.title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_facecolor(NO_DATA)
        bar = axis.figure.colorbar(shown, ax=axis, shrink=0.8)
        if panel.logarithmic:
            bar.locator = ticks
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.ax.yaxis.set_major_formatter("{x:g}")


def draw_in_boxes(axis: Axes, boxes: Sequence[Box], drawn: Sequence[Panel]) -> None:
    """Draw each panel in its box, with its colour bar on the right, all of them on one pair of axes.

    matplotlib takes longer for the axes of an image and those of its colour bar than for the image itself.

    Parameters
    ----------
    axis
        Axes of the whole figure, in inches from its lower left corner.
    boxes
        Left, bottom, width and height of each image.
    """
    import matplotlib
    from matplotlib.collections import LineCollection

    lines: list[list[tuple[float, float]]] = []
    for (left, bottom, width, height), panel in zip(boxes, drawn, strict=True):
        image, norm, ticks = _scaled(panel)
        colours = matplotlib.colormaps[panel.colours].with_extremes(bad=NO_DATA)
        bar_height = max(BAR_SHARE * height, BAR_LEAST)
        bar = (left + width + BAR_GAP, bottom + (height - bar_height) / 2, BAR_WIDTH, bar_height)
        for (x, y, w, h), pixels, scale in (
            ((left, bottom, width, height), image, norm),
            (bar, np.linspace(1, 0, 256)[:, None], None),
        ):
            extent = (x, x + w, y, y + h)
            axis.imshow(pixels, norm=scale, cmap=colours, interpolation="nearest", extent=extent, aspect="auto")
            lines.append([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)])
        axis.text(left + width / 2, bottom + height + 0.08, panel.title, fontsize=10, ha="center", va="bottom")
        edge = bar[0] + bar[2]
        low, high = panel.limits
        for value in ticks.tick_values(low, high):
            if low <= value <= high:
                y = bar[1] + bar_height * float(norm(value))
                lines.append([(edge, y), (edge + 0.05, y)])
                axis.text(edge + 0.1, y, f"{value:g}".replace("-", "\N{MINUS SIGN}"), va="center_baseline")
    axis.add_collection(LineCollection(lines, colors="black", linewidths=0.8))


def _scaled(panel: Panel) -> tuple[NDArray[Any], Normalize, Locator]:
    """Return image, scale of colours, and places of the numbers on it."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import AutoLocator, LogLocator

    if not panel.logarithmic:
        return panel.image, Normalize(*panel.limits), AutoLocator()
    return np.maximum(panel.image, panel.limits[0]), LogNorm(*panel.limits), LogLocator(subs=(1, 2, 5), numticks=12)


def panel_figure(drawn: Sequence[Panel], *, title: str = "") -> Figure:
    """Return all panels side by side, or one above the other for wide frames."""
    from matplotlib.figure import Figure

    height, width = drawn[0].image.shape
    wide = width > 2 * height
    rows, columns = (len(drawn), 1) if wide else (1, len(drawn))
    size = (9, 2.75 * rows) if wide else (4.25 * columns, 4.6)
    figure = Figure(figsize=size, layout="constrained")
    draw_panels(list(np.ravel(figure.subplots(rows, columns))), drawn)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def check_figure(check: SymmetryCheck) -> Figure:
    """Return what pooled frames say about a symmetry: for each operation a row of three maps of the detector.

    The maps show the standard score of the difference between a region and its mate, the smallest difference that would
    be seen there, and where the mates may be used (yellow).

    Raises
    ------
    SymDenoiseError
        If no operation was tested.
    """
    from matplotlib.figure import Figure

    fold = check.symmetry.fold
    if fold is None:
        raise SymDenoiseError("symmetry 1", rule="there are no mates to draw a map of", remedy="name a symmetry")
    block = -(-max(fold.shape) // 1024)
    figure = Figure(figsize=(12.75, 4.6 * len(check.tests)), layout="constrained")
    rows = np.reshape(figure.subplots(len(check.tests), 3), (-1, 3))
    for index, (test, axes) in enumerate(zip(check.tests, rows, strict=True)):
        where = named(test.operation)
        score, smallest = (
            test.on_pixels(each, (fold.shape[0], fold.shape[1]))[::block, ::block]
            for each in (test.score, np.where(np.isfinite(test.smallest), test.smallest, np.nan))
        )
        bit = 0 if check.symmetry.group == "inf" else index
        used = (fold[::block, ::block] >> np.uint8(bit) & 1).astype(float)
        maps = [
            Panel(f"{where}:\nregions against their mates (sigma)", score, (-6, 6), "RdBu_r"),
            Panel(f"{where}:\nsmallest visible difference", smallest, (0.01, 2), "magma", logarithmic=True),
            Panel(f"{where}:\nmates may be used (1)", used, (0, 1), "viridis"),
        ]
        draw_panels(list(axes), maps)
    figure.suptitle(str(check).partition("\n")[0], fontsize=11)
    return figure


def png(figure: Figure, *, dpi: int = 90) -> bytes:
    """Return the figure as PNG.

    matplotlib's own `savefig` draws twice; transparency, of which a figure has none, takes a quarter of the rest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    Image.fromarray(pixels).save(buffer, format="png", dpi=(dpi, dpi), compress_level=PNG_LEVEL)
    return buffer.getvalue()
