"""Flat field, solid angle and polarisation as exposure: dimmed pixels agree with their mates again."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import frozen
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.agreement import pair_tests
from bluesky_symdenoise.physics.exposure import exposure_from_geometry, exposure_of_flat_detector
from bluesky_symdenoise.physics.frame import frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry

SHAPE, CENTER = (150, 170), (70.0, 81.0)
PIXEL, DISTANCE = 1e-3, 0.09


def geometry(*, rot1=0.0, rot2=0.0):
    """A small detector so near that its corners are at 45 degrees."""
    detector = Detector(PIXEL, PIXEL, max_shape=SHAPE)
    return AzimuthalIntegrator(
        dist=DISTANCE,
        poni1=(CENTER[0] + 0.5) * PIXEL,
        poni2=(CENTER[1] + 0.5) * PIXEL,
        rot1=rot1,
        rot2=rot2,
        detector=detector,
    )


@pytest.mark.parametrize("polarization", [None, 0.0, 0.99, -0.5])
@pytest.mark.parametrize("axis", [0.0, 0.3])
def test_both_ways_agree_where_nothing_is_tilted(polarization, axis):
    flat = frozen(np.random.default_rng(1).uniform(0.5, 1.5, SHAPE))
    given = {"flat": flat, "polarization": polarization, "polarization_axis": axis}
    ours = exposure_of_flat_detector(SHAPE, beam_center=CENTER, distance=DISTANCE, pixel_size=(PIXEL, PIXEL), **given)
    np.testing.assert_allclose(exposure_from_geometry(geometry(), SHAPE, **given), ours, rtol=1e-5)
    # Control: it is not flat.
    assert ours.max() > 1.5 * ours.min()


def test_a_polarised_ring_is_a_ring_by_its_exposure():
    """Without the exposure a quarter turn is broken, which polarisation does to every ring."""
    y, x = np.indices(SHAPE)
    rate = 20 + 200 * np.exp(-((np.hypot(y - CENTER[0], x - CENTER[1]) - 50) ** 2) / 30)
    exposure = exposure_from_geometry(geometry(), SHAPE, polarization=0.95)
    counts = np.random.default_rng(2).poisson(rate * exposure)
    symmetry = Symmetry("4", (70.0, 81.0))
    p = {}
    for name, n in (("known", exposure), ("unknown", np.ones(SHAPE))):
        frame = frame_from_counts(counts, mask=np.zeros(SHAPE, bool), exposure=n)
        p[name] = [test.p_regions for test in pair_tests(frame, symmetry)]
    # Inversion keeps the polarisation; quarter turns do not.
    assert min(p["known"]) > 1e-3
    assert p["unknown"][0] > 1e-3
    assert max(p["unknown"][1:]) < 1e-12


def test_a_tilted_detector_is_brightest_at_normal_incidence():
    """Not where the beam meets it."""
    tilted = exposure_from_geometry(geometry(rot1=0.3), SHAPE)
    level = exposure_from_geometry(geometry(), SHAPE, polarization=0.9)
    np.testing.assert_array_equal(np.unravel_index(np.argmax(tilted), SHAPE), CENTER)
    # Polarisation is about the beam.
    turned = exposure_from_geometry(geometry(rot1=0.3), SHAPE, polarization=0.9)
    assert np.abs(turned / level - 1).max() > 0.1


def test_dead_pixels_of_the_flat_field_stay_dead():
    flat = np.ones(SHAPE)
    flat[3, 4] = 0
    assert exposure_from_geometry(geometry(), SHAPE, flat=flat)[3, 4] == 0


def test_invalid_exposures_are_refused():
    bad = np.ones(SHAPE)
    bad[0, 0] = np.nan
    flat_detector = {"beam_center": CENTER, "distance": DISTANCE, "pixel_size": (PIXEL, PIXEL)}
    with pytest.raises(SymDenoiseError, match="nan"):
        exposure_from_geometry(geometry(), SHAPE, flat=bad)
    with pytest.raises(SymDenoiseError, match="shape"):
        exposure_of_flat_detector(SHAPE, flat=np.ones((3, 3)), **flat_detector)
    for polarization in (1.5, -2, float("nan")):
        with pytest.raises(SymDenoiseError, match="degree of polarisation"):
            exposure_from_geometry(geometry(), SHAPE, polarization=polarization)
    with pytest.raises(SymDenoiseError, match="distance 0: it must be positive"):
        exposure_of_flat_detector(SHAPE, **(flat_detector | {"distance": 0}))
