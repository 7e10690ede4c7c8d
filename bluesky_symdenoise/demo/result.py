"""What the demo finds when it queries its derived run back."""

from __future__ import annotations

import os
import resource
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bluesky_symdenoise.bench.quality.metrics import best_floor_nll, poisson_nll
from bluesky_symdenoise.catalog.find.align import aligned
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.report.picture import panel_figure, panels, png
from bluesky_symdenoise.demo.played import Input
from bluesky_symdenoise.demo.report import Report, show
from bluesky_symdenoise.demo.scan import DATA_KEY
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from tiled.client.container import Container


def shown(
    client: Container,
    raw_uid: str,
    played: Input,
    *,
    model: str | None,
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
    nll = _held_out(counts[0], measured[0], Denoiser.pretrained(model), found)
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
