"""Test of a symmetry on all frames of a run together, before mates are used in any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from bluesky_symdenoise.acquisition.past.stacks import stacks_of
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.check import SymmetryCheck, chosen_symmetry, stated_symmetry, tested_symmetry
from bluesky_symdenoise.physics.defects import found_defects, without
from bluesky_symdenoise.physics.frame import Frame, as_mask, frame_from_counts
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_beam_center, checked_symmetry, refuse_other_center

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun


def check_symmetry(
    frames: BlueskyRun | Sequence[BlueskyRun] | ArrayLike,
    *,
    symmetry: str | Symmetry = "auto",
    beam_center: Sequence[float] | None = None,
    mask: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    readout: Readout | None = None,
    stream: str | None = None,
    data_key: str | None = None,
) -> SymmetryCheck:
    """Test a symmetry on all frames of a run, or of several of one detector, and say where mates may be used.

    A sparse frame alone can refute little. Pooled, the frames show differences between mates that none of them shows,
    and how small a difference they could have shown. ``replay(raw, symmetry=check.symmetry)`` then takes no mate from
    where they differ, nor from where the test could not tell; callbacks and `Denoiser` accept it in the same way.

    Parameters
    ----------
    frames
        A raw run, several, or counts (frame, y, x); read one by one.
    symmetry, beam_center, mask, exposure, readout
        See `bluesky_symdenoise.Denoiser`; ``auto`` finds group and centre from all frames together. Frames are added
        up, so they must be of one scene.
    stream, data_key
        Stream and data key of the image in the runs; by default the first.

    Raises
    ------
    SymDenoiseError
        If there are no counts, or frames of several shapes, or the arguments do not fit them.
    """
    stated = stated_symmetry(symmetry)
    if isinstance(stated, Symmetry):
        refuse_other_center(stated, beam_center)
        beam_center = stated.beam_center
    symbol = checked_symmetry(stated.point_group if isinstance(stated, Symmetry) else stated)
    stacks = stacks_of(frames, stream=stream, data_key=data_key)
    names = [one.name for one in stacks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SymDenoiseError(
            f"run {twice} more than once", rule="its counts would be used twice", remedy="give each run once"
        )
    shapes = {one.shape[1:] for one in stacks}
    if len(shapes) > 1:
        raise SymDenoiseError(
            f"frames of shapes {', '.join(map(str, sorted(shapes)))}",
            rule="frames are summed, so they must have one shape",
            remedy="check each run by itself",
        )
    (shape,) = shapes
    center = None if beam_center is None else checked_beam_center(beam_center, shape)
    bad, n = as_mask(mask, shape), Symmetry(symbol, center).exposure(exposure, shape)
    counts, measured, number = np.zeros(shape), np.zeros(shape), 0
    for stack in stacks:
        for index in range(stack.shape[0]):
            counted = stack.read(index)
            if readout is not None:
                counted, _ = readout.equivalent(counted, bad, n)
            frame = frame_from_counts(counted, mask=bad, exposure=n)
            frame = without(frame, found_defects(frame).mask)
            if frame.counts.any():
                counts, measured, number = counts + frame.counts, measured + frame.exposure, number + 1
    if not number:
        raise SymDenoiseError(
            "frames without a count",
            rule="a symmetry cannot be tested without counts",
            remedy="give frames with photons",
        )
    total = Frame(counts, measured, 1.0)
    return tested_symmetry(total, chosen_symmetry(total, symbol, center), frames=number)
