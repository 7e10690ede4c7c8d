"""Images announced by resource and datum documents, read by the handlers that facilities registered for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.runs import frames
from bluesky_symdenoise.acquisition.runs.replaced import Replaced
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import frames_stated
from bluesky_symdenoise.files.paths import refuse_windows
from bluesky_symdenoise.files.rows import Patience

Document = dict[str, Any]


class LegacyFrames:
    """Frames of one run by their datum ids.

    Parameters
    ----------
    handlers
        ``package.module:Class`` by spec; they take precedence over those that installed packages register for
        databroker.
    replaced
        Files that may have been replaced by now.
    """

    def __init__(self, handlers: Mapping[str, str], replaced: Replaced) -> None:
        self._named, self._replaced = dict(handlers), replaced
        self._resources: dict[str, Document] = {}
        self._data: dict[str, Document] = {}
        self._open: dict[str, Callable[..., Any]] = {}
        self._patience: dict[str, Patience] = {}

    def take_resource(self, doc: Document) -> None:
        """Keep the reference; its file is opened when a frame of it is read."""
        self._resources[doc["uid"]] = doc

    def take_datum(self, doc: Document) -> None:
        """Note where in its resource a frame is."""
        self._data[doc["datum_id"]] = doc

    def has(self, datum_id: str) -> bool:
        """Return whether this datum has been announced."""
        return datum_id in self._data

    def read(self, datum_id: str, stated: Sequence[int | None]) -> NDArray[Any]:
        """Return the image of one datum, in the shape that its handler gives it.

        Parameters
        ----------
        stated
            Shape by its data key; a file that still lacks some of the frames is waited for.

        Raises
        ------
        SymDenoiseError
            If it was not announced, no handler is known for its kind of file, or the file does not show it in time.
        """
        if datum_id not in self._data:
            raise SymDenoiseError(
                f"datum {datum_id}",
                rule="its frame was never announced",
                remedy="replay the run when the frame is there",
            )
        datum = self._data[datum_id]
        uid = datum["resource"]
        resource = self._resources[uid]
        path = Path(resource.get("root", "")) / resource["resource_path"].lstrip("/")
        factory = self._handler(resource["spec"])

        refuse_windows(str(path))
        short: list[NDArray[Any]] = []

        def attempt() -> NDArray[Any]:
            if uid not in self._open:
                self._open[uid] = factory(str(path), **resource["resource_kwargs"])
            image = np.asarray(self._open[uid](**datum["datum_kwargs"]))
            short[:] = [image] if _lacks_frames(image.shape, stated) else []
            if short:
                raise IndexError(f"it has shape {image.shape} and not {tuple(stated)} so far")
            return image

        patience = self._patience.setdefault(uid, Patience(frames.PATIENCE_S))
        value = f"{resource['spec']} frame {datum['datum_kwargs']} of {path}"

        def read() -> NDArray[Any]:
            try:
                return patience.read(attempt, value=value, again=lambda: self._let_go(uid))
            except SymDenoiseError:
                if not short:
                    raise
                # No more frames will come: the detector summed them, or took fewer.
                return short[0]

        return self._replaced.read(uid, lambda: [path], read)

    def close(self) -> None:
        """Close the files."""
        for uid in list(self._open):
            self._let_go(uid)

    def _let_go(self, uid: str) -> None:
        close = getattr(self._open.pop(uid, None), "close", None)
        if close is not None:
            close()

    def _handler(self, spec: str) -> Callable[..., Any]:
        try:
            if spec in self._named:
                module, _, name = self._named[spec].partition(":")
                handler: Callable[..., Any] = getattr(import_module(module), name)
                return handler
            for point in entry_points(group="databroker.handlers", name=spec):
                handler = point.load()
                return handler
        except (ImportError, AttributeError) as error:
            raise SymDenoiseError(
                f"files of kind {spec!r}",
                rule=f"their handler cannot be imported ({error})",
                remedy="install its requirements, then replay the run",
            ) from error
        raise SymDenoiseError(
            f"files of kind {spec!r}",
            rule="no handler is registered for them",
            remedy="install the extra bluesky-symdenoise[legacy], or name one in Beamline(handlers=...); "
            "then replay the run",
        )


def _lacks_frames(own: Sequence[int], stated: Sequence[int | None]) -> bool:
    """Return whether images have the stated y and x, but fewer frames than stated."""
    frames = frames_stated(stated)
    if len(own) < 2 or frames is None or tuple(own[-2:]) != tuple(stated[-2:]):
        return len(own) < 2 or 0 in own
    return math.prod(own[:-2]) < frames
