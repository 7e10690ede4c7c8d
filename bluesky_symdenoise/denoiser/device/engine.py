"""What computes a denoiser's pixels: a model on a device, with the algorithm and the choices of a recipe."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_symdenoise.denoiser.choices import Choices
from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.layers import Layers
from bluesky_symdenoise.denoiser.device.posterior import device_posterior, lent_to
from bluesky_symdenoise.denoiser.law import law_posterior
from bluesky_symdenoise.denoiser.released import LAW
from bluesky_symdenoise.denoiser.weights import Model
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours.lent import Lending, Used
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Frames with more pixels than this are processed in parts.
PART_PIXELS = 2**22
#: Factor by which the parts are made smaller after running out of memory.
SMALLER = 4

log = logging.getLogger("bluesky_symdenoise")

#: torch's number of threads is global to the process, so only one denoiser runs at a time.
_ONE_AT_A_TIME = threading.Lock()


def _unlocked() -> None:
    """Make a new lock: a forked process does not have the thread that holds it."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.Lock()


os.register_at_fork(after_in_child=_unlocked)


class Engine:
    """A model on a device.

    Parameters
    ----------
    model
        The network with its identity.
    device, threads, dtype, views, sums, algorithm
        As `bluesky_symdenoise.Denoiser` takes them.

    Raises
    ------
    SymDenoiseError
        If torch cannot use the device.
    """

    def __init__(
        self, model: Model, *, device: str, threads: int | None, dtype: str, views: int, sums: str, algorithm: str
    ) -> None:
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            on = torch.device(chosen)
            net = model.net.in_bfloat16() if dtype == "bfloat16" else model.net
            self._net = net.to(on)
        except (RuntimeError, AssertionError) as error:
            raise SymDenoiseError(
                f"device {device!r}",
                rule=f"torch cannot use it ({str(error).splitlines()[0]})",
                remedy="use device='cpu' or install the torch build for this GPU",
            ) from error
        self.crew = Crew(on, _callers_threads() if threads is None else threads)
        self.dtype, self.views, self.sums = dtype, views, sums
        self._law = algorithm == LAW or not net.architecture.conjugate
        self._layers = Layers(self._net, self.crew)

    @property
    def borrows(self) -> bool:
        """Whether photons of other rows can be used."""
        return not self._law

    def environment(self) -> dict[str, Any]:
        """Return what, besides the recipe, decides the last bits: torch, device, dtype, threads."""
        on = self.crew.device
        device = torch.cuda.get_device_name(on) if on.type == "cuda" else on.type
        return {"torch": torch.__version__, "device": device, "dtype": self.dtype, "threads": self.crew.threads}

    def posteriors(
        self,
        frames: Sequence[Frame],
        symmetry: Symmetry,
        ring: NDArray[np.int64] | None,
        lent: Sequence[Lending | None] = (),
    ) -> tuple[NDArray[np.float32], list[Used]]:
        """Return expected counts and standard deviations, (frame, 2, y, x), and what each frame borrowed.

        If the device's memory runs out, frames are processed one by one and in parts, and then on the CPU.
        """
        # A crew's threads process parts of a frame; only the law leaves that to the operators.
        with _ONE_AT_A_TIME, _operators(self.crew.threads if self._law else 1), torch.inference_mode():
            lenders = list(lent) or [None] * len(frames)
            one_by_one = [([frame], [each]) for frame, each in zip(frames, lenders, strict=True)]
            for part_pixels, batches in ((PART_PIXELS, [(frames, lenders)]), (PART_PIXELS // SMALLER, one_by_one)):
                try:
                    parts = [self._on(self._layers, part_pixels, *batch, symmetry, ring) for batch in batches]
                    return np.concatenate([part for part, _ in parts]), [used for _, each in parts for used in each]
                except torch.OutOfMemoryError as error:
                    on = self.crew.device
                    log.warning("%s: %s; the frame is tried in smaller pieces, then on the CPU", on, error)
                if self.crew.device.type == "cuda":
                    torch.cuda.empty_cache()
            spare = Layers(copy.deepcopy(self._net).to("cpu"), Crew(torch.device("cpu"), self.crew.threads))
            return self._on(spare, PART_PIXELS, frames, lenders, symmetry, ring)

    def _on(
        self,
        layers: Layers,
        part_pixels: int,
        frames: Sequence[Frame],
        lent: Sequence[Lending | None],
        symmetry: Symmetry,
        ring: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.float32], list[Used]]:
        choices = Choices(self.views, self.sums == "agree", ring, part_pixels)
        if self._law:
            out = np.stack([law_posterior(layers.net, frame, symmetry, choices) for frame in frames])
            return out, [Used()] * len(frames)
        found = [
            None if each is None else lent_to(layers, frame, each) for frame, each in zip(frames, lent, strict=True)
        ]
        used = [
            Used() if each is None or lending is None else each.used(frame, lending)
            for frame, lending, each in zip(frames, lent, found, strict=True)
        ]
        return device_posterior(layers, frames, symmetry, choices, found), used


def _callers_threads() -> int:
    """Return torch's number of threads, not the one that another denoiser computes with at the moment."""
    with _ONE_AT_A_TIME:
        return torch.get_num_threads()


@contextmanager
def _operators(threads: int) -> Iterator[None]:
    """Let torch's operators use so many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
