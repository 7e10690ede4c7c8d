"""The demo job: a server, a RunEngine, a detector, both writers; then the derived run is queried back."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from numpy.typing import NDArray
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.play import Frames, PlayDetector
from bluesky_symdenoise.bench.quality.metrics import best_floor_nll, poisson_nll
from bluesky_symdenoise.catalog.find.align import aligned
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.report.picture import panel_figure, panels, png
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.demo.report import Report, show
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files import open_frames
from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_beam_center, checked_symmetry
from bluesky_symdenoise.training.series import textured_series

if TYPE_CHECKING:
    from tiled.client.container import Container

#: Number of frames that are played by default.
DEFAULT_FRAMES = 12
#: Name of the simulated detector and of its data key.
DATA_KEY = "det"


@dataclass(frozen=True)
class Input:
    """Frames that the detector plays; the truth is known for simulations only."""

    title: str
    frames: Frames
    mask: NDArray[np.bool_] | None
    beam_center: tuple[float, float] | None
    truth: NDArray[np.float32] | None


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
    played = _simulated(frames or DEFAULT_FRAMES) if images is None else _opened(images, beam_center)
    if beam_center is not None:
        checked_beam_center(beam_center, (played.frames.shape[1], played.frames.shape[2]))
    number = frames or min(len(played.frames), DEFAULT_FRAMES)  # type: ignore[arg-type]
    denoiser = Denoiser.pretrained(model)
    console.print(
        f"[bold]{played.title}[/]: {number} frames of {played.frames.shape[1]} x {played.frames.shape[2]} pixels"
    )
    with embedded_catalog(output) as client:
        folder = output.resolve() / "frames"
        raw_uid, seconds, per_event = _scan(
            client,
            folder,
            played,
            number=number,
            model=model,
            symmetry=symmetry,
            beam_center=beam_center or played.beam_center,
            console=console,
        )
        return _shown(
            client,
            raw_uid,
            played,
            denoiser=denoiser,
            output=output,
            scan_seconds=seconds,
            per_event=per_event,
            console=console,
        )


def _simulated(frames: int) -> Input:
    series = textured_series(np.random.default_rng(1), frames=frames)
    return Input(
        title="Simulated series, 1 photon/pixel, texture growing",
        frames=series.counts,
        mask=None,
        beam_center=None,
        truth=series.truth,
    )


def _opened(images: str, beam_center: Sequence[float] | None) -> Input:
    stack = open_frames(images)
    center = stack.beam_center if beam_center is None else (beam_center[0], beam_center[1])
    return Input(title=images, frames=stack, mask=stack.mask, beam_center=center, truth=None)


def _scan(
    client: Container,
    folder: Path,
    played: Input,
    *,
    number: int,
    model: str | None,
    symmetry: str,
    beam_center: Sequence[float] | None,
    console: Console,
) -> tuple[str, float, list[float]]:
    """Acquire with a RunEngine, writing raw and derived runs as at a beamline; return the raw uid and two timings."""
    per_event: list[float] = []
    RE = RunEngine(call_returns_result=True)
    with init_devices():
        det = PlayDetector(played.frames, StaticPathProvider(UUIDFilenameProvider(), folder), name=DATA_KEY)
    RE.subscribe(TiledWriter(client["raw"], batch_size=1))
    callback = DenoiseCallback(
        client["denoised"],
        denoiser=DenoiserSettings(model),
        mask=played.mask,
        symmetry=symmetry,
        beam_center=beam_center,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, callback:
        acquired = progress.add_task("acquired", total=number)
        denoised = progress.add_task("denoised", total=number)

        def attach(name: str, doc: dict[str, Any]) -> None:
            begun = time.perf_counter()
            callback(name, doc)
            if name == "event":
                per_event.append(time.perf_counter() - begun)
                progress.advance(acquired)

        def look() -> bool:
            status = callback.status()
            progress.update(denoised, completed=status.frames + status.failed)
            return bool(status.runs)

        RE.subscribe(attach)
        begun = time.perf_counter()
        (raw_uid,) = RE(bp.count([det], num=number)).run_start_uids
        seconds = time.perf_counter() - begun
        while not look():
            time.sleep(0.05)
        status = callback.close()
        look()
    if status.errors and not status.frames:
        raise SymDenoiseError(f"run {raw_uid}", rule="it was not denoised", remedy=status.errors[0])
    return raw_uid, seconds, per_event


def _shown(
    client: Container,
    raw_uid: str,
    played: Input,
    *,
    denoiser: Denoiser,
    output: Path,
    scan_seconds: float,
    per_event: list[float],
    console: Console,
) -> Report:
    """Query the derived run back and print what is there."""
    derived = denoised_for(client, raw_uid)
    if derived is None:
        raise SymDenoiseError(f"run {raw_uid}", rule="it has no derived run", remedy="look at the log above")
    raw = client["raw"][raw_uid]
    stopped = derived.metadata["stop"]["provenance"]
    data = aligned(raw, derived)
    counts = np.asarray(data[DATA_KEY])[:, 0]
    intensity = np.asarray(data[f"{DATA_KEY}_denoised"])[:, 0]
    sigma = np.asarray(data[f"{DATA_KEY}_sigma"])[:, 0]
    group = str(data[f"{DATA_KEY}_symmetry"].values[0])
    y, x = (float(data[f"{DATA_KEY}_center_{axis}"].values[0]) for axis in "yx")
    found = Symmetry(group, (y, x) if np.isfinite(y) else None)
    measured = ~(as_mask(played.mask, (counts.shape[1], counts.shape[2])) | sentinel_mask(counts))
    nll = _held_out(counts[0], measured[0], denoiser, found)
    errors = _errors(counts, intensity, sigma, measured, played.truth)
    picture = output / f"{raw_uid[:8]}.png"
    drawn = panels(counts[0], intensity[0], sigma[0], measured[0], found)
    picture.write_bytes(png(panel_figure(drawn, title=played.title)))
    sizes = [_bytes_of(run) for run in (raw, derived)]
    seconds = [float(value) / 1000 for value in data[f"{DATA_KEY}_ms"].values]
    report = Report(
        raw_uid=raw_uid,
        denoised_uid=derived.start["uid"],
        catalog=str(output.resolve()),
        frames=len(counts),
        failures=[f"{failure['frames']} frames: {failure['reason']}" for failure in stopped["failures"]],
        shape=list(counts.shape[1:]),
        data_key=DATA_KEY,
        symmetry=group,
        beam_center=list(found.beam_center) if found.beam_center else None,
        seconds_per_frame=round(statistics.median(seconds), 4),
        scan_seconds=round(scan_seconds, 3),
        callback_us_per_event=round(statistics.median(per_event) * 1e6, 1),
        raw_bytes=sizes[0],
        denoised_bytes=sizes[1],
        bytes_ratio=round(sizes[1] / sizes[0], 2),
        held_out_nll_raw=round(nll[0], 4),
        held_out_nll_denoised=round(nll[1], 4),
        flux_change=0.0
        + round(float(data[f"{DATA_KEY}_counts_out"].sum() / data[f"{DATA_KEY}_counts_in"].sum()) - 1, 5),
        rms_error_raw=errors[0],
        rms_error_denoised=errors[1],
        truth_within_1_sigma=errors[2],
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        picture=str(picture.resolve()),
    )
    show(console, report, output)
    return report


def _held_out(
    counts: NDArray[Any], measured: NDArray[np.bool_], denoiser: Denoiser, symmetry: Symmetry
) -> tuple[float, float]:
    """Return held-out negative log-likelihoods per pixel of half the photons, given the other half raw and denoised."""
    rng = np.random.default_rng(0)
    whole = np.where(measured, counts, 0).astype(np.int64)
    half = rng.binomial(whole, 0.5)
    estimate = denoiser(half, mask=~measured, symmetry=symmetry)["intensity"].values
    raw = best_floor_nll(half.astype(float), (whole - half).astype(float), 1.0, mask=~measured).nll
    safe = np.where(measured, estimate, 1.0).astype(float)
    return raw, poisson_nll(safe, (whole - half).astype(float), 1.0, mask=~measured, floor=1e-6)


def _errors(
    counts: NDArray[Any],
    intensity: NDArray[np.float32],
    sigma: NDArray[np.float32],
    measured: NDArray[np.bool_],
    truth: NDArray[np.float32] | None,
) -> tuple[float | None, float | None, float | None]:
    """Return rms errors of raw and denoised against the truth, and how often it is within one sigma."""
    if truth is None:
        return None, None, None
    expected = truth[: len(counts)][measured]
    off = intensity[measured] - expected
    raw = counts[measured] - expected
    return (
        round(float(np.sqrt(np.mean(raw**2))), 4),
        round(float(np.sqrt(np.mean(off**2))), 4),
        round(float(np.mean(np.abs(off) <= sigma[measured])), 4),
    )


def _bytes_of(run: Any) -> int:
    """Return the size of the files that a run's primary stream announces."""
    from tiled.utils import path_from_uri

    sources = run["primary"][DATA_KEY].data_sources()
    return sum(os.path.getsize(path_from_uri(asset.data_uri)) for asset in sources[0].assets)
