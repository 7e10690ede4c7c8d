"""A device that runs out of memory while the network runs: smaller pieces first, then the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bluesky_symdenoise.denoiser.device import engine
from bluesky_symdenoise.denoiser.device.posterior import device_posterior
from bluesky_symdenoise.denoiser.infer import Denoiser

COUNTS = np.random.default_rng(3).poisson(1.0, (1280, 128)).astype(np.uint16)
COUNTS.flags.writeable = False


class Full:
    """A device that has no room for parts of more than so many pixels, and none at all after so many tries."""

    def __init__(self, *, pixels: int, tries: int) -> None:
        self.pixels, self.tries, self.sizes = pixels, tries, []

    def __call__(self, layers: Any, frames: Any, symmetry: Any, choices: Any, lent: Any) -> Any:
        self.sizes.append(min(choices.part_pixels, COUNTS.size))
        if self.sizes[-1] > self.pixels and len(self.sizes) <= self.tries:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return device_posterior(layers, frames, symmetry, choices, lent)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.pretrained(device="cpu", threads=1)


@pytest.mark.parametrize("room", [{"pixels": 800 * 128, "tries": 99}, {"pixels": 0, "tries": 2}])
def test_frame_is_denoised_all_the_same(
    denoiser: Denoiser, room: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = denoiser(COUNTS, symmetry="1")
    monkeypatch.setattr(engine, "PART_PIXELS", 1280 * 128)
    monkeypatch.setattr(engine, "device_posterior", Full(**room))
    result = denoiser(COUNTS, symmetry="1")
    for name in ("intensity", "sigma"):
        off = np.abs(result[name].values - whole[name].values) / whole["sigma"].values
        assert off.max() < 1e-3
    assert "smaller pieces" in caplog.text


def test_device_with_room_is_used_as_it_is(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = denoiser(COUNTS, symmetry="1")["intensity"].values
    roomy = Full(pixels=10**9, tries=99)
    monkeypatch.setattr(engine, "device_posterior", roomy)
    np.testing.assert_array_equal(denoiser(COUNTS, symmetry="1")["intensity"].values, whole)
    assert len(roomy.sizes) == 1
    assert caplog.text == ""


def test_other_errors_are_not_hidden(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("weights of another shape")

    monkeypatch.setattr(engine, "device_posterior", broken)
    with pytest.raises(RuntimeError, match="another shape"):
        denoiser(COUNTS, symmetry="1")
