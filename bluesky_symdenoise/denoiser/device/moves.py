"""Images at the mates of pixels, on a device: the same pixels that `bluesky_symdenoise.physics.mates` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.network import MULTIPLE
from bluesky_symdenoise.physics.mates import IDENTITY, Operation, exact_move, mate_indices, same_mate
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Groups whose moves are kept, of one or of a few detectors.
KEPT = 4


@dataclass(frozen=True)
class Axis:
    """Where an exact operation takes the pixels along one axis from: source = sign * target + offset.

    Attributes
    ----------
    first, last
        Targets that have a source, from `first` to before `last`.
    """

    sign: int
    offset: int
    first: int
    last: int

    def taken(self, image: Tensor, dim: int, first: int, last: int) -> Tensor:
        """Return the sources of targets from ``first`` to before ``last``, which all have one."""
        if self.sign > 0:
            return image.narrow(dim, first + self.offset, last - first)
        return image.narrow(dim, self.offset - last + 1, last - first)


@dataclass(frozen=True)
class Move:
    """Where one operation takes an image's pixels from.

    Attributes
    ----------
    axes
        Of an exact operation, by axis of the result; None for others.
    turned
        Whether it exchanges the axes, so that it takes pixels from the transposed image.
    index
        (y, x) int32 flat index of the source, 0 where there is none; None for exact operations.
    off
        (y, x) True where there is no source; None for exact operations.
    repeated
        Sorted flat indices of pixels that are their own mate, or that an earlier operation sends to the same place.
    """

    axes: tuple[Axis, Axis] | None
    turned: bool
    index: Tensor | None
    off: Tensor | None
    repeated: NDArray[np.int64]
    _within: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether the operation maps all pixels onto pixels."""
        return self.axes is not None

    def both(self, counts: Turnable, exposure: Turnable, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return rows of the counts and of the exposure at each pixel's mate."""
        return self.rows(counts, first, last), self.rows(exposure, first, last)

    def rows(self, image: Turnable, first: int, last: int) -> Tensor:
        """Return rows of the image (batch, y, x) at each pixel's mate, 0 where it has none."""
        plain = image.plain
        width = plain.shape[2]
        if self.index is not None and self.off is not None:
            flat = plain.reshape(len(plain), -1)
            taken = flat.index_select(1, self.index[first:last].reshape(-1)).view(len(plain), last - first, width)
            return taken.masked_fill_(self.off[first:last], 0)
        assert self.axes is not None
        y, x = self.axes
        top, bottom = min(max(first, y.first), last), max(min(last, y.last), first)
        if bottom <= top or x.last <= x.first:
            return plain.new_zeros((len(plain), last - first, width))
        source = image.turned if self.turned else plain
        part = x.taken(y.taken(source, 1, top, bottom), 2, x.first, x.last)
        part = part.flip([dim for dim, axis in ((1, y), (2, x)) if axis.sign < 0])
        if part.shape[1:] == (last - first, width):
            return part
        out = plain.new_zeros((len(plain), last - first, width))
        out[:, top - first : bottom - first, x.first : x.last] = part
        return out

    def repeated_in(self, first: int, last: int, like: Tensor) -> Tensor | None:
        """Return flat indices of `repeated` within some rows of an image, on its device; None if there are none."""
        if (first, last) not in self._within:
            width = like.shape[2]
            low, high = np.searchsorted(self.repeated, (first * width, last * width))
            here = torch.from_numpy(self.repeated[low:high] - first * width).to(like.device)
            self._within[first, last] = here if high > low else None
        return self._within[first, last]


@dataclass
class Turnable:
    """An image (batch, y, x) and, once it is needed, its transpose."""

    plain: Tensor
    _turned: Tensor | None = None

    @property
    def turned(self) -> Tensor:
        """The transposed image, contiguous."""
        if self._turned is None:
            self._turned = self.plain.transpose(1, 2).contiguous()
        return self._turned


def moves(symmetry: Symmetry, shape: tuple[int, int], width: int, device: torch.device) -> tuple[Move, ...]:
    """Return the moves of a group's operations.

    Parameters
    ----------
    shape
        (y, x) of the frames.
    width
        Width of the padded images, to which flat indices refer.
    """
    assert symmetry.grid_center is not None
    return _moves(symmetry.operations, symmetry.grid_center, shape, width, device)


@lru_cache(KEPT)
def _moves(
    operations: tuple[Operation, ...],
    center: tuple[float, float],
    shape: tuple[int, int],
    width: int,
    device: torch.device,
) -> tuple[Move, ...]:
    return tuple(
        _move(operation, (IDENTITY, *operations[:index]), center, shape, width, device)
        for index, operation in enumerate(operations)
    )


def _move(
    operation: Operation,
    earlier: tuple[Operation, ...],
    center: tuple[float, float],
    shape: tuple[int, int],
    width: int,
    device: torch.device,
) -> Move:
    same = np.zeros(shape, bool)
    for other in earlier:
        same |= same_mate(shape, operation, other, center)
    y, x = np.nonzero(same)
    repeated = y * width + x
    if operation.exact:
        turned, axes = exact_move(shape, operation, center)
        return Move(tuple(Axis(*axis) for axis in axes), turned, None, None, repeated)  # type: ignore[arg-type]
    there = mate_indices(shape, operation, center)
    padded = np.full((shape[0] + -shape[0] % MULTIPLE, width), -1, np.int32)
    padded[: shape[0], : shape[1]] = np.where(there < 0, -1, there // shape[1] * width + there % shape[1])
    index = torch.from_numpy(np.maximum(padded, 0)).to(device)
    return Move(None, False, index, torch.from_numpy(padded < 0).to(device), repeated)
