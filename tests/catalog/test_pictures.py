"""Pictures and profiles of any frame, however empty."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bluesky_symdenoise.catalog.report.drawn import Drawing, ReadFrame, drawn
from bluesky_symdenoise.catalog.report.picture import (
    Panel,
    draw_in_boxes,
    log_limits,
    panel_figure,
    panels,
    png,
    residual,
    shrunk,
)
from bluesky_symdenoise.catalog.report.profile import Geometry, profile, stated_geometry
from bluesky_symdenoise.catalog.report.thumbnail import MOST, frames_png
from bluesky_symdenoise.catalog.report.transfer import draw_transfer
from bluesky_symdenoise.physics.counts.verdict import verdict
from bluesky_symdenoise.physics.symmetry import Symmetry

NO_DATA = {(150, 150, 150), (200, 200, 200)}


def opened(array: np.ndarray) -> np.ndarray:
    frozen = array.copy()
    frozen.flags.writeable = False
    return np.asarray(Image.open(io.BytesIO(frames_png(frozen))))


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in pixel) for pixel in image.reshape(-1, 3)}


def sparse() -> np.ndarray:
    counts = np.zeros((50, 60), np.float32)
    counts[7, 8] = 1
    return counts


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("sparse", sparse()),
        ("empty", np.zeros((50, 60), np.float32)),
        ("constant", np.full((50, 60), 3.5, np.float32)),
        ("tiny", np.full((50, 60), 1e-38, np.float32)),
        ("negative", np.full((50, 60), -2.0, np.float32)),
        ("integers", np.arange(3000, dtype=np.uint32).reshape(50, 60)),
    ],
)
def test_every_frame_with_values_has_a_picture_without_grey(name: str, frame: np.ndarray):
    image = opened(frame)
    assert image.shape == (50, 60, 3)
    assert not colours(image) & NO_DATA


def test_a_single_count_stands_out():
    image = opened(sparse())
    assert tuple(image[7, 8]) != tuple(image[0, 0])
    assert len(colours(image)) == 2


def test_only_pixels_without_a_value_are_hatched():
    frame = np.ones((50, 60))
    frame[:10], frame[20, 5] = np.nan, np.inf
    image = opened(frame)
    assert colours(image[:10]) == NO_DATA
    assert tuple(image[20, 5]) in NO_DATA
    assert not colours(image[10:20]) & NO_DATA
    assert colours(opened(np.full((50, 60), np.nan))) == NO_DATA


def test_large_frames_and_stacks_stay_small_and_show_the_same_pixels():
    big = np.ones((3000, 2000), np.float32)
    big[:1500] = 100
    image = opened(big)
    assert max(image.shape) <= MOST
    assert tuple(image[10, 10]) != tuple(image[-10, 10])
    assert max(opened(np.ones((500, 1, 300, 400))).shape) <= MOST + 8
    assert opened(np.ones((5, 1, 30, 40))).shape == (2 * 30 + 2, 3 * 40 + 4, 3)


@pytest.mark.parametrize("shape", [(5,), (0, 1, 30, 40)])
def test_arrays_without_a_frame_have_no_picture(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="holds no frame"):
        frames_png(np.ones(shape))


def test_shrinking_averages_what_is_there():
    image = np.array([[1.0, 3.0, np.nan], [np.nan, 5.0, np.nan]])
    np.testing.assert_array_equal(shrunk(image, 2), [[3.0, np.nan]])


def test_the_residual_of_noise_about_its_mean_is_standard_normal_and_shows_what_is_not():
    mean = np.full((200, 200), 2.0)
    counts = np.random.default_rng(0).poisson(mean).astype(float)
    counts[:50] += 1
    z = residual(counts, mean, block=10)
    assert abs(z[5:].std() - 1) < 0.1
    assert z[:5].mean() > 5


def test_limits_are_increasing_for_anything():
    for image in (sparse(), np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), -1.0), np.full((2, 2), 1e-300)):
        low, high = log_limits(image)
        assert 0 < low < high < np.inf


@pytest.mark.parametrize("frame", [np.zeros((64, 80)), np.full((64, 80), np.nan), np.ones((64, 300))])
def test_panels_of_any_frame_are_drawn(frame: np.ndarray):
    counts = np.zeros(frame.shape, np.uint16)
    drawn = panels(counts, frame, frame, np.ones(frame.shape, bool), Symmetry("2", (31.5, 39.5)))
    assert len(drawn) == 5
    assert png(panel_figure(drawn)).startswith(b"\x89PNG")


def of_the_page(shape: tuple[int, int], symmetry: str = "2", *, raw: bool = True, value: float = 3) -> Drawing:
    counts = np.random.default_rng(3).poisson(3, shape).astype(np.uint16)
    rate = np.full(shape, value, np.float32)
    center = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    frame = ReadFrame(counts if raw else None, rate, rate, None, None, Symmetry(symmetry, center))
    return Drawing(4, None, frame, None, {})


@pytest.mark.parametrize(
    ("drawing", "wide"),
    [
        (of_the_page((64, 80)), False),
        (of_the_page((300, 20)), False),
        (of_the_page((20, 900)), True),
        (of_the_page((64, 80), raw=False), False),
        (of_the_page((64, 80), value=np.nan), False),
        (of_the_page((1, 1), raw=False), False),
    ],
    ids=["usual", "tall", "flat", "no raw frame", "not denoised", "one pixel"],
)
def test_every_frame_of_the_page_has_a_picture(drawing: Drawing, wide: bool) -> None:
    found = drawn(drawing)
    image = Image.open(io.BytesIO(found.picture))
    assert image.size[0] == 1300
    assert image.mode == "RGB"
    assert found.number == 4
    assert ("not denoised" in found.note) == bool(np.isnan(drawing.frame.intensity).all())
    # The cells of wide frames are two in a row, and else three.
    rows = image.size[1] / (1300 * 0.86 / (2 if wide else 3))
    assert abs(rows - round(rows)) < 0.01


def test_images_in_boxes_have_titles_and_the_numbers_of_their_scales() -> None:
    figure = Figure(figsize=(6, 4))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, 6), ylim=(0, 4), autoscale_on=False)
    image = np.array([[0.1, np.nan], [1.0, 90.0]])
    logarithmic = Panel("rate", image, (0.1, 90.0), "viridis", logarithmic=True)
    draw_in_boxes(axis, [(1, 1, 1, 2), (4, 1, 1, 2)], [logarithmic, Panel("z", image, (-4, 4), "RdBu_r")])
    said = {text.get_text(): text.get_position() for text in axis.texts}
    assert {"rate", "z", "0.1", "0.2", "50", "\N{MINUS SIGN}4", "4"} <= said.keys()
    assert not {"0.05", "100", "\N{MINUS SIGN}5"} & said.keys()
    # Along a logarithmic scale, 10 is as far from 0.1 as 50 is from 0.5.
    low, high, other_low, other_high = (said[number][1] for number in ("0.1", "10", "0.5", "50"))
    np.testing.assert_allclose(high - low, other_high - other_low)
    pixels = np.asarray(Image.open(io.BytesIO(png(figure, dpi=100))))
    assert tuple(pixels[150, 175]) == (191, 191, 191), "the pixel without a value is grey"
    assert tuple(pixels[150, 125]) != (191, 191, 191)


def test_blocks_are_means_whatever_is_left_over_at_the_edges() -> None:
    image = np.random.default_rng(0).poisson(5, (7, 11)).astype(float)
    image[2, 3] = np.nan
    for block in (1, 2, 3, 4, 20):
        wanted = (
            [[np.nanmean(image[y : y + block, x : x + block]) for x in range(0, 11, block)] for y in range(0, 7, block)]
            if block > 1
            else image
        )
        np.testing.assert_allclose(shrunk(image, block), wanted)


# --- profiles


def ring(
    shape: tuple[int, int] = (100, 120), center: tuple[float, float] = (50.0, 60.0), radius: float = 30
) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return 0.5 + 20 * np.exp(-((np.hypot(y - center[0], x - center[1]) - radius) ** 2) / 8)


def test_without_geometry_the_profile_is_over_pixels_from_the_beam_centre():
    rate = ring()
    counts = np.random.default_rng(0).poisson(rate)
    around = profile(counts, rate, np.ones(rate.shape, bool), geometry=None, beam_center=(50.0, 60.0))
    assert around.unit == "radius (pixels)"
    assert abs(around.radial[np.argmax(around.denoised)] - 30) < 2
    # The band is that of the counts: two thirds of the rings within one, nearly all within three.
    off = np.abs(around.raw - around.denoised) / around.error
    assert 0.4 < np.mean(off < 1) < 0.9
    assert np.mean(off < 3) > 0.95


def test_masked_pixels_count_in_neither_line():
    rate, counts = ring(), np.full((100, 120), 1.0)
    measured = np.ones(rate.shape, bool)
    measured[:50], counts[:50] = False, 1e6
    around = profile(counts, np.full(rate.shape, 1.0), measured, geometry=None, beam_center=(50.0, 60.0))
    np.testing.assert_allclose(around.raw, 1, rtol=1e-6)
    np.testing.assert_allclose(around.denoised, 1, rtol=1e-6)


def test_with_geometry_it_is_over_q_of_the_formula():
    stated = {"dist": 2.0, "poni1": 50.5e-4, "poni2": 60.5e-4, "pixel1": 1e-4, "pixel2": 1e-4, "wavelength": 1e-10}
    nexus = {
        "det_distance": 2.0,
        "det_beam_center_y": 50.0,
        "det_beam_center_x": 60.0,
        "det_y_pixel_size": 1e-4,
        "det_x_pixel_size": 1e-4,
        "det_incident_wavelength": 1.0,
    }
    known = stated_geometry({"poni": stated}, {}, "det")
    assert stated_geometry({"poni": {"det": stated}}, {}, "det") == known
    for same in (
        stated_geometry({}, {"det": {"data": nexus}}, "det"),
        stated_geometry({"geometry": {name.removeprefix("det_"): value for name, value in nexus.items()}}, {}, "det"),
    ):
        assert same is not None
        assert (same.poni1, same.poni2, same.wavelength) == pytest.approx((known.poni1, known.poni2, known.wavelength))
    around = profile(None, ring(), np.ones((100, 120), bool), geometry=known, beam_center=None)
    q = 4 * np.pi / 0.1 * np.sin(0.5 * np.arctan(30e-4 / 2.0))
    assert around.unit == "q (1/nm)"
    assert around.raw is None
    assert abs(around.radial[np.argmax(around.denoised)] / q - 1) < 0.05


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"poni": "geometry.poni"},
        {"poni": {"dist": 1.0, "detector": "NexusDetector", "detector_config": {"filename": "/etc/passwd"}}},
        {"poni": {"dist": "1", "poni1": 0, "poni2": 0, "pixel1": 1e-4, "pixel2": 1e-4}},
        {"poni": {"dist": float("nan"), "poni1": 0, "poni2": 0, "pixel1": 1e-4, "pixel2": 1e-4}},
        {"poni": {"dist": -1.0, "poni1": 0, "poni2": 0, "pixel1": 1e-4, "pixel2": 1e-4}},
        {"geometry": [1, 2]},
    ],
)
def test_invalid_geometry_in_metadata_is_ignored(start: dict):
    assert stated_geometry(start, {"det": {"data": {"det_distance": 1.0}}}, "det") is None


def test_without_beam_or_geometry_there_is_no_profile():
    whole = np.ones((40, 40), bool)
    assert profile(None, np.ones((40, 40)), whole, geometry=None, beam_center=None) is None
    no_wavelength = Geometry(1.0, 0.0, 0.0, 1e-4, 1e-4, None)
    assert profile(None, np.ones((40, 40)), whole, geometry=no_wavelength, beam_center=None) is None


@pytest.mark.parametrize(("gain", "offset", "said"), [(1, 0, "photon counts"), (3, 200, "not photon counts")])
def test_the_photon_transfer_curve_says_whether_a_frame_is_counts(gain, offset, said):
    y, x = np.ogrid[:200, :220]
    rate = 2 + 30 * np.exp(-np.hypot(y - 90, x - 100) / 40)
    found = verdict(gain * np.random.default_rng(2).poisson(rate) + offset)
    axis = Figure().subplots()
    draw_transfer(axis, found)
    assert axis.get_title() == f"photon transfer: {said}"
    points = axis.containers[0].lines[0]
    near = np.abs(np.log(np.asarray(points.get_ydata()) / np.asarray(points.get_xdata()))) < 0.2
    assert near.all() == (gain == 1)
