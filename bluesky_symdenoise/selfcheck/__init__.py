"""Measurement of what the denoiser was worth on a run, with photons of the run that the denoiser did not see."""
