"""Plot of a frame's photon transfer curve, which shows at a glance whether it holds counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.physics.counts.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SAID = {"counts": "photon counts", "doubtful": "doubtful", "not counts": "not photon counts", "too few": "too few"}


def draw_transfer(axis: Axes, found: Verdict) -> None:
    """Draw variance against mean at each level of a frame, with the line of counts and the one that was fitted."""
    from matplotlib.ticker import LogLocator, NullLocator

    curve: Any = found.curve
    mean, variance = curve.mean, curve.ratio * curve.mean
    axis.errorbar(
        mean, variance, curve.error * mean, fmt="o", markersize=3.5, color="tab:blue", label="blocks of pixels"
    )
    ends = np.array([mean.min() / 1.5, mean.max() * 1.5])
    axis.plot(ends, ends, color="0.35", linewidth=1, label="photon counts: variance = mean")
    if found.line is not None:
        x = np.geomspace(float(ends[0]), float(ends[1]), 60)
        fitted = found.line.constant + found.line.gain * x
        label = f"{found.line.gain:.3g} mean {found.line.constant:+.3g}"
        axis.plot(x[fitted > 0], fitted[fitted > 0], "--", color="tab:orange", linewidth=1, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        scale.set_major_formatter("{x:g}")
        scale.set_minor_locator(NullLocator())
    axis.set_xlabel("mean (counts)")
    axis.set_ylabel("variance")
    axis.set_title(f"photon transfer: {_SAID[found.kind]}", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
