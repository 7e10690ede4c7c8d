"""The bench of the readout counts what is right, wrong and refused."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_symdenoise.bench.simulated.integrating import Detector
from bluesky_symdenoise.bench.truth.readout import CASES, Case, drawn, figures, scene
from bluesky_symdenoise.physics.integrating import FoundReadout, Readout


def told(gain: float, frames: int = 1) -> FoundReadout:
    return FoundReadout(Readout(gain, 3.0, frames=frames), 0.02, 0.01, "repeats", 2)


def test_gains_are_right_wrong_or_refused():
    results = [(Detector(2.0, 3.0), each) for each in (told(2.02), told(1.98), told(2.5), None)]
    found = figures(Case("any", 0.05, 2), results)
    assert (found["within"], found["wrong"], found["refused"]) == (0.5, 0.25, 0.25)
    assert found["median"] == pytest.approx(0.01)
    assert found["read_noise_within"] == 1
    nothing = figures(Case("any", 0.05, 2), results[3:])
    assert (nothing["refused"], nothing["median"], nothing["pull"]) == (1, None, None)


def test_of_averaged_counts_the_number_of_exposures_is_judged():
    found = figures(Case("any", 0.1, 1, counting=True), [(Detector(1.0, averaged=20), told(1.0, n)) for n in (20, 10)])
    assert (found["within"], found["wrong"]) == (0.5, 0.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_detectors_are_as_their_case_says(case: Case):
    rng = np.random.default_rng(1)
    detector, photons = drawn(rng, case)
    assert scene(rng, photons).mean() == pytest.approx(photons)
    for name, low, high in case.drawn:
        unit = detector.read_noise if name in ("row_noise", "dark_drift") else 1
        assert low * unit <= getattr(detector, name) <= high * unit
    assert case.counting or photons * detector.gain**2 >= detector.read_noise**2
