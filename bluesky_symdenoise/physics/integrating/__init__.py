"""Integrating detectors (CCD, sCMOS, flat panel, charge-integrating pixels): their readout, and counts equivalent."""

from bluesky_symdenoise.physics.integrating.finding import readout_from_frames as readout_from_frames
from bluesky_symdenoise.physics.integrating.found import FoundReadout as FoundReadout
from bluesky_symdenoise.physics.integrating.readout import Readout as Readout
from bluesky_symdenoise.physics.integrating.readout import pseudo_counts as pseudo_counts
from bluesky_symdenoise.physics.integrating.transfer import found_readout as found_readout
