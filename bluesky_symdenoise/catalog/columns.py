"""What every row says of its frame beside the pixels."""

from __future__ import annotations

#: Names and dtypes of the scalars: the data keys are ``<key>_<name>``.
SCALARS = {
    "counts_in": "number",
    "counts_out": "number",
    "symmetry": "string",
    "center_y": "number",
    "center_x": "number",
    "ms": "number",
}
