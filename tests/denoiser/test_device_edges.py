"""Edges of a frame's way on one device: exposures far apart, stacks of unlike frames, threads, forks."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_symdenoise.denoiser.device import engine
from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.frame import held
from bluesky_symdenoise.denoiser.device.gate import pair_rows
from bluesky_symdenoise.denoiser.device.moves import Turnable, moves
from bluesky_symdenoise.denoiser.device.pairs import pair_sums, score
from bluesky_symdenoise.denoiser.device.rings import _numbers, _others
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics import fold
from bluesky_symdenoise.physics.frame import frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry

SHAPE, CENTER = (130, 141), (61.0, 70.5)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.pretrained(device="cpu", threads=1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def photons(level: float = 2.0) -> np.ndarray:
    return np.random.default_rng(4).poisson(level, SHAPE).astype(np.float64)


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-8])
def test_scores_are_those_of_the_law_where_exposures_are_far_apart(apart: float) -> None:
    y, x = np.indices(SHAPE)
    exposure = np.where(x < 60, 1.0, apart)
    exposure /= np.median(exposure)
    rate = 12 * (1 + 0.5 * np.cos((y - CENTER[0]) / 9) * np.cos((x - CENTER[1]) / 11))
    counts = np.minimum(np.random.default_rng(1).poisson(rate * exposure), 60).astype(np.float64)
    given, symmetry = frame_from_counts(counts, mask=np.zeros(SHAPE, bool), exposure=exposure), Symmetry("2", CENTER)
    with torch.inference_mode():
        here = held([given], Crew(torch.device("cpu"), 1))
        (move,) = moves(symmetry, SHAPE, here.size[2], here.crew.device)
        other = partial(move.both, Turnable(here.counts), Turnable(here.exposure))
        ours = score(pair_sums(partial(pair_rows, here, other), here, halves=here.whole), here.crew)[0].double().numpy()
    assert here.counts.dtype == torch.float32
    law = fold.symmetry_score(given, fold.mated(given, symmetry.operations[0], CENTER))[::4, ::4]
    # Blocks whose scores are a few sigma; float32 has seven digits of the others.
    np.testing.assert_allclose(ours[: law.shape[0], : law.shape[1]], law, rtol=1e-5, atol=1e-5)
    assert law.max() > fold.GATE_Z / 2


def test_scores_of_bright_rings_are_those_of_the_law() -> None:
    """The rounding of a share is the same in all pixels of a ring, and a window would add it up."""
    symmetry, shape = Symmetry("inf", (130.0, 120.5)), (250, 260)
    ring = fold.rings(shape, symmetry)
    counts = np.random.default_rng(1).poisson(1e4 * (1.3 + np.cos(ring / 16))).astype(np.float64)
    given = frame_from_counts(counts, mask=np.zeros(shape, bool), exposure=np.ones(shape))
    with torch.inference_mode():
        here = held([given], Crew(torch.device("cpu"), 1))
        other = _others(here, _numbers(symmetry, shape, here.crew.device), None)
        ours = score(pair_sums(partial(pair_rows, here, other.rows), here, halves=False), here.crew)[0].double().numpy()
    law = fold.symmetry_score(given, fold.ring_mean(given, ring, np.ones(shape, bool)))[::4, ::4]
    ours = ours[: law.shape[0], : law.shape[1]]
    assert np.median(law) < fold.GATE_Z
    assert np.abs(ours - law)[law < 2 * fold.GATE_Z].max() < 1e-5


@pytest.mark.parametrize("group", ["1", "2mm", "m@30", "inf"])
@pytest.mark.parametrize("flat", [False, True])
def test_a_frame_in_a_stack_has_the_bits_that_it_has_alone(denoiser: Denoiser, group: str, flat: bool) -> None:
    """Frames of whole and of other numbers, of few and of many counts, of none, and one hot pixel."""
    hot = photons()
    hot[20, 30] = 1e9
    stack = np.stack([photons(), photons(3000), photons() * 1.1, hot, 0 * photons(), photons(3e6) * 4])
    options: dict[str, Any] = {"symmetry": group, "beam_center": None if group == "1" else CENTER}
    if flat:
        options["exposure"] = 1 + 0.2 * np.cos(np.indices(SHAPE)[1] / 40)
    together = denoiser(stack, **options)
    for index, frame in enumerate(stack):
        alone = denoiser(frame, **options)
        for name in ("intensity", "sigma"):
            np.testing.assert_array_equal(together[name][index], alone[name])


@pytest.mark.parametrize("threads", [1, 3])
def test_the_threads_of_torch_are_left_as_they_were(two_threads: None, threads: int) -> None:
    """They are also those of the next denoiser."""
    Denoiser.pretrained(device="cpu", threads=threads)(photons(), symmetry="2mm", beam_center=CENTER)
    assert torch.get_num_threads() == 2
    assert Denoiser.pretrained(device="cpu").threads == 2
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [2]


def test_a_denoiser_made_while_another_computes_has_the_threads_of_torch(
    denoiser: Denoiser, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new thread of the program takes the number that torch has when it is first asked for."""
    made: list[int] = []
    maker = threading.Thread(target=lambda: made.append(Denoiser(denoiser.model, device="cpu").threads))
    real = engine.device_posterior

    def slow(*args: Any) -> Any:
        maker.start()
        maker.join(0.5)
        return real(*args)

    monkeypatch.setattr(engine, "device_posterior", slow)
    denoiser(photons(), symmetry="1")
    maker.join()
    assert made == [2]


@pytest.mark.parametrize("group", ["2mm", "m@30", "inf"])
@pytest.mark.parametrize("kind", [list, np.array])
def test_a_centre_need_not_be_a_tuple(denoiser: Denoiser, group: str, kind: Any) -> None:
    expected = denoiser(photons(), symmetry=Symmetry(group, CENTER))
    result = denoiser(photons(), symmetry=Symmetry(group, kind(CENTER)))
    assert result.attrs == expected.attrs
    np.testing.assert_array_equal(result["intensity"], expected["intensity"])


def _send(denoiser: Denoiser, done: Any) -> None:
    done.put(denoiser(photons(), symmetry="2mm", beam_center=CENTER)["intensity"].values)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_process_may_be_forked_while_a_frame_is_denoised() -> None:
    denoiser = Denoiser.pretrained(device="cpu", threads=2)
    expected = denoiser(photons(), symmetry="2mm", beam_center=CENTER)["intensity"].values
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    with engine._ONE_AT_A_TIME:
        child = context.Process(target=_send, args=(denoiser, done), daemon=True)
        child.start()
    try:
        np.testing.assert_array_equal(done.get(timeout=60), expected)
    finally:
        child.kill()
