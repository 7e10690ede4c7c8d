"""The floor of each peer's likelihood: one for all cases, tuned on sets that are for training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.bench.options import Data, JsonPath
from bluesky_symdenoise.bench.quality import metrics
from bluesky_symdenoise.bench.quality.cases import Case, cases
from bluesky_symdenoise.bench.quality.peers import PEERS, Peer
from bluesky_symdenoise.bench.record import header, write

#: Counts per pixel to which training frames are thinned, and largest side of the crops.
LEVELS, CROP = (0.1, 1.0, 10.0), 96


def tuned_floors(found: Iterable[Case], peers: Mapping[str, Peer]) -> dict[str, float]:
    """Return the floor (counts per pixel of the input) that minimises the loss of each peer over all cases.

    The loss is the mean over cases of the loss per held-out photon, so that long exposures do not weigh more. A peer
    that is not applicable anywhere is left out.
    """
    losses: dict[str, list[metrics.FloatArray]] = {}
    for case in found:
        photons = case.target[~case.mask].mean()
        for name, peer in peers.items():
            estimate = peer.estimate(case.given)
            if estimate is not None:
                of_case = metrics.floor_losses(estimate, case.target, case.k, mask=case.mask) / photons
                losses.setdefault(name, []).append(of_case)
    return {name: float(metrics.FLOORS[np.argmin(np.mean(each, axis=0))]) for name, each in losses.items()}


def main(data: Data, json_path: JsonPath = None) -> dict[str, float]:
    """Tune the least rate that each peer of `quality` may predict, on training sets, beside what is in use."""
    about = header()
    floors = tuned_floors(cases(data, roles=("train",), levels=LEVELS, crop=CROP), PEERS)
    table = Table(title=f"floors tuned on training sets, crops of at most {CROP} x {CROP} pixels")
    for column in ("peer", "tuned", "in use"):
        table.add_column(column, justify="left" if column == "peer" else "right")
    for name, floor in floors.items():
        table.add_row(name, f"{floor:.2g}", f"{PEERS[name].floor:.2g}")
    Console().print(table)
    write(json_path, about, {"tuned": floors, "in_use": {name: PEERS[name].floor for name in floors}})
    return floors
