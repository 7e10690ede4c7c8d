"""The readout of a detector is found from its frames, or refused: gain, read noise, spread of light, lag."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from arrays import frozen
from scipy import ndimage

from bluesky_symdenoise.bench.simulated.integrating import Detector
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating import FoundReadout, readout_from_frames
from bluesky_symdenoise.physics.integrating.blur import seen_noise
from bluesky_symdenoise.physics.symmetry import Symmetry

SHAPE = (160, 192)


def rings(photons: float) -> np.ndarray:
    """Rings of this mean rate, on a slope: from a twentieth of it to twice as much."""
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    rate = (1.05 + np.cos(np.hypot(y - 80, x - 96) / 9)) * (1 + x / SHAPE[1])
    return photons * rate / rate.mean()


def found(
    detector: Detector, rate: np.ndarray, number: int, *, seed: int = 1, darks: int = 0, **options
) -> FoundReadout:
    """What frames of a detector say, and none of them is changed."""
    rng = np.random.default_rng(seed)
    frames = frozen(detector.frames(rng, rate, number))
    dark = frozen(detector.frames(rng, 0 * rate, darks)) if darks else ()
    return readout_from_frames(frames, darks=dark, **options)


@pytest.mark.parametrize(("gain", "read_noise"), [(0.2, 0.5), (0.2, 5), (2, 0.5), (2, 30), (20, 0.5), (20, 30)])
def test_gain_and_read_noise_of_a_ccd_from_20_frames(gain: float, read_noise: float):
    """Within 5 %, with and without darks; read noise where it is at least a photon."""
    rate = rings(max(50.0, 2 * (read_noise / gain) ** 2))
    for darks in (0, 4):
        told = found(Detector(gain, read_noise, 100.0 if darks else 0.0), rate, 20, darks=darks)
        assert told.readout.gain == pytest.approx(gain, rel=0.05)
        assert abs(told.readout.gain - gain) < 5 * told.gain_error
        if darks or read_noise > gain:
            assert told.readout.read_noise == pytest.approx(read_noise, rel=0.05)
            assert abs(told.readout.read_noise - read_noise) < 5 * told.read_noise_error
        assert told.readout.blur == 0
        assert told.readout.offset == pytest.approx(100 if darks else 0, abs=4 * read_noise)
        assert abs(told.lag) < 4 * told.lag_error + 0.005


@pytest.mark.parametrize(("photons", "read_noise"), [(5, 1.0), (30, 3.0), (1000, 3.0)])
def test_one_frame_tells_the_gain_within_ten_percent(photons: float, read_noise: float):
    """Hot and dead pixels, spots, a gap that is masked, and a shadow change nothing."""
    rng = np.random.default_rng(2)
    rate = rings(photons)
    rate[20:60, 20:60] *= 0.3
    rate[100:103, 30:33] += 50 * photons
    frame = Detector(2.0, read_noise).frames(rng, rate, 1)[0]
    hot = rng.integers(0, SHAPE[0], 30), rng.integers(0, SHAPE[1], 30)
    frame[hot] += 40 * photons
    frame[hot[1] % SHAPE[0], hot[0]] = 0
    frame[:, 90:94] = -1e6
    mask = np.zeros(SHAPE, bool)
    mask[:, 90:94] = True
    told = readout_from_frames([frozen(frame)], mask=mask)
    assert told.how == "second differences of frames"
    assert told.readout.gain == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("blur", "lag"), [(0.4, 0.0), (0.6, 0.05), (1.0, 0.03)])
def test_a_flat_panel_has_the_gain_of_its_sums_and_a_spread_of_light(blur: float, lag: float):
    """Control: slope of single pixels is a tenth of the gain."""
    told = found(Detector(3.0, 8.0, 200.0, blur=blur, lag=lag), rings(200), 12, darks=4, averaged=1)
    assert told.readout.gain == pytest.approx(3.0, rel=0.1)
    assert told.readout.blur == pytest.approx(blur, abs=0.05)
    assert told.readout.read_noise == pytest.approx(8.0, rel=0.05)
    assert told.curves[0].gain < 0.6
    # One frame does not tell spread of light from structure.
    with pytest.raises(SymDenoiseError, match=r"several frames|more frames"):
        found(Detector(3.0, 8.0, blur=blur), rings(200), 1)


@pytest.mark.parametrize("blur", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("differences", ["along", "mixed"])
def test_the_share_of_noise_that_differences_see_is_that_of_simulated_light(blur: float, differences: str):
    """Light on a grid of tenths of pixels; a wide block sees it all, and no blur hides nothing."""
    rng = np.random.default_rng(5)
    light = rng.poisson(1.0, (1200, 1200)).astype(float)
    pixels = ndimage.gaussian_filter(light, 6 * blur, mode="wrap") if blur else light
    for binning in (1, 2):
        side = 6 * binning
        sums = pixels.reshape(1200 // side, side, 1200 // side, side).sum(axis=(1, 3))
        second = np.diff(sums, 2, axis=0)
        second = np.diff(second, 2, axis=1) / 6 if differences == "mixed" else second / np.sqrt(6)
        expected = 36 * binning**2 * seen_noise(binning, blur, differences)
        assert np.mean(second**2) == pytest.approx(expected, rel=0.1)
    assert seen_noise(256, blur, differences) == pytest.approx(1, abs=0.03)
    assert seen_noise(1, 3.0, "along") < seen_noise(1, 1.0, "along") < 0.01


@pytest.mark.parametrize("lag", [0.0, 0.01, 0.03, 0.05])
def test_lag_is_measured_and_does_not_change_the_gain(lag: float):
    told = found(Detector(2.0, 3.0, lag=lag), rings(300), 20)
    assert told.lag == pytest.approx(lag, abs=0.006)
    assert told.readout.gain == pytest.approx(2.0, rel=0.05)
    # Of 1 % these frames are not sure.
    if lag != 0.01:
        assert any("is seen in the next one" in note for note in told.notes) == (lag > 0)


def test_row_noise_and_drifting_darks_are_noticed_and_do_not_change_the_gain():
    rows = found(Detector(2.0, 5.0, 100.0, row_noise=1.6), rings(100), 16, darks=8)
    assert any(note.startswith("pixels of a row share noise of 1.") for note in rows.notes)
    assert not any("column" in note for note in rows.notes)
    drift = found(Detector(2.0, 5.0, 100.0, dark_drift=4.0), rings(100), 16, darks=8)
    assert any("the dark drifts" in note for note in drift.notes)
    # The error of the offset has the drift in it.
    assert np.median(drift.readout.offset_error) > 2
    for told in (rows, drift):
        assert told.readout.gain == pytest.approx(2.0, rel=0.1)
        assert told.readout.read_noise == pytest.approx(5.0, rel=0.1)
    plain = found(Detector(2.0, 5.0, 100.0), rings(100), 16, darks=8)
    assert plain.notes == ()


def test_rows_that_jump_too_much_are_refused():
    with pytest.raises(SymDenoiseError, match=r"chi-squared .* pixels of a row share noise of .*; subtract"):
        found(Detector(2.0, 5.0, 100.0, row_noise=5.0), rings(20), 16, darks=4)


def test_smoothed_frames_are_refused():
    """A median filter is no spread of light: slopes do not tend to a gain."""
    frames = Detector(2.0, 3.0).frames(np.random.default_rng(3), rings(200), 8)
    with pytest.raises(SymDenoiseError, match=r"slope of noise|chi-squared"):
        readout_from_frames(frames - 0.9 * ndimage.uniform_filter(frames, (0, 24, 24)) * (frames > 0))


def test_dead_lines_and_dead_pixels_change_nothing():
    told = found(Detector(2.0, 5.0, 100.0, dead=0.01), rings(100), 12, darks=4)
    assert told.readout.gain == pytest.approx(2.0, rel=0.05)
    assert told.readout.read_noise == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize("averaged", [1, 4, 100])
def test_means_of_exposures_have_the_readout_of_one(averaged: int):
    told = found(Detector(3.0, 6.0, averaged=averaged), rings(50), 6 if averaged < 100 else 3, averaged=averaged)
    assert told.readout.frames == averaged
    assert told.readout.gain == pytest.approx(3.0, rel=0.1)
    assert told.readout.read_noise == pytest.approx(6.0, rel=0.1)


def test_averaged_counts_are_recognised():
    """N within 10 % in 19 of 20, and gain 1; control: averages of another detector have its gain."""
    rng = np.random.default_rng(6)
    right = 0
    for _ in range(20):
        number, photons = int(rng.integers(2, 101)), float(np.exp(rng.uniform(np.log(0.2), np.log(30))))
        frames = Detector(1.0, averaged=number, rounded=True).frames(rng, rings(photons)[:96, :96], 1)
        told = readout_from_frames(frames)
        right += abs(told.readout.frames - number) <= 0.1 * number and told.readout.gain == 1.0
    assert right >= 19
    other = found(Detector(3.0, 4.0, averaged=8, rounded=True), rings(50), 8, averaged=None)
    assert other.readout.frames == 8
    assert other.readout.gain == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("number", [6, 1])
def test_a_dark_that_was_subtracted_is_no_average(number: int):
    """Fractions of its mean of 5 are the same in all frames; control: means of 4 exposures minus it."""
    rng = np.random.default_rng(14)
    detector = Detector(2.4, 3.0, 100.0, rounded=True)
    dark = detector.frames(rng, 0 * rings(1), 5).mean(axis=0, dtype=np.float64)
    rate = rings(100) + 20
    told = readout_from_frames((detector.frames(rng, rate, number) - dark).astype(np.float32))
    assert told.readout.frames == 1
    assert told.readout.gain == pytest.approx(2.4, rel=0.1)
    assert any("multiples of 1/5" in note for note in told.notes) == (number == 1)
    if number > 1:
        means = replace(detector, averaged=4).frames(rng, rate, number) - dark
        told = readout_from_frames(means.astype(np.float32))
        assert told.readout.frames == 4
        assert told.readout.gain == pytest.approx(2.4, rel=0.05)


def test_the_noise_of_a_dark_that_was_subtracted_is_said():
    """Where there are negative values, and frames are compared; within a frame it is seen."""
    rng = np.random.default_rng(15)
    detector = Detector(2.0, 5.0)
    dark = detector.frames(rng, 0 * rings(1), 2).mean(axis=0)
    frames = detector.frames(rng, rings(30), 8) - dark
    for number, sigma in ((8, 5.0), (1, 5.0 * np.sqrt(1.5))):
        told = readout_from_frames(frames[:number])
        assert any("sqrt(1 + 1/n)" in note for note in told.notes) == (number > 1)
        assert told.readout.read_noise == pytest.approx(sigma, rel=0.1)
    assert not any("sqrt" in note for note in found(detector, rings(30), 8, darks=4).notes)


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("photons", [1, 10, 100])
def test_counts_are_said_to_need_no_readout(number: int, photons: float):
    frames = np.random.default_rng(16).poisson(rings(photons), (number, *SHAPE))
    try:
        said = " ".join(readout_from_frames(frames).notes)
    except SymDenoiseError as error:
        said = str(error)
    assert "these look like photon counts, which need no readout" in said
    ccd = Detector(2.0, 5.0, rounded=True).frames(np.random.default_rng(17), rings(100), number).astype(np.int32)
    assert not any("photon counts" in note for note in readout_from_frames(ccd).notes)


def test_mates_that_are_none_are_refused():
    """Control: the pattern's own symmetry."""
    y, x = np.ogrid[:384, :384]
    rate = 30 * (1.2 + np.cos(np.hypot(y - 190, x - 195) / 9))
    near = rate * (1 + 0.1 * np.sin(x / 8) * np.cos(y / 9))
    detector = Detector(2.4, 5.0)
    told = found(detector, rate, 1, symmetry=Symmetry("2", (190.0, 195.0)))
    assert told.how == "symmetry pairs"
    for image, center in ((near, (190.0, 195.0)), (rate, (192.0, 195.0))):
        told = found(detector, image, 1, symmetry=Symmetry("2", center))
        assert told.how == "second differences of frames"
        assert any(note.startswith("not used are symmetry pairs: ") for note in told.notes)
        assert told.readout.gain == pytest.approx(2.4, rel=0.1)
    with pytest.raises(SymDenoiseError, match="must be on the detector"):
        found(detector, rate, 1, symmetry=Symmetry("2", (500.0, 195.0)))


def test_a_lag_that_cannot_be_is_not_said():
    """Frames in pairs of which each is as the other's opposite: those that follow each other are less alike."""
    rng = np.random.default_rng(18)
    frames = Detector(2.0, 3.0).frames(rng, rings(300), 12)
    other = np.random.default_rng(19).normal(0, 0.2, SHAPE) * np.sqrt(2 * 2.0 * rings(300))
    told = readout_from_frames([frame + (-1) ** index * other for index, frame in enumerate(frames)])
    assert np.isnan(told.lag)
    assert told.readout.lag == 0
    assert any("less alike" in note for note in told.notes)


def test_the_top_of_the_converter_is_proposed_as_saturation():
    rate = rings(900)
    rate[:20] *= 3
    frames = np.minimum(Detector(2.0, 4.0, rounded=True).frames(np.random.default_rng(4), rate, 8), 4095)
    told = readout_from_frames(frames.astype(np.uint16))
    assert told.readout.saturation == 4095
    assert told.readout.gain == pytest.approx(2.0, rel=0.1)
    assert found(Detector(2.0, 4.0), rings(100), 2).readout.saturation is None


def test_drifting_intensity_changes_nothing():
    rng = np.random.default_rng(7)
    detector = Detector(2.0, 5.0)
    frames = [detector.frames(rng, rings(100) * (1 + 0.05 * index), 1)[0] for index in range(10)]
    assert readout_from_frames(frames).readout.gain == pytest.approx(2.0, rel=0.05)


def test_frames_of_other_scenes_are_told_one_by_one():
    """A scan: differences of its frames are no noise."""
    rng = np.random.default_rng(8)
    detector = Detector(2.0, 5.0)
    textures = [ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 6, mode="wrap") for _ in range(6)]
    scenes = [rings(100) * np.exp(texture / texture.std()) for texture in textures]
    told = readout_from_frames([detector.frames(rng, scene, 1)[0] for scene in scenes])
    assert told.how == "second differences of frames"
    assert any("not used are differences" in note for note in told.notes)
    assert told.readout.gain == pytest.approx(2.0, rel=0.1)


def test_mates_are_compared_if_their_place_is_known():
    rate = rings(100)
    rate = (rate + rate[::-1, ::-1]) / 2
    told = found(Detector(2.0, 5.0), rate, 1, symmetry=Symmetry("2", (79.5, 95.5)))
    assert told.how == "symmetry pairs"
    assert told.readout.gain == pytest.approx(2.0, rel=0.1)
    assert len(told.curves) >= 3


def test_flat_fields_tell_the_gain_with_darks_only():
    flat = np.full(SHAPE, 100.0)
    assert found(Detector(2.0, 5.0, 50.0), flat, 8, darks=4).readout.gain == pytest.approx(2.0, rel=0.05)
    with pytest.raises(SymDenoiseError, match="frames of unequal brightness, or darks"):
        found(Detector(2.0, 5.0), flat, 8)


@pytest.mark.parametrize("number", [8, 1])
def test_an_offset_without_darks_is_refused(number: int):
    """Where noise vanishes is not where there are no photons: read noise hides a part. The gain is said."""
    with pytest.raises(SymDenoiseError, match=r"noise (that )?vanishes at a signal of") as caught:
        found(Detector(2.0, 5.0, 100.0), rings(100), number)
    if number > 1:
        assert "at least this" in str(caught.value)
        gain = float(str(caught.value).split("gain = ")[1].split()[0])
        assert gain == pytest.approx(2.0, rel=0.05)
    with pytest.raises(SymDenoiseError, match=r"noise vanishes .* gain = 3\.\d* +# \+/-|gain = 2\.[89]\d* +# \+/-"):
        found(Detector(3.0, 8.0, 200.0, blur=0.6), rings(200), 12)
    # What read noise hides is not seen, and said.
    assert "give darks unless" in found(Detector(2.0, 5.0, 10.0), rings(100), 8).notes[0]


@pytest.mark.parametrize("darks", [1, 4, 10])
@pytest.mark.parametrize("steps", ["linear", "geometric", "shuffled"])
def test_flat_fields_that_get_brighter(steps: str, darks: int):
    """The noise of the dark that is subtracted from all frames cancels in part only."""
    rng = np.random.default_rng(11)
    y, x = np.ogrid[:256, :256]
    flat = 5 * (1 + 0.3 * np.exp(-(np.hypot(y - 128, x - 128) ** 2) / 1e4))
    rates = np.geomspace(0.3, 2.7, 20) if steps == "geometric" else np.linspace(0.3, 2.7, 20)
    rates = rng.permutation(rates) if steps == "shuffled" else rates
    detector = Detector(2.4, 5.0, 100.0, rounded=True)
    frames = [detector.frames(rng, flat * rate, 1)[0] for rate in rates]
    told = readout_from_frames(frames, darks=detector.frames(rng, 0 * flat, darks))
    assert told.readout.gain == pytest.approx(2.4, rel=0.03)
    assert told.readout.read_noise == pytest.approx(5.0, rel=0.03)
    assert told.readout.lag == 0


@pytest.mark.parametrize("darks", [0, 2, 10])
def test_flat_fields_that_get_brighter_without_darks(darks: int):
    """The pattern of the offset, or the noise of a mean dark that was subtracted before, cancels in part only."""
    rng = np.random.default_rng(20)
    y, x = np.ogrid[:256, :256]
    flat = 5 * (1 + 0.3 * np.exp(-(np.hypot(y - 128, x - 128) ** 2) / 1e4))
    detector = Detector(2.4, 5.0, 100.0, rounded=True)
    frames = np.array([detector.frames(rng, flat * rate, 1)[0] for rate in np.linspace(0.3, 2.7, 20)])
    if darks:
        told = readout_from_frames(frames - detector.frames(rng, 0 * flat, darks).mean(axis=0))
        gain, sigma = told.readout.gain, told.readout.read_noise
        assert sigma == pytest.approx(5.0, rel=0.05)
    else:
        with pytest.raises(SymDenoiseError, match="noise vanishes") as caught:
            readout_from_frames(frames + rng.normal(0, 3, flat.shape).round())
        gain = float(str(caught.value).split("gain = ")[1].split()[0])
    assert gain == pytest.approx(2.4, rel=0.05)


def test_identical_darks_are_refused():
    """Their noise would be 0; one of them alone does not say its noise."""
    detector = Detector(2.0, 5.0, 100.0)
    dark = detector.frames(np.random.default_rng(12), 0 * rings(1), 3)
    frames = detector.frames(np.random.default_rng(13), rings(100), 8)
    for darks in (dark[[0, 0, 0]], dark[[0, 1, 0]], np.full((4, *SHAPE), 100)):
        with pytest.raises(SymDenoiseError, match="some are identical"):
            readout_from_frames(frames, darks=darks)
    told = readout_from_frames(frames, darks=dark[:1])
    assert told.readout.gain == pytest.approx(2.0, rel=0.05)
    assert told.readout.read_noise == pytest.approx(5.0, rel=0.1)


def test_what_says_nothing_is_refused():
    noise = np.random.default_rng(9).normal(0, 1, (4, *SHAPE)).astype(np.float32)
    for frames in ([], [noise[0, 0]], [noise[0], noise[1, :50]]):
        with pytest.raises(SymDenoiseError, match="of one shape"):
            readout_from_frames(frames)
    for dtype in (bool, complex):
        with pytest.raises(SymDenoiseError, match="a signal is real numbers"):
            readout_from_frames(noise.astype(dtype))
    for frames in (noise, np.zeros((3, *SHAPE), np.uint16), noise[:, :20, :20], np.full((2, *SHAPE), np.nan)):
        with pytest.raises(SymDenoiseError, match="more frames"):
            readout_from_frames(frames)
    with pytest.raises(SymDenoiseError, match="mask of shape"):
        readout_from_frames(noise, mask=np.zeros((3, 3)))
    with pytest.raises(SymDenoiseError, match="give their own darks"):
        readout_from_frames(noise, darks=noise[:, :50])


def test_bands_of_large_frames_are_enough():
    """Dead pixels and darks are where they are in the whole frame."""
    rng = np.random.default_rng(10)
    rate = np.tile(rings(100), (1, 6))[:, :1024]
    tall = np.concatenate([rate] * 14)[:2200]
    detector = Detector(2.0, 5.0, 100.0, dead=0.01)
    told = readout_from_frames(detector.frames(rng, tall, 2), darks=detector.frames(rng, 0 * tall, 2))
    assert np.shape(told.readout.offset) == tall.shape
    assert told.readout.gain == pytest.approx(2.0, rel=0.05)
    assert told.readout.read_noise == pytest.approx(5.0, rel=0.05)
