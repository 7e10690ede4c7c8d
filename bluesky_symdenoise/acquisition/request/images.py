"""Data keys of a stream that hold images."""

from __future__ import annotations

from typing import Any

import numpy as np

from bluesky_symdenoise.files.layout import is_colour, may_be_image, stated_shape
from bluesky_symdenoise.recipe import Recipe

Document = dict[str, Any]


def image_keys(descriptor: Document, recipe: Recipe) -> list[str]:
    """Return the data keys of a stream whose images are requested."""
    if recipe.streams is not None and descriptor["name"] not in recipe.streams:
        return []
    return [key for key in all_image_keys(descriptor) if recipe.data_keys is None or key in recipe.data_keys]


def all_image_keys(descriptor: Document) -> list[str]:
    """Return the data keys of a stream that hold images."""
    return [key for key, value in descriptor["data_keys"].items() if _is_image(value)]


def no_images(descriptor: Document) -> dict[str, str]:
    """Return the data keys of a stream that look like images but cannot be denoised, each with the reason."""
    return {key: reason for key, value in descriptor["data_keys"].items() if (reason := _why_no_image(value))}


def _is_image(data_key: Document) -> bool:
    """Return whether a data key holds 2D images, perhaps several an event: (..., y, x) with y and x above 1."""
    return _is_numeric(data_key) and may_be_image(stated_shape(data_key.get("shape")))


def _is_numeric(data_key: Document) -> bool:
    dtype = data_key.get("dtype_numpy", "<f8")
    if data_key["dtype"] != "array" or not isinstance(dtype, str):
        return False
    try:
        return np.dtype(dtype).kind in "iuf"
    except TypeError:
        # The stated dtype is not one of NumPy's; the arrays themselves will tell.
        return True


def _why_no_image(data_key: Document) -> str | None:
    shape = stated_shape(data_key.get("shape"))
    if data_key["dtype"] != "array" or len(shape) < 2:
        return None
    if not _is_numeric(data_key):
        return f"its type {data_key['dtype_numpy']!r} is neither integer nor real"
    if may_be_image(shape):
        return None
    if is_colour(shape):
        return f"it has shape {tuple(data_key['shape'])}: colour images hold no counts"
    return f"it has shape {tuple(data_key['shape'])}, which is not (y, x) or (frame, y, x)" if len(shape) > 3 else None
