"""Runs denoised by the workers of a Dask cluster."""
