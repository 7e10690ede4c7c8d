"""Rules that say when a new derived run may replace an existing one."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise.catalog.store.containers import run_in
from bluesky_symdenoise.catalog.store.lock import held, is_held
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

Document = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """Conditions under which a writer may replace an existing derived run.

    Attributes
    ----------
    raw_stop
        The raw run's stop document; None while it has none.
    older_than
        Seconds after its start from which a derived run without a stop document counts as abandoned even if its writer
        worked in a folder that cannot be seen from here; None: never.
    force
        Replace even a complete derived run.
    """

    raw_stop: Document | None = None
    older_than: float | None = None
    force: bool = False

    def stands(self, run: BlueskyRun) -> bool:
        """Return whether a derived run is complete: all frames, none failed, and ended as the raw run did."""
        stop = run.metadata.get("stop")
        if self.force or not stop or not stop["provenance"]["complete"] or stop["provenance"]["failures"]:
            return False
        return self.raw_stop is None or all(
            stop.get(key, "") == self.raw_stop.get(key, "") for key in ("exit_status", "reason")
        )

    def make_way(self, container: Container, uid: str, *, journal: Path) -> None:
        """Delete the derived run that a dead writer left in Tiled; its files stay.

        Call it while holding the run's `journal`: then no writer in the same folder is alive.

        Raises
        ------
        SymDenoiseError
            If the run is complete, or may still be written.
        """
        run = run_in(container, uid)
        if run is None:
            return
        if self.stands(run):
            raise doubled(uid)
        if not run.metadata.get("stop"):
            self._check_writer(run, journal)
        run.delete(recursive=True, external_only=False)

    def _check_writer(self, run: BlueskyRun, ours: Path) -> None:
        """Refuse if the writer may be alive: it may have worked in another folder, even on another machine."""
        generated = run.start.get("provenance", {}).get("wasGeneratedBy", {})
        if "journal" not in generated:
            return
        journal = Path(generated["journal"])
        if journal.parent.is_dir():
            if journal != ours and is_held(journal):
                raise held(journal)
            return
        age = clock.time() - run.start["time"]
        if self.older_than is None or age < self.older_than:
            raise SymDenoiseError(
                f"derived run {run.start['uid']}",
                rule=f"a process on {generated['host']} writes it in {journal.parent}, which cannot be seen from here",
                remedy="run this there, or, if that process is dead, pass --older-than",
            )


def doubled(uid: str) -> SymDenoiseError:
    """Return the error for a raw run that already has its derived run."""
    return SymDenoiseError(
        f"derived run {uid}",
        rule="this raw run has one with the same recipe already, finished or being written",
        remedy="use it, or delete it first",
    )
