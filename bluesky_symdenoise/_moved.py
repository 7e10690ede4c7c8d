"""Import paths of the previous release, which keep working for one release with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = "bluesky_symdenoise"

#: New module names by old ones.
MOVED = {
    "acquisition.plan": "acquisition.request.request",
    "acquisition.beamline": "acquisition.request.beamline",
    "acquisition.place": "acquisition.request.place",
    "acquisition.poni": "acquisition.request.poni",
    "acquisition.arguments": "acquisition.request.toml",
    "acquisition.documents": "acquisition.runs.documents",
    "acquisition.routing": "acquisition.runs.routing",
    "acquisition.replaced": "acquisition.runs.replaced",
    "acquisition.counting": "acquisition.runs.counting",
    "acquisition.frames": "acquisition.runs.frames",
    "acquisition.legacy": "acquisition.runs.legacy",
    "acquisition.given": "acquisition.runs.given",
    "acquisition.databroker": "acquisition.runs.databroker",
    "acquisition.rawfiles": "acquisition.runs.raw_files",
    "acquisition.stored": "acquisition.runs.stored",
    "acquisition.ahead": "acquisition.runs.ahead",
    "acquisition.outlet": "acquisition.deliver.outlet",
    "acquisition.claim": "acquisition.deliver.claim",
    "acquisition.upload": "acquisition.deliver.upload",
    "acquisition.spool": "acquisition.deliver.spool",
    "acquisition.sender": "acquisition.deliver.sender",
    "acquisition.delivery": "acquisition.deliver.delivery",
    "acquisition.probe": "acquisition.deliver.probe",
    "acquisition.streams": "acquisition.derive.streams",
    "acquisition.images": "acquisition.derive.images",
    "acquisition.darks": "acquisition.derive.darks",
    "acquisition.rings": "acquisition.derive.rings",
    "acquisition.recorded": "acquisition.derive.recorded",
    "acquisition.reader": "acquisition.derive.reader",
    "acquisition.run": "acquisition.derive.run",
    "acquisition.aside": "acquisition.derive.call_queue",
    "acquisition.distributed": "acquisition.cluster.distributed",
    "acquisition.partition": "acquisition.cluster.partition",
    "acquisition.callback": "acquisition.live.callback",
    "acquisition.threaded": "acquisition.live.threaded",
    "acquisition.engine": "acquisition.live.engine",
    "acquisition.status": "acquisition.live.status",
    "acquisition.feeder": "acquisition.live.feeder",
    "acquisition.backlog": "acquisition.live.backlog",
    "acquisition.process": "acquisition.live.process",
    "acquisition.worker": "acquisition.live.worker",
    "acquisition.pool": "acquisition.live.pool",
    "acquisition.replay": "acquisition.past.replay",
    "acquisition.forecast": "acquisition.past.forecast",
    "acquisition.inmemory": "acquisition.past.in_memory",
    "acquisition.again": "acquisition.past.recompute",
    "acquisition.symmetry": "acquisition.past.symmetry",
    "acquisition.finetune": "acquisition.past.finetune",
    "acquisition.stacks": "acquisition.past.stacks",
    "acquisition.register": "acquisition.lazy.register",
    "acquisition.registering": "acquisition.lazy.callback",
    "acquisition.pixels": "acquisition.lazy.convert",
    "acquisition.watch": "acquisition.service.watch",
    "acquisition.catchup": "acquisition.service.catchup",
    "acquisition.health": "acquisition.service.health",
    "acquisition.sources": "acquisition.service.sources",
    "acquisition.following": "acquisition.service.tiled_source",
    "catalog.row": "derived.row",
    "catalog.columns": "derived.columns",
    "catalog.writer": "catalog.store.writer",
    "catalog.journal": "catalog.store.journal",
    "catalog.lock": "catalog.store.lock",
    "catalog.marks": "catalog.store.marks",
    "catalog.access": "catalog.store.access",
    "catalog.containers": "catalog.store.containers",
    "catalog.parts": "catalog.store.parts",
    "catalog.lazyrun": "catalog.lazy.documents",
    "catalog.cache": "catalog.lazy.cache",
    "catalog.models": "catalog.lazy.models",
    "catalog.page": "catalog.report.page",
    "catalog.picture": "catalog.report.picture",
    "catalog.profile": "catalog.report.profile",
    "catalog.thumbnail": "catalog.report.thumbnail",
    "catalog.served": "catalog.report.served",
    "catalog.choice": "catalog.report.choice",
    "catalog.nexus_export": "catalog.report.nexus_export",
    "catalog.serve": "catalog.server.serve",
    "catalog.doctor": "catalog.server.doctor",
    "catalog.probe": "catalog.server.probe",
    "catalog.finding": "catalog.server.finding",
    "catalog.query": "catalog.find.query",
    "catalog.align": "catalog.find.align",
    "bench.cases": "bench.quality.cases",
    "bench.metrics": "bench.quality.metrics",
    "bench.peers": "bench.quality.peers",
    "bench.comparison": "bench.quality.comparison",
    "bench.filters": "bench.quality.filters",
    "bench.floors": "bench.quality.floors",
    "bench.folded": "bench.quality.folded",
    "bench.learned": "bench.quality.learned",
    "bench.stabilised": "bench.quality.stabilised",
    "bench.extremes": "bench.quality.extremes",
    "bench.origins": "bench.quality.origins",
    "bench.report": "bench.quality.report",
    "bench.adapt": "bench.quality.adapt",
    "bench.features": "bench.truth.features",
    "bench.honesty": "bench.truth.honesty",
    "bench.calibration": "bench.truth.calibration",
    "bench.science": "bench.truth.science",
    "bench.symmetry": "bench.truth.symmetry",
    "bench.tilt": "bench.truth.tilt",
    "bench.pdf": "bench.truth.pdf",
    "bench.arcs": "bench.truth.arcs",
    "bench.few": "bench.truth.few",
    "bench.estimators": "bench.truth.estimators",
    "bench.savings": "bench.truth.savings",
    "bench.live": "bench.load.live",
    "bench.replay": "bench.load.replay",
    "bench.dask": "bench.load.dask",
    "bench.serve": "bench.load.serve",
    "bench.search": "bench.load.search",
    "bench.server": "bench.load.server",
    "bench.population": "bench.load.population",
    "bench.postgres": "bench.load.postgres",
    "bench.speed": "bench.computing.speed",
    "bench.patterns": "bench.simulated.patterns",
    "bench.powders": "bench.simulated.powders",
}


#: New names of classes that were renamed when their module moved, by old module and name.
RENAMED = {
    ("acquisition.aside", "Aside"): "CallQueue",
    ("acquisition.documents", "Packed"): "PackedDocument",
    ("acquisition.engine", "Report"): "RunListener",
    ("acquisition.images", "Images"): "ImageDenoiser",
    ("acquisition.inmemory", "LazyImages"): "DeferredImages",
    ("acquisition.partition", "Packed"): "PackedSetup",
    ("acquisition.partition", "Setup"): "PartitionSetup",
    ("acquisition.poni", "Stand"): "DetectorPosition",
    ("acquisition.sender", "Told"): "DeliveryListener",
    ("acquisition.sources", "Source"): "DocumentSource",
    ("acquisition.worker", "Setup"): "WorkerSetup",
    ("catalog.parts", "Part"): "PartReader",
}


class _Moved(ModuleType):
    """A module under its old name, with the content of the module of the new name."""

    def __init__(self, name: str, now: ModuleType) -> None:
        super().__init__(name, f"Moved to `{now.__name__}`.")
        self.__dict__["_now"] = now

    def __getattr__(self, name: str) -> Any:
        old = self.__name__.removeprefix(f"{_PACKAGE}.")
        return getattr(self.__dict__["_now"], RENAMED.get((old, name), name))

    def __dir__(self) -> list[str]:
        return dir(self.__dict__["_now"])


class _Finder(MetaPathFinder, Loader):
    """Finder of modules under their old names, if no other module has that name."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return how a moved module is loaded; None for any other name."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module of the new name, and warn the importer of the old one."""
        now = f"{_PACKAGE}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(
            f"{spec.name} has moved: import it from {now}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return _Moved(spec.name, importlib.import_module(now))

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module has run already."""


def install() -> None:
    """Make the import system know the old names, once."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.append(_Finder())
