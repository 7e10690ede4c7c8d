"""Making of a derived run and its rows; lazy runs replace parts of it."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.catalog.store.writer import DerivedRun, Emit
from bluesky_symdenoise.derived.row import Row


class Making:
    """Make a derived run, and its rows by denoising each image."""

    def derived_run(self, emit: Emit, work: Work, **made: Any) -> DerivedRun:
        """Return the derived run, to which streams are added."""
        return DerivedRun(emit, **made, created=work.place.own, columns=work.columns)

    def shapes_known(self, stream: Stream) -> bool:
        """Return whether the shapes of a stream's images are known."""
        return all(key in stream.shapes for key in stream.keys)

    def row(self, stream: Stream, key: str, event: Event, image: NDArray[Any] | None) -> Row:
        """Return the row of one image, which has been read already or is read now."""
        lending = stream.lending
        if lending is None:
            image = stream.image(key, event) if image is None else image
            return stream.images[key].row(image, event.columns, event.time)
        image = lending.image(key, event) if image is None else image
        return stream.images[key].row(image, event.columns, event.time, lent=lending.lent(key, event, image))
