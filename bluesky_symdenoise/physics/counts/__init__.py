"""Whether a frame holds photon counts."""
