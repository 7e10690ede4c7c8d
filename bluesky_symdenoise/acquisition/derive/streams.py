"""State of one stream of a raw run while its documents are read, and its events."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.images import ImageDenoiser
from bluesky_symdenoise.acquisition.request.images import all_image_keys, no_images
from bluesky_symdenoise.acquisition.runs.documents import Unreadable, refused_value
from bluesky_symdenoise.acquisition.runs.frames import FrameSource
from bluesky_symdenoise.acquisition.runs.legacy import LegacyFrames
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import row_shape, stated_shape
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.derive.lending import Lending

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """The needed parts of an event.

    ``images`` holds the images inside the event itself, or their datum ids; ``row`` is its number in the stream, where
    rows lend to each other.
    """

    seq_num: int
    turn: int
    time: float | None
    images: Mapping[str, Any]
    columns: Mapping[str, Any]
    row: int | None = None


@dataclass
class Stream:
    """State of one stream with images; ``run`` is the uid of its raw run."""

    run: str
    name: str
    keys: list[str]
    descriptor: Document
    frames: FrameSource
    legacy: LegacyFrames
    images: dict[str, ImageDenoiser]
    #: Whether frames are announced without events, as in a fly scan.
    flown: bool = False
    waiting: deque[Event] = field(default_factory=deque)
    #: Number of events of each ``seq_num``, and (`done`) the ``seq_num`` of the rows that are written.
    turns: Counter[int] = field(default_factory=Counter)
    done: set[int] = field(default_factory=set)
    #: Number of rows so far, wanted or not.
    rows: int = 0
    #: Keys announced since the last event.
    announced: set[str] = field(default_factory=set)
    #: Shape (..., y, x) of the first image that was read, by data key.
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Image that was read last, by data key, and its `seq_num` and turn.
    latest: dict[str, tuple[tuple[int, int], NDArray[Any]]] = field(default_factory=dict)
    #: What rows lend to each other; None if each is denoised alone.
    lending: Lending | None = None

    @property
    def described(self) -> Document:
        """Descriptor with the actual shapes of the images."""
        return _with_shapes(self.descriptor, self.keys, self.shapes)

    @property
    def may_fly(self) -> bool:
        """Whether nothing in the stream needs an event, and none has come."""
        external = (str(key.get("external", "")) for key in self.descriptor["data_keys"].values())
        return not self.turns and all(each.startswith("STREAM:") for each in external)

    def look(self, event: Event) -> None:
        """Update the decisions for later rows with the images of a row that is not denoised."""
        for key, images in self.images.items():
            if images.settled:
                continue
            try:
                image = self.image(key, event)
            except Exception as error:
                log.debug(
                    "run %s, %s, event %d is not used to decide the symmetry: %s",
                    self.run[:8],
                    key,
                    event.seq_num,
                    error,
                )
            else:
                images.look(image, event.columns, event.time)

    def image(self, key: str, event: Event) -> NDArray[Any]:
        """Read one image (..., y, x), in the shape that the first of its data key had.

        Raises
        ------
        SymDenoiseError
            If it cannot be read, is no image, or has another shape.
        """
        at, image = self.latest.get(key, (None, None))
        if image is not None and at == (event.seq_num, event.turn):
            # A check looks at a row again that was denoised just now: reading it twice costs time, and a file may have
            # been replaced.
            return image
        image = self._as_it_is(key, event)
        described = self.descriptor["data_keys"][key]
        stated = stated_shape(described["shape"])
        shape = row_shape(image.shape, stated)
        if key not in self.shapes:
            self.shapes[key] = shape
            if shape != stated:
                log.warning(
                    "run %s, %s/%s: the data key states shape %s, but its images have %s, which is used; mask and beam "
                    "centre are those of (y, x) = %s; fix the device's description",
                    self.run[:8],
                    self.name,
                    key,
                    tuple(described["shape"] or ()),
                    shape,
                    shape[-2:],
                )
        if shape != self.shapes[key]:
            raise SymDenoiseError(
                f"an image of shape {shape}",
                rule=f"earlier ones have {self.shapes[key]}, and the data key states {tuple(described['shape'] or ())}",
                remedy="take images of one shape in a run; this one can be denoised with `symdenoise denoise`",
            )
        # Boolean pixels are counts of 0 or 1.
        image = image.reshape(shape).astype(np.uint8 if image.dtype == bool else image.dtype, copy=False)
        self.latest[key] = (event.seq_num, event.turn), image
        return image

    def _as_it_is(self, key: str, event: Event) -> NDArray[Any]:
        held = event.images.get(key)
        if isinstance(held, Unreadable):
            raise refused_value(f"image {key!r}", held)
        if isinstance(held, str):
            return self.legacy.read(held, stated_shape(self.descriptor["data_keys"][key]["shape"]))
        if held is not None:
            return held_image(held, self.descriptor["data_keys"][key].get("dtype_numpy"))
        if self.frames.has(key, event.seq_num, event.turn):
            return self.frames.read(key, event.seq_num, event.turn)
        raise SymDenoiseError(
            f"event {event.seq_num}",
            rule="its frame was never announced",
            remedy="replay the run when the frame is there",
        )


def held_image(held: Any, dtype: Any) -> NDArray[Any]:
    """Return an image that its event holds; lists of whole numbers get the stated type, if it can hold them."""
    image = np.asarray(held)
    if isinstance(held, list) and isinstance(dtype, str) and image.dtype.kind in "iu" and np.dtype(dtype).kind in "iu":
        limits = np.iinfo(np.dtype(dtype))
        if image.size and limits.min <= image.min() and image.max() <= limits.max:
            return image.astype(dtype)
    if image.dtype.kind not in "buif":
        raise SymDenoiseError(
            f"an image of type {image.dtype} in an event",
            rule="pixels must be real numbers",
            remedy="fix the device that reads it, or leave its data key out with data_keys=...",
        )
    return image


def said_lack(recipe: Recipe, left_out: Sequence[Document], refused: Mapping[str, Mapping[str, str]]) -> str:
    """Return why nothing is denoised: what was asked for, and what the run has.

    Parameters
    ----------
    left_out
        Descriptors of the streams without an image that was asked for.
    refused
        By stream and data key, why an image cannot be written.
    """
    asked = {"streams": recipe.streams, "data_keys": recipe.data_keys}
    wanted = ", ".join(f"{what}={list(names)}" for what, names in asked.items() if names is not None)
    there = [f"{each['name']}/{key}" for each in left_out for key in all_image_keys(each)]
    if wanted and there:
        return f"no image fits {wanted}; there is {', '.join(there)}"
    streams = [f"{each['name']} ({', '.join(each['data_keys'])})" for each in left_out]
    why = [
        f"{each['name']}/{key}: {reason}"
        for each in left_out
        for key, reason in (no_images(each) | dict(refused[each["name"]])).items()
    ]
    return "; ".join([f"no 2D image in streams {', '.join(streams) or '(none)'}", *why])


def _with_shapes(descriptor: Document, keys: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Document:
    """Return a descriptor with these shapes; unknown ones are as stated, with 1 for dimensions left open."""
    data_keys = dict(descriptor["data_keys"])
    for key in keys:
        stated = stated_shape(data_keys[key]["shape"])
        shape = shapes.get(key) or tuple(size or 1 for size in stated)
        if shape != stated or list(stated) != list(data_keys[key]["shape"]):
            # The stated dimension names belong to the stated shape.
            data_keys[key] = {name: value for name, value in data_keys[key].items() if name != "dims"}
            data_keys[key]["shape"] = list(shape)
    return {**descriptor, "data_keys": data_keys}
