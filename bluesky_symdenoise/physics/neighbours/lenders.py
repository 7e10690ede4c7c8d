"""Frames of a stack, and what each may borrow: from the other frames of the stack, or from frames lent to all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.defects import Defects
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours.lent import Lending, Lent, as_offsets
from bluesky_symdenoise.physics.neighbours.window import Borrow


def refuse_borrowing(choice: Borrow | None, lent: Sequence[Lent] | None, *, able: bool, algorithm: str) -> None:
    """Raise SymDenoiseError if frames cannot borrow, or in one way only.

    Parameters
    ----------
    able
        Whether the denoiser can use photons of other rows.
    """
    if choice is None and lent is None:
        return
    if choice is not None and lent is not None:
        raise SymDenoiseError(
            f"borrow={choice.side!r} and lent frames",
            rule="the frames given are rows that lend to each other, or one row that others lend to",
            remedy="give one of them",
        )
    if not able:
        raise SymDenoiseError(
            f"borrowing with algorithm {algorithm} and this model",
            rule="photons of other rows are used from algorithm 7 on, with a model that has a conjugate head",
            remedy="leave algorithm or borrow out",
        )


class Lenders:
    """Prepare each frame once while it is near, and say what it may borrow.

    Parameters
    ----------
    stack
        Raw frames (frame, y, x): rows of a scan in order if there is a choice, else the exposures of one row, which
        lend to each other if others lend to them.
    lent
        Raw frames of other rows; None if nothing is borrowed.
    choice
        Rows of the stack that may lend to each.
    prepare
        Returns a raw frame without its defects, and these.
    same_flux, share
        See `Lending`; with a share of 0 nothing is lent.

    Raises
    ------
    SymDenoiseError
        If a lent frame has another shape than the stack's.
    """

    def __init__(
        self,
        stack: NDArray[Any],
        lent: Sequence[Lent] | None,
        choice: Borrow | None,
        prepare: Callable[[NDArray[Any]], tuple[Frame, Defects]],
        *,
        same_flux: bool,
        share: float = 1.0,
    ) -> None:
        for each in lent or ():
            if each.counts.shape != stack.shape[1:]:
                raise SymDenoiseError(
                    f"a lent frame of shape {each.counts.shape}",
                    rule=f"it must have that of the frame that borrows, {stack.shape[1:]}",
                    remedy="lend frames of the same detector",
                )
        self._stack, self._lent, self._choice, self._prepare = stack, lent, choice, prepare
        self._same_flux, self._share = same_flux, share
        self._near: OrderedDict[int, tuple[Frame, Defects]] = OrderedDict()
        self._kept = 1 if choice is None else 2 * choice.reach + 2
        #: Frames that are lent to every frame of the stack, prepared.
        self._others = [self._usable(prepare(each.counts)[0]) for each in lent or ()]

    @property
    def any(self) -> bool:
        """Whether frames may borrow."""
        return self._choice is not None or self._lent is not None

    def frame(self, index: int) -> tuple[Frame, Defects]:
        """Return a frame of the stack without its defects, and these."""
        if index not in self._near:
            self._near[index] = self._prepare(self._stack[index])
            if self._choice is not None or self._lent is None:
                while len(self._near) > self._kept:
                    self._near.popitem(last=False)
        self._near.move_to_end(index)
        return self._near[index]

    def to(self, index: int) -> Lending | None:
        """Return the frames that may lend to a frame of the stack; None if there are none."""
        if self._choice is not None:
            rows = self._choice.rows(index, len(self._stack))
            frames = [self._usable(self.frame(each.row)[0]) for each in rows]
            offsets = np.array([each.offset for each in rows], float)
            names: list[int | None] = [each.row for each in rows]
        elif self._lent is not None:
            repeats = [other for other in range(len(self._stack)) if other != index]
            frames = [*(self._usable(self.frame(other)[0]) for other in repeats), *self._others]
            steps = as_offsets(self._lent).reshape(len(self._lent), -1) if self._lent else np.zeros((0, 1))
            offsets = np.concatenate([np.zeros((len(repeats), steps.shape[1])), steps])
            names = [*(None for _ in repeats), *(each.row for each in self._lent)]
        else:
            return None
        kept = [number for number, frame in enumerate(frames) if frame is not None]
        if not kept or self._share == 0:
            return None
        found = [frame for frame in frames if frame is not None]
        return Lending(found, offsets[kept], tuple(names[number] for number in kept), self._same_flux, self._share)

    @staticmethod
    def _usable(frame: Frame) -> Frame | None:
        """Return a frame that has counts, else None."""
        return frame if (frame.exposure > 0).any() and frame.counts.any() else None
