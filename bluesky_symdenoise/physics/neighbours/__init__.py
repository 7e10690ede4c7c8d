"""Photons of neighbouring rows of a run as evidence about one row."""
