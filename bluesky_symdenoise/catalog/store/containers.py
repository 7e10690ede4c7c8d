"""The two containers of a root: raw runs and denoised ones."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

#: Metadata key under which a container of derived runs stores the folder of its frames.
FRAMES_FOLDER = "symdenoise_frames"

#: Spec, with version, of a container of Bluesky runs.
CATALOGUE = ("CatalogOfBlueskyRuns", "3.0")


def run_in(container: Container, uid: str) -> BlueskyRun | None:
    """Return the run of this uid, with one request; None if there is none."""
    from tiled.client.container import Container

    try:
        # CatalogOfBlueskyRuns.__getitem__ would also search for runs whose uid begins with this string.
        found: BlueskyRun = Container.__getitem__(container, uid)
    except KeyError:
        return None
    return found


def run_at(client: Container, folder: Sequence[str], uid: str) -> BlueskyRun:
    """Return the run of this uid in a folder of a client's server, with one request.

    Raises
    ------
    KeyError, tiled.client.utils.ClientError
        If there is none that this client may read.
    """
    from tiled.client.constructors import from_context

    found: BlueskyRun = from_context(client.context, client.structure_clients, node_path_parts=[*folder, uid])
    return found


def prepare(root: Container, *, frames: str | Path, access_tags: Sequence[str] = ()) -> None:
    """Make the containers ``raw`` and ``denoised`` if they are missing, and record the folder for denoised frames.

    Parameters
    ----------
    root
        Client of the root of a catalogue.
    frames
        Folder that the denoising computer writes and the server reads.
    access_tags
        Access tags of the two containers, replacing existing ones: tags that show them to all who may look for runs.
        None leaves them unchanged.

    Raises
    ------
    SymDenoiseError
        If the root is itself a catalogue of runs, or if the server does not put the tags on the containers.
    """
    from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
    from tiled.client.utils import ClientError
    from tiled.structures.core import Spec

    if isinstance(root, CatalogOfBlueskyRuns):
        raise SymDenoiseError(
            f"{root.uri}",
            rule="it is itself a catalogue of Bluesky runs, and so cannot hold `raw` and `denoised`",
            remedy="take CatalogOfBlueskyRuns out of the specs of the root in the server's configuration",
        )
    for name in ("raw", "denoised"):
        try:
            if name not in root:
                root.create_container(name, specs=[Spec(*CATALOGUE)], access_tags=list(access_tags) or None)
            elif access_tags and set(root[name].access_tags) != set(access_tags):
                root[name].update_metadata(access_tags=list(access_tags))
        except ClientError as error:
            if error.response.status_code == HTTPStatus.CONFLICT:
                raise SymDenoiseError(
                    f"container {name}",
                    rule="it exists, but this key may not see it",
                    remedy="run `symdenoise prepare --access-tag TAG` once with the key of the user who made it",
                ) from error
            if error.response.status_code != HTTPStatus.FORBIDDEN or not access_tags:
                raise
            raise _not_tagged(name, access_tags, str(error).splitlines()[-1].strip()) from error
        if access_tags and set(root[name].access_tags) != set(access_tags):
            raise _not_tagged(name, access_tags, "it has no access policy")
    folder = str(Path(frames).resolve())
    if root["denoised"].metadata.get(FRAMES_FOLDER) != folder:
        root["denoised"].update_metadata({FRAMES_FOLDER: folder})


def _not_tagged(name: str, tags: Sequence[str], why: str) -> SymDenoiseError:
    return SymDenoiseError(
        f"access tags {', '.join(tags)} of {name}",
        rule=f"the server does not apply them ({why})",
        remedy="use a key whose principal owns them (tag_owners); without an access policy give none",
    )
