"""Samples of the frames of runs or arrays for training: read one by one, and never more than fits into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.acquisition.runs.stored import refuse_denoised
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import is_colour
from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask
from bluesky_symdenoise.training.pairs import RealFrames

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

log = logging.getLogger("bluesky_symdenoise")

#: Most bytes of frames that are kept for training from a catalogue, and most frames of one run.
CATALOGUE_BYTES, FRAMES_PER_RUN = 2**30, 32


@dataclass(frozen=True)
class Stack:
    """A stack of frames that can be read one by one.

    Attributes
    ----------
    name
        Uid of the run; for an array, a description.
    shape
        (frame, y, x).
    read
        Function that returns frame i, (y, x).
    is_run
        Whether ``name`` is a uid.
    """

    name: str
    shape: tuple[int, int, int]
    read: Callable[[int], NDArray[Any]]
    is_run: bool

    def counts(self, index: int) -> NDArray[Any]:
        """Return frame i, (y, x), if it holds photon counts; the detector's own codes are kept.

        Raises
        ------
        SymDenoiseError
            If the frame holds fractions.
        """
        frame = self.read(index)
        good = frame[~sentinel_mask(frame)]
        if frame.dtype.kind == "f" and np.any(good != np.floor(good)):
            raise SymDenoiseError(
                f"frame {index} of {self.name} with the value {good[good != np.floor(good)][0]:.6g}",
                rule="tuning needs photon counts, which are whole numbers",
                remedy="give the raw frames of a counting detector",
            )
        return frame


def stacks_of(frames: Any, *, stream: str | None, data_key: str | None) -> list[Stack]:
    """Return one stack for each run, or one for an array of frames.

    Parameters
    ----------
    frames
        A run, a sequence of runs, or anything with a shape (frame, y, x) whose frames can be taken by index: a numpy
        array, an HDF5 or zarr dataset, a Tiled array client.
    stream, data_key
        Stream and data key of the image in a run; by default the first.
    """
    runs = [frames] if hasattr(frames, "start") else frames
    if isinstance(runs, Sequence) and runs and all(hasattr(run, "start") for run in runs):
        return [run_stack(run, stream=stream, data_key=data_key) for run in runs]
    array = frames if hasattr(frames, "shape") and hasattr(frames, "__getitem__") else np.asarray(frames)
    if len(array.shape) != 3 or 0 in array.shape:
        raise SymDenoiseError(
            f"frames of shape {tuple(array.shape)}",
            rule="they must be (frame, y, x) with at least one frame, or runs of a catalogue",
            remedy="give one array of all frames; for a single frame, frame[None]",
        )
    return [Stack("an array", tuple(array.shape), lambda index: np.asarray(array[index]), is_run=False)]


def run_stack(run: BlueskyRun, *, stream: str | None, data_key: str | None) -> Stack:
    """Return the frames of one image of a raw run.

    Raises
    ------
    SymDenoiseError
        If it has no such image, or is a denoised run.
    """
    uid = str(run.start["uid"])
    refuse_denoised(run.start)
    for descriptor in run.descriptors:
        name = descriptor["name"]
        keys = descriptor["data_keys"] if stream in (None, name) and name in run else {}
        for key in keys:
            if data_key in (None, key) and keys[key]["dtype"] == "array" and key in run[name]:
                array = run[name][key]
                shape = tuple(array.shape)
                if (
                    len(shape) >= 3
                    and min(shape[-2:]) > 1
                    and not is_colour(shape[1:])
                    and array.dtype.kind in "iuf"
                    and 0 not in shape
                ):
                    return _rows(uid, array, shape)
    raise SymDenoiseError(
        f"run {uid}",
        rule=f"it has no image {stream or '*'}/{data_key or '*'} with frames",
        remedy=f"choose a stream among {', '.join(run) or 'none'} and an image of it, or another run",
    )


def _rows(uid: str, array: Any, shape: tuple[int, ...]) -> Stack:
    each = int(np.prod(shape[1:-2], dtype=int))

    def read(index: int) -> NDArray[Any]:
        row = index // each
        return np.asarray(array[row : row + 1]).reshape(-1, *shape[-2:])[index % each]

    return Stack(uid, (shape[0] * each, shape[-2], shape[-1]), read, is_run=True)


def sampled(stacks: Sequence[Stack], *, most: int, seed: int) -> list[tuple[int, int]]:
    """Return stack and number of at most this many frames, drawn at random as pairs of neighbours, in order.

    Neighbours are drawn because they may repeat one scene.
    """
    every = [(number, index) for number, stack in enumerate(stacks) for index in range(stack.shape[0])]
    if len(every) <= most:
        return every
    rng = np.random.default_rng([seed, len(every)])
    starts = np.sort(rng.permutation(len(every) // 2)[: most // 2]) * 2
    return [every[at] for start in starts for at in (start, start + 1)]


def catalogue_frames(
    runs: Sequence[BlueskyRun],
    *,
    stream: str | None = None,
    data_key: str | None = None,
    mask: ArrayLike | None = None,
    seed: int = 0,
    limit: int = CATALOGUE_BYTES,
) -> Iterator[RealFrames]:
    """Yield frames of many runs for training from scratch: some of each run, and some runs of very many.

    A run without images of photon counts is left out, and the log says why.

    Parameters
    ----------
    mask
        (y, x), True = bad, for all; a pixel where a sampled frame holds a detector's code is masked too.
    limit
        Bytes that all of it may take.
    """
    rng = np.random.default_rng([seed, len(runs)])
    left = limit
    for done, number in enumerate(rng.permutation(len(runs))):
        try:
            stack = run_stack(runs[int(number)], stream=stream, data_key=data_key)
            frame = stack.counts(0)
            share = min(FRAMES_PER_RUN, max(1, left // (len(runs) - done) // frame.nbytes))
            if frame.nbytes > left:
                return
            chosen = sampled([stack], most=max(2, share), seed=seed)[:share]
            counts = np.stack([stack.counts(index) for _, index in chosen])
            bad = as_mask(mask, frame.shape) | sentinel_mask(counts).any(axis=0)
        except SymDenoiseError as error:
            log.warning("left out: %s", error)
            continue
        left -= counts.nbytes
        yield RealFrames(stack.name, np.where(bad, 0, counts).astype(counts.dtype), bad)
