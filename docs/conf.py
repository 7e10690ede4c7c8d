"""Sphinx's settings: pages in MyST, notebooks as they are stored, Python and command line from the code."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# The documentation is that of this checkout, whatever is installed.
sys.path[:0] = [str(ROOT), str(DOCS)]

from commands import as_markdown  # noqa: E402

import bluesky_symdenoise  # noqa: E402

project = "bluesky-symdenoise"
release = version = bluesky_symdenoise.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "py:obj"

html_theme = "pydata_sphinx_theme"
html_title = project
html_theme_options = {
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
    "show_toc_level": 2,
}

# tests/test_notebooks.py runs the notebooks.
nb_execution_mode = "off"
myst_heading_anchors = 4

napoleon_google_docstring = False
napoleon_use_ivar = True
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"

# Sphinx reads what lies in its folder, and follows no links.
NOTEBOOKS = DOCS / "tutorials" / "notebooks"
shutil.rmtree(NOTEBOOKS, ignore_errors=True)
NOTEBOOKS.mkdir()
for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
    shutil.copy2(notebook, NOTEBOOKS)


def _completed(app: Any, docname: str, source: list[str]) -> None:
    """Write the commands into their page, and send links to notebooks to the copies."""
    if docname == "reference/cli":
        source[0] = source[0].replace("<!-- commands -->", as_markdown())
    source[0] = re.sub(r"\]\((?:\.\./)*examples/(\w+\.ipynb)\)", r"](/tutorials/notebooks/\1)", source[0])


def setup(app: Any) -> None:
    """Complete pages before they are parsed."""
    app.connect("source-read", _completed)
