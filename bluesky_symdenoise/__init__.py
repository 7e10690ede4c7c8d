"""Denoise X-ray detector images from their physical symmetry while the experiment runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bluesky_symdenoise import _moved

__version__ = "0.1.0"

_moved.install()

_HOME = {
    "Beamline": "bluesky_symdenoise.acquisition.request.beamline",
    "DenoiseCallback": "bluesky_symdenoise.acquisition.live.callback",
    "Denoiser": "bluesky_symdenoise.denoiser.infer",
    "DenoiserSettings": "bluesky_symdenoise.denoiser.settings",
    "Place": "bluesky_symdenoise.acquisition.request.place",
    "Readout": "bluesky_symdenoise.physics.integrating.readout",
    "Ring": "bluesky_symdenoise.analysis.ring",
    "RegisterCallback": "bluesky_symdenoise.acquisition.lazy.callback",
    "SymDenoiseError": "bluesky_symdenoise.errors",
    "Symmetry": "bluesky_symdenoise.physics.symmetry",
    "ThreadedDenoiseCallback": "bluesky_symdenoise.acquisition.live.threaded",
    "check_symmetry": "bluesky_symdenoise.acquisition.past.symmetry",
    "aligned": "bluesky_symdenoise.catalog.find.align",
    "denoised_for": "bluesky_symdenoise.catalog.find.query",
    "embedded_catalog": "bluesky_symdenoise.catalog.server.serve",
    "finetune": "bluesky_symdenoise.acquisition.past.finetune",
    "integrate": "bluesky_symdenoise.analysis.integrate",
    "find": "bluesky_symdenoise.catalog.find.query",
    "evict": "bluesky_symdenoise.acquisition.lazy.convert",
    "load_readout": "bluesky_symdenoise.files.readout_file",
    "save_readout": "bluesky_symdenoise.files.readout_file",
    "readout_from_frames": "bluesky_symdenoise.physics.integrating.finding",
    "materialize": "bluesky_symdenoise.acquisition.lazy.convert",
    "raw_for": "bluesky_symdenoise.catalog.find.query",
    "recompute": "bluesky_symdenoise.acquisition.past.recompute",
    "register": "bluesky_symdenoise.acquisition.lazy.register",
    "self_check": "bluesky_symdenoise.acquisition.past.self_check",
    "replay": "bluesky_symdenoise.acquisition.past.replay",
    "survey": "bluesky_symdenoise.acquisition.past.survey",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.lazy.callback import RegisterCallback as RegisterCallback
    from bluesky_symdenoise.acquisition.lazy.convert import evict as evict
    from bluesky_symdenoise.acquisition.lazy.convert import materialize as materialize
    from bluesky_symdenoise.acquisition.lazy.register import register as register
    from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback as DenoiseCallback
    from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback as ThreadedDenoiseCallback
    from bluesky_symdenoise.acquisition.past.finetune import finetune as finetune
    from bluesky_symdenoise.acquisition.past.recompute import recompute as recompute
    from bluesky_symdenoise.acquisition.past.replay import replay as replay
    from bluesky_symdenoise.acquisition.past.self_check import self_check as self_check
    from bluesky_symdenoise.acquisition.past.survey import survey as survey
    from bluesky_symdenoise.acquisition.past.symmetry import check_symmetry as check_symmetry
    from bluesky_symdenoise.acquisition.request.beamline import Beamline as Beamline
    from bluesky_symdenoise.acquisition.request.place import Place as Place
    from bluesky_symdenoise.analysis.integrate import integrate as integrate
    from bluesky_symdenoise.analysis.ring import Ring as Ring
    from bluesky_symdenoise.catalog.find.align import aligned as aligned
    from bluesky_symdenoise.catalog.find.query import denoised_for as denoised_for
    from bluesky_symdenoise.catalog.find.query import find as find
    from bluesky_symdenoise.catalog.find.query import raw_for as raw_for
    from bluesky_symdenoise.catalog.server.serve import embedded_catalog as embedded_catalog
    from bluesky_symdenoise.denoiser.infer import Denoiser as Denoiser
    from bluesky_symdenoise.denoiser.settings import DenoiserSettings as DenoiserSettings
    from bluesky_symdenoise.errors import SymDenoiseError as SymDenoiseError
    from bluesky_symdenoise.files.readout_file import load_readout as load_readout
    from bluesky_symdenoise.files.readout_file import save_readout as save_readout
    from bluesky_symdenoise.physics.integrating.finding import readout_from_frames as readout_from_frames
    from bluesky_symdenoise.physics.integrating.readout import Readout as Readout
    from bluesky_symdenoise.physics.symmetry import Symmetry as Symmetry


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import bluesky_symdenoise`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
