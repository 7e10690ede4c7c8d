"""The demo job: a server, a RunEngine, a detector, both writers; then the derived run is queried back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_symdenoise._garbage import imports
from bluesky_symdenoise.acquisition.live.process import StartedDenoiser
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import checked_beam_center, checked_symmetry

if TYPE_CHECKING:
    from rich.console import Console

    from bluesky_symdenoise.demo.report import Report

#: Number of frames that are played by default.
DEFAULT_FRAMES = 12


def run(
    *,
    output: Path,
    images: str | None = None,
    frames: int | None = None,
    symmetry: str = "auto",
    beam_center: Sequence[float] | None = None,
    model: str | None = None,
    console: Console,
) -> Report:
    """Run the demo and print what it did.

    Parameters
    ----------
    output
        Folder of the catalogue; made if absent, added to if not.
    images
        File or glob pattern to play instead of the simulation.
    frames
        Number of frames; by default all of `images`, at most 12.
    symmetry, beam_center
        See `bluesky_symdenoise.DenoiseCallback`; the centre is by default that of the file, if it has one.
    """
    if frames is not None and frames < 1:
        raise SymDenoiseError(f"--frames {frames}", rule="at least one frame is played", remedy="give 1 or more")
    checked_symmetry(symmetry)
    settings = DenoiserSettings(model)
    # Refuse an unknown model at once.
    settings.sha256()
    with StartedDenoiser(settings) as denoiser, ThreadPoolExecutor(1) as beside:
        # While its process loads the denoiser, this one imports what serves and acquires; both take seconds.
        with imports():
            from bluesky_symdenoise.demo.played import opened, simulated

            pending = (
                beside.submit(simulated, frames or DEFAULT_FRAMES)
                if images is None
                else beside.submit(opened, images, beam_center)
            )
            if images is not None:
                pending.result()
            from bluesky_symdenoise.demo.scan import scan

        played = pending.result()
        if beam_center is not None:
            checked_beam_center(beam_center, (played.frames.shape[1], played.frames.shape[2]))
        number = frames or min(len(played.frames), DEFAULT_FRAMES)  # type: ignore[arg-type]
        console.print(
            f"[bold]{played.title}[/]: {number} frames of {played.frames.shape[1]} x {played.frames.shape[2]} pixels"
        )
        with embedded_catalog(output) as client:
            raw_uid, seconds, per_event = scan(
                client,
                output.resolve() / "frames",
                played,
                number=number,
                denoiser=denoiser,
                symmetry=symmetry,
                beam_center=beam_center or played.beam_center,
                meanwhile=lambda: beside.submit(import_module, "bluesky_symdenoise.demo.result"),
                console=console,
            )
            from bluesky_symdenoise.demo.result import shown

            return shown(
                client,
                raw_uid,
                played,
                model=model,
                output=output,
                scan_seconds=seconds,
                per_event=per_event,
                console=console,
            )
