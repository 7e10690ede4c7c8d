"""Arguments of the previous release, which are accepted for one release with a DeprecationWarning."""

from __future__ import annotations

import warnings
from typing import Any


def rows_from(rows: Any, frames: Any) -> Any:
    """Return the argument ``rows``, which was called ``frames``; call this from the public function itself.

    Raises
    ------
    TypeError
        If both are given.
    """
    if frames is None:
        return rows
    if rows is not None:
        raise TypeError("rows and frames are the same argument: give rows")
    warnings.warn(
        "frames= is called rows= now; the old name goes with the next release", DeprecationWarning, stacklevel=3
    )
    return frames
