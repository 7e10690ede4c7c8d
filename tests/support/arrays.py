"""Arrays that tests share."""

from __future__ import annotations

import numpy as np


def frozen(array: np.ndarray) -> np.ndarray:
    """The array, which nobody can change any more."""
    array.flags.writeable = False
    return array
