"""The two containers that a root holds: raw runs and denoised ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
from tiled.structures.core import Spec

from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

#: Metadata key under which a catalogue of derived runs names the folder for its frames.
FRAMES_FOLDER = "symdenoise_frames"

#: Spec, with its version, of a catalogue of Bluesky runs.
CATALOGUE = ("CatalogOfBlueskyRuns", "3.0")


def prepare(root: Container, *, frames: str | Path, access_tags: Sequence[str] = ()) -> None:
    """Make the containers ``raw`` and ``denoised`` where they are missing, and name the folder for denoised frames.

    Parameters
    ----------
    root
        Client of the root of a catalogue.
    frames
        Folder that the denoising computer writes and the server reads.
    access_tags
        Of containers that are made here: tags that show them to all who may look for runs.

    Raises
    ------
    SymDenoiseError
        If the root is itself a catalogue of runs.
    """
    if isinstance(root, CatalogOfBlueskyRuns):
        raise SymDenoiseError(
            f"{root.uri}",
            rule="it is itself a catalogue of Bluesky runs, and so cannot hold `raw` and `denoised`",
            remedy="take CatalogOfBlueskyRuns out of the specs of the root in the server's configuration",
        )
    for name in ("raw", "denoised"):
        if name not in root:
            root.create_container(name, specs=[Spec(*CATALOGUE)], access_tags=list(access_tags) or None)
    folder = str(Path(frames).resolve())
    if root["denoised"].metadata.get(FRAMES_FOLDER) != folder:
        root["denoised"].update_metadata({FRAMES_FOLDER: folder})
