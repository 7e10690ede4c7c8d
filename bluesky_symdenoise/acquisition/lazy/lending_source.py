"""Raw rows of a stored image, with those that lend to them, while its frames are computed one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.runs.stored import TiledRun
from bluesky_symdenoise.derived.lending import Recent, Window, lent_by
from bluesky_symdenoise.files.source import Source
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun


class LendingSource:
    """Rows of a source, of which the latest are kept because they lend to those that follow.

    Parameters
    ----------
    source
        The raw image.
    window
        Rows that lend to each row; None if none do.
    """

    def __init__(self, source: Source, window: Window | None) -> None:
        self.source, self._window = source, window
        self._kept = Recent(source.read, None if window is None else window.borrow)

    def read(self, row: int) -> NDArray[Any]:
        """Return the frames (..., y, x) of a row."""
        return self._kept(row)

    def lent(self, row: int) -> list[Lent]:
        """Return the frames that other rows lend to a row.

        Raises
        ------
        SymDenoiseError
            If one of them cannot be read.
        """
        lenders = () if self._window is None else self._window.lenders(row)
        return lent_by((each for each in lenders if each.row < self.source.shape[0]), self._kept)


def window_of(raw: BlueskyRun, stream: str, recipe: Recipe) -> Window | None:
    """Return the rows of a stream of a raw run that lend to each other; None if none do."""
    if recipe.borrow is None:
        return None
    stored = next(each for each in TiledRun(raw).streams.values() if each.descriptor["name"] == stream)
    return Window.of(recipe.borrow, number=stored.rows, start=raw.start, stream=stream)
