"""What to do with every frame of a run, and where the result goes, checked before a run starts."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise import __version__
from bluesky_symdenoise.catalog.serve import FRAMES_FOLDER
from bluesky_symdenoise.denoiser.infer import ALGORITHM, Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_exposure
from bluesky_symdenoise.physics.symmetry import checked_point_group
from bluesky_symdenoise.recipe import Recipe, array_sha256

if TYPE_CHECKING:
    from tiled.client.container import Container

Document = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What to do with every frame, and where the result goes.

    Attributes
    ----------
    container
        Client of the catalogue of derived runs.
    folder
        Where the HDF5 files go; the server must be able to read it.
    activity
        ``callback`` or ``replay``: how the derived run came to be.
    """

    container: Container
    denoiser: Denoiser
    recipe: Recipe
    folder: Path
    mask: NDArray[np.bool_] | None
    exposure: NDArray[np.float64] | None
    activity: str

    @classmethod
    def planned(
        cls,
        container: Container,
        *,
        activity: str,
        denoiser: Denoiser | None,
        directory: str | Path | None,
        mask: ArrayLike | None,
        exposure: ArrayLike | None,
        symmetry: str,
        beam_center: Sequence[float] | None,
        streams: Sequence[str] | None,
        data_keys: Sequence[str] | None,
    ) -> Work:
        """Check what can be checked before a run starts.

        Raises
        ------
        SymDenoiseError
            For anything that could not work whatever the frames are.
        """
        if not isinstance(container, CatalogOfBlueskyRuns):
            raise SymDenoiseError(
                f"{getattr(container, 'uri', container)!s}",
                rule="it is no catalogue of Bluesky runs",
                remedy='pass the container of the derived runs, client["denoised"]',
            )
        if symmetry != "auto":
            checked_point_group(symmetry)
        if beam_center is not None and (len(beam_center) != 2 or not np.isfinite(np.asarray(beam_center, float)).all()):
            raise SymDenoiseError(
                f"beam centre {beam_center!r}",
                rule="it must be two finite numbers",
                remedy="give (y, x) in pixels",
            )
        for names, what in ((streams, "streams"), (data_keys, "data_keys")):
            if isinstance(names, str):
                raise SymDenoiseError(
                    f"{what}={names!r}", rule="it must be a list of names", remedy=f"give [{names!r}]"
                )
        bad = None if mask is None else np.asarray(mask).astype(bool)
        n = None if exposure is None else np.asarray(exposure, np.float64)
        for array, what in ((bad, "mask"), (n, "exposure")):
            if array is not None and array.ndim != 2:
                raise SymDenoiseError(
                    f"{what} of shape {array.shape}",
                    rule="it must be (y, x)",
                    remedy="give one for all frames",
                )
        if n is not None:
            as_exposure(n, n.shape)
        model = denoiser or Denoiser.pretrained()
        recipe = Recipe(
            model_sha256=model.model.sha256,
            algorithm=ALGORITHM,
            symmetry=symmetry,
            beam_center=None if beam_center is None else (float(beam_center[0]), float(beam_center[1])),
            mask_sha256=None if bad is None else array_sha256(bad),
            exposure_sha256=None if n is None else array_sha256(n),
            streams=None if streams is None else tuple(streams),
            data_keys=None if data_keys is None else tuple(data_keys),
        )
        return cls(
            container=container,
            denoiser=model,
            recipe=recipe,
            folder=_folder(container, directory),
            mask=bad,
            exposure=n,
            activity=activity,
        )

    def provenance(self, raw_uid: str, stream: str, keys: Sequence[str]) -> Document:
        """The provenance block of the start document, in the words of W3C PROV."""
        return {
            "wasDerivedFrom": [{"run": raw_uid, "stream": stream, "data_key": key} for key in keys],
            "wasGeneratedBy": {"activity": self.activity, "startedAtTime": now()},
            "wasAssociatedWith": {"name": "bluesky-symdenoise", "version": __version__},
            "model": self.denoiser.model.identity(),
            "recipe": self.recipe.to_dict(),
            "recipe_sha256": self.recipe.sha256,
            "environment": {"python": platform.python_version(), **self.denoiser.environment()},
        }


def now() -> str:
    """The time in ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _folder(container: Container, directory: str | Path | None) -> Path:
    """The folder for derived files: the one given, or the one that the container itself names."""
    named = directory if directory is not None else container.metadata.get(FRAMES_FOLDER)
    if named is None:
        raise SymDenoiseError(
            f"container {container.uri}",
            rule="it does not say where files of denoised frames go",
            remedy="pass directory=..., a folder that this computer writes and the server reads (readable_storage)",
        )
    folder = Path(named).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".symdenoise-writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SymDenoiseError(
            f"folder {folder}",
            rule=f"denoised frames cannot be written there ({error.strerror})",
            remedy="pass directory=..., a folder that this computer writes and the server reads",
        ) from error
    return folder
