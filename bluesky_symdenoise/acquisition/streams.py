"""One stream of a raw run as far as it has come, and its events."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.frames import FrameSource
from bluesky_symdenoise.acquisition.images import Images
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import stated_shape

Document = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """What is needed of an event; ``images`` are those it holds itself, or their datum ids."""

    seq_num: int
    turn: int
    time: float | None
    images: Mapping[str, Any]
    columns: Mapping[str, Any]


@dataclass
class Stream:
    """What is known so far of one stream with images."""

    name: str
    keys: list[str]
    descriptor: Document
    frames: FrameSource
    images: dict[str, Images]
    #: Whether frames come without events, as in a fly scan.
    flown: bool = False
    waiting: deque[Event] = field(default_factory=deque)
    #: How many events of each number there were, and the numbers of rows that are written.
    turns: Counter[int] = field(default_factory=Counter)
    done: set[int] = field(default_factory=set)
    #: How many rows there were so far, wanted or not.
    rows: int = 0
    #: Keys announced since the last event.
    announced: set[str] = field(default_factory=set)
    #: (..., y, x) of the images by data key, as the first that was read has it.
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def described(self) -> Document:
        """The descriptor with the shapes that images have."""
        return _with_shapes(self.descriptor, self.keys, self.shapes)

    @property
    def may_fly(self) -> bool:
        """Whether nothing in the stream needs an event, and none has come."""
        external = (str(key.get("external", "")) for key in self.descriptor["data_keys"].values())
        return not self.turns and all(each.startswith("STREAM:") for each in external)


def held_image(held: Any, dtype: Any) -> NDArray[Any]:
    """An image that its event holds; lists of whole numbers get the type that is stated, if it holds them."""
    image = np.asarray(held)
    if isinstance(held, list) and isinstance(dtype, str) and image.dtype.kind in "iu" and np.dtype(dtype).kind in "iu":
        limits = np.iinfo(np.dtype(dtype))
        if image.size and limits.min <= image.min() and image.max() <= limits.max:
            return image.astype(dtype)
    if image.dtype.kind not in "buif":
        raise SymDenoiseError(
            f"an image of type {image.dtype} in an event",
            rule="pixels must be real numbers",
            remedy="mend the device that reads it, or leave its data key out with data_keys=...",
        )
    return image


def _with_shapes(descriptor: Document, keys: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Document:
    """A descriptor that states these shapes; where none is known, what it states, and 1 for what that leaves open."""
    data_keys = dict(descriptor["data_keys"])
    for key in keys:
        stated = stated_shape(data_keys[key]["shape"])
        shape = shapes.get(key) or tuple(size or 1 for size in stated)
        if shape != stated or list(stated) != list(data_keys[key]["shape"]):
            # Names of its dimensions would be those of others.
            data_keys[key] = {name: value for name, value in data_keys[key].items() if name != "dims"}
            data_keys[key]["shape"] = list(shape)
    return {**descriptor, "data_keys": data_keys}
