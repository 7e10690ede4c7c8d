"""Settings of a denoiser as a value that another process can load."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.released import checked_algorithm, newest
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser


@dataclass(frozen=True)
class DenoiserSettings:
    """Arguments of `Denoiser.pretrained`; making this object does not load torch.

    Attributes
    ----------
    model
        Name of a model of the package, or the path of a ``.safetensors`` file; None for the default one.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
    threads
        Threads on the CPU; None leaves one core to other processes, such as the RunEngine.
    dtype
        ``float32`` or ``bfloat16``.
    defects
        ``find`` or ``keep``; see `bluesky_symdenoise.Denoiser`.
    views
        1 or 8; see `bluesky_symdenoise.Denoiser`.
    sums
        ``free`` or ``agree``; see `bluesky_symdenoise.Denoiser`.
    algorithm
        That of a recipe, to go on as an earlier version did; by default the newest.

    Raises
    ------
    SymDenoiseError
        If `threads` is less than 1, or another dtype, choice of defects or sums, or number of views is given, or an
        algorithm that this version does not have.
    """

    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    dtype: str = "float32"
    defects: str = "find"
    views: int = 1
    sums: str = "free"
    algorithm: str = field(default_factory=newest)

    def __post_init__(self) -> None:
        checked_dtype(self.dtype)
        checked_defects(self.defects)
        checked_views(self.views)
        checked_sums(self.sums)
        checked_algorithm(self.algorithm)
        if self.threads is not None and self.threads < 1:
            raise SymDenoiseError(
                f"threads={self.threads}", rule="at least one is needed", remedy="give 1 or more, or None"
            )

    def sha256(self) -> str:
        """Return the sha256 of the weights.

        Raises
        ------
        SymDenoiseError
            If there is no such model or its sha256 is not the recorded one.
        """
        return model_file(self.model).sha256

    def load(self) -> Denoiser:
        """Return the denoiser; the same one for equal settings within a process."""
        return _loaded(self)


@dataclass(frozen=True)
class RecordedSettings(DenoiserSettings):
    """Settings of the model with this sha256, whatever its name on another computer.

    Attributes
    ----------
    recorded
        Sha256 of the weights.
    """

    recorded: str = ""

    def sha256(self) -> str:
        """Return the recorded sha256."""
        return self.recorded

    def load(self) -> Denoiser:
        """Return the denoiser; the same one for equal settings within a process.

        Raises
        ------
        SymDenoiseError
            If this computer has no model with that sha256.
        """
        return _loaded_as_recorded(self)


def checked_dtype(dtype: str) -> None:
    """Refuse an unknown dtype."""
    if dtype not in ("float32", "bfloat16"):
        raise SymDenoiseError(f"dtype={dtype!r}", rule="it must be float32 or bfloat16", remedy="leave it out")


def checked_defects(defects: str) -> str:
    """Return the choice of defects, refusing unknown ones."""
    if defects not in ("find", "keep"):
        raise SymDenoiseError(
            f"defects={defects!r}",
            rule="it must be find (mask hot and dead pixels) or keep",
            remedy="give find or keep",
        )
    return defects


def checked_views(views: int) -> int:
    """Return the number of views, refusing unknown ones."""
    if views not in (1, 8):
        raise SymDenoiseError(
            f"views={views}",
            rule="it must be 1 (the frame only) or 8 (with its turns and mirror images)",
            remedy="give 1 or 8",
        )
    return views


def checked_sums(sums: str) -> str:
    """Return the choice of sums, refusing unknown ones."""
    if sums not in ("free", "agree"):
        raise SymDenoiseError(
            f"sums={sums!r}",
            rule="it must be free (only the frame's total is kept) or agree (those of rings and boxes are, too)",
            remedy="give free or agree",
        )
    return sums


def spare_threads() -> int:
    """Return as many threads as leave one core to other processes, such as the RunEngine."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


@lru_cache(maxsize=1)
def _loaded(settings: DenoiserSettings) -> Denoiser:
    from bluesky_symdenoise.denoiser.infer import Denoiser

    return Denoiser.pretrained(
        settings.model,
        device=settings.device,
        threads=settings.threads or spare_threads(),
        dtype=settings.dtype,
        defects=settings.defects,
        views=settings.views,
        sums=settings.sums,
        algorithm=settings.algorithm,
    )


@lru_cache(maxsize=1)
def _loaded_as_recorded(settings: RecordedSettings) -> Denoiser:
    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.denoiser.weights import load_recorded

    model = load_recorded(str(settings.model), settings.recorded)
    return Denoiser(
        model,
        device=settings.device,
        threads=settings.threads,
        dtype=settings.dtype,
        defects=settings.defects,
        views=settings.views,
        sums=settings.sums,
        algorithm=settings.algorithm,
    )
