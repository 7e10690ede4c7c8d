"""Plot of the photon transfer curves from which a detector's readout was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bluesky_symdenoise.physics.integrating.found import FoundReadout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def readout_figure(found: FoundReadout) -> Figure:
    """Return variance against signal at each binning, with the lines through them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axis = figure.subplots()
    for number, curve in enumerate(found.curves):
        colour = f"C{number}"
        axis.errorbar(
            curve.mean,
            curve.variance,
            curve.error,
            fmt="o",
            markersize=3.5,
            color=colour,
            label=f"{curve.binning} x {curve.binning} pixels: {curve.gain:#.4g} +/- {curve.gain_error:#.2g}",
        )
        ends = np.array([min(0.0, float(curve.mean.min())), float(curve.mean.max())])
        axis.plot(ends, curve.constant + curve.gain * ends, color=colour, linewidth=1)
    axis.set_xlabel("signal above the offset")
    axis.set_ylabel("variance of a sum / pixels")
    blur = f", spread of light {found.readout.blur:.2g} pixels" if found.readout.blur else ""
    gain, noise = (float(np.nanmedian(value)) for value in (found.readout.gain, found.readout.read_noise))
    axis.set_title(
        f"photon transfer\ngain {gain:#.4g} +/- {found.gain_error:#.2g}, read noise {noise:.4g}{blur}", fontsize=11
    )
    axis.legend(title="slope", fontsize=8, frameon=False)
    return figure
