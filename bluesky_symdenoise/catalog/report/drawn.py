"""One frame of the report page from its arrays: tests of its symmetry and counts, and the picture of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.catalog.report.picture import Panel, draw_in_boxes, panels, png
from bluesky_symdenoise.catalog.report.profile import Geometry, Profile, profile
from bluesky_symdenoise.catalog.report.transfer import draw_transfer
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.agreement import PairTest, pair_tests
from bluesky_symdenoise.physics.counts.doubts import readout_verdict
from bluesky_symdenoise.physics.counts.verdict import Verdict, verdict
from bluesky_symdenoise.physics.frame import frame_from_counts, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Width of the picture and height of a cell over its width, in inches; margins (left, bottom, right, top) in its cell
#: of an image, right of which the colour bar stands, and of a plot.
WIDTH, HEIGHT = 13.0, 0.86
IMAGE, PLOT = (0.25, 0.12, 0.95, 0.5), (0.7, 0.55, 0.15, 0.3)
#: Pixels along the longer side of an image, dots per inch of the picture.
MOST, DPI = 512, 100


@dataclass(frozen=True)
class FrameFigures:
    """Figures and pictures of one frame on the page; `raw_row` is set if the run is a part of its raw run."""

    number: int
    raw_row: int | None
    picture: bytes
    tests: tuple[PairTest, ...]
    scalars: Mapping[str, Any]
    note: str


@dataclass(frozen=True)
class ReadFrame:
    """One frame as read; raw counts are None if the user may not read them or they do not exist."""

    counts: NDArray[Any] | None
    intensity: NDArray[Any]
    sigma: NDArray[Any]
    mask: NDArray[np.bool_] | None
    exposure: NDArray[np.float64] | None
    symmetry: Symmetry
    readout: Readout | None = None


@dataclass(frozen=True)
class Drawing:
    """A frame that is to be drawn, with what is known of it."""

    number: int
    raw_row: int | None
    frame: ReadFrame
    geometry: Geometry | None
    scalars: Mapping[str, Any]


def drawn(drawing: Drawing) -> FrameFigures:
    """Compute and draw one frame."""
    frame = drawing.frame
    shape = (frame.intensity.shape[0], frame.intensity.shape[1])
    measured = np.isfinite(frame.intensity)
    counts, lift = frame.counts, None
    if frame.counts is not None and frame.readout is not None:
        counts, background = frame.readout.equivalent(frame.counts, frame.mask, frame.exposure)
        lift = background.expected
    if counts is not None:
        measured &= ~sentinel_mask(counts)
    if frame.mask is not None:
        measured &= ~frame.mask
    exposure = frame.symmetry.exposure(frame.exposure, shape)
    measured &= exposure > 0
    note = ""
    tests: tuple[PairTest, ...] = ()
    if not np.isfinite(frame.intensity).any():
        note = "This frame was not denoised: all of it is NaN. The reason is among the failures above."
    try:
        if counts is not None and measured.any():
            seen = frame_from_counts(counts, mask=~measured, exposure=exposure)
            tests = pair_tests(seen, frame.symmetry)
    except SymDenoiseError as error:
        counts, note = None, str(error)
    # Of the frame as it came: where it was refused, nothing of it is denoised.
    found = None
    if frame.counts is not None:
        stated = frame.readout
        found = (
            verdict(frame.counts, frame.mask) if stated is None else readout_verdict(frame.counts, stated, frame.mask)
        )
    center = frame.symmetry.beam_center
    around = profile(counts, frame.intensity, measured, geometry=drawing.geometry, beam_center=center, lift=lift)
    images = panels(
        counts, frame.intensity, frame.sigma, measured, frame.symmetry, exposure=exposure, most=MOST, lift=lift
    )
    picture = png(_figure(images, around, found), dpi=DPI)
    return FrameFigures(drawing.number, drawing.raw_row, picture, tests, drawing.scalars, note)


def _figure(images: list[Panel], around: Profile | None, found: Verdict | None) -> Figure:
    """Return the panels, the profile and the photon transfer curve in a grid.

    Every cell has the same margins, whatever stands in them: to measure all texts and move the axes accordingly
    takes matplotlib longer than to draw.
    """
    from matplotlib.figure import Figure

    transfer = found is not None and found.curve is not None
    number = len(images) + (around is not None) + transfer
    height, width = images[0].image.shape
    columns = 2 if width > 2 * height else 3
    cell = (WIDTH / columns, HEIGHT * WIDTH / columns)
    size = (WIDTH, cell[1] * -(-number // columns))
    figure = Figure(figsize=size)

    def corner(place: int) -> tuple[float, float]:
        return place % columns * cell[0], size[1] - (place // columns + 1) * cell[1]

    def plot(place: int) -> Axes:
        (x, y), (left, bottom, right, top) = corner(place), PLOT
        w, h = cell[0] - left - right, cell[1] - bottom - top
        return figure.add_axes(((x + left) / size[0], (y + bottom) / size[1], w / size[0], h / size[1]))

    room = (cell[0] - IMAGE[0] - IMAGE[2], cell[1] - IMAGE[1] - IMAGE[3])
    scale = min(room[0] / width, room[1] / height)
    shown = (scale * width, scale * height)
    left, bottom = (margin + (most - each) / 2 for margin, most, each in zip(IMAGE[:2], room, shown, strict=True))
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]), autoscale_on=False)
    sheet.set_axis_off()
    corners = [corner(place) for place in range(len(images))]
    draw_in_boxes(sheet, [(x + left, y + bottom, *shown) for x, y in corners], images)
    if around is not None:
        _draw_profile(plot(len(images)), around)
    if transfer and found is not None:
        draw_transfer(plot(number - 1), found)
    return figure


def _draw_profile(axis: Axes, around: Profile) -> None:
    if around.raw is not None and around.error is not None:
        low, high = around.raw - around.error, around.raw + around.error
        axis.fill_between(around.radial, low, high, color="0.7", linewidth=0, label="raw, Poisson error of its counts")
        axis.plot(around.radial, around.raw, color="0.35", linewidth=0.8)
    axis.plot(around.radial, around.denoised, color="tab:blue", linewidth=1.2, label="denoised, same pixels")
    values = around.denoised if around.raw is None else np.concatenate([around.denoised, around.raw])
    positive = values[values > 0]
    if positive.size and positive.max() > 20 * np.percentile(positive, 5):
        axis.set_yscale("log")
        axis.set_ylim(np.percentile(positive, 1) / 2, positive.max() * 2)
    axis.set_xlabel(around.unit)
    axis.set_title("mean counts per pixel in rings", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
