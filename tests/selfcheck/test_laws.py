"""Laws of the self-check, on frames with a known truth and denoisers whose errors are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.selfcheck.chance import Chance, number_checked, thinned
from bluesky_symdenoise.selfcheck.row import Way, checked_row
from bluesky_symdenoise.selfcheck.summary import summarised
from bluesky_symdenoise.selfcheck.values import ImageCheck, Measured, SelfCheck
from bluesky_symdenoise.selfcheck.words import methods_paragraph

SHAPE = (192, 192)
KAPPA, RATE = 4.0, 3.0
CENTER = (95.5, 95.5)
CHANCE = Chance("f4c1c7a2-0d8c-4b36-9c27-3a53d0a6d001", "ab" * 32, "primary", "det")


@dataclass(frozen=True)
class Values:
    values: np.ndarray


Answer = dict[str, Values]


def answer(intensity: np.ndarray, sigma: np.ndarray) -> Answer:
    return {
        "intensity": Values(intensity),
        "sigma": Values(sigma),
        "defect": Values(np.zeros(intensity.shape, np.uint8)),
    }


def posterior(scale: float = 1.0) -> Callable[..., Answer]:
    """The exact posterior of independent Gamma rates, with its sigma times a factor."""

    def denoiser(counts: np.ndarray, *, mask: np.ndarray, **_: Any) -> Answer:
        y = np.where(mask, 0, counts).astype(float)
        # A thinned frame has half the exposure.
        exposure = 0.5 if y[~mask].mean() < 0.75 * RATE else 1.0
        mean = (y + KAPPA) / (exposure + KAPPA / RATE) * exposure
        sigma = np.sqrt(y + KAPPA) / (exposure + KAPPA / RATE) * exposure
        return answer(mean, sigma * scale)

    return denoiser


def frame(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(KAPPA, RATE / KAPPA, SHAPE)).astype(np.uint16)
    counts[:5] = 2**16 - 1
    counts.flags.writeable = False
    return counts


def checked(denoiser: Any, counts: np.ndarray, *, symmetry: Symmetry | None = None, **given: Any) -> ImageCheck:
    way = Way(denoiser, symmetry or Symmetry("1"), beam_center=CENTER)
    tables = checked_row(counts, way, CHANCE, 7, **given)
    assert tables is not None
    return summarised([tables], CHANCE, shape=SHAPE, rows=[7], of_rows=20)


def test_the_halves_of_a_thinned_frame_are_independent_and_masked_values_stay() -> None:
    counts = frame()
    kept = thinned(counts, CHANCE.generator("thinning 0", 3))
    assert kept.dtype == counts.dtype
    assert (kept[:5] == 2**16 - 1).all()
    rng = np.random.default_rng(1)
    poisson = rng.poisson(3.0, SHAPE)
    half = thinned(poisson, rng)
    held = poisson - half
    assert half.mean() == pytest.approx(1.5, abs=0.03)
    assert held.var() == pytest.approx(1.5, abs=0.06)
    assert abs(np.corrcoef(half.ravel(), held.ravel())[0, 1]) < 4 / np.sqrt(poisson.size)
    # A negative control: the whole frame is not independent of its half.
    assert np.corrcoef(half.ravel(), poisson.ravel())[0, 1] > 0.5


def test_fractions_cannot_be_held_out() -> None:
    with pytest.raises(SymDenoiseError, match="fractions"):
        thinned(np.full((4, 4), 0.5), np.random.default_rng(0))
    whole = thinned(np.full((4, 4), 2.0, np.float32), np.random.default_rng(0))
    assert set(np.unique(whole)) <= {0.0, 1.0, 2.0}


def test_rows_and_random_numbers_are_functions_of_run_recipe_image_and_row() -> None:
    def first(chance: Chance, row: int = 0) -> float:
        return float(chance.generator("sham", row).random())

    assert first(CHANCE) == first(replace(CHANCE))
    others = [
        first(CHANCE, 1),
        *(first(replace(CHANCE, **{name: "other"})) for name in ("raw_uid", "recipe_sha256", "stream", "data_key")),
    ]
    assert len({first(CHANCE), *others}) == 6
    assert CHANCE.rows(range(1000)) == CHANCE.rows(reversed(range(1000)))
    assert [number_checked(rows) for rows in (0, 1, 319, 320, 5000)] == [0, 1, 1, 2, 3]
    # The rows that are checked are among the few with the first places, whatever the number of rows will be.
    few = sorted(range(200), key=CHANCE.place)[:3]
    assert set(CHANCE.rows(range(200))) <= set(few)


@pytest.mark.parametrize(("scale", "ratio"), [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0)])
def test_observed_over_stated_error_is_one_where_sigma_is_right(scale: float, ratio: float) -> None:
    found = checked(posterior(scale), frame())
    tested = [each.ratio for each in found.strata if each.ratio]
    assert tested
    for each in tested:
        assert each.value == pytest.approx(ratio, abs=4 * each.error)
        assert (abs(each.value - 1) < 4 * each.error) == (scale == 1)
    assert (found.verdict == "doubtful") == (scale == 0.5)
    assert ("errors are too small" in " ".join(found.reasons)) == (scale == 0.5)


def test_errors_of_sums_exceed_independent_ones_only_where_errors_are_correlated() -> None:
    alone = checked(posterior(), frame())

    def smooth(counts: np.ndarray, *, mask: np.ndarray, **_: Any) -> Answer:
        y = np.where(mask, 0, counts).astype(float)
        good = ndimage.gaussian_filter((~mask).astype(float), 2.0)
        mean = ndimage.gaussian_filter(y, 2.0) / np.maximum(good, 1e-9)
        # Variance of the weighted mean of independent counts: sum of squared weights is 1 / (4 pi s^2).
        return answer(mean, np.sqrt(mean / (4 * np.pi * 2.0**2)))

    flat = np.random.default_rng(5).poisson(RATE, SHAPE).astype(np.uint16)
    together = checked(smooth, flat)
    for independent, correlated in zip(alone.sums, together.sums, strict=True):
        assert correlated.name == independent.name
        if independent.ratio:
            assert independent.ratio.value == pytest.approx(1, abs=4 * independent.ratio.error)
        assert correlated.sham.value > 2 * independent.sham.value > 0


def test_a_denoiser_that_invents_spots_is_found_and_one_that_does_not_is_not() -> None:
    flat = np.random.default_rng(2).poisson(1.0, SHAPE).astype(np.uint16)

    def inventing(counts: np.ndarray, *, mask: np.ndarray, **_: Any) -> Answer:
        mean = np.where(mask, 0.0, np.where(mask, 0, counts).mean()).astype(float)
        rng = np.random.default_rng(int(np.where(mask, 0, counts)[:40].sum()))
        for y, x in rng.integers(20, 170, (8, 2)):
            mean[y - 1 : y + 2, x - 1 : x + 2] += 10
        return answer(mean, np.sqrt(mean + 0.1))

    def honest(counts: np.ndarray, *, mask: np.ndarray, **_: Any) -> Answer:
        mean = np.full(counts.shape, np.where(mask, 0, counts).mean())
        return answer(mean, np.sqrt(mean / mean.size))

    found = checked(inventing, flat)
    assert found.spots is not None
    assert found.spots.invented >= 6
    assert any("were invented" in reason for reason in found.reasons)
    control = checked(honest, flat)
    assert control.spots is not None
    assert control.spots.invented == 0
    assert not any("invented" in reason for reason in control.reasons)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_denoiser_that_smooths_spots_away_is_found(share: float) -> None:
    truth = np.ones(SHAPE)
    places = [(30, 40), (60, 120), (100, 50), (140, 150), (90, 90)]
    for y, x in places:
        truth[y - 1 : y + 2, x - 1 : x + 2] += 400
    spotted = np.random.default_rng(4).poisson(truth).astype(np.uint32)

    def fading(counts: np.ndarray, *, mask: np.ndarray, **_: Any) -> Answer:
        y = np.where(mask, 0, counts).astype(float)
        mean = np.where(y > 5 * np.median(y) + 10, 1 + share * (y - 1), np.mean(y[y < 10]))
        return answer(mean, np.sqrt(np.maximum(mean, 0.1)))

    found = checked(fading, spotted)
    assert found.spots is not None
    assert found.spots.there == len(places)
    assert found.spots.lost == (len(places) if share < 0.5 else 0)
    assert found.spots.kept.value == pytest.approx(share, abs=0.05)
    assert any("were lost" in reason for reason in found.reasons) == (share < 0.5)


def test_raw_counts_as_an_estimate_are_worse_than_a_filter_and_that_is_said() -> None:
    flat = np.random.default_rng(6).poisson(1.0, SHAPE).astype(np.uint16)

    def raw(counts: np.ndarray, *, mask: np.ndarray, **_: Any) -> Answer:
        y = np.where(mask, 0, counts).astype(float)
        return answer(y + 1e-3, np.sqrt(y + 1.0))

    found = checked(raw, flat)
    assert found.gains["a Gaussian filter"].value < 0
    assert any("worse than by a Gaussian filter" in reason for reason in found.reasons)


def test_lent_frames_are_thinned_as_their_own_rows_are_and_the_frame_alone_is_compared() -> None:
    seen: list[np.ndarray] = []

    def borrowing(counts: np.ndarray, *, mask: np.ndarray, lent: Any = (), **rest: Any) -> Answer:
        seen.extend(each.counts for each in lent)
        return posterior()(counts, mask=mask, **rest)

    other = frame(1)
    found = checked(borrowing, frame(), lent=[Lent(other, (-1.0,), row=6)])
    assert found.gains["the frame alone"].value == 0
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[0], other)
    np.testing.assert_array_equal(seen[1], thinned(other, CHANCE.generator("thinning 0", 6)))


def test_the_exposures_of_a_row_lend_to_each_other_only_where_frames_borrow() -> None:
    numbers: list[int] = []

    def counting(counts: np.ndarray, *, mask: np.ndarray, lent: Any = (), **rest: Any) -> Answer:
        numbers.append(len(lent))
        assert len({each.counts.tobytes() for each in lent} | {counts.tobytes()}) == 1 + len(lent)
        return posterior()(counts, mask=mask, **rest)

    exposures = np.stack([frame(0), frame(1), frame(2)])
    checked(counting, exposures)
    assert numbers == [0, 0, 0]
    numbers.clear()
    checked(counting, exposures, lent=[])
    # The frame, its input half, that alone, and the sham test, which borrows nothing.
    assert numbers == [2, 2, 0, 0]


def test_what_is_stored_comes_back_from_json() -> None:
    image = checked(posterior(), frame())
    check = SelfCheck((image, replace(image, data_key="other", flux=None, verdict="not testable", reasons=("why",))))
    plain = json.loads(json.dumps(check.to_dict(), allow_nan=False))
    again = SelfCheck.from_dict(plain)
    assert again.to_dict() == plain
    assert again.verdict == "agrees"
    assert len(json.dumps(plain)) < 6000


@pytest.mark.parametrize(
    "stored",
    [None, 3, {}, {"form": 2}, {"form": 1, "images": "x"}, {"form": 1, "images": [{"verdict": "agrees"}]}],
)
def test_what_is_not_understood_is_said_and_never_raised(stored: Any) -> None:
    found = SelfCheck.from_dict(stored)
    assert found.verdict == "not computed"
    assert found.reason


def test_a_measured_value_shows_two_digits_of_its_error() -> None:
    assert str(Measured(1.0512, 0.1)) == "1.05 ± 0.10"
    assert str(Measured(123.4, 12.0)) == "123 ± 12"
    assert str(Measured.not_testable("too few counts")) == "not testable (too few counts)"


def test_the_methods_paragraph_is_made_of_sentences() -> None:
    start = {
        "provenance": {
            "recipe": {"symmetry": "auto", "algorithm": "7", "borrow": "both:8"},
            "model": {"name": "fast", "version": "5", "sha256": "0" * 64},
            "wasAssociatedWith": {"name": "bluesky-symdenoise", "version": "0.1.0"},
        }
    }
    said = methods_paragraph(start, SelfCheck((checked(posterior(), frame()),)))
    assert "up to 8 neighbouring frames before and after it" in said
    assert "1 of 20 frames were held out" in said or "1 of 20 frames" in said
    assert "  " not in said
    assert ".." not in said
    assert "not checked" in methods_paragraph(start, SelfCheck((), "it was switched off"))
