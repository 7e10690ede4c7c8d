"""Weights of an earlier version of the package, from its wheel: nothing in it is installed or executed."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from bluesky_symdenoise.denoiser import registry
from bluesky_symdenoise.denoiser.weights import LARGEST, import_model
from bluesky_symdenoise.errors import SymDenoiseError

#: Number of models that a wheel may have.
MOST = 32
_SUFFIXES = (".safetensors", ".json", ".md")


def import_wheel(path: Path) -> list[registry.Entry]:
    """Add the models in a wheel of this package to the registry; return their entries, also of those that were here.

    A model whose name the package has for other weights gets its version at the end of its name, such as ``fast-5``.

    Raises
    ------
    SymDenoiseError
        If it is not a wheel, or has no model, or one that cannot be imported.
    """
    try:
        with ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            found = _unpacked(wheel, Path(folder))
            if not found:
                raise SymDenoiseError(
                    f"wheel {path}", rule="it has no model", remedy="give a wheel of bluesky-symdenoise"
                )
            return [import_model(each) for each in found]
    except (BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise SymDenoiseError(
            f"wheel {path}", rule=f"it cannot be read ({error})", remedy="download it again"
        ) from error


def _unpacked(wheel: ZipFile, folder: Path) -> list[Path]:
    """Return the safetensors files of the models, each written with its record into the folder."""
    members = {PurePosixPath(info.filename): info for info in wheel.infolist()}
    models = sorted(name for name in members if name.suffix == ".safetensors")
    if len(models) > MOST:
        raise SymDenoiseError(f"a wheel with {len(models)} models", rule=f"{MOST} are the most", remedy="import some")
    made = []
    for number, model in enumerate(models):
        # The names in a wheel are not trusted: only their last part is used, in a folder of their own.
        place = folder / str(number)
        place.mkdir()
        for suffix in _SUFFIXES:
            info = members.get(model.with_suffix(suffix))
            if info is None:
                continue
            with wheel.open(info) as file:
                content = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise SymDenoiseError(
                    f"{model.name} in a wheel", rule=f"it has more than {LARGEST} bytes", remedy="give another wheel"
                )
            (place / f"{model.stem}{suffix}").write_bytes(content)
        made.append(place / model.name)
    return made
