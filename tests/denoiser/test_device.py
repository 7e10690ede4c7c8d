"""A frame's way on one device against the written law: numpy up to the mates, and algorithm 6."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode

from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.frame import held
from bluesky_symdenoise.denoiser.device.gate import Evidence, gated_mates
from bluesky_symdenoise.denoiser.device.rings import ring_mates
from bluesky_symdenoise.denoiser.device.windows import windowed
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics import fold
from bluesky_symdenoise.physics.frame import Frame, frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry

GROUPS = ["2", "m", "my", "2mm", "4", "4mm", "m@30", "2mm@-17.5", "inf"]
GROUPS += ["2mm~15:90:1200", "4~20:30:700", "inf~15:90:1200"]
#: Blocks may differ from the law only where its score is this near to the threshold.
NEAR = 1e-5


def frame(shape: tuple[int, int], center: tuple[float, float], kind: str, level: float = 1.0) -> Frame:
    """Return rings about a centre, as they are or with what breaks a symmetry and what a detector adds."""
    rng = np.random.default_rng(5)
    y, x = np.indices(shape)
    rate = level * (0.3 + 0.7 * (1 + np.cos(np.hypot(y - center[0], x - center[1]) / 8)))
    mask, exposure = np.zeros(shape, bool), np.ones(shape)
    if kind != "plain":
        rate *= 1 + 0.5 * np.exp(-((y - shape[0] * 0.3) ** 2 + (x - shape[1] * 0.3) ** 2) / 800)
        rate[shape[0] // 3, shape[1] // 3] += 60
        rate[int(center[0]) - 2 : int(center[0]) + 3, int(center[1]) - 2 : int(center[1]) + 3] *= 1e4
        mask[:, shape[1] // 4 : shape[1] // 4 + 7] = True
        mask[shape[0] // 5] = True
    if kind in ("flat", "photons"):
        exposure = 1 + 0.2 * np.cos(x / 40)
    counts = rng.poisson(rate * exposure).astype(np.float64)
    if kind == "photons":
        counts += rng.normal(2.0, 0.3, shape).clip(0)
    return frame_from_counts(counts, mask=mask, exposure=exposure)


def mates_of(frame: Frame, symmetry: Symmetry, threads: int = 1) -> Evidence:
    """Return mates as the device finds them, cut to the frame's shape."""
    height, width = frame.counts.shape
    with torch.inference_mode():
        here = held([frame], Crew(torch.device("cpu"), threads))
        mates = ring_mates(here, symmetry) if symmetry.group == "inf" else gated_mates(here, symmetry)
    for image in (mates.counts, mates.exposure):
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    return Evidence(mates.counts[0, :height, :width], mates.exposure[0, :height, :width])


@pytest.mark.parametrize("kind", ["plain", "broken", "flat", "photons"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("level", [0.02, 1.0, 3000.0])
def test_mates_are_those_of_the_law(group: str, kind: str, level: float) -> None:
    shape, center = (301, 414), (140.5, 230.0)
    given, symmetry = frame(shape, center, kind, level), Symmetry(group, center)
    law, mates = fold.gated_mates(given, symmetry), mates_of(given, symmetry)
    apart = ~np.isclose(mates.exposure.numpy(), law.exposure, rtol=1e-4, atol=1e-5)
    apart |= ~np.isclose(mates.counts.numpy(), law.counts, rtol=1e-4, atol=1e-4)
    assert not apart.any()


def test_scores_are_those_of_the_law_near_the_threshold() -> None:
    """Over a million blocks whose scores are spread about the threshold, of few and of many counts."""
    from bluesky_symdenoise.denoiser.device.moves import Turnable, moves
    from bluesky_symdenoise.denoiser.device.pairs import pair_sums, score

    worst, blocks, flips = 0.0, 0, 0
    for kind, level in (("plain", 0.05), ("broken", 1.0), ("flat", 30.0), ("broken", 2e4), ("photons", 300.0)):
        shape, center = (1024, 1024), (500.25, 520.7)
        given, symmetry = frame(shape, center, kind, level), Symmetry("2mm", center)
        with torch.inference_mode():
            here = held([given], Crew(torch.device("cpu"), 1))
            images = Turnable(here.counts), Turnable(here.exposure)
            for move, operation in zip(
                moves(symmetry, shape, 1024, here.crew.device), symmetry.operations, strict=True
            ):

                def pair(first: int, last: int, move: Any = move, here: Any = here, images: Any = images) -> Any:
                    own = here.counts[:, first:last], here.exposure[:, first:last]
                    return *own, *move.both(*images, first, last)

                ours = score(pair_sums(pair, here, halves=here.whole), here.crew)[0].double().numpy()
                law = fold.symmetry_score(given, fold.mated(given, operation, symmetry.grid_center))[::4, ::4]
                near = law < 4
                worst = max(worst, np.abs(ours - law)[near].max())
                flips += int(((ours <= fold.GATE_Z) != (law <= fold.GATE_Z)).sum())
                blocks += law.size
    assert worst < NEAR
    assert blocks > 900_000
    assert flips <= 1


def test_windows_are_those_of_scipy() -> None:
    image = np.random.default_rng(2).normal(size=(2, 96, 160))
    for sigma in (0.5, 1.25, 4.0):
        expected = [ndimage.gaussian_filter(each, sigma, mode="constant", truncate=3.0) for each in image]
        np.testing.assert_allclose(windowed(torch.from_numpy(image), sigma).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def both() -> tuple[Denoiser, Denoiser]:
    """Algorithms 6 and 7."""
    six, seven = (Denoiser.pretrained(device="cpu", threads=1, algorithm=each) for each in ("6", "7"))
    return six, seven


@pytest.mark.parametrize("group", ["1", *GROUPS])
def test_pixels_are_within_a_hundredth_of_sigma_of_algorithm_6(both: tuple[Denoiser, Denoiser], group: str) -> None:
    shape, center = (301, 414), (140.5, 230.0)
    given = frame(shape, center, "flat", 2.0)
    options: dict[str, Any] = {"symmetry": group, "beam_center": None if group == "1" else center}
    options |= {"mask": given.exposure == 0, "exposure": given.exposure}
    six, seven = (denoiser(given.counts, **options) for denoiser in both)
    np.testing.assert_array_equal(np.isnan(six["intensity"]), np.isnan(seven["intensity"]))
    off = np.abs(six["intensity"] - seven["intensity"]) / six["sigma"]
    assert float(off.max()) < 1e-3
    assert float(np.abs(seven["sigma"] / six["sigma"] - 1).max()) < 1e-3


@pytest.mark.parametrize("choice", [{"views": 8}, {"sums": "agree"}, {"dtype": "bfloat16"}])
def test_choices_are_those_of_algorithm_6(choice: dict[str, Any]) -> None:
    shape, center = (301, 414), (140.5, 230.0)
    given = frame(shape, center, "broken", 2.0)
    six, seven = (
        Denoiser.pretrained(device="cpu", threads=1, algorithm=each, **choice)(
            given.counts, mask=given.exposure == 0, symmetry="2mm", beam_center=center
        )
        for each in ("6", "7")
    )
    off = np.abs(six["intensity"] - seven["intensity"]) / six["sigma"]
    # Half the bits round by a few hundredths of sigma, whatever the order of sums.
    assert float(off.max()) < (0.5 if "dtype" in choice else 1e-3)


class Waits(TorchDispatchMode):
    """Counts what makes a GPU wait for its host: values that Python looks at, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("group", "looks"), [("1", 0), ("2mm", 0), ("m@30", 0), ("inf", fold.RING_TRIMS)])
def test_a_frame_goes_up_once_and_comes_down_once(
    both: tuple[Denoiser, Denoiser], group: str, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, center = (256, 256), (120.5, 130.0)
    given = frame(shape, center, "broken")
    symmetry = Symmetry() if group == "1" else Symmetry(group, center)
    denoiser = both[1]
    denoiser._engine.posteriors([given], symmetry, None)  # tables of the run are made once
    ups: list[int] = []
    real = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda image: ups.append(image.size) or real(image))
    with Waits() as waits:
        denoiser._engine.posteriors([given], symmetry, None)
    assert len(ups) == 2  # counts and exposure
    assert waits.seen["_local_scalar_dense"] <= looks
    assert waits.seen["nonzero"] == 0
