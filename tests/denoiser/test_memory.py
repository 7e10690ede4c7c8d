"""A device that runs out of memory while the network runs: smaller pieces first, then the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_symdenoise.denoiser import infer
from bluesky_symdenoise.denoiser.infer import Denoiser

COUNTS = np.random.default_rng(3).poisson(1.0, (1280, 128)).astype(np.uint16)
COUNTS.flags.writeable = False


class Full(torch.nn.Module):
    """A network on a device that has no room for more than so many pixels, and none at all after so many tries."""

    def __init__(self, net: torch.nn.Module, *, pixels: int, tries: int) -> None:
        super().__init__()
        self.net, self.pixels, self.tries, self.sizes = net, pixels, tries, []
        self.own = net.own

    def forward(self, per_pixel: Any, per_block: Any) -> Any:
        self.sizes.append(per_pixel.shape[2] * per_pixel.shape[3])
        if self.sizes[-1] > self.pixels and len(self.sizes) <= self.tries:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(per_pixel, per_block)


def full(denoiser: Denoiser, **room: int) -> tuple[Denoiser, Full]:
    net = Full(denoiser.model.net, **room)
    return Denoiser(replace(denoiser.model, net=net), device="cpu", threads=1), net  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.pretrained(device="cpu", threads=1)


@pytest.mark.parametrize("room", [{"pixels": 800 * 128, "tries": 99}, {"pixels": 0, "tries": 2}])
def test_frame_is_denoised_all_the_same(
    denoiser: Denoiser, room: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(infer, "BAND_PIXELS", 1280 * 128)
    whole = denoiser(COUNTS, symmetry="1")
    starved, _ = full(denoiser, **room)
    result = starved(COUNTS, symmetry="1")
    for name in ("intensity", "sigma"):
        off = np.abs(result[name].values - whole[name].values) / whole["sigma"].values
        assert off.max() < 1e-3
    assert "smaller pieces" in caplog.text


def test_device_with_room_is_used_as_it_is(denoiser: Denoiser, caplog: pytest.LogCaptureFixture) -> None:
    roomy, net = full(denoiser, pixels=10**9, tries=99)
    np.testing.assert_array_equal(
        roomy(COUNTS, symmetry="1")["intensity"].values, denoiser(COUNTS, symmetry="1")["intensity"].values
    )
    assert len(net.sizes) == 1
    assert caplog.text == ""


def test_other_errors_are_not_hidden(denoiser: Denoiser) -> None:
    class Broken(Full):
        def forward(self, per_pixel: Any, per_block: Any) -> Any:
            raise RuntimeError("weights of another shape")

    net = Broken(denoiser.model.net, pixels=0, tries=0)
    broken = Denoiser(replace(denoiser.model, net=net), device="cpu", threads=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="another shape"):
        broken(COUNTS, symmetry="1")
